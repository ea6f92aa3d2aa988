"""The state of translating one PyTorch module: what every handler of an operation reads and extends."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from ..._common.errors import FuncconvError
from ..._common.types import Shape
from ..._graph.declare.function import node
from ..._graph.declare.layer import Layer
from ..._graph.declare.node import Input, Node
from . import ops as ops

Arrays = dict[str, Any]  # by name: "kernel", "bias", ...


@dataclass(frozen=True)
class Value:
    """A node of the graph, and the shape that PyTorch sees, `(channels, *spatial)`, without the batch axis.

    The node itself has its channels last.
    """

    node: Node
    shape: Shape


class BatchSize:
    """The batch size, which a graph does not know.

    PyTorch programs pass it to `view` and `reshape`. The handlers of these take the new shape from PyTorch, so this
    object is never computed with.
    """


class Translation:
    """The operations of one module, and what they became in the graph so far.

    Args:
        traced: the `torch.fx.GraphModule`, after `ShapeProp` has recorded the shape of each operation.
        channels_first: whether the inputs and outputs of the graph have their channels first, as PyTorch's have.
    """

    def __init__(self, traced: Any, *, channels_first: bool) -> None:
        self.operations = list(traced.graph.nodes)
        self.modules = dict(traced.named_modules())
        self.channels_first = channels_first
        self.operation: Any = None  # the one that is being translated
        self.values: dict[Any, Any] = {}  # by operation
        self.inputs: list[Input] = []
        self.weights: dict[str, tuple[Arrays, Arrays]] = {}  # by entry: parameters and state
        self._layers: dict[str, Layer] = {}  # by the path of the module
        self._entries: dict[int, str] = {}  # by the id of a PyTorch parameter: the entry that holds it
        self._memory: dict[Any, Any] = {}  # by operation: the first operation whose memory it may share
        self._tensors: dict[Any, Any] = {}  # by operation that changed a tensor in place: the one that made the tensor

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error that names the current operation.

        Args:
            reason: why the operation cannot be translated.

        Raises:
            FuncconvError: always.
        """
        target = getattr(self.operation.target, "__name__", self.operation.target)
        msg = f"trace_torch: cannot translate {self.operation.name!r}, a call of {target!r}: {reason}"
        raise FuncconvError(msg)

    # values ----------------------------------------------------------------------------------------------

    def read(self, argument: Any) -> Any:
        """Return an argument of an operation, with values in place of the operations of `torch.fx` in it."""
        if isinstance(argument, list | tuple):
            return type(argument)(self.read(item) for item in argument)
        if isinstance(argument, dict):
            return {key: self.read(item) for key, item in argument.items()}
        if isinstance(argument, slice):
            return slice(*map(self.read, (argument.start, argument.stop, argument.step)))
        # By name, so that this file does not import PyTorch.
        return self.values[argument] if type(argument).__name__ == "Node" else argument

    def shape(self) -> Shape:
        """Return the shape of the current operation's result in PyTorch, without the batch axis."""
        metadata = self.operation.meta.get("tensor_meta")
        if not hasattr(metadata, "shape") or not len(metadata.shape):
            self.refuse("its value is not a tensor with a batch axis")
        return tuple(metadata.shape)[1:]

    def as_value(self, result: Node) -> Value:
        """Return a node as the result of the current operation."""
        return Value(result, self.shape())

    def apply(self, op: Callable[..., Any], *xs: Value, **options: Any) -> Value:
        """Return a function of values as the result of the current operation; the node gets the operation's name."""
        op = partial(op, **options) if options else op
        return self.as_value(node(op, *(x.node for x in xs), name=self.operation.name, batched=False))

    def apply_channels_first(self, op: Callable[..., Any], x: Value, **options: Any) -> Value:
        """Return a function that needs its channels first as the result of the current operation."""
        if len(x.shape) < 2 and len(self.shape()) < 2:  # one axis is first and last
            return self.apply(op, x, **options)
        return self.apply(partial(ops.channels_first, partial(op, **options) if options else op), x)

    def axis(self, x: Value, dim: int) -> int:
        """Return PyTorch's axis `dim`, which counts the batch, as an axis with channels first and without the batch."""
        axis = (dim + len(x.shape) + 1 if dim < 0 else dim) - 1
        if not 0 <= axis < len(x.shape):
            self.refuse(f"along the axis {dim}, which is that of the batch or none")
        return axis

    def axis_channels_last(self, x: Value, dim: int) -> int:
        """Return PyTorch's axis `dim`, which counts the batch, as an axis with channels last and without the batch."""
        return (self.axis(x, dim) - 1) % len(x.shape)

    # layers with weights ---------------------------------------------------------------------------------

    def layer(self, make: Callable[..., Layer], x: Value, params: Arrays, state: Arrays | None = None) -> Value:
        """Apply the layer of the current module.

        A module that is called several times is one layer. Modules that share their weights are layers with one entry.

        Args:
            make: makes the layer, called as `make(name=..., params=...)`.
            x: the input.
            params: the arrays of the module that are trained, in funcconv's layout.
            state: its running statistics. Default: none.

        Returns:
            The result of the current operation.
        """
        path, name = self.operation.target, self.operation.name
        if path not in self._layers:
            entry = self._entry(params, state or {})
            self._layers[path] = make(name=name, params=None if entry == name else entry)
        return self.as_value(self._layers[path](x.node))

    def apply_with_weights(self, op: Callable[..., Any], x: Value, params: Arrays) -> Value:
        """Apply a function `op(params, x)` to the weights of the current module, for which there is no layer."""
        entry = self._entry(params, {})
        return self.as_value(node(op, x.node, params=entry, name=self.operation.name, batched=False))

    def _entry(self, params: Arrays, state: Arrays) -> str:
        """Return the entry of the current module's weights: that of an earlier module if both share all of them."""
        name = self.operation.name
        tensors = self.modules[self.operation.target].parameters(recurse=False)
        entries = {self._entries.setdefault(id(tensor), name) for tensor in tensors}
        if len(entries) > 1 or (state and entries - {name}):
            self.refuse(f"it shares some of its weights with {sorted(entries - {name})}, but not all")
        entry: str = entries.pop() if entries else name
        if entry in self.weights:
            known_shapes = {key: array.shape for key, array in self.weights[entry][0].items()}
            if known_shapes != {key: array.shape for key, array in params.items()}:
                self.refuse(f"it uses the weights of {entry!r} in another way")
        self.weights.setdefault(entry, (params, state))
        return entry

    # operations in place ---------------------------------------------------------------------------------

    def share_memory(self) -> None:
        """Note that the result of the current operation may lie in the memory of its first argument, as a view does."""
        if self.operation.args:
            self._memory[self.operation] = self._memory_of(self.operation.args[0])

    def change_in_place(self, value: Value) -> None:
        """Give the tensor that the current operation changes its new value.

        A graph has no memory, so views of the tensor keep their old values. The translation is right only if none of
        them is read again.

        Args:
            value: the new value of the tensor, which is the operation's first argument.
        """
        source = self.operation.args[0]
        tensor, memory = self._tensors.get(source, source), self._memory_of(source)
        self._tensors[self.operation], self._memory[self.operation] = tensor, memory
        position = {operation: i for i, operation in enumerate(self.operations)}
        for operation in self.operations:
            last_read = max((position[user] for user in operation.users), default=-1)
            if self._tensors.get(operation, operation) is tensor:
                self.values[operation] = value
            elif self._memory_of(operation) is memory and last_read > position[self.operation]:
                self.refuse(f"it changes in place what {operation.name!r} shares, which is read again")

    def _memory_of(self, operation: Any) -> Any:
        """Return the operation that allocated the memory of a result."""
        return self._memory.get(operation, operation)


def as_tuple(value: Any, length: int) -> tuple[Any, ...]:
    """Return one value per axis, of an option that may be one number for all axes."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * length
