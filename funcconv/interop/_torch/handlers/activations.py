"""Activations with options, dropout and drop path."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...._common.types import Number
from ...._graph.declare.training_layers.dropout import Dropout, DropPath
from .. import ops
from ..program import drop_path_rate
from ..tensors import BATCH, Tensor
from ..translation import PendingRow, Translation
from .elementwise import binary


def leaky_relu(translation: Translation, x: Tensor, negative_slope: Number = 0.01) -> Tensor:
    return translation.like(ops.leaky_relu, x, negative_slope=negative_slope)


def prelu(translation: Translation, x: Tensor, weight: Tensor) -> Any:
    if weight.size(0) == 1 or x.rank < 2:
        return binary(ops.prelu, translation, x, weight.with_axes(((),)) if x.rank else weight)
    weight = weight.with_axes((weight.axes[0], *((),) * (x.rank - 2)))  # one slope for each channel, the axis 1
    return binary(ops.prelu, translation, x, weight)


def elu(translation: Translation, x: Tensor, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> Tensor:
    if scale != 1 or input_scale != 1:
        translation.refuse(f"its scales {scale} and {input_scale}")
    return translation.like(jax.nn.elu, x, alpha=alpha)


def celu(translation: Translation, x: Tensor, alpha: Number = 1.0) -> Tensor:
    return translation.like(jax.nn.celu, x, alpha=alpha)


def gelu(translation: Translation, x: Tensor, approximate: str = "none") -> Tensor:
    return translation.like(jax.nn.gelu, x, approximate=approximate == "tanh")


def glu(translation: Translation, x: Tensor, dim: int = -1) -> Tensor:
    axis = translation.axis(x, dim)
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    half = x.sizes[stored] // 2
    sizes = (*x.sizes[:stored], half, *x.sizes[stored + 1 :])
    return translation.compute(partial(jax.nn.glu, axis=stored), (x,), sizes, x.axes)


def softplus(translation: Translation, x: Tensor, beta: Number = 1, threshold: Number = 20) -> Tensor:
    return translation.like(ops.softplus, x, beta=beta, threshold=threshold)


def hardshrink(translation: Translation, x: Tensor, lambd: Number = 0.5) -> Tensor:
    return translation.like(ops.hardshrink, x, bound=lambd)


def softshrink(translation: Translation, x: Tensor, lambd: Number = 0.5) -> Tensor:
    return translation.like(ops.softshrink, x, bound=lambd)


def threshold(translation: Translation, x: Tensor, threshold: Number, value: Number) -> Tensor:
    return translation.like(ops.threshold, x, bound=threshold, value=value)


def clamp(translation: Translation, x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    for bound, op in ((min, jnp.maximum), (max, jnp.minimum)):
        if isinstance(bound, Tensor):
            x = binary(op, translation, x, bound)
    low, high = (None if isinstance(bound, Tensor) else bound for bound in (min, max))
    return x if low is None and high is None else translation.like(ops.clamp, x, low=low, high=high)


def clamp_min(translation: Translation, x: Tensor, min: Any) -> Tensor:
    return clamp(translation, x, min)


def clamp_max(translation: Translation, x: Tensor, max: Any) -> Tensor:
    return clamp(translation, x, None, max)


def hardtanh(translation: Translation, x: Tensor, min_val: Number = -1, max_val: Number = 1) -> Tensor:
    if (min_val, max_val) == (0, 6):
        return translation.like(ops.relu6, x)
    return translation.like(ops.hardtanh, x, low=min_val, high=max_val)


def dropout(translation: Translation, x: Tensor, p: Number, train: bool, *, whole_channels: bool = False) -> Tensor:
    del train  # the evaluation of the graph says whether it draws
    if p == 0:
        return x
    if drop_path_rate(translation.modules.get(translation.path)) is not None:
        return drop_path(translation, x, p)
    if x.is_weight:
        logging.getLogger("funcconv").warning(
            "trace_torch: in training, dropout of weights in %r draws zeros for each example; PyTorch draws them once "
            "for the batch",
            translation.path,
        )
    if whole_channels:
        x = translation.channels_last(x)
        if translation.extra(x):
            translation.refuse("dropout of whole channels, of an array with other axes merged with the batch")
    row = PendingRow(
        translation.new_name("dropout"), None, (x.source,), layer=Dropout(p, whole_channels=whole_channels)
    )
    return translation.add(row, x.sizes, x.axes)


def drop_path(translation: Translation, x: Tensor, p: Number) -> Tensor:
    """Add a drop path, a module that calls dropout while it is exported."""
    if not x.rank or x.axes[0] != (BATCH,):
        logging.getLogger("funcconv").warning(
            "trace_torch: the drop path %r drops parts of examples, because its input has other axes merged with the "
            "batch. No layer does this; with train=True the graph leaves it out",
            translation.path,
        )
        return x
    row = PendingRow(translation.new_name(""), None, (x.source,), layer=DropPath(p))
    return translation.add(row, x.sizes, x.axes)


def inactive(translation: Translation, x: Tensor, p: Number, train: bool) -> Tensor:
    if p:
        translation.refuse(f"in training it draws random numbers (p={p}), as no layer of funcconv does; set p to 0")
    return x


HANDLERS: dict[str, Callable[..., Any]] = {
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "elu": elu,
    "celu": celu,
    "gelu": gelu,
    "glu": glu,
    "softplus": softplus,
    "hardshrink": hardshrink,
    "softshrink": softshrink,
    "threshold": threshold,
    "clamp": clamp,
    "clip": clamp,
    "clamp_min": clamp_min,
    "clamp_max": clamp_max,
    "hardtanh": hardtanh,
    "dropout": dropout,
    "feature_dropout": partial(dropout, whole_channels=True),
    "alpha_dropout": inactive,
    "feature_alpha_dropout": inactive,
}
