"""Nodes of a graph that is being declared: its inputs, and layers applied to other nodes."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import DTypeLike
from .inference import drawn, result, shapes


class Node:
    """A value in a graph that is being declared: an input, or a layer applied to other nodes.

    Nodes are made by calling layers, by `node` and by arithmetic: `a + b`, `a - 1`, `2 * a`, `a / b`, `a ** 2`, `-a`,
    `abs(a)`, and `a @ b`, each meant for one example. `a[i]` is an entry of a node whose value is a tuple or a dict.
    `a.shape` is the shape of its value, without batch axes.
    """

    inputs: tuple["Node", ...] = ()
    problem: "Problem | None" = None  # why its shape cannot be inferred

    @property
    def spec(self) -> Any:
        """The shape and dtype of the value, without batch axes; None if they are not known."""
        raise NotImplementedError

    # JAX and NumPy convert what they are called with by these two methods, so here a node can say what to do instead.
    def __jax_array__(self) -> NoReturn:
        self.refuse_as_array()

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        self.refuse_as_array()

    # NumPy calls it for `np.tanh(node)`, and also for `array + node`.
    def __array_ufunc__(self, function: Any, method: str, *operands: Any, **options: Any) -> NoReturn:
        name = function.__name__
        msg = (
            f"numpy.{name} is called on nodes while a graph is declared; got "
            f"{', '.join(type(operand).__name__ for operand in operands)}. Write fc.node(jnp.{name}, node). To use an "
            f"array, write fc.node(lambda x: jnp.{name}(array, x), node)"
        )
        raise FuncconvError(msg)

    def refuse_as_array(self) -> NoReturn:
        """Say what to write instead of calling a function of arrays on a node."""
        msg = (
            f"{self!r} is a node of a graph that is being declared, not an array. Apply a function of arrays with "
            "fc.node: fc.node(jax.nn.relu, node). Join nodes with fc.concat(a, b). A function gets the values of nodes "
            "as its arguments: fc.node(function, node, other_node)"
        )
        raise FuncconvError(msg)

    # Without it every node would be true, and `if node:` would silently take one branch.
    def __bool__(self) -> NoReturn:
        msg = f"{self!r} has no truth value while it is declared; compute with its value in fc.node(function, node)"
        raise FuncconvError(msg)

    # `node == 0` would be False, although its author means an array. Nodes compare by identity, as keys of dicts.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Node) and (isinstance(other, int | float | complex) or hasattr(other, "dtype")):
            msg = f"{self!r} cannot be compared with a number; write fc.node(lambda x: x == ..., node)"
            raise FuncconvError(msg)
        return self is other

    __hash__ = object.__hash__  # which Python removes from a class that defines __eq__

    def __getitem__(self, index: int | str) -> "Node":
        if isinstance(index, bool) or not isinstance(index, int | str):
            msg = f"{self!r}: [{index!r}] does not name an entry; slice with fc.node(lambda x: x[...], node)"
            raise FuncconvError(msg)
        return _operate(Item(index), self)

    # Without it, Python would iterate by node[0], node[1], ... and never end.
    def __iter__(self) -> NoReturn:
        msg = f"{self!r} cannot be iterated while it is declared; its entries are node[0], node[1], ..."
        raise FuncconvError(msg)

    def __add__(self, other: "Node | complex") -> "Node":
        return _operate(operator.add, self, other)

    def __radd__(self, other: complex) -> "Node":
        return _operate(operator.add, other, self)

    def __sub__(self, other: "Node | complex") -> "Node":
        return _operate(operator.sub, self, other)

    def __rsub__(self, other: complex) -> "Node":
        return _operate(operator.sub, other, self)

    def __mul__(self, other: "Node | complex") -> "Node":
        return _operate(operator.mul, self, other)

    def __rmul__(self, other: complex) -> "Node":
        return _operate(operator.mul, other, self)

    def __truediv__(self, other: "Node | complex") -> "Node":
        return _operate(operator.truediv, self, other)

    def __rtruediv__(self, other: complex) -> "Node":
        return _operate(operator.truediv, other, self)

    def __pow__(self, other: "Node | complex") -> "Node":
        return _operate(operator.pow, self, other)

    def __rpow__(self, other: complex) -> "Node":
        return _operate(operator.pow, other, self)

    def __matmul__(self, other: "Node") -> "Node":
        return _operate(operator.matmul, self, other)

    def __neg__(self) -> "Node":
        return _operate(operator.neg, self)

    def __abs__(self) -> "Node":
        return _operate(operator.abs, self)


class Input(Node):
    """Declare an input of a graph. The input is a node, on which you call layers.

    You can compute with nodes: `a + b`, `a - 1`, `2 * a`, `a / b`, `a ** 2`, `-a`, `abs(a)` and `a @ b`, each for one
    example. `node.shape` is the shape of the value of a node, without batch axes.

    Args:
        name: name of the input in messages and pictures, and as a keyword in `graph(params, name=array)`. It must not
            be empty or contain `/` or `@`.
        shape: shape of the input without batch axes, such as `(*spatial, channels)` for an image. You can call the
            graph with any number of batch axes in front.
        dtype: dtype for the inference of shapes and dtypes. Arrays are not cast to it. Default: None, JAX's default
            float.

    Raises:
        FuncconvError: if the shape is not a sequence of integers of at least 0, or the name is empty or contains `/` or
            `@`.

    Example:
        >>> import funcconv as fc
        >>> x = fc.Input("image", (28, 28, 1))
        >>> fc.Graph(x, fc.Flatten()(x)).inputs
        ('image',)
    """

    def __init__(self, name: str, shape: Sequence[int], dtype: DTypeLike | None = None) -> None:
        check_name(name)
        self.name = name
        try:
            self.shape = tuple(operator.index(size) for size in shape)
        except TypeError:
            msg = (
                f"input {name!r}: the shape must be a tuple of integers without batch axes, such as (28, 28, 1); "
                f"got {shape!r}"
            )
            raise FuncconvError(msg) from None
        if any(size < 0 for size in self.shape):
            msg = (
                f"input {name!r}: all sizes must be at least 0; got {self.shape}. Leave batch axes out: you can call "
                "the graph with any number of them"
            )
            raise FuncconvError(msg)
        self.dtype = None if dtype is None else jnp.dtype(dtype)

    @property
    def spec(self) -> Any:
        """The shape and dtype, without batch axes."""
        # Not resolved in `__init__`, because jax_enable_x64, which sets the default float, can change before use.
        return jax.ShapeDtypeStruct(self.shape, self.dtype or jnp.result_type(float))  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"<input {self.name}: {self.shape}>"


class Problem(NamedTuple):
    """The error of the first node whose value cannot be inferred."""

    node: Any  # an `Application`
    error: Exception


class Application(Node):
    """A layer applied to nodes.

    Attributes:
        op: the layer as the graph evaluates it: with `batched` decided, where shapes are known.
    """

    def __init__(self, layer: Any, inputs: Sequence[Node], name: str | None, place: "Place | None" = None) -> None:
        self.layer = self.op = layer
        self.inputs = tuple(inputs)
        self.name = name
        self.place = place
        self._spec: Any = None
        self.problem = next((input_node.problem for input_node in inputs if input_node.problem), None)
        xs = [input_node.spec for input_node in inputs]
        if any(x is None for x in xs) or (layer.parametric and not layer.draws):
            return  # the shape of parameters that the user gives is known only in Graph.init
        try:
            entry = drawn(layer, xs) if layer.parametric else None
        except Exception as error:  # Graph.init reports it, with the name of the node
            self.problem = Problem(self, error)
            return
        self.op = layer.decided(entry, xs)
        try:
            self._spec = result(self.op, entry, xs)
        except Exception as error:
            self.problem = Problem(self, error)

    @property
    def spec(self) -> Any:
        """The shape and dtype of the value, without batch axes; None if they are not known."""
        return self._spec

    @property
    def shape(self) -> Any:
        """The shape of the value without batch axes; of a value that is a tree, a tree of shapes."""
        if self._spec is None:
            why = "it depends on parameters that nothing draws. Call graph.shapes(params) on the declared graph"
            if self.problem:
                node, error = self.problem
                why = f"{node!r} failed: {type(error).__name__}: {error}"
            msg = f"the shape of {self!r} is not known: {why}"
            raise FuncconvError(msg)
        return shapes(self._spec)

    def __repr__(self) -> str:
        return f"<node {self.name or self.layer.label}: {self.layer!r}>"


class Place(NamedTuple):
    """Where a node lies that came with a named graph."""

    graph: Any
    use: object  # each use of the graph has one
    name: str  # inside the graph, like the entry
    entry: str | None


@dataclass(frozen=True)
class Item:
    """The entry of a tuple or a dict, as a function."""

    index: int | str
    __name__ = "item"

    def __call__(self, x: Any) -> Any:
        return x[self.index]


def check_name(name: str | None) -> None:
    """Refuse a name that could be taken for a path."""
    if name is not None and (not isinstance(name, str) or not name or "/" in name or "@" in name):
        msg = (
            f"a name must be a word without '/' and '@', which stand for nesting and repeated use; got {name!r}. "
            "Choose another name, for example with '_'"
        )
        raise FuncconvError(msg)


_operators: list[Callable[..., "Node"]] = []


def use_operators(apply: Callable[..., "Node"]) -> None:
    """Set the function that applies an operator to nodes.

    `arithmetic.py` sets it: an operator is applied by a layer, and layers are defined after nodes.
    """
    _operators[:] = [apply]


def _operate(op: Callable[..., Any], *operands: Any) -> "Node":
    return _operators[0](op, *operands)


def _refuse_as_argument(node: Any, *_: Any) -> NoReturn:
    Node.refuse_as_array(node)


# JAX takes the arguments of its functions apart before it looks at them, so this is where a node can explain itself.
for _kind in (Input, Application):
    jax.tree_util.register_pytree_node(_kind, _refuse_as_argument, _refuse_as_argument)
