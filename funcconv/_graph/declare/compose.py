"""Ways to put layers together: one after another, side by side, with a shortcut, or as twins.

A composition is called on nodes like a layer and leaves no trace of its own: names are those of its layers.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import ArrayLike
from ..._windows.layout import as_array
from ..name.flatten import flatten, post_order
from .inference import retold
from .node import Input, Layer, Node, as_layer, check_nodes


class Composition:
    """Layers put together.

    Compositions compare by value, of which it is part which of their layers are one object: `serial(c, c)` is not
    `serial(Conv(8, 3), Conv(8, 3))`.
    """

    takes_nodes = True

    def __init__(self, kind: str, parts: tuple[Any, ...], apply: Callable[..., Any], name: object = None) -> None:
        if name is not None:
            msg = (
                f"{kind}: layers that are put together have names, and the whole has none. A part with a name is a "
                f"graph: layers = fc.{kind}(...); fc.Graph(x, layers(x), name={name!r}), where x is an fc.Input. "
                "It is called on nodes like a layer"
            )
            raise FuncconvError(msg)
        self._kind, self._apply = kind, apply
        self._parts = parts
        self._value = _value(self, {})

    def __call__(self, *nodes: Node) -> Any:
        """Apply to nodes; the result is a node, or a tuple of nodes."""
        check_nodes(self, nodes)
        return self._apply(self._parts, *nodes)

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Composition) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"{self._kind}({', '.join(map(repr, self._parts))})"


def serial(*layers: Any, name: None = None) -> Composition:
    """Apply layers one after another; a tuple that one gives is what the next is called on.

    Args:
        *layers: layers, graphs, compositions or plain functions of arrays. A function must compute the same for one
            example and for a batch; `fc.node(f, batched=True)` is a layer of one that is written for a batch.
        name: must be None. A part with a name is a graph: `fc.Graph(x, layers(x), name="trunk")`.

    Returns:
        What is called on nodes.

    Raises:
        FuncconvError: if something is not a layer.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (28, 28, 1))
        >>> layers = fc.serial(fc.Conv(8, 5), jax.nn.relu, fc.Pool(2), fc.Flatten(), fc.Dense(10))
        >>> sorted(fc.Graph(x, layers(x)).init(jax.random.key(0)))
        ['conv1', 'dense1']
    """
    return Composition("serial", _layers(layers), _in_series, name)


def parallel(*layers: Any, merge: Any = None, name: None = None) -> Composition:
    """Apply each layer to the same inputs.

    Args:
        *layers: as for `serial`.
        merge: called on all results, `merge(a, b, ...)`, such as `concat` or `operator.add`; None keeps the tuple.
        name: must be None. A part with a name is a graph: `fc.Graph(x, layers(x), name="trunk")`.

    Returns:
        What is called on nodes.

    Raises:
        FuncconvError: if something is not a layer. When it is called: if a branch or the merge does not accept
            what comes to it; the text says which.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (28, 28, 3))
        >>> block = fc.parallel(fc.Conv(8, 1), fc.Conv(8, 5, padding="SAME"), merge=fc.concat)
        >>> graph = fc.Graph(x, block(x))
        >>> graph(graph.init(jax.random.key(0)), jnp.ones((2, 28, 28, 3))).shape
        (2, 28, 28, 16)
    """
    return Composition("parallel", (*_layers(layers), _optional(merge)), _side_by_side, name)


def residual(layer: Any, shortcut: Any = None, *, name: None = None) -> Composition:
    """Add a shortcut to a layer: `layer(x) + shortcut(x)`.

    Args:
        layer: as for `serial`.
        shortcut: likewise; None is the input itself.
        name: must be None. A part with a name is a graph: `fc.Graph(x, layers(x), name="trunk")`.

    Returns:
        What is called on nodes. The two must have one shape: nothing is spread.

    Raises:
        FuncconvError: if something is not a layer. When it is called: if the layer or the shortcut does not accept the
            input, or their results differ in shape.

    Source: He et al., "Deep residual learning for image recognition", 2015, arXiv:1512.03385.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 4))
        >>> graph = fc.Graph(x, fc.residual(fc.serial(fc.Conv(4, 3, padding="SAME"), jnp.tanh))(x))
        >>> graph.nodes
        ('x', 'conv1', 'tanh1', 'add1')
    """
    return Composition("residual", (as_layer(layer), _optional(shortcut)), _with_shortcut, name)


def siamese(trunk: Any, head: Any, *, name: None = None) -> Composition:
    """Apply one trunk to each input, with the same weights, and a head to all results: `head(trunk(a), trunk(b))`.

    Args:
        trunk: as for `serial`; called once for each input.
        head: a layer or a function of the trunk's results, such as their distance.
        name: must be None. A part with a name is a graph: `fc.Graph(x, layers(x), name="trunk")`.

    Returns:
        What is called on two nodes, or more.

    Raises:
        FuncconvError: if something is not a layer. When it is called: if the trunk or the head does not accept
            what comes to it; the text says which.

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
    return Composition("siamese", _layers((trunk, head)), _twins, name)


def concat(*xs: ArrayLike | Node) -> Any:
    """Join arrays along their last axis, the channels.

    Args:
        *xs: `(*axes, channels)`, with the same axes but for the channels. Or nodes of a graph.

    Returns:
        `(*axes, sum of channels)`; a node, if the inputs are nodes.

    Raises:
        FuncconvError: if the other axes or the dtypes differ.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.concat(jnp.ones((4, 4, 2)), jnp.ones((4, 4, 3))).shape
        (4, 4, 5)
    """
    if any(isinstance(x, Node) for x in xs):
        return as_layer(concat)(*xs)
    values: tuple[Any, ...] = xs
    arrays = [as_array("concat", "every input", x) for x in values]
    if len({(x.shape[:-1], x.ndim, x.dtype) for x in arrays}) != 1 or arrays[0].ndim == 0:
        found = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays)
        msg = f"concat: all inputs must have one dtype and the same axes but for the channels; got {found or 'none'}"
        raise FuncconvError(msg)
    return jnp.concatenate(arrays, axis=-1)


def add(x: ArrayLike | Node, *others: ArrayLike | Node) -> Any:
    """Add arrays of one shape; nothing is spread.

    Args:
        x: any array, or a node of a graph.
        *others: arrays of the same shape and dtype, or nodes.

    Returns:
        An array of that shape; a node, if the inputs are nodes.

    Raises:
        FuncconvError: if shapes or dtypes differ.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.add(jnp.ones(2), jnp.ones(2), jnp.ones(2)).tolist()
        [3.0, 3.0]
    """
    if any(isinstance(each, Node) for each in (x, *others)):
        return as_layer(add)(x, *others)
    values: tuple[Any, ...] = (x, *others)
    total, *terms = (as_array("add", "every input", each) for each in values)
    for term in terms:
        if (term.shape, term.dtype) != (total.shape, total.dtype):
            one, two = (f"{array.dtype}{list(array.shape)}" for array in (total, term))
            msg = f"add: all inputs must have one shape and dtype; got {one} and {two}"
            raise FuncconvError(msg)
        total = total + term
    return total


def _layers(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(as_layer(layer) for layer in layers)


def _optional(layer: Any) -> Any:
    return None if layer is None else as_layer(layer)


def _in_series(layers: tuple[Any, ...], *nodes: Node) -> Any:
    results: Any = nodes if len(nodes) != 1 else nodes[0]
    for layer in layers:
        results = _call(layer, results)
    return results


def _side_by_side(layers: tuple[Any, ...], *nodes: Node) -> Any:
    *branches, merge = layers
    results = []
    for i, branch in enumerate(branches, 1):
        where = f"parallel: branch {i}, {_described(branch)}"
        results.append(_checked(where, branch, *nodes))
    if merge is None:
        return tuple(results)
    shapes = [f"branch {i}, {_described(branch)}" for i, branch in enumerate(branches, 1)]
    return _checked(f"parallel: merge {_described(merge)} of {_shapes(shapes, results)}", merge, *results)


def _with_shortcut(layers: tuple[Any, ...], *nodes: Node) -> Any:
    layer, shortcut = layers
    if shortcut is None and len(nodes) != 1:
        msg = f"residual adds its one input; it was called on {len(nodes)} nodes, so give a shortcut"
        raise FuncconvError(msg)
    names = [f"the layer {_described(layer)}", f"the shortcut {_described(shortcut) if shortcut else '(the input)'}"]
    main = _checked(f"residual: {names[0]}", layer, *nodes)
    other = nodes[0] if shortcut is None else _checked(f"residual: {names[1]}", shortcut, *nodes)
    return _checked(f"residual: the sum of {_shapes(names, [main, other])}", as_layer(add), main, other)


def _twins(layers: tuple[Any, ...], *nodes: Node) -> Any:
    trunk, head = layers
    results = [
        _checked(f"siamese: the trunk {_described(trunk)} on input {i}, {node!r}", trunk, node)
        for i, node in enumerate(nodes, 1)
    ]
    names = [f"the trunk on input {i}" for i in range(1, len(nodes) + 1)]
    return _checked(f"siamese: the head {_described(head)} on the results of {_shapes(names, results)}", head, *results)


def _checked(where: str, layer: Any, *nodes: Any) -> Any:
    """Call a part on nodes, and say which part it is if a shape in it is wrong."""
    try:
        result = layer(*nodes)
    except FuncconvError as error:
        msg = f"{where}: {error}"
        raise FuncconvError(msg) from None
    known = all(node.problem is None for node in _nodes(nodes))
    problem = next((node.problem for node in _nodes(result) if node.problem), None)
    # Outside of jax.shard_map, JAX raises NameError for the axis of a mesh; JAXTypeError, if it needs values.
    if known and problem and not isinstance(problem.error, NameError | jax.errors.JAXTypeError):
        node = problem.node
        inputs = [each for each in post_order([node]) if isinstance(each, Input)]
        rows, _, _ = flatten(inputs, [node])
        msg = f"{where}: {retold(rows[-1].name, node.layer, [each.spec for each in node.inputs], problem.error)}"
        raise FuncconvError(msg) from problem.error
    return result


def _nodes(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda each: isinstance(each, Node))


def _described(part: Any) -> str:
    """Return a part as messages call it."""
    if isinstance(part, Layer | Composition):
        text = repr(part)
        return text if len(text) <= 200 else f"{text[:197]}..."
    return f"the graph {part.name!r}" if part.name else "a graph"


def _shapes(names: list[str], results: list[Any]) -> str:
    return " and ".join(
        f"{name}" + "".join(f": {node.shape}" for node in _nodes(result) if node.problem is None and node.spec)
        for name, result in zip(names, results, strict=True)
    )


def _call(layer: Any, results: Any) -> Any:
    return layer(*results) if isinstance(results, tuple) else layer(results)


def _value(part: Any, identities: dict[int, int]) -> Hashable:
    """Return what a part is compared by; what has parameters is numbered by identity in order of appearance."""
    if isinstance(part, Composition):
        return (part._kind, *(_value(each, identities) for each in part._parts))
    if part is None or (isinstance(part, Layer) and not part.parametric):
        return part
    return part, identities.setdefault(id(part), len(identities))
