"""The rows of a graph that is translated from a PyTorch program: their names, their values, and errors."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Shape
from ..._graph.declare.layer import Layer
from .program import Program
from .tensors import Axes, Dim, Tensor, Weight


class Arrangement(NamedTuple):
    """How a layer has the numbers of a weight: reshaped, and then with permuted axes.

    Attributes:
        order: the axes in the order of the layer. Default: `()`, as they are.
        shape: the shape before the axes are permuted. Default: None, that of PyTorch.
    """

    order: tuple[int, ...] = ()
    shape: Shape | None = None

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the array of the layer for that of PyTorch."""
        array = array if self.shape is None else array.reshape(self.shape)
        return np.transpose(array, self.order) if self.order else array

    def sizes(self, shape: Shape) -> Shape:
        """Return the shape of the array of the layer for that of PyTorch."""
        whole = shape if self.shape is None else self.shape
        return tuple(whole[axis] for axis in self.order) if self.order else whole


@dataclass
class PendingRow:
    """A row of the graph, before the entries of the parameters are known.

    Attributes:
        name: the name of the node.
        op: a function of the operands, for one example.
        operands: the numbers of values, or weights.
        layer: the layer that computes the same, if its weights have no other use.
        entry: the path of the layer's module; None for a layer without weights.
        arrays: for each array of the layer, `"param/kernel"` or `"state/mean"`, its name in PyTorch.
        arrangements: for each such name, how the layer has the numbers of PyTorch's array. Default: as they are.
        batched: whether `op` is written for a batch.
    """

    name: str
    op: Callable[..., Any] | None
    operands: tuple[int | Weight, ...]
    layer: Layer | None = None
    entry: str | None = None
    arrays: Mapping[str, str] = field(default_factory=dict)
    arrangements: Mapping[str, Arrangement] = field(default_factory=dict)
    batched: bool = False


@dataclass(frozen=True)
class Static:
    """A result that depends on no input and no weight, which PyTorch has computed.

    Attributes:
        value: a tensor, a number or a list of them. Later operations may change a tensor in place.
    """

    value: Any


class SymbolicSize:
    """A number that depends on the batch size, which a graph does not know.

    PyTorch programs pass it to `view` and `expand`. Their handlers read the new shape from the exported program, so
    this object is never computed with.
    """


class Rows:
    """The operations of one module, and the rows of the graph that they were translated to.

    Args:
        program: the exported program.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.modules = dict(program.module.named_modules())
        self.operation: Any = None  # the node of the exported program that is being translated
        self.values: dict[Any, Any] = {}  # by operation
        self.rows: list[PendingRow] = []
        self.input_count = len(program.inputs)
        # The entry of a module that is a layer itself, such as a Conv2d.
        self.root = type(program.module).__name__.lower()
        while hasattr(program.module, self.root):  # which would be the entry of a part
            self.root += "_"
        self._used_names = set(program.inputs)
        self._path = ""

    # errors and names ------------------------------------------------------------------------------------

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error that names the current operation and its module.

        Args:
            reason: why the operation cannot be translated.

        Raises:
            FuncconvError: always.
        """
        module = f"the module {self.path!r}" if self.path else "the outermost module"
        msg = f"trace_torch: cannot translate the operation {self.operation_name!r} in {module}: {reason}"
        raise FuncconvError(msg)

    @property
    def operation_name(self) -> str:
        """The name of the current operation, such as `"aten.conv2d.default"`."""
        return str(self.operation.target)

    @property
    def path(self) -> str:
        """The path of the module that calls the current operation, such as `"layer1.0.conv1"`."""
        stack = self.operation.meta.get("nn_module_stack") or {}
        if stack:
            path, _ = list(stack.values())[-1]
            path = re.sub(r"@\d+", "", path)  # a repeated call of a module
            self._path = path if path in self.modules else ""
        return self._path

    def new_name(self, label: str) -> str:
        """Return a name for a node: the path of the module, and for all but its first operation also a label.

        Args:
            label: a short name for the operation.

        Returns:
            A name that no other node has.
        """
        path = self.path.replace(".", "/")
        module = self.modules.get(self.path)
        # A module of PyTorch without parts is one operation, so that its path says everything.
        is_leaf = path and module is not None and not any(module.children())
        base = path if is_leaf and label in ("", self._label()) else "/".join(part for part in (path, label) if part)
        name, count = base or "output", 1
        while name in self._used_names:
            count += 1
            name = f"{base}@{count}" if is_leaf and base == path else f"{base}{count}"
        self._used_names.add(name)
        return name

    def _label(self) -> str:
        target = self.operation.target
        packet = getattr(target, "overloadpacket", target)
        return str(getattr(packet, "__name__", packet)).strip("_")

    # values ----------------------------------------------------------------------------------------------

    def read(self, argument: Any) -> Any:
        """Return an argument of an operation, with values in place of the operations in it."""
        if isinstance(argument, list | tuple):
            return type(argument)(self.read(item) for item in argument)
        if isinstance(argument, dict):
            return {key: self.read(item) for key, item in argument.items()}
        if isinstance(argument, slice):
            return slice(*map(self.read, (argument.start, argument.stop, argument.step)))
        if type(argument).__name__ != "Node":  # by name, so that this file does not import PyTorch
            return argument
        value = self.values[argument]
        return self.constant_of(value.value) if isinstance(value, Static) else value

    def constant_of(self, value: Any) -> Any:
        """Convert a value that PyTorch has computed from constants: a tensor becomes a constant of the graph."""
        raise NotImplementedError

    def shape(self, value: Any = None) -> tuple[Dim, ...]:
        """Return the shape of a result.

        Args:
            value: PyTorch's description of the result. Default: that of the current operation.

        Returns:
            The size of each axis.
        """
        value = self.operation.meta["val"] if value is None else value
        return tuple(self.dim(size) for size in value.shape)

    def dim(self, size: Any) -> Dim:
        """Return the size of an axis, which may be a multiple of the batch size."""
        if isinstance(size, int):
            return Dim(size)
        expression = size.node.expr  # of sympy
        symbols = list(expression.free_symbols)
        if not symbols:
            return Dim(int(expression))
        factor = expression / symbols[0]
        if len(symbols) != 1 or not factor.is_Integer:
            self.refuse(f"an axis has the size {expression}, which is not a multiple of the batch size")
        return Dim(int(factor), batched=True)

    def dtype(self, value: Any = None) -> Any:
        """Return the dtype of a result: of the current operation, or of PyTorch's description of a result."""
        value = self.operation.meta["val"] if value is None else value
        return jnp.dtype(str(value.dtype).removeprefix("torch."))

    def operand_dtypes_agree(self) -> bool:
        """Whether all operands of the current operation have one dtype."""
        first, *others = self.operation.args
        operands = [*(first if isinstance(first, list | tuple) else [first]), *others]
        values = [operand.meta["val"] for operand in operands if hasattr(operand, "meta")]
        return len({str(value.dtype) for value in values if hasattr(value, "dtype")}) == 1

    # computing -------------------------------------------------------------------------------------------

    def compute(
        self,
        op: Callable[..., Any],
        operands: Sequence[Tensor],
        sizes: Shape,
        axes: Axes,
        *,
        label: str | None = None,
        batched: bool = False,
    ) -> Tensor:
        """Apply a function to stored arrays.

        Args:
            op: the function, written for one example.
            operands: its arguments.
            sizes: the sizes of the stored axes of the result.
            axes: the axes of the result, as PyTorch sees it.
            label: for the name of the node. Default: the name of the operation.
            batched: whether the function is written for a batch. Default: False.

        Returns:
            The result. If all operands are weights, it is one, and computed where it is used.
        """
        if all(x.is_weight for x in operands):
            return Tensor(Weight(op, tuple(x.source for x in operands)), sizes, axes)  # type: ignore[misc]
        name = self.new_name(self._label() if label is None else label)
        return self.add(PendingRow(name, op, tuple(x.source for x in operands), batched=batched), sizes, axes)

    def add(self, row: PendingRow, sizes: Shape, axes: Axes) -> Tensor:
        """Add a row, and return its result."""
        self.rows.append(row)
        return Tensor(self.input_count + len(self.rows) - 1, sizes, axes)

    def like(self, op: Callable[..., Any], x: Tensor, *others: Tensor, **options: Any) -> Tensor:
        """Apply a function whose result has the axes of its first operand.

        Args:
            op: the function.
            x: the first operand.
            *others: other operands.
            **options: of the function.

        Returns:
            The result.
        """
        return self.compute(partial(op, **options) if options else op, (x, *others), x.sizes, x.axes)
