"""Sums that are added over micro-batches, devices and batches, and divided by a weight only at the end."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, ArrayLike
from .described import described, is_real


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weighted:
    """A weighted mean, as the sum and the weight that it is computed from: `mean = sum / weight`.

    A loss or a metric returns it if its mean is not over the examples of a batch: a mean over tokens, over the pixels
    of a mask, or over a batch in which some examples only fill it up. Over several parts (micro-batches, devices,
    processes, the batches of `evaluate`), sums and weights are added separately: `sum_i s_i / sum_i w_i`. This is the
    mean over everything, as one large batch would give it; the mean of the parts' means would be another number.

    As a loss, both are scalars. The gradient is `sum_i grad(s_i) / sum_i w_i`: the weight is a constant for the
    gradient by the parameters, as after `jax.lax.stop_gradient`. A derivative of the whole step, such as a
    meta-gradient by the weights of examples, includes the weight.

    If the total weight is 0, there is nothing to take the mean of, and the mean is NaN. A step with this loss changes
    nothing and is counted in `State.skipped`; a dynamic loss scale stays as it is. A part with the weight 0 only adds
    its sum.

    Weights must not be negative. This cannot be checked while JAX traces a function, so negative weights are not
    detected.

    Attributes:
        sum: the sum of the weighted values, `()` or, for a metric, `(...)`.
        weight: the sum of the weights, `()` or of the shape of `sum`. It may be an integer, such as a count.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, optax
        >>> def loss(params, batch, *, key, state):
        ...     errors = jnp.square(params["w"] * batch["x"] - batch["y"])
        ...     return fc.train.Weighted((errors * batch["mask"]).sum(), batch["mask"].sum())
        >>> init, step = fc.train.make_step(loss, optax.sgd(0.1), accumulate=2)
        >>> batch = {"x": jnp.ones(4), "y": jnp.array([1.0, 2, 3, 4]), "mask": jnp.array([1.0, 0, 1, 1])}
        >>> state, metrics = jax.jit(step)(init({"w": jnp.zeros(())}, jax.random.key(0)), batch)
        >>> round(float(metrics["loss"]), 4), round((1 + 9 + 16) / 3, 4)
        (8.6667, 8.6667)
        >>> float(fc.train.Weighted.of(jnp.array([1.0, 2, 3]), jnp.array([True, False, True])).mean)
        2.0
    """

    sum: Any
    weight: Any

    @classmethod
    def of(cls, values: ArrayLike, weights: ArrayLike | None = None) -> "Weighted":
        """Return the weighted sum of values, and the sum of their weights.

        Args:
            values: `(examples, ...)`, of any real dtype. 16-bit numbers and integers are summed in float32. Values
                with the weight 0 are left out, also if they are not finite.
            weights: the weights of the values, such as a mask: `(examples, ...)`, or only the first axes of `values`.
                Default: 1 for each value.

        Returns:
            `Weighted(sum over all i of weights_i * values_i, sum over all i of weights_i)`, both of shape `()`.

        Raises:
            FuncconvError: if the weights do not have the first axes of the values.
        """
        values = jnp.asarray(values)
        values = values.astype(_dtype_of_sums(values))
        if weights is None:
            return cls(values.sum(), jnp.asarray(values.size, values.dtype))
        weights = jnp.asarray(weights)
        if weights.shape != values.shape[: weights.ndim]:
            msg = (
                f"train: Weighted.of needs weights with the first axes of the values, which have shape {values.shape}; "
                f"got weights of shape {weights.shape}. Give each value, or each example, one weight"
            )
            raise FuncconvError(msg)
        weights = jnp.expand_dims(weights, tuple(range(weights.ndim, values.ndim)))
        weights = jnp.broadcast_to(weights.astype(values.dtype), values.shape)
        return cls((jnp.where(weights == 0, 0, values) * weights).sum(), weights.sum())

    @property
    def mean(self) -> Array:
        """The mean, `sum / weight`, in at least float32; NaN where the weight is 0."""
        dtype = max(map(_dtype_of_sums, (self.sum, self.weight)), key=lambda dtype: dtype.itemsize)
        total, weight = jnp.asarray(self.sum).astype(dtype), jnp.asarray(self.weight).astype(dtype)
        weight = jnp.broadcast_to(weight, total.shape)
        return jnp.where(weight == 0, jnp.nan, total / divisor(weight))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum:
    """A metric that is summed over the parts of a batch or a data set, such as a count.

    Attributes:
        value: the sum over this part, `(...)`. 16-bit numbers are added in float32.

    Example:
        >>> import funcconv as fc, numpy as np
        >>> def correct(state, batch):
        ...     return fc.train.Sum((batch["x"] * state == batch["y"]).sum())
        >>> data = fc.train.batches({"x": np.arange(5), "y": np.arange(5)}, 2, drop_last=False)
        >>> fc.train.evaluate(correct, 1, data)
        5
    """

    value: Any


def is_total(value: Any) -> bool:
    """Whether a value is a `Weighted` or a `Sum`."""
    return isinstance(value, Weighted | Sum)


def divisor(weight: Array) -> Array:
    """Return the weight, or 1 where it is 0, so that neither the quotient nor its derivative is NaN."""
    return jnp.where(weight == 0, 1, weight)


def checked_total(total: Any, name: str, *, is_loss: bool = False) -> Any:
    """Return a `Weighted` or a `Sum` with arrays of at least 32 bits.

    Args:
        total: what a user's function returned.
        name: of the function or metric, for the message.
        is_loss: whether it is a loss: a floating scalar, and its weight.

    Raises:
        FuncconvError: if it holds anything but real numbers, or if the shapes do not fit.
    """
    values = list(vars(total).values())
    is_valid = all(map(is_real, values)) and jnp.shape(values[-1]) in ((), jnp.shape(values[0]))
    expected, advice = "real numbers", "Sum over the examples and positions"
    if isinstance(total, Weighted):
        expected += ", and the weight a scalar or of the same shape"
        advice += ", or use Weighted.of(values, weights)"
    if is_loss:
        is_valid = is_valid and jnp.shape(values[0]) == () and jnp.issubdtype(jnp.result_type(values[0]), jnp.floating)
        expected = "a floating scalar, and the weight a scalar"
    if not is_valid:
        first = next(iter(vars(total)))
        fields = ", ".join(f"{field}={described(value)}" for field, value in vars(total).items())
        msg = f"train: the {first} of {name} must be {expected}; got {type(total).__name__}({fields}). {advice}"
        raise FuncconvError(msg)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(_wide(jnp.result_type(leaf))), total)


def means(tree: Any) -> Any:
    """Return metrics with the mean in place of each `Weighted`, and the value in place of each `Sum`."""

    def mean(metric: Any) -> Any:
        return metric.mean if isinstance(metric, Weighted) else metric.value if isinstance(metric, Sum) else metric

    return jax.tree.map(mean, tree, is_leaf=is_total)


def over_micro_batches(tree: Any) -> Any:
    """Combine metrics of micro-batches, `(micro-batches, ...)`: totals are added, and of others the mean is taken."""

    def combined(metric: Any) -> Any:
        if is_total(metric):
            return jax.tree.map(lambda values: values.sum(0), metric)
        return metric.mean(0)

    return jax.tree.map(combined, tree, is_leaf=is_total)


def _wide(dtype: Any) -> Any:
    return jnp.int32 if dtype == jnp.bool_ else wide(dtype)


def _dtype_of_sums(value: Any) -> Any:
    dtype = jnp.result_type(value)
    return jnp.dtype(wide(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.float32)
