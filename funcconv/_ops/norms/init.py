"""Initial parameters of normalizations, and initial batch statistics."""

from collections.abc import Sequence

import jax.numpy as jnp

from ..._common.types import Array, DTypeLike, Sizes
from ..._windows.geometry import per_axis


def init_norm(
    shape: Sizes, *, scale: bool = True, bias: bool = True, dtype: DTypeLike | None = None
) -> dict[str, Array]:
    """Return initial parameters of a normalization: scale 1 and bias 0.

    Args:
        shape: number of channels, or for `layer_norm` a tuple with the sizes of the normalized axes.
        scale: whether to add a scale. Default: True.
        bias: whether to add a bias. Default: True.
        dtype: dtype of the parameters. Default: None, JAX's default float.

    Returns:
        `{"scale": ones, "bias": zeros}`, both of that shape.

    Raises:
        FuncconvError: if a size is not positive.

    Example:
        >>> import funcconv as fc
        >>> {name: array.tolist() for name, array in fc.init_norm(2).items()}
        {'scale': [1.0, 1.0], 'bias': [0.0, 0.0]}
    """
    sizes = per_axis("init_norm", "shape", shape, len(shape) if isinstance(shape, Sequence) else 1, least=1)
    dtype = jnp.result_type(float) if dtype is None else dtype
    params = {"scale": jnp.ones(sizes, dtype)} if scale else {}
    return params | ({"bias": jnp.zeros(sizes, dtype)} if bias else {})


def init_batch_stats(channels: int, *, dtype: DTypeLike | None = None) -> dict[str, Array]:
    """Return the initial state of `batch_norm`: mean 0 and variance 1.

    Args:
        channels: number of channels of the input of `batch_norm`.
        dtype: dtype of the state. Use float32 even if the input has 16 bits. Default: None, JAX's default float.

    Returns:
        `{"mean": (channels,), "var": (channels,)}`.

    Raises:
        FuncconvError: if the number is not positive.

    Example:
        >>> import funcconv as fc
        >>> fc.init_batch_stats(2)["var"].tolist()
        [1.0, 1.0]
    """
    sizes = per_axis("init_batch_stats", "channels", channels, 1, least=1)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return {"mean": jnp.zeros(sizes, dtype), "var": jnp.ones(sizes, dtype)}
