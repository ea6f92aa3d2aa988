"""Initial weights of published networks, registered by name because the file of a graph stores their names.

Normal distributions are cut off at two standard deviations and have the given variance; PyTorch does not cut them off.
"""

import math
from typing import Any

import jax.numpy as jnp

from .._common.initializers import uniform
from .._common.types import Array, DTypeLike, Shape
from .._graph.to_file.registry import register_op
from .._ops.init import INITS

_lecun_normal = INITS["lecun_normal"]  # variance 1 / fan_in


def he_normal_by_outputs(key: Array, shape: Shape, dtype: DTypeLike) -> Array:
    """Draw a kernel with variance `2 / fan_out`, PyTorch's `kaiming_normal_(mode="fan_out")`."""
    return _lecun_normal(key, shape, dtype, math.sqrt(2 * shape[-2] / shape[-1]))


def normal_with_deviation_001(key: Array, shape: Shape, dtype: DTypeLike) -> Array:
    """Draw a kernel with the standard deviation 0.01."""
    return _lecun_normal(key, shape, dtype, 0.01 * math.sqrt(math.prod(shape[:-1])))


def normal_with_deviation_002(key: Array, shape: Shape, dtype: DTypeLike) -> Array:
    """Draw a kernel with the standard deviation 0.02."""
    return _lecun_normal(key, shape, dtype, 0.02 * math.sqrt(math.prod(shape[:-1])))


def uniform_by_outputs(key: Array, shape: Shape, dtype: DTypeLike) -> Array:
    """Draw a kernel uniformly within `±1 / sqrt(outputs)`."""
    return uniform(key, shape, dtype, 1 / math.sqrt(shape[-1]))


def small_scale(key: Array, shape: Shape) -> Any:
    """Return a scale of 1e-6 for each channel, with one axis of size 1 for each spatial axis."""
    del key
    return jnp.full((*[1] * (len(shape) - 1), shape[-1]), 1e-6)


for _function in (
    he_normal_by_outputs,
    normal_with_deviation_001,
    normal_with_deviation_002,
    uniform_by_outputs,
    small_scale,
):
    register_op(f"funcconv.zoo.{_function.__name__}", _function)
