"""Ways to put layers together: one after another, side by side, with a shortcut, or one trunk for several inputs.

A composition is called on nodes like a layer and adds no level to names: the names are those of its layers.
"""

from typing import Any

from ..._common.errors import FuncconvError
from ..declare.function import as_layer
from ..declare.node import Node
from .composition import Composition, call_on_results, call_part, described, shapes_of
from .merge import add


def serial(*layers: Any, name: None = None) -> Composition:
    """Apply layers one after another, like PyTorch's `Sequential`.

    If a layer returns a tuple, its entries become the inputs of the next layer.

    Args:
        *layers: layers, graphs, compositions or plain functions of arrays. A function must compute the same for one
            example and for a batch; for a function that is written for a batch, pass `fc.node(f, batched=True)`.
        name: must be None. To name a part, make it a graph: `fc.Graph(x, layers(x), name="trunk")`.

    Returns:
        A composition, which you call on nodes like a layer.

    Raises:
        FuncconvError: if an argument is not a layer, graph, composition or function, or `name` is not None.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (28, 28, 1))
        >>> layers = fc.serial(fc.Conv(8, 5), jax.nn.relu, fc.Pool(2), fc.Flatten(), fc.Dense(10))
        >>> sorted(fc.Graph(x, layers(x)).init(jax.random.key(0)))
        ['conv1', 'dense1']
    """
    return Composition("serial", _layers("serial", layers), _in_series, name)


def parallel(*layers: Any, merge: Any = None, name: None = None) -> Composition:
    """Apply several layers, the branches, to the same inputs.

    Args:
        *layers: the branches: layers, graphs, compositions or plain functions of arrays. A function must compute the
            same for one example and for a batch; for a function that is written for a batch, pass
            `fc.node(f, batched=True)`.
        merge: a layer or function that is called on all results, `merge(a, b, ...)`, such as `fc.concat` or
            `operator.add`. Default: None, the result is a tuple.
        name: must be None. To name a part, make it a graph: `fc.Graph(x, layers(x), name="trunk")`.

    Returns:
        A composition, which you call on nodes like a layer.

    Raises:
        FuncconvError: if an argument is not a layer, graph, composition or function, or `name` is not None. When you
            call the composition: if a branch or `merge` does not accept its inputs; the message says which one.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (28, 28, 3))
        >>> block = fc.parallel(fc.Conv(8, 1), fc.Conv(8, 5, padding="SAME"), merge=fc.concat)
        >>> graph = fc.Graph(x, block(x))
        >>> graph(graph.init(jax.random.key(0)), jnp.ones((2, 28, 28, 3))).shape
        (2, 28, 28, 16)
    """
    return Composition("parallel", (*_layers("parallel", layers), _optional("parallel", merge)), _side_by_side, name)


def residual(layer: Any, shortcut: Any = None, *, name: None = None) -> Composition:
    """Add a shortcut to a layer: `layer(x) + shortcut(x)`.

    Args:
        layer: a layer, a graph, a composition or a plain function of arrays. A function must compute the same for one
            example and for a batch; for a function that is written for a batch, pass `fc.node(f, batched=True)`.
        shortcut: the same kinds of objects, such as `fc.Conv(8, 1, stride=2)`. Default: None, the input itself.
        name: must be None. To name a part, make it a graph: `fc.Graph(x, layers(x), name="trunk")`.

    Returns:
        A composition, which you call on nodes like a layer. Both results must have equal shapes and dtypes.

    Raises:
        FuncconvError: if an argument is not a layer, graph, composition or function, or `name` is not None. When you
            call the composition: if the layer or the shortcut does not accept its input, or their results differ in
            shape or dtype.

    Source: He et al., "Deep residual learning for image recognition", 2015, arXiv:1512.03385.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 4))
        >>> graph = fc.Graph(x, fc.residual(fc.serial(fc.Conv(4, 3, padding="SAME"), jnp.tanh))(x))
        >>> graph.nodes
        ('x', 'conv1', 'tanh1', 'add1')
    """
    parts = (as_layer(layer, "residual"), _optional("residual", shortcut))
    return Composition("residual", parts, _with_shortcut, name)


def siamese(trunk: Any, head: Any, *, name: None = None) -> Composition:
    """Apply one trunk to each input, with the same weights, and a head to all results: `head(trunk(a), trunk(b))`.

    Args:
        trunk: a layer, a graph, a composition or a plain function of arrays. A function must compute the same for one
            example and for a batch; for a function that is written for a batch, pass `fc.node(f, batched=True)`. The
            trunk is called once for each input.
        head: the same kinds of objects, called on all results of the trunk, such as a function that computes their
            distance.
        name: must be None. To name a part, make it a graph: `fc.Graph(x, layers(x), name="trunk")`.

    Returns:
        A composition, which you call on several nodes like a layer.

    Raises:
        FuncconvError: if an argument is not a layer, graph, composition or function, or `name` is not None. When you
            call the composition: if the trunk or the head does not accept its inputs; the message says which one.

    Source: Bromley et al., "Signature verification using a 'Siamese' time delay neural network", 1993.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> def distance(a, b):
        ...     return jnp.linalg.norm(a - b, axis=-1)
        >>> left, right = fc.Input("left", (28, 28, 1)), fc.Input("right", (28, 28, 1))
        >>> trunk = fc.serial(fc.Conv(8, 5), jnp.tanh, fc.Pool(2), fc.Flatten(), fc.Dense(16))
        >>> graph = fc.Graph((left, right), fc.siamese(trunk, distance)(left, right))
        >>> sorted(graph.init(jax.random.key(0)))
        ['conv1', 'dense1']
    """
    return Composition("siamese", _layers("siamese", (trunk, head)), _twins, name)


def _layers(kind: str, layers: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(as_layer(layer, kind) for layer in layers)


def _optional(kind: str, layer: Any) -> Any:
    return None if layer is None else as_layer(layer, kind)


def _in_series(layers: tuple[Any, ...], *nodes: Node) -> Any:
    results: Any = nodes if len(nodes) != 1 else nodes[0]
    for layer in layers:
        results = call_on_results(layer, results)
    return results


def _side_by_side(layers: tuple[Any, ...], *nodes: Node) -> Any:
    *branches, merge = layers
    results = []
    for i, branch in enumerate(branches, 1):
        where = f"parallel: branch {i}, {described(branch)}"
        results.append(call_part(where, branch, *nodes))
    if merge is None:
        return tuple(results)
    shapes = [f"branch {i}, {described(branch)}" for i, branch in enumerate(branches, 1)]
    return call_part(f"parallel: merge {described(merge)} of {shapes_of(shapes, results)}", merge, *results)


def _with_shortcut(layers: tuple[Any, ...], *nodes: Node) -> Any:
    layer, shortcut = layers
    if shortcut is None and len(nodes) != 1:
        msg = f"residual: without a shortcut it takes one input; it was called on {len(nodes)} nodes. Pass shortcut="
        raise FuncconvError(msg)
    names = [f"the layer {described(layer)}", f"the shortcut {described(shortcut) if shortcut else '(the input)'}"]
    main = call_part(f"residual: {names[0]}", layer, *nodes)
    other = nodes[0] if shortcut is None else call_part(f"residual: {names[1]}", shortcut, *nodes)
    return call_part(f"residual: the sum of {shapes_of(names, [main, other])}", as_layer(add), main, other)


def _twins(layers: tuple[Any, ...], *nodes: Node) -> Any:
    trunk, head = layers
    results = [
        call_part(f"siamese: the trunk {described(trunk)} on input {i}, {node!r}", trunk, node)
        for i, node in enumerate(nodes, 1)
    ]
    names = [f"the trunk on input {i}" for i in range(1, len(nodes) + 1)]
    return call_part(
        f"siamese: the head {described(head)} on the results of {shapes_of(names, results)}", head, *results
    )
