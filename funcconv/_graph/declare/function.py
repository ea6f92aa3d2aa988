"""Plain functions of arrays as layers."""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from .by_value import by_value, check_hash
from .inference import remembered
from .known_functions import is_elementwise, takes_batch_axes
from .layer import Layer
from .node import Node
from .readings import check_readings


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
        for function in (self.op, self.init):
            if not (callable(function) or function is self.init is None):
                msg = f"node: op and init must be functions of arrays; got {function!r}. Pass one such as jnp.tanh"
                raise FuncconvError(msg)
        if self.batched not in (None, True, False):
            msg = (
                "node: batched must be True (written for a batch), False (for one example) or None (either); "
                f"got {self.batched!r}"
            )
            raise FuncconvError(msg)
        # The dataclass is frozen. `op` itself would compare partials and methods by identity.
        object.__setattr__(self, "value", by_value(self.op))
        check_hash(self, "the op of a node must be hashable; give its class __eq__ and __hash__, or pass a function")

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
            # `whole` gets parameters in any case, so that both are called in the same way.
            one = partial(self.mapped.apply, batch=())
            whole = self.op if self.parametric else lambda _, *xs: self.op(*xs)
            label = f"{self!r} (name={self.name!r})" if self.name else repr(self)
            return check_readings(label, one, whole, entry, xs)

        return self.mapped if remembered(self, "decided", (entry, xs), check) else self

    def _keeps_batches(self, xs: Any) -> bool:
        """Whether it is known that the function computes the same for one example and for a batch."""
        if takes_batch_axes(self.op):
            return True
        # An operand of a lower rank is aligned from the end, so for a batch it would meet other axes.
        ranks = {len(leaf.shape) for leaf in jax.tree.leaves(xs)}
        return not self.parametric and is_elementwise(self.op) and len(ranks) == 1

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
        # Names are parts of paths in the parameters: "<lambda>" becomes "lambda".
        return "".join(c for c in name if c.isalnum() or c == "_").strip("_") or "function"

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw by `init`."""
        return self.init(key, *shapes)  # type: ignore[misc]

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Compute the op, mapped over the batch axes."""
        op = partial(self.op, params) if self.parametric else self.op
        if self.batched:
            # Such an op sees one batch axis, whatever the number of batch axes of the graph.
            return _on_one_batch_axis(op, xs, batch)
        if xs and _takes_spatial(self.op):
            op = partial(op, spatial=jnp.ndim(xs[0]) - len(batch) - 1)
        if not xs:
            # A value without inputs is the same for all examples of the batch.
            return jax.tree.map(lambda y: jnp.broadcast_to(y, batch + jnp.shape(y)), op())
        if (
            not self.parametric and is_elementwise(self.op) and len({jnp.ndim(x) for x in xs}) == 1
        ):  # mapping changes nothing, and takes time
            return self.op(*xs)
        # One vmap for each batch axis: the op is written for one example.
        for _ in batch:
            op = jax.vmap(op)
        return op(*xs)


def node(
    op: Callable[..., Any],
    *inputs: Node,
    params: str | None = None,
    init: Callable[..., Any] | None = None,
    name: str | None = None,
    batched: bool | None = None,
) -> Any:
    """Apply any pure function of arrays to nodes: `op(*xs)`, or `op(params, *xs)` if you pass `params` or `init`.

    Args:
        op: a pure function of arrays. If it has a keyword-only parameter `spatial=None` and `batched` is not True, it
            receives the number of spatial axes of its first input there. If it has a keyword-only parameter `mask=None`
            and an input is `fc.Masked`, it receives the mask there, `(*spatial)`, and returns an array if no masked
            positions are left, or `fc.Masked(array, mask)`.
        *inputs: the nodes whose values the function receives. If there are none, a layer is returned, which you call on
            nodes or put into `serial`.
        params: name of its entry in the parameters, which is an array or a tree of arrays. Nodes and layers with the
            same `params` share one entry. Default: None, the name of the node if `init` is given, otherwise no entry.
        init: a function `init(key, *input_shapes)` that draws the entry; the shapes have no batch axes. If nodes share
            an entry, pass it to the first of them. Default: None, you pass the entry yourself:
            `graph.init(key, w1=...)`.
        name: name of the node. Default: None, the name of the function and a number.
        batched: whether the function is written for a batch. False: it is written for one example, without batch axes,
            and is mapped over the batch axes. True: its arrays have one batch axis in front, which it must keep. None:
            it must compute the same in both ways, like elementwise functions and functions that count axes from the
            end. This is checked once for each function and shape: the function is traced in both ways, and programs
            that differ are run on random inputs. A function that can be traced only for one example is mapped. One that
            can be traced only for a batch raises an error in `graph.init`. Default: None.

    Returns:
        A node. If its value is a tuple or a dict, `node[0]` or `node["a"]` is the node of an entry. If there are no
        inputs, a layer; but a function that takes no arrays except its parameters becomes a node.

    Raises:
        FuncconvError: if an input is not a node, if `op` or `init` is not a function (call a layer on nodes instead),
            or if `batched` is None and the results for one example and for a batch differ.

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
        advice = "Call the layer on the nodes, layer(x)" if isinstance(op, Layer) else "Pass one such as jnp.tanh"
        msg = f"node: op must be a function of arrays; got {op!r}. {advice}"
        raise FuncconvError(msg)
    layer = Function(op, params=params, init=init, name=name, batched=batched)
    return layer(*inputs) if inputs or layer.takes_no_arrays else layer


def as_layer(layer: Any, kind: str = "node") -> Callable[..., Any]:
    """Return what is called on nodes: a layer or composition as it is, a function of arrays as a layer.

    Errors begin with `kind`, the name of the public function that needs the layer.
    """
    if getattr(layer, "takes_nodes", isinstance(layer, Layer)):
        return layer  # type: ignore[no-any-return]
    # `partial(fc.node, op)` is a layer that lacks only its nodes.
    if isinstance(layer, partial) and layer.func is node:
        return as_layer(layer(), kind)
    # A class such as `fc.Flatten` without brackets can be called too, but not on nodes.
    if isinstance(layer, type | Node) or not callable(layer):
        msg = (
            f"{kind}: expected a layer, a graph or a function of arrays; got {layer!r}. Pass objects such as "
            "fc.Dense(10), not their classes, and call the result on nodes"
        )
        raise FuncconvError(msg)
    return Function(layer, batched=None)


def _accepts(signature: inspect.Signature, count: int) -> bool:
    try:
        # Python itself decides, because defaults and `*args` make it hard to count parameters.
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _takes_spatial(op: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(op).parameters.get("spatial")
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return parameter is not None and parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None


def _on_one_batch_axis(op: Callable[..., Any], xs: Sequence[Any], batch: Shape) -> Any:
    size = 1
    for axis_size in batch:
        size *= axis_size
    ys = op(*jax.tree.map(lambda x: x.reshape(size, *x.shape[len(batch) :]), tuple(xs)))
    for y in jax.tree.leaves(ys):
        if jnp.ndim(y) < 1 or y.shape[0] != size:
            msg = (
                f"a batched op must keep the batch axis of {size} in front; its result has shape {jnp.shape(y)}. "
                "Return one result for each example, or declare the node with batched=False"
            )
            raise FuncconvError(msg)
    return jax.tree.map(lambda y: y.reshape(batch + y.shape[1:]), ys)
