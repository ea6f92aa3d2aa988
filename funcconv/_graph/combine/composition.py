"""The class of compositions: layers put together, which are called on nodes like a layer."""

from collections.abc import Callable, Hashable
from typing import Any

import jax

from ..._common.errors import FuncconvError
from ..declare.inference import retold
from ..declare.layer import Layer, check_nodes
from ..declare.node import Input, Node
from ..name.flatten import flatten, post_order

_MOST_PARTS = 5  # at the beginning of a long composition, which a description shows beside the last one
_LONGEST_TEXT = 200  # letters of a description that shows all parts, or of a part in a message


class Composition:
    """Layers put together.

    Compositions compare by value, of which it is part which of their layers are one object: `serial(c, c)` is not
    `serial(Conv(8, 3), Conv(8, 3))`.
    """

    takes_nodes = True

    def __init__(self, kind: str, parts: tuple[Any, ...], apply: Callable[..., Any], name: object = None) -> None:
        if name is not None:
            msg = (
                f"{kind}: name must be None, because the layers have the names; got {name!r}. For a part with a name "
                f"make a graph, layers = fc.{kind}(...); fc.Graph(x, layers(x), name={name!r}), where x is an "
                "fc.Input, and call it on nodes like a layer"
            )
            raise FuncconvError(msg)
        self._kind, self._apply = kind, apply
        self._parts = parts
        # Computed once, because compositions nest and each comparison would walk through all of them.
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
        texts = [repr(part) for part in self._parts]
        if len(texts) > _MOST_PARTS + 1 and len(", ".join(texts)) > _LONGEST_TEXT:
            rest = len(texts) - _MOST_PARTS - 1
            texts = [*texts[:_MOST_PARTS], f"... {rest} more ...", texts[-1]]
        return f"{self._kind}({', '.join(texts)})"


def call_part(where: str, layer: Any, *nodes: Any) -> Any:
    """Call a part on nodes, and say which part it is if a shape in it is wrong."""
    try:
        result = layer(*nodes)
    except FuncconvError as error:
        msg = f"{where}: {error}"
        raise FuncconvError(msg) from None
    # A node repeats the problem of its inputs. Only the part in which it begins is named.
    known = all(node.problem is None for node in _nodes(nodes))
    problem = next((node.problem for node in _nodes(result) if node.problem), None)
    # Outside of jax.shard_map, JAX raises NameError for the axis of a mesh; JAXTypeError, if it needs values.
    if known and problem and not isinstance(problem.error, NameError | jax.errors.JAXTypeError):
        node = problem.node
        # Only a graph gives names, so a graph of this node alone says what the node would be called.
        inputs = [needed for needed in post_order([node]) if isinstance(needed, Input)]
        rows, _, _ = flatten(inputs, [node])
        msg = f"{where}: {retold(rows[-1].name, node.layer, [operand.spec for operand in node.inputs], problem.error)}"
        raise FuncconvError(msg) from problem.error
    return result


def _nodes(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Node))


def described(part: Any) -> str:
    """Return a part as messages call it."""
    if isinstance(part, Layer | Composition):
        text = repr(part)
        return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
    return f"the graph {part.name!r}" if part.name else "a graph"


def shapes_of(names: list[str], results: list[Any]) -> str:
    return " and ".join(
        f"{name}" + "".join(f": {node.shape}" for node in _nodes(result) if node.problem is None and node.spec)
        for name, result in zip(names, results, strict=True)
    )


def call_on_results(layer: Any, results: Any) -> Any:
    return layer(*results) if isinstance(results, tuple) else layer(results)


def _value(part: Any, identities: dict[int, int]) -> Hashable:
    """Return what a part is compared by; what has parameters is numbered by identity in order of appearance."""
    if isinstance(part, Composition):
        return (part._kind, *(_value(inner, identities) for inner in part._parts))
    if part is None or (isinstance(part, Layer) and not part.parametric):
        return part
    return part, identities.setdefault(id(part), len(identities))
