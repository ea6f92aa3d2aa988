"""A layer that applies a function to its inputs and to values that are computed from weights."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from ..._graph.declare.by_value import by_value
from ..._graph.declare.layer import Layer
from ..._graph.name.entries import get, put

_DEVIATION = 0.02  # of weights that are in no layer, such as tokens and tables (Devlin et al., 2018)


@dataclass(frozen=True, repr=False)
class _WithWeights(Layer):
    """A function of inputs and of values that are computed from weights, as a layer.

    `trace_torch` uses it for an operation that uses a weight in a way for which funcconv has no layer, such as a kernel
    that is standardized in `forward`, or a scale that is multiplied with an activation.

    Args:
        op: the function, called with the values of `arguments`. It sees one example, without batch axes.
        arguments: what `op` is called with: None is the next input. A tuple describes a value that is computed from
            weights: `("array", path)` is an array of the entry, `(function, argument, ...)` the result of a function.
        arrays: the arrays of the entry: `(path, shape, dtype, kind, name)`. The path counts from the entry and is
            written with `/`; "" is the entry itself. The kind is `"param"`, `"buffer"` (in the state) or `"constant"`
            (in the state, but not in PyTorch's state dict). The name is that of PyTorch's state dict.
        aliases: further names of arrays in PyTorch's state dict: pairs `(alias, name)`. Default: none.
        root: the entry of the weights of the outermost module, whose names have no module in front. Default: "", none.
        name: of its nodes. Default: None, `with_weights1`, ... in order of first use.
        params: the name of its entry. Default: None, its name.
    """

    op: Callable[..., Any] = field(compare=False)
    arguments: tuple[Any, ...]
    arrays: tuple[Any, ...]
    aliases: tuple[Any, ...] = field(default=(), kw_only=True)
    root: str = field(default="", kw_only=True)
    value: Any = field(init=False, kw_only=True)

    arity: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # `op` itself would compare partial applications by identity.
        object.__setattr__(self, "value", (by_value(self.op), _arguments_by_value(self.arguments)))

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.value, self.arrays, self.aliases, self.root))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _WithWeights):
            return NotImplemented
        return bool(self._compared == other._compared)

    @property
    def _compared(self) -> Any:
        return self.name, self.params, self.value, self.arrays, self.aliases, self.root

    def __repr__(self) -> str:
        return f"WithWeights({getattr(self.op, '__name__', None) or repr(self.op)})"

    @property
    def parametric(self) -> bool:  # type: ignore[override]
        """Whether it has an entry. It has none if it is computed from constants alone."""
        return bool(self.arrays or self.aliases or self.root)

    @property
    def optional(self) -> bool:  # type: ignore[override]
        """Whether it only stores arrays, so that the parameters may omit them."""
        return not self.arguments and self.parametric

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether some of its arrays are buffers."""
        return any(kind != "param" for _, _, _, kind, _ in self.arrays)

    @property
    def label(self) -> str:
        """The name of the function."""
        op: Any = self.op
        while isinstance(op, functools.partial):
            op = op.func
        return str(getattr(op, "__name__", "function")).strip("_")

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw weights from a normal distribution of deviation 0.02. The distribution in PyTorch is not known."""
        del shapes
        keys = iter(jax.random.split(key, max(len(self.arrays), 1)))
        return self._tree(
            lambda shape, dtype: _DEVIATION * jax.random.normal(next(keys), shape, dtype or jnp.result_type(float)),
            "param",
        )

    def first_state(self, *shapes: Shape) -> Any:
        """Raise an error, because the values of buffers come from the module.

        Raises:
            FuncconvError: always.
        """
        del shapes
        names = ", ".join(name for _, _, _, kind, name in self.arrays if kind != "param")
        msg = (
            f"init_state: the values of the buffers {names} come from the PyTorch module, and the graph does not have "
            "them. Use the state that trace_torch returned"
        )
        raise FuncconvError(msg)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Compute the op with buffers of zeros, which is enough to infer the shape of the result."""
        return self.run(params, self._zeros(), *xs, batch=batch, key=None, train=False)[0]

    def run(self, params: Any, state: Any, *xs: Any, batch: Shape, key: Array | None, train: bool) -> tuple[Any, Any]:
        """Compute the op, mapped over the batch axes."""
        del key, train
        if self.optional:
            return jnp.broadcast_to(self.op(), batch), state
        arrays = {path: _at(params if kind == "param" else state, path) for path, _, _, kind, _ in self.arrays}
        values = [None if argument is None else _value(argument, arrays) for argument in self.arguments]

        def op(*xs: Any) -> Any:
            inputs = iter(xs)
            return self.op(*(next(inputs) if value is None else value for value in values))

        if not xs:  # the same for all examples of the batch
            return jax.tree.map(lambda y: jnp.broadcast_to(y, batch + jnp.shape(y)), op()), state
        for _ in batch:
            op = jax.vmap(op)
        return op(*xs), state

    def _zeros(self) -> Any:
        def zeros(shape: Shape, dtype: Any) -> Array:
            # Indices are int64 in PyTorch, which JAX has only with x64.
            return jnp.zeros(shape, jax.dtypes.canonicalize_dtype(dtype) if dtype else jnp.result_type(float))

        return self._tree(zeros, "buffer", "constant")

    def _tree(self, make: Callable[..., Array], *kinds: str) -> Any:
        tree: dict[str, Any] = {}
        for path, shape, dtype, kind, _ in self.arrays:
            if kind in kinds:
                if not path:
                    return make(shape, dtype)
                put(tree, tuple(path.split("/")), make(shape, dtype))
        return tree


def _at(tree: Any, path: str) -> Any:
    return get(tree, tuple(path.split("/"))) if path else tree


def _value(argument: Any, arrays: Mapping[str, Any]) -> Any:
    """Return the value that an argument describes."""
    function, *operands = argument
    if function == "array":
        return jnp.asarray(arrays[operands[0]])
    return function(*(_value(operand, arrays) for operand in operands))


def _arguments_by_value(arguments: Any) -> Any:
    if isinstance(arguments, tuple):
        return tuple(map(_arguments_by_value, arguments))
    return by_value(arguments)
