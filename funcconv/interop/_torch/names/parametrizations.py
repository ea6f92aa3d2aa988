"""Normalized kernels in PyTorch: `torch.nn.utils.parametrizations` and, under old names, `torch.nn.utils`."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ...._common.types import Shape
from ...._graph.declare.conv_layers import ConvTranspose
from ...._graph.declare.layers import Dense
from ...._graph.declare.training_layers.kernels import WeightNorm
from ...._graph.declare.training_layers.spectral_norm import SpectralNorm
from ...._windows.geometry import per_axis
from .array import TorchArray, same, split_name
from .features import Features

LENGTHS, DIRECTIONS = "parametrizations.weight.original0", "parametrizations.weight.original1"
ORIGINAL = "parametrizations.weight.original"
LEFT, RIGHT = "parametrizations.weight.0._u", "parametrizations.weight.0._v"
# What torch.nn.utils.weight_norm and torch.nn.utils.spectral_norm call the same arrays of a module.
_OLD_NAMES: tuple[Mapping[str, str], ...] = (
    {"weight_g": LENGTHS, "weight_v": DIRECTIONS},
    {"weight_orig": ORIGINAL, "weight_u": LEFT, "weight_v": RIGHT},
)


def with_scale(arrays: list[TorchArray], layer: WeightNorm, shape: Shape) -> list[TorchArray]:
    """Return the arrays of a layer whose kernel has separate norms.

    Args:
        arrays: those of the layer.
        layer: the layer.
        shape: the shape of its input.

    Returns:
        The arrays in PyTorch's order.
    """
    kernel, *bias = arrays
    ones = (1,) * (1 + _window_axes(layer.layer, shape))

    # PyTorch keeps the axes of the norms with size 1. Norms along another axis than the first keep their shape here,
    # which is not that of a scale.
    def to_own(lengths: np.ndarray) -> np.ndarray:
        return lengths.reshape(lengths.shape[:1]) if lengths.ndim and lengths.shape[1:] == ones else lengths

    def to_torch(scale: np.ndarray) -> np.ndarray:
        return scale.reshape(*scale.shape, *ones)

    scale = replace(kernel, path="scale", name=LENGTHS, to_own=to_own, to_torch=to_torch)
    return [*bias, scale, replace(kernel, name=DIRECTIONS)]


def divided_by_norm(
    arrays: list[TorchArray], layer: SpectralNorm, shape: Shape, features: Features
) -> list[TorchArray]:
    """Return the arrays of a layer whose kernel is divided by its norm.

    Args:
        arrays: those of the layer.
        layer: the layer.
        shape: the shape of its input.
        features: the order of the input features of a linear map.

    Returns:
        The arrays in PyTorch's order.
    """
    kernel, *bias = arrays
    left = replace(kernel, path="left", in_state=True, name=LEFT, to_own=same, to_torch=same)
    right = replace(left, path="right", name=RIGHT, to_own=features.to_own, to_torch=features.to_torch)
    if not isinstance(layer.layer, Dense):
        # PyTorch: one axis of all others than the output channels, in the order (in, *window); funcconv: (*window, in).
        sizes, channels = layer.layer.image(shape)
        window = per_axis(layer.label, "window", layer.layer.window, len(sizes), least=1)
        first = channels if isinstance(layer.layer, ConvTranspose) else channels // layer.layer.groups

        def to_own(vector: np.ndarray) -> np.ndarray:
            is_whole = vector.shape == (first * prod(window),)
            return np.moveaxis(vector.reshape(first, *window), 0, -1) if is_whole else vector

        def to_torch(right: np.ndarray) -> np.ndarray:
            return np.moveaxis(right, -1, 0).ravel()

        right = replace(right, to_own=to_own, to_torch=to_torch)
    return [*bias, replace(kernel, name=ORIGINAL), left, right]


def _window_axes(layer: Any, shape: Shape) -> int:
    return 0 if isinstance(layer, Dense) else len(layer.image(shape)[0])


def current_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names of `torch.nn.utils.parametrizations` for those of a state dict.

    Args:
        names: the names of the state dict.

    Returns:
        For each name, its current one, in the same order. Arrays of `torch.nn.utils.weight_norm` and
        `torch.nn.utils.spectral_norm` have old names; all others keep theirs.
    """
    current = {name: name for name in names}
    for name in list(current):
        module, own = split_name(name)
        before = f"{module}." if module else ""
        # A "weight_v" is a direction beside a "weight_g", and a vector of the power iteration beside a "weight_orig".
        fitting = [old for old in _OLD_NAMES if all(f"{before}{sibling}" in current for sibling in old)]
        if len(fitting) == 1 and own in fitting[0]:
            current[name] = f"{before}{fitting[0][own]}"
    return current


def old_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names of `torch.nn.utils.weight_norm` and `spectral_norm` for those of a state dict.

    Args:
        names: the names of the state dict.

    Returns:
        For each name, the old one, in the same order.
    """
    old = {current: own for by_old in _OLD_NAMES for own, current in by_old.items()}
    parts = {name: split_name(name) for name in names}
    return {name: f"{module}.{old.get(own, own)}".lstrip(".") for name, (module, own) in parts.items()}
