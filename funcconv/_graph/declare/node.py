"""What a graph is declared with: nodes, the layers that make them, and plain functions as layers."""

import functools
import inspect
import operator
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import MethodType
from typing import Any, ClassVar, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.dtypes import in_wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, DTypeLike, Shape
from ..._ops.adaptive import adaptive_pool
from ..._ops.conv import conv, conv_transpose
from ..._ops.dense import dense, flatten
from ..._ops.local_conv import local_conv
from ..._ops.norms import group_norm, layer_norm
from ..._ops.pool import global_pool, pool
from ..._windows.reach import Reach
from .inference import drawn, remembered, result, shapes
from .portable import GETTERS, portable
from .readings import check_readings


class Node:
    """A value in a graph that is being declared: an input, or a layer applied to other nodes.

    Nodes are made by calling layers, by `node` and by arithmetic: `a + b`, `a - 1`, `2 * a`, `a / b`, `a ** 2`, `-a`,
    `abs(a)`, and `a @ b`, each meant for one example. `a[i]` is an entry of a node whose value is a tuple or a dict.
    `a.shape` is the shape of its value, without batch axes.
    """

    __array_ufunc__ = None  # so that NumPy leaves `array + node` to the node, which refuses it

    inputs: tuple["Node", ...] = ()
    problem: "Problem | None" = None  # why its shape cannot be inferred

    @property
    def spec(self) -> Any:
        """The shape and dtype of the value, without batch axes; None if they are not known."""
        raise NotImplementedError

    def __jax_array__(self) -> NoReturn:
        self.refuse_as_array()

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        self.refuse_as_array()

    def refuse_as_array(self) -> NoReturn:
        """Say what to write instead of calling a function of arrays on a node."""
        msg = (
            f"{self!r} is a node of a graph that is being declared, not an array. Apply a function of arrays with "
            "fc.node: fc.node(jax.nn.relu, node). Join nodes with fc.concat(a, b). A function gets the values of nodes "
            "as its arguments: fc.node(function, node, other_node)"
        )
        raise FuncconvError(msg)

    def __bool__(self) -> NoReturn:
        msg = f"{self!r} has no truth value while it is declared; compute with its value in fc.node(function, node)"
        raise FuncconvError(msg)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Node) and (isinstance(other, int | float | complex) or hasattr(other, "dtype")):
            msg = f"{self!r} cannot be compared with a number; write fc.node(lambda x: x == ..., node)"
            raise FuncconvError(msg)
        return self is other

    __hash__ = object.__hash__

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
        return Function(operator.matmul, batched=False)(self, other)

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

    @property
    def spec(self) -> Any:
        """The shape and dtype, without batch axes."""
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

    def __init__(self, layer: "Layer", inputs: Sequence[Node], name: str | None, place: "Place | None" = None) -> None:
        self.layer = self.op = layer
        self.inputs = tuple(inputs)
        self.name = name
        self.place = place
        self._spec: Any = None
        self.problem = next((each.problem for each in inputs if each.problem), None)
        xs = [each.spec for each in inputs]
        if any(x is None for x in xs) or (layer.parametric and not layer.draws):
            return
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
            why = "it depends on parameters whose shapes nothing draws; graph.shapes(params) tells it"
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
        for each in (each for each in fields(self) if each.init):
            value = getattr(self, each.name)
            if isinstance(value, list | tuple | np.generic):  # lists do not hash, files know Python's numbers alone
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

    def __reduce__(self) -> Any:
        options = {each.name: portable(getattr(self, each.name)) for each in fields(self) if each.init}
        return _restored, (type(self), options)

    def __copy__(self) -> "Layer":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Layer":
        del memo
        return replace(self)  # its functions are the same, so that it is equal; its identity is new

    def decided(self, entry: Any, xs: Any) -> "Layer":
        """Return the layer as it is evaluated, for parameters and inputs of these shapes."""
        del entry, xs
        return self

    @property
    def undecided(self) -> bool:
        """Whether `decided` has something to decide."""
        return False

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

    It is mapped over the batch axes, unless `batched`: then it sees exactly one. With `batched=None` it must compute
    the same either way, which `decided` checks as soon as the shapes of its inputs are known.
    """

    op: Callable[..., Any] = field(compare=False)
    init: Callable[..., Any] | None = field(default=None, kw_only=True)
    batched: bool | None = field(default=False, kw_only=True)
    value: Hashable = field(init=False, kw_only=True)

    arity: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in (self.op, self.init):
            if not (callable(each) or each is self.init is None):
                msg = f"a node needs a function of arrays; got {each!r}"
                raise FuncconvError(msg)
        if self.batched not in (None, True, False):
            msg = f"batched must be True (written for a batch), False (for one example) or None; got {self.batched!r}"
            raise FuncconvError(msg)
        object.__setattr__(self, "value", by_value(self.op))
        check_hash(self, "the op of a node must be hashable")

    def __repr__(self) -> str:
        name = getattr(self.op, "__name__", None) or repr(self.op)
        return f"{name}(batched=True)" if self.batched else name

    @functools.cached_property
    def mapped(self) -> "Function":
        """The same function, written for one example; one object, so that its uses share parameters."""
        return replace(self, batched=False)

    @property
    def undecided(self) -> bool:
        """Whether it is not known how the function is written."""
        return self.batched is None

    def decided(self, entry: Any, xs: Any) -> "Function":
        """Return the function mapped over examples, if it computes the same when it is called on a batch.

        Raises:
            FuncconvError: if it does not.
        """
        if self.batched is not None or not xs or self._keeps_batches(xs):
            return self.mapped if self.batched is None else self

        def check() -> bool:
            one = partial(self.mapped.apply, batch=())
            whole = self.op if self.parametric else lambda _, *xs: self.op(*xs)
            label = f"{self!r} (name={self.name!r})" if self.name else repr(self)
            return check_readings(label, one, whole, entry, xs)

        return self.mapped if remembered(self, "decided", (entry, xs), check) else self

    def _keeps_batches(self, xs: Any) -> bool:
        """Whether it is known that the function computes the same for one example and for a batch."""
        if _is_partial_of(_BATCH_AXES_FIRST, self.op):
            return True
        ranks = {len(leaf.shape) for leaf in jax.tree.leaves(xs)}
        return not self.parametric and _elementwise(self.op) and len(ranks) == 1

    @property
    def parametric(self) -> bool:  # type: ignore[override]
        """Whether the op takes parameters."""
        return self.init is not None or self.params is not None

    @property
    def takes_no_arrays(self) -> bool:
        """Whether the op can be called on its parameters alone, or on nothing, and on no array in addition."""
        try:
            signature = inspect.signature(self.op)
        except (TypeError, ValueError):  # a builtin without a signature
            return False
        return _accepts(signature, self.parametric) and not _accepts(signature, self.parametric + 1)

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
        if (
            not self.parametric and _elementwise(self.op) and len({jnp.ndim(x) for x in xs}) == 1
        ):  # mapping changes nothing, and takes time
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
        spread = [x if x.ndim == rank else x.reshape(batch + (1,) * (rank - x.ndim) + x.shape[k:]) for x in xs]
        shape = jnp.broadcast_shapes(*(x.shape for x in spread))
        # A gradient is a sum over the copies: in 16 bits, that of a gate for a whole image would be wrong.
        return self.op(*(x if x.shape == shape else in_wide(lambda x: jnp.broadcast_to(x, shape), x) for x in spread))


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
    batched: bool | None = None,
) -> Any:
    """Make any pure function of arrays a node: `op(*xs)`, or `op(params, *xs)` if `params` or `init` is given.

    Args:
        op: a pure function. An op with a keyword parameter `spatial=None` gets the number of spatial axes of its first
            input.
        *inputs: nodes. Without them a layer is returned, which you call on nodes or put into `serial`.
        params: the name of its entry in the parameters, an array or a tree; nodes and layers that give the same name
            share it. By default the node's name.
        init: `init(key, *input_shapes)` draws the entry; the shapes have no batch axes. Without it the user gives the
            entry: `graph.init(key, w1=...)`.
        name: of the node; by default made of the op's name and a number.
        batched: False if the op is written for one example: its arrays have no batch axes, and it is mapped over those
            that come. True if it is written for a batch: its arrays have one batch axis in front, which it keeps. By
            default the op must compute the same either way, as elementwise functions do and functions that count axes
            from the end. This is checked once for every op and shape, by tracing it both ways; only if the two
            programs differ, they are compiled and run on a few random inputs. An op that can be traced only for one
            example is taken to be written for one example. An op that can be traced only for a batch raises an error
            in `Graph.init`, because it may as well be an op with a mistake.

    Returns:
        A node; its value may be a tuple or a dict, whose entries are `node[0]` or `node["a"]`. Without inputs, a layer.
        An op that takes parameters and no arrays has no inputs: it is a node at once.

    Raises:
        FuncconvError: if an input is not a node, or the op is a layer, which you call instead, or if the op computes
            different results for one example and for a batch, and `batched` is not given.

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
    layer = Function(op, params=params, init=init, name=name, batched=batched)
    return layer(*inputs) if inputs or layer.takes_no_arrays else layer


def as_layer(layer: Any) -> Callable[..., Any]:
    """Return what is called on nodes: a layer or composition as it is, a function of arrays as a layer."""
    if getattr(layer, "takes_nodes", isinstance(layer, Layer)):
        return layer  # type: ignore[no-any-return]
    if isinstance(layer, partial) and layer.func is node:
        return as_layer(layer())
    if isinstance(layer, type | Node) or not callable(layer):
        msg = f"expected a layer, a graph or a function of arrays; got {layer!r}"
        raise FuncconvError(msg)
    return Function(layer, batched=None)


def check_nodes(layer: object, inputs: Sequence[object]) -> None:
    """Refuse inputs that are not nodes."""
    for each in inputs:
        if not isinstance(each, Node):
            hint = ""
            if hasattr(each, "shape"):
                hint = (
                    "; on arrays call the op itself, such as fc.conv(params, x). An array that a node needs belongs "
                    "into a function, fc.node(lambda x: x + array, node), or into the parameters"
                )
            elif isinstance(each, Layer) or getattr(each, "takes_nodes", False):
                hint = "; call the layer on nodes first"
            msg = f"{layer!r} is called on nodes while a graph is declared; got {type(each).__name__}{hint}"
            raise FuncconvError(msg)


def check_name(name: str | None) -> None:
    """Refuse a name that could be taken for a path."""
    if name is not None and (not isinstance(name, str) or not name or "/" in name or "@" in name):
        msg = f"a name must be a word without '/' and '@', which stand for nesting and repeated use; got {name!r}"
        raise FuncconvError(msg)


def _restored(kind: type[Layer], options: dict[str, Any]) -> Layer:
    try:
        return kind(**options)
    except TypeError as error:
        msg = f"the pickle has a {kind.__name__} of another version, with the options {sorted(options)}: {error}"
        raise FuncconvError(msg) from error


def _accepts(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _dtype(layer: Layer, name: str, value: Any) -> Any:
    try:
        return jnp.dtype(value)
    except TypeError as error:
        msg = f"{type(layer).__name__}: {name} must be a dtype; got {value!r}: {error}"
        raise FuncconvError(msg) from None


def _frozen(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value


def check_hash(layer: Layer, rule: str) -> None:
    """Refuse a layer that cannot be compared by value."""
    try:
        hash(layer)
    except TypeError:
        msg = f"{layer!r}: {rule}"
        raise FuncconvError(msg) from None


def by_value(op: Any) -> Hashable:
    """Return what an op is compared by.

    Partial applications of equal functions to equal arguments are equal, as are methods of equal objects.
    """
    if isinstance(op, MethodType):
        return (op.__func__, by_value(op.__self__))
    if isinstance(op, GETTERS):
        return tuple(map(by_value, op.__reduce__()))  # its class, and the arguments
    if not isinstance(op, partial):
        return op  # type: ignore[no-any-return]
    args, keywords = op.args, op.keywords
    while isinstance(op.func, partial):  # one that has attributes of its own, such as documentation
        op = op.func
        args, keywords = (*op.args, *args), op.keywords | keywords
    options = (*args, *(each for item in sorted(keywords.items()) for each in item))
    return (by_value(op.func), len(args), tuple((type(each), by_value(each)) for each in options))


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


# Functions that take any number of batch axes in front: for them, one example is a batch without axes.
_BATCH_AXES_FIRST = frozenset((
    adaptive_pool, conv, conv_transpose, dense, flatten, global_pool, group_norm, layer_norm, local_conv, pool,
))  # fmt: skip


def _is_partial_of(functions: frozenset[Any], op: Any) -> bool:
    """Whether an op is one of some functions, with options or without."""
    while isinstance(op, partial):
        op = op.func
    return op in functions


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


def _refuse_as_argument(node: Any, *_: Any) -> NoReturn:
    Node.refuse_as_array(node)


# JAX takes the arguments of its functions apart before it looks at them, so this is where a node can explain itself.
for _kind in (Input, Application):
    jax.tree_util.register_pytree_node(_kind, _refuse_as_argument, _refuse_as_argument)
