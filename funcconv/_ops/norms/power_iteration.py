"""The norm of a linear map, by a power iteration whose vectors are kept from one use to the next."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import scale_of, wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, Params, Shape
from ..._windows.layout import as_array
from .standardize import kernel_of

_FIRST_ITERATIONS = 15  # as PyTorch begins


class BilinearMap(NamedTuple):
    """A map of a kernel and an array of shape `right_shape` to an array of shape `left_shape`, linear in both.

    It is compared by value, so that equal maps share a compiled loop outside of `jax.jit`.
    """

    function: Callable[[Any, Array, Array], Array]  # called with the options, the kernel and the array
    options: Hashable
    left_shape: Shape
    right_shape: Shape

    def apply(self, kernel: Array, x: Array) -> Array:
        """Apply the map."""
        return self.function(self.options, kernel, x)


def kernel_matrix(op: str, kernel: Any, axis: int) -> BilinearMap:
    """Return the kernel as a matrix, whose output is one of its axes and whose input are all others.

    Args:
        op: the name of the caller, for messages.
        kernel: the kernel, or its shape and dtype.
        axis: the axis that is the output.

    Returns:
        The linear map.

    Raises:
        FuncconvError: if the kernel has fewer than two axes, an empty one, or not this one.
    """
    if kernel.ndim < 2 or 0 in kernel.shape or not -kernel.ndim <= axis < kernel.ndim:
        msg = f"{op}: the kernel must have at least two axes, none empty, and the axis {axis}; got {kernel.shape}"
        raise FuncconvError(msg)
    axis = axis % kernel.ndim
    right_shape = kernel.shape[:axis] + kernel.shape[axis + 1 :]
    return BilinearMap(_product, axis, kernel.shape[axis : axis + 1], right_shape)


def _product(axis: int, kernel: Array, right: Array) -> Array:
    return jnp.tensordot(right, jnp.moveaxis(kernel, axis, -1), right.ndim, precision="highest")


def normalized(
    op: str,
    params: Params,
    state: Mapping[str, Any],
    linear_map: BilinearMap,
    *,
    train: bool,
    iterations: int,
    starts: bool = False,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Divide a kernel by the norm of a linear map.

    Args:
        op: the name of the caller, for messages.
        params: the parameters with the kernel.
        state: the vectors `left` and `right`.
        linear_map: the linear map.
        train: whether to run the power iteration.
        iterations: number of power iterations in training.
        starts: whether vectors of zeros have not begun, so that they are computed first. Default: False.

    Returns:
        The parameters and the next state.

    Raises:
        FuncconvError: if the state does not fit the linear map, or `iterations` is not a positive integer.
    """
    check_iterations(op, iterations)
    kernel = kernel_of(op, params)
    left = _vector(op, state, "left", linear_map.left_shape)
    right = _vector(op, state, "right", linear_map.right_shape)
    wide_kernel = kernel.astype(wide(kernel.dtype))
    scale = scale_of(wide_kernel)  # so that no square of a number overflows
    unit_kernel = wide_kernel / scale
    left, right = lax.stop_gradient((left.astype(unit_kernel.dtype), right.astype(unit_kernel.dtype)))
    count: int | Array = iterations if train else 0
    if starts:
        has_begun = (left != 0).any()
        right = jnp.where(has_begun, right, _first_vector(right.shape, right.dtype))
        count = count + jnp.where(has_begun, 0, _FIRST_ITERATIONS)
    if train or starts:
        # The loop carries the kernel, so that its program is the same for all kernels.
        vectors = _Vectors(lax.stop_gradient(unit_kernel), left, right)
        _, left, right = lax.fori_loop(0, count, _iteration(linear_map), vectors)
    sigma = jnp.vdot(left, linear_map.apply(unit_kernel, right), precision="highest")
    # For a kernel of zeros, and only there, the norm is 0.
    divided = unit_kernel / jnp.where(sigma == 0, 1, sigma)
    return {**params, "kernel": divided.astype(kernel.dtype)}, {
        "left": left.astype(state["left"].dtype),
        "right": right.astype(state["right"].dtype),
    }


def check_iterations(op: str, iterations: Any) -> None:
    """Raise an error if the number of power iterations is not a positive integer."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        msg = f"{op}: iterations must be an integer of at least 1; got {iterations!r}"
        raise FuncconvError(msg)


def _vector(op: str, state: Mapping[str, Any], name: str, shape: Shape) -> Array:
    given = state.get(name) if isinstance(state, Mapping) else None
    if given is None or getattr(given, "shape", None) != shape:
        described = getattr(given, "shape", type(given).__name__)
        msg = (
            f"{op}: the state must have {name!r} of shape {shape}; got {described}. Make a state for this "
            "kernel and these options, with init_spectral_norm for the function or graph.init_state for the layer"
        )
        raise FuncconvError(msg)
    return as_array(op, f"the state {name!r}", given)


def _first_vector(shape: Shape, dtype: Any) -> Array:
    """Return a fixed unit vector, which no structure of a kernel makes orthogonal to the one that is looked for."""
    return unit(jax.random.normal(jax.random.key(0), shape, dtype))


class _Vectors(NamedTuple):
    """What the power iteration carries."""

    kernel: Array
    left: Array
    right: Array


@functools.lru_cache(maxsize=256)
def _iteration(linear_map: BilinearMap) -> Callable[[Any, _Vectors], _Vectors]:
    """Return one power iteration as a function; the same one for equal maps, since JAX compiles a loop by it."""

    def iteration(_: Any, vectors: _Vectors) -> _Vectors:
        kernel = vectors.kernel
        left = unit(linear_map.apply(kernel, vectors.right))
        (right,) = jax.linear_transpose(functools.partial(linear_map.apply, kernel), vectors.right)(left)
        return _Vectors(kernel, left, unit(right))

    return iteration


def unit(x: Array) -> Array:
    """Return `x` divided by its length, or zeros as they are."""
    length = jnp.linalg.norm(x.ravel())
    return x / jnp.where(length == 0, 1, length)
