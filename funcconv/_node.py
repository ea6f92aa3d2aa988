"""What a graph is declared with: nodes, the layers that make them, and plain functions as layers."""

import inspect
import operator
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ._errors import FuncconvError
from ._reach import Reach
from ._typing import Array, DTypeLike, Shape


class Node:
    """A value in a graph that is being declared: an input, or a layer applied to other nodes.

    Nodes are made by calling layers, by `node` and by arithmetic: `a + b`, `a - 1`, `2 * a`, `a / b`, `a ** 2`, `-a`,
    `abs(a)`, and `a @ b`, each meant for one example. `a[i]` is an entry of a node whose value is a tuple or a dict.
    """

    __array_ufunc__ = None  # so that NumPy leaves `array + node` to the node, which refuses it

    inputs: tuple["Node", ...] = ()

    def __getitem__(self, index: int | str) -> "Node":
        if isinstance(index, bool) or not isinstance(index, int | str):
            msg = f"{self!r}: [{index!r}] does not name an entry; slice with fc.node(lambda x: x[...], node)"
            raise FuncconvError(msg)
        return Function(Item(index))(self)

    def __iter__(self) -> NoReturn:
        msg = f"{self!r} cannot be iterated while it is declared; its entries are node[0], node[1], ..."
        raise FuncconvError(msg)

    def __add__(self, other: "Node | complex") -> "Node":
        return _arithmetic(operator.add, self, other)

    def __radd__(self, other: complex) -> "Node":
        return _arithmetic(operator.add, other, self)

    def __sub__(self, other: "Node | complex") -> "Node":
        return _arithmetic(operator.sub, self, other)

    def __rsub__(self, other: complex) -> "Node":
        return _arithmetic(operator.sub, other, self)

    def __mul__(self, other: "Node | complex") -> "Node":
        return _arithmetic(operator.mul, self, other)

    def __rmul__(self, other: complex) -> "Node":
        return _arithmetic(operator.mul, other, self)

    def __truediv__(self, other: "Node | complex") -> "Node":
        return _arithmetic(operator.truediv, self, other)

    def __rtruediv__(self, other: complex) -> "Node":
        return _arithmetic(operator.truediv, other, self)

    def __pow__(self, other: "Node | complex") -> "Node":
        return _arithmetic(operator.pow, self, other)

    def __rpow__(self, other: complex) -> "Node":
        return _arithmetic(operator.pow, other, self)

    def __matmul__(self, other: "Node") -> "Node":
        return Function(operator.matmul)(self, other)

    def __neg__(self) -> "Node":
        return Function(operator.neg)(self)

    def __abs__(self) -> "Node":
        return Function(operator.abs)(self)


class Input(Node):
    """Declare an input of a graph.

    Args:
        name: how messages, pictures and dicts of inputs call it.
        shape: without batch axes: `(*spatial, channels)` for an image.
        dtype: used where shapes are inferred; None is JAX's default float.

    Raises:
        FuncconvError: if a size is negative or the name has a `/` or an `@`.

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
            msg = f"input {name!r}: the shape must be a tuple of integers, without batch axes; got {shape!r}"
            raise FuncconvError(msg) from None
        if any(size < 0 for size in self.shape):
            msg = f"input {name!r}: a size is negative in {self.shape}; batch axes are not declared"
            raise FuncconvError(msg)
        self.dtype = None if dtype is None else jnp.dtype(dtype)

    def __repr__(self) -> str:
        return f"<input {self.name}: {self.shape}>"


class Application(Node):
    """A layer applied to nodes."""

    def __init__(self, layer: "Layer", inputs: Sequence[Node], name: str | None, place: "Place | None" = None) -> None:
        self.layer = layer
        self.inputs = tuple(inputs)
        self.name = name
        self.place = place

    def __repr__(self) -> str:
        return f"<node {self.name or self.layer.label}: {self.layer!r}>"


class Place(NamedTuple):
    """Where a node lies that came with a named graph."""

    graph: Any
    use: object  # each use of the graph has one
    name: str  # inside the graph, like the entry
    entry: str | None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A description of an op, compared by value; called on nodes, it gives a node.

    While a graph is declared a layer with parameters also has an identity: one object called twice is one set of
    weights, two equal objects are two.

    Attributes:
        name: of its nodes and, if `params` is None, of its entry in the parameters.
        params: the name of its entry; layers that give the same share it.
    """

    name: str | None = None
    params: str | None = None

    parametric: ClassVar[bool] = False
    stateful: ClassVar[bool] = False  # whether it keeps a state beside its parameters, under the same name
    random: ClassVar[bool] = False  # whether it draws in training
    arity: ClassVar[int | None] = 1  # how many nodes it is called on; None for any number

    def __post_init__(self) -> None:
        for each in (each for each in fields(self) if each.init):  # lists would not hash
            value = getattr(self, each.name)
            if isinstance(value, list | tuple):
                object.__setattr__(self, each.name, _frozen(value))
            elif each.name.endswith("dtype") and value is not None:  # jnp.float32 and "float32" are one
                object.__setattr__(self, each.name, _dtype(self, each.name, value))
        for name in (self.name, self.params):
            check_name(name)

    def __call__(self, *inputs: Node) -> Node:
        """Apply to nodes."""
        check_nodes(self, inputs)
        if self.arity not in (None, len(inputs)):
            msg = f"{self!r} takes {self.arity} input; it was called on {len(inputs)} nodes"
            raise FuncconvError(msg)
        return Application(self, inputs, self.name)

    def __repr__(self) -> str:
        required = [repr(getattr(self, f.name)) for f in fields(self) if not f.kw_only]
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.kw_only and f.init and getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(required + changed)})"

    @property
    def label(self) -> str:
        """What automatic names are made of: `conv_transpose` for a ConvTranspose."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def draws(self) -> bool:
        """Whether it can draw its parameters."""
        return self.parametric

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...] | None:
        """Return what the result sees of each axis of its one input, along the same axis; None: all of it, summed up.

        By default nothing is known, and the program says it.
        """
        del shapes
        return None

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw parameters for inputs of these shapes, which have no batch axes."""
        raise NotImplementedError

    def first_state(self, *shapes: Shape) -> Any:
        """Return the state that it starts from, for inputs of these shapes, which have no batch axes."""
        raise NotImplementedError

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Compute the op on arrays that all have these batch axes in front; one with a state, in its first."""
        raise NotImplementedError

    def run(self, params: Any, state: Any, *xs: Any, batch: Shape, key: Array | None, train: bool) -> tuple[Any, Any]:
        """Compute the op, in training or not, and the next state."""
        del key, train
        return self.apply(params, *xs, batch=batch), state


@dataclass(frozen=True, repr=False)
class Function(Layer):
    """A plain function of arrays as a layer.

    It is written for one example and mapped over the batch axes, unless `batched`: then it sees exactly one.
    """

    op: Callable[..., Any] = field(compare=False)
    init: Callable[..., Any] | None = field(default=None, kw_only=True)
    batched: bool = field(default=False, kw_only=True)
    value: Hashable = field(init=False, kw_only=True)

    arity: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in (self.op, self.init):
            if not (callable(each) or each is self.init is None):
                msg = f"a node needs a function of arrays; got {each!r}"
                raise FuncconvError(msg)
        object.__setattr__(self, "value", by_value(self.op))
        check_hash(self, "the op of a node must be hashable")

    def __repr__(self) -> str:
        return getattr(self.op, "__name__", None) or repr(self.op)

    @property
    def parametric(self) -> bool:  # type: ignore[override]
        """Whether the op takes parameters."""
        return self.init is not None or self.params is not None

    @property
    def draws(self) -> bool:
        """Whether it can draw its parameters."""
        return self.init is not None

    @property
    def label(self) -> str:
        """The function's name."""
        op = self.op.func if isinstance(self.op, partial) and not hasattr(self.op, "__name__") else self.op
        name = getattr(op, "__name__", None) or type(op).__name__
        return "".join(c for c in name if c.isalnum() or c == "_").strip("_") or "function"

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw by `init`."""
        return self.init(key, *shapes)  # type: ignore[misc]

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Compute the op, mapped over the batch axes."""
        op = partial(self.op, params) if self.parametric else self.op
        if self.batched:
            return _on_one_batch_axis(op, xs, batch)
        if xs and _takes_spatial(self.op):
            op = partial(op, spatial=jnp.ndim(xs[0]) - len(batch) - 1)
        if not xs:
            return jax.tree.map(lambda y: jnp.broadcast_to(y, batch + jnp.shape(y)), op())
        if _elementwise(self.op) and len({jnp.ndim(x) for x in xs}) == 1:  # mapping changes nothing, and takes time
            return self.op(*xs)
        for _ in batch:
            op = jax.vmap(op)
        return op(*xs)


@dataclass(frozen=True, repr=False)
class _Arithmetic(Function):
    """An elementwise operation of two nodes, or of one and a number; a value of lower rank is spread by example."""

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        del params
        rank, k = max(x.ndim for x in xs), len(batch)
        spread = (x if x.ndim == rank else x.reshape(batch + (1,) * (rank - x.ndim) + x.shape[k:]) for x in xs)
        return self.op(*spread)


@dataclass(frozen=True)
class Item:
    """The entry of a tuple or a dict, as a function."""

    index: int | str
    __name__ = "item"

    def __call__(self, x: Any) -> Any:
        return x[self.index]


@dataclass(frozen=True)
class WithNumber:
    """An operation of two with a number on one side, as a function of the other."""

    op: Callable[[Any, Any], Any]
    number: complex
    first: bool
    kind: type

    @property
    def __name__(self) -> str:
        return self.op.__name__

    def __call__(self, x: Any) -> Any:
        return self.op(self.number, x) if self.first else self.op(x, self.number)


def node(
    op: Callable[..., Any],
    *inputs: Node,
    params: str | None = None,
    init: Callable[..., Any] | None = None,
    name: str | None = None,
    batched: bool = False,
) -> Node:
    """Make any pure function of arrays a node: `op(*xs)`, or `op(params, *xs)` if `params` or `init` is given.

    Args:
        op: a pure function, written for one example: its arrays have no batch axes, and it is mapped over those that
            come. An op with a keyword parameter `spatial=None` gets the number of spatial axes of its first input.
        *inputs: nodes.
        params: the name of its entry in the parameters, an array or a tree; nodes and layers that give the same name
            share it. By default the node's name.
        init: `init(key, *input_shapes)` draws the entry; the shapes have no batch axes. Without it the user gives the
            entry: `graph.init(key, w1=...)`.
        name: of the node; by default made of the op's name and a number.
        batched: the op sees one batch axis, as in `(batch, ...)`, and keeps it in front.

    Returns:
        A node. Its value may be a tuple or a dict, whose entries are `node[0]` or `node["a"]`.

    Raises:
        FuncconvError: if an input is not a node, or the op is a layer, which one calls instead.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x0 = fc.Input("x0", (2,))
        >>> x1 = fc.node(jnp.dot, x0, params="w")
        >>> graph = fc.Graph(x0, x1 + fc.node(jnp.dot, x1, params="w"))  # the same w twice
        >>> params = graph.init(jax.random.key(0), w=2 * jnp.eye(2))
        >>> graph(params, jnp.array([[1.0, 3.0]])).tolist()
        [[6.0, 18.0]]
    """
    if isinstance(op, Layer) or not callable(op):
        msg = f"node: {op!r} is {'a layer: call it on the nodes' if isinstance(op, Layer) else 'not a function'}"
        raise FuncconvError(msg)
    return Function(op, params=params, init=init, name=name, batched=batched)(*inputs)


def as_layer(layer: Any) -> Callable[..., Any]:
    """Return what is called on nodes: a layer or composition as it is, a function of arrays as a layer."""
    if getattr(layer, "takes_nodes", isinstance(layer, Layer)):
        return layer  # type: ignore[no-any-return]
    if isinstance(layer, type) or not callable(layer):
        msg = f"expected a layer, a graph or a function of arrays; got {layer!r}"
        raise FuncconvError(msg)
    return Function(layer)


def check_nodes(layer: object, inputs: Sequence[object]) -> None:
    """Refuse inputs that are not nodes."""
    for each in inputs:
        if not isinstance(each, Node):
            hint = "; on arrays call the op itself, such as fc.conv(params, x)" if hasattr(each, "shape") else ""
            msg = f"{layer!r} is called on nodes while a graph is declared; got {type(each).__name__}{hint}"
            raise FuncconvError(msg)


def check_name(name: str | None) -> None:
    """Refuse a name that could be taken for a path."""
    if name is not None and (not isinstance(name, str) or not name or "/" in name or "@" in name):
        msg = f"a name must be a word without '/' and '@', which stand for nesting and repeated use; got {name!r}"
        raise FuncconvError(msg)


def _dtype(layer: Layer, name: str, value: Any) -> Any:
    try:
        return jnp.dtype(value)
    except TypeError as error:
        msg = f"{type(layer).__name__}: {name} must be a dtype; got {value!r}: {error}"
        raise FuncconvError(msg) from None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value


def check_hash(layer: Layer, rule: str) -> None:
    """Refuse a layer that cannot be compared by value."""
    try:
        hash(layer)
    except TypeError:
        msg = f"{layer!r}: {rule}"
        raise FuncconvError(msg) from None


def by_value(op: Any) -> Hashable:
    """Return what an op is compared by: partial applications of equal functions to equal arguments are equal."""
    if isinstance(op, partial):
        options = (*op.args, *(each for item in sorted(op.keywords.items()) for each in item))
        return (by_value(op.func), len(op.args), tuple((type(each), by_value(each)) for each in options))
    return op  # type: ignore[no-any-return]


_ELEMENTWISE = frozenset((
    *(getattr(jax.nn, name) for name in (
        "celu", "elu", "gelu", "hard_sigmoid", "hard_swish", "hard_tanh", "leaky_relu", "log_sigmoid", "mish", "relu",
        "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "squareplus",
    )),
    *(getattr(jnp, name) for name in (
        "abs", "add", "clip", "cos", "divide", "exp", "log", "maximum", "minimum", "multiply", "negative", "power",
        "sign", "sin", "sqrt", "square", "subtract", "tanh",
    )),
    operator.neg, operator.abs,
))  # fmt: skip


def _elementwise(op: Any) -> bool:
    """Whether a function is known to act on each number by itself."""
    if isinstance(op, partial):
        return _elementwise(op.func) and not op.args and not any(map(np.ndim, op.keywords.values()))
    return op in _ELEMENTWISE


def _takes_spatial(op: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(op).parameters.get("spatial")
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return parameter is not None and parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None


def _on_one_batch_axis(op: Callable[..., Any], xs: Sequence[Any], batch: Shape) -> Any:
    size = 1
    for each in batch:
        size *= each
    ys = op(*jax.tree.map(lambda x: x.reshape(size, *x.shape[len(batch) :]), tuple(xs)))
    for y in jax.tree.leaves(ys):
        if jnp.ndim(y) < 1 or y.shape[0] != size:
            msg = f"a batched op must keep the batch axis of {size} in front; its result has shape {jnp.shape(y)}"
            raise FuncconvError(msg)
    return jax.tree.map(lambda y: y.reshape(batch + y.shape[1:]), ys)


def _arithmetic(op: Callable[[Any, Any], Any], a: Any, b: Any) -> Node:
    for number, other, first in ((a, b, True), (b, a, False)):
        if isinstance(number, int | float | complex) and not isinstance(number, bool):
            return _Arithmetic(WithNumber(op, number, first, type(number)))(other)
    return _Arithmetic(op)(a, b)
