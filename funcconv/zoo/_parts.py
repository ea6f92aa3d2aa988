"""What several networks share: parts with names, and the choice of a variant.

The names are those of PyTorch's modules, so that `fc.interop.from_torch` needs no `names=`.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .._common.errors import FuncconvError
from .._common.types import Number
from .._graph.combine.compose import serial
from .._graph.declare.conv_layers import Conv
from .._graph.declare.node import Input
from .._graph.declare.training_layers.batch_norm import BatchNorm
from .._graph.use.graph import Graph
from ._inits import he_normal_by_outputs

Variant = TypeVar("Variant")


def variant(network: str, option: str, key: object, variants: Mapping[Any, Variant]) -> Variant:
    """Return the configuration of a variant, or raise an error that lists all variants."""
    if not isinstance(key, int | str) or key not in variants:
        known = ", ".join(map(repr, variants))
        msg = (
            f"{network}: {option} must be one of {known}; got {key!r}. For other sizes, copy the function and change "
            "its table"
        )
        raise FuncconvError(msg)
    return variants[key]


def below(name: str, layers: Callable[..., Any], *nodes: Any) -> Any:
    """Call layers on nodes. The names of the layers begin with `name/`, as in a module of PyTorch."""
    inputs = [Input(f"input{i}", node.shape) for i, node in enumerate(nodes)]
    return Graph(inputs, layers(*inputs), name=name)(*nodes)


def conv_norm(
    channels: int,
    window: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[..., Any] | None = None,
    epsilon: Number = 1e-5,
    momentum: Number = 0.9,
) -> Any:
    """Return a convolution `0` that keeps the size, a batch norm `1` and an activation."""
    conv = Conv(
        channels,
        window,
        stride=stride,
        padding="HALF",
        groups=groups,
        bias=False,
        init=he_normal_by_outputs,
        name="0",
    )
    layers = (conv, BatchNorm(epsilon=epsilon, momentum=momentum, name="1"))
    return serial(*layers) if activation is None else serial(*layers, activation)


def rounded_channels(channels: float) -> int:
    """Return the nearest multiple of 8, at least 8, that is not below nine tenths of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
