"""Functions that are known to compute the same for one example as for a batch, so that this need not be checked."""

import operator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._ops.conv import conv
from ..._ops.conv_transpose import conv_transpose
from ..._ops.dense import dense, flatten
from ..._ops.local_conv import local_conv
from ..._ops.norms.group import group_norm, instance_norm
from ..._ops.norms.layer import layer_norm, rms_norm
from ..._ops.norms.response import local_response_norm
from ..._ops.pooling.adaptive import adaptive_pool
from ..._ops.pooling.global_pool import global_pool
from ..._ops.pooling.pool import pool
from ..._ops.resampling.patches import fold, unfold
from ..._ops.resampling.pixels import pixel_shuffle, pixel_unshuffle
from ..._ops.resampling.resize import blur_pool, resize

# Activations and functions of jax.numpy that act on each number by itself, so that mapping them changes nothing.
ELEMENTWISE = frozenset(
    [getattr(jax.nn, name) for name in ("celu", "elu", "gelu", "hard_sigmoid", "hard_swish", "hard_tanh", "leaky_relu")]
    + [getattr(jax.nn, name) for name in ("log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu")]
    + [getattr(jax.nn, name) for name in ("soft_sign", "softplus", "squareplus")]
    + [getattr(jnp, name) for name in ("abs", "add", "clip", "cos", "divide", "exp", "log", "maximum", "minimum")]
    + [getattr(jnp, name) for name in ("multiply", "negative", "power", "sign", "sin", "sqrt", "square", "subtract")]
    + [jnp.tanh, operator.neg, operator.abs]
)

# Ops of funcconv that take any number of batch axes in front: for them, one example is a batch without axes.
BATCH_AXES_FIRST = frozenset(
    [
        *(adaptive_pool, conv, conv_transpose, dense, flatten, global_pool, group_norm, instance_norm, layer_norm),
        *(local_conv, local_response_norm, pool, rms_norm),
        *(blur_pool, fold, pixel_shuffle, pixel_unshuffle, resize, unfold),
    ]
)


def takes_batch_axes(op: Any) -> bool:
    """Return whether an op is one that takes any number of batch axes in front, with options or without."""
    while isinstance(op, partial):
        op = op.func
    return op in BATCH_AXES_FIRST


def is_elementwise(op: Any) -> bool:
    """Return whether a function is known to act on each number by itself."""
    if isinstance(op, partial):
        # An array among the options could be broadcast along the batch axes.
        return is_elementwise(op.func) and not op.args and not any(map(np.ndim, op.keywords.values()))
    return op in ELEMENTWISE
