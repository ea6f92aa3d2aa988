"""Shapes of the parameters and of the value of a layer, inferred once for equal layers and inputs."""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError

# Layers are compared by value, so a network of many equal blocks traces one of them.
# Keys are weak, so that layers are not kept longer than the graphs that use them.
_INFERRED: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()  # by layer


def spec(leaf: Any) -> Any:
    """Return the shape and dtype of an array."""
    # A weak type yields to the dtype of the other operand, so the dtype alone does not tell the dtype of a sum.
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), weak_type=weak)  # type: ignore[no-untyped-call]


def shapes(tree: Any) -> Any:
    """Return the shapes of the arrays of a tree."""
    return jax.tree.map(np.shape, tree)


def drawn(layer: Any, xs: Any) -> Any:
    """Return the shapes and dtypes of the parameters that a layer draws for inputs of one example."""

    def draw() -> Any:
        return jax.eval_shape(lambda key: layer.draw_for(key, *xs), jax.eval_shape(jax.random.key, 0))

    return remembered(layer, "drawn", xs, draw)


def result(layer: Any, entry: Any, xs: Any) -> Any:
    """Return the shape and dtype of a layer's value for one example."""
    return remembered(layer, "result", (entry, xs), lambda: jax.eval_shape(partial(layer.apply, batch=()), entry, *xs))


def remembered(layer: Any, what: str, types: Any, infer: Callable[[], Any]) -> Any:
    """Return what is inferred for a layer on arguments of these types; errors and False are not kept."""
    leaves, tree = jax.tree.flatten(types)
    # Dtypes depend on x64, so shapes that were inferred with it are not those without it.
    wide = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    key = (what, tree, wide, *((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves))
    known = _INFERRED.setdefault(layer, {})
    if key not in known:
        inferred = jax.tree.map(lambda leaf: spec(leaf) if hasattr(leaf, "shape") else leaf, infer())
        if inferred is False:  # what fails here may succeed elsewhere, such as inside of jax.shard_map
            return inferred
        known[key] = inferred
    return known[key]


def retold(name: str, layer: Any, xs: Any, error: Exception) -> str:
    """Return what went wrong in a layer as an error of its node."""
    if isinstance(error, FuncconvError):
        return f"node {name!r}: {error}"
    failed = (
        f"node {name!r}: {layer!r} failed on inputs of shape {', '.join(map(str, shapes(list(xs))))}: "
        f"{type(error).__name__}: {error}"
    )
    if getattr(layer, "batched", False):
        return f"{failed}\nShapes are inferred for a batch of one example."
    return (
        f"{failed}\nShapes are inferred without batch axes, and an op sees none: count axes from the end, as in "
        "x.mean((-3, -2)), or declare the node with batched=True."
    )
