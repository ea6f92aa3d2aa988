"""Spectral normalization as a layer, whose power iteration is a state."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ...._common.dtypes import wide
from ...._common.errors import FuncconvError
from ...._common.types import Array, Shape
from ...._ops.norms.power_iteration import BilinearMap, check_iterations, kernel_matrix, normalized
from ...._ops.norms.spectral import check_norm
from ..conv_layers import ConvTranspose, LocalConv
from ..layers import Dense
from .kernels import _WithKernel


@dataclass(frozen=True, repr=False)
class SpectralNorm(_WithKernel):
    r"""A `Conv`, `ConvTranspose`, `LocalConv` or `Dense` layer divided by its operator norm: `fc.spectral_norm`.

    Each use divides the kernel by the norm of a linear map `A`, which a power iteration follows through training. The
    state of the layer holds unit vectors `left` and `right`. With `graph.apply(..., train=True)`, each use replaces
    `left` by `A` applied to `right`, and then `right` by the transpose of `A` applied to `left`, both divided by their
    length. Then

    $$kernel \leftarrow kernel / \sigma, \qquad \sigma = \langle left, A(right) \rangle$$

    Derivatives treat `left` and `right` as constants, as in PyTorch. The parameters are those of the layer; the stored
    kernel does not change. The bias is not normalized.

    `graph.init_state` makes vectors of zeros, which means that they have not begun: the next use runs 15 iterations
    from a fixed start, as PyTorch does for a new module. In evaluation the state does not change, so each use of a
    graph that was never trained runs them. If you call one layer object several times, its uses share the parameters
    and the state.

    Args:
        layer: the `Conv`, `ConvTranspose`, `LocalConv` or `Dense`. Its `name` and `params` are used unless you pass
            others.
        norm: the linear map whose norm is used. `"kernel"`: the kernel as a matrix from all its other axes to the
            output channels, as in PyTorch; not for `LocalConv`, which has a kernel at each position. `"conv"`: the
            layer itself without its bias, from inputs of the declared shape to results; this is the norm that bounds
            how much the layer can enlarge a difference of inputs. Not for `Dense`, where both are the same. Default:
            `"kernel"`.
        iterations: number of power iterations of each use in training, at least 1. Default: 1.

    Raises:
        FuncconvError: if `layer` is another kind of layer, if an option has another value than listed above, or if
            `norm` does not go with the layer.

    Source: Miyato et al., "Spectral normalization for generative adversarial networks", 2018, arXiv:1802.05957. The
        norm of the convolution: Gouk et al., "Regularisation of neural networks by enforcing Lipschitz continuity",
        2018, arXiv:1804.04368.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (2,))
        >>> graph = fc.Graph(x, fc.SpectralNorm(fc.Dense(2))(x))
        >>> params, state = {"dense1": {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}}, graph.init_state()
        >>> y, state = graph.apply(params, state, jnp.ones(2), train=True)
        >>> y.round(3).tolist()
        [1.0, 0.5]
        >>> {name: array.shape for name, array in state["dense1"].items()}
        {'left': (2,), 'right': (2,)}
    """

    norm: str = field(default="kernel", kw_only=True)
    iterations: int = field(default=1, kw_only=True)

    stateful: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norm("SpectralNorm", self.norm)
        check_iterations("SpectralNorm", self.iterations)
        if self.norm == "kernel" and isinstance(self.layer, LocalConv):
            msg = f'SpectralNorm: {self.layer!r} has a kernel at each position. Pass norm="conv", the norm of the layer'
            raise FuncconvError(msg)
        if self.norm == "conv" and isinstance(self.layer, Dense):
            msg = f'SpectralNorm: {self.layer!r} is the matrix that its kernel is. Pass norm="kernel", the default'
            raise FuncconvError(msg)

    def first_state(self, *shapes: Shape) -> Any:
        """Return vectors of zeros."""
        # The vectors depend on the kernel, which is not known here. Random vectors would be valid in training, but in
        # evaluation they give a norm that means nothing. So zeros say that the vectors have yet to be computed.
        kernel = jax.eval_shape(lambda key: self.layer.draw(key, *shapes)["kernel"], jax.eval_shape(jax.random.key, 0))
        linear_map = self.linear_map(kernel, *shapes)
        dtype = wide(kernel.dtype)
        return {"left": jnp.zeros(linear_map.left_shape, dtype), "right": jnp.zeros(linear_map.right_shape, dtype)}

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Apply the layer with its first state."""
        first = self.first_state(*(x.shape[len(batch) :] for x in xs))
        return self.run(params, first, *xs, batch=batch, key=None, train=False)[0]

    def run(self, params: Any, state: Any, *xs: Any, batch: Shape, key: Array | None, train: bool) -> tuple[Any, Any]:
        """Apply the layer with the normalized kernel, in training after some power iterations."""
        del key
        (x,) = xs
        kernel_and_bias, new_state = self.with_next_state(params, state, x.shape[len(batch) :], train=train)
        return self.layer.apply(kernel_and_bias, x, batch=batch), new_state if train else state

    def begun(self, params: Any, state: Any, shape: Shape) -> Any:
        """Return the state with vectors that have begun.

        Args:
            params: the parameters of the layer.
            state: its state.
            shape: the shape of its input without batch axes.

        Returns:
            The state with which evaluation computes the same.
        """
        return self.with_next_state(params, state, shape, train=False)[1]

    def with_next_state(self, params: Any, state: Any, shape: Shape, *, train: bool) -> tuple[dict[str, Any], Any]:
        """Return the layer's parameters with the normalized kernel, and the next state."""
        linear_map = self.linear_map(params["kernel"], shape)
        return normalized(
            "SpectralNorm", params, state, linear_map, train=train, iterations=self.iterations, starts=True
        )

    def linear_map(self, kernel: Any, shape: Shape) -> BilinearMap:
        """Return the linear map whose norm is used.

        Args:
            kernel: the kernel, or its shape and dtype.
            shape: the shape of the input without batch axes.

        Returns:
            The linear map.
        """
        if self.norm == "kernel":
            return kernel_matrix("SpectralNorm", kernel, self.output_axis)
        # The vectors are at least float32, whatever the layer accumulates in.
        layer = replace(self.layer, precision="highest", accumulate_dtype=None)
        dtype = wide(kernel.dtype)
        specs = (jax.ShapeDtypeStruct(array_shape, dtype) for array_shape in (kernel.shape, shape))  # type: ignore[no-untyped-call]
        return BilinearMap(_without_bias, layer, jax.eval_shape(partial(_without_bias, layer), *specs).shape, shape)

    @property
    def output_axis(self) -> int:
        """The axis of the kernel with the output channels."""
        return -2 if isinstance(self.layer, ConvTranspose) else -1


def _without_bias(layer: Any, kernel: Array, x: Array) -> Array:
    """Apply a layer to one example without its bias."""
    result: Array = layer.apply({"kernel": kernel}, x, batch=())
    return result
