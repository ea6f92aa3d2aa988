"""Kernels that `torch.nn.utils.parametrizations` normalizes at each use."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ...._graph.declare.conv_layers import ConvTranspose
from ...._graph.declare.layer import Layer
from ...._graph.declare.training_layers.kernels import WeightNorm
from ...._graph.declare.training_layers.spectral_norm import SpectralNorm
from ..names.array import split_name
from ..names.parametrizations import DIRECTIONS, LEFT, LENGTHS, ORIGINAL, RIGHT
from ..rows import Arrangement
from ..tensors import Tensor, Weight
from ..translation import Translation


class NormalizedLayer(NamedTuple):
    """A layer that normalizes its kernel.

    Attributes:
        layer: the layer.
        module: the path of the module that has its weights.
        arrays: for each of its arrays, such as `"param/kernel"`, its name in PyTorch.
        arrangements: for each such name, how the array is arranged in the layer. Default: as in PyTorch.
    """

    layer: Layer
    module: str
    arrays: dict[str, str]
    arrangements: dict[str, Arrangement]


def normalized_layer(
    translation: Translation, layer: Any, weights: Mapping[str, Tensor | None], order: tuple[int, ...]
) -> NormalizedLayer | None:
    """Return the layer with a normalized kernel that computes the same as a layer with the kernel that is used.

    Args:
        translation: the translation.
        layer: the layer.
        weights: its weights, `"param/kernel"` and `"param/bias"`.
        order: how the axes of PyTorch's kernel are permuted to those of the layer's.

    Returns:
        The layer; None if the kernel is not a normalized one, or if the bias is not one of the same module.
    """
    kernel, bias = weights["param/kernel"], weights.get("param/bias")
    source = translation.as_pytorch(kernel).source if kernel is not None and kernel.is_weight else None
    if not isinstance(source, Weight) or not source.tensors:
        return None
    module, _ = split_name(source.tensors[0])
    before = f"{module}." if module else ""
    names = {name.removeprefix(before): name for name in source.tensors}
    arrays = {} if bias is None else {"param/bias": f"{before}bias"}
    if bias is not None and (not isinstance(bias.source, Weight) or bias.source.tensor != arrays["param/bias"]):
        return None
    shapes = {own: tuple(translation.program.tensors[name].shape) for own, name in names.items()}
    if shapes.keys() == {LENGTHS, DIRECTIONS} and _computes(source, shapes, names, _with_lengths):
        arrays |= {"param/kernel": names[DIRECTIONS], "param/scale": names[LENGTHS]}
        scale = Arrangement((0,), shapes[DIRECTIONS][:1])
        arrangements = {"param/kernel": Arrangement(order), "param/scale": scale}
        return NormalizedLayer(WeightNorm(layer), module, arrays, arrangements)
    axis = 1 if isinstance(layer, ConvTranspose) else 0
    parametrization: Any = translation.modules.get(f"{before}parametrizations.weight.0")
    if type(parametrization).__name__ != "_SpectralNorm":  # another one would do something else in training
        return None
    if shapes.keys() == {ORIGINAL, LEFT, RIGHT} and _computes(source, shapes, names, partial(_divided, axis=axis)):
        arrays |= {"param/kernel": names[ORIGINAL], "state/left": names[LEFT], "state/right": names[RIGHT]}
        inputs = tuple(size for i, size in enumerate(shapes[ORIGINAL]) if i != axis)
        right = Arrangement((*range(1, len(inputs)), 0), inputs)
        normed = SpectralNorm(layer, iterations=parametrization.n_power_iterations)
        return NormalizedLayer(normed, module, arrays, {"param/kernel": Arrangement(order), "state/right": right})
    return None


def _computes(
    source: Weight,
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    formula: Callable[[Mapping[str, np.ndarray]], np.ndarray | None],
) -> bool:
    """Return whether a value is computed from weights by a formula: whether both agree for random weights."""
    rng = np.random.default_rng(0)
    arrays = {own: rng.uniform(0.5, 1.5, shape) for own, shape in shapes.items()}  # without cancellation
    expected = formula(arrays)
    if expected is None:
        return False
    with jax.enable_x64(True):
        value = np.asarray(_value(source, {name: arrays[own] for own, name in names.items()}))
    return value.shape == expected.shape and np.allclose(value, expected, rtol=1e-10, atol=0)


def _value(weight: Weight, arrays: Mapping[str, np.ndarray]) -> Any:
    if weight.op is None:
        return arrays[weight.tensor]
    return weight.op(*(_value(operand, arrays) for operand in weight.operands))


def _with_lengths(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return directions whose slices along the first axis have lengths; None if the lengths are of other slices."""
    lengths, directions = arrays[LENGTHS], arrays[DIRECTIONS]
    if lengths.shape != (len(directions), *[1] * (directions.ndim - 1)):
        return None
    squares = np.square(directions).sum(tuple(range(1, directions.ndim)), keepdims=True)
    normalized: np.ndarray = lengths * directions / np.sqrt(squares)
    return normalized


def _divided(arrays: Mapping[str, np.ndarray], *, axis: int) -> np.ndarray | None:
    """Return a weight divided by its norm as a matrix; None if the vectors are those of another matrix."""
    weight, left, right = arrays[ORIGINAL], arrays[LEFT], arrays[RIGHT]
    matrix = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    if (left.shape, right.shape) != (matrix.shape[:1], matrix.shape[1:]):
        return None
    normalized: np.ndarray = weight / (left @ matrix @ right)
    return normalized
