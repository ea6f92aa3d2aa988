"""From pending rows to the rows of a graph: choose the entry of the parameters for each weight of a module.

A layer such as `Conv` has the entry of its module, `layer1/0/conv1`, with its arrays in funcconv's order of axes. Other
uses of weights are rows with the layer `_WithWeights`. A row has one entry, so weights that a row uses together should
be in the same entry. The weights of a module are, unless the module contains other entries. Weights of further entries
are inputs of the row, computed by separate rows.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._graph.declare.function import Function
from ..._graph.declare.layer import Layer
from ..._graph.name.entries import put
from ..._graph.name.flatten import Row
from ..._weight_files.arrays import as_numpy
from . import ops
from .rows import Arrangement
from .tensors import Weight
from .translation import PendingRow, Translation
from .weighted import _WithWeights

_UNUSED = "unused"  # the entry for weights that the program does not use


class Entries:
    """Gives each weight a place in the parameters or in the state, and makes the rows of the graph.

    Args:
        translation: the finished translation.
        used: which of its rows the outputs depend on.
    """

    def __init__(self, translation: Translation, used: set[int]) -> None:
        self._program = translation.program
        self._tensors = dict(translation.program.tensors)
        self._unused = _UNUSED
        self._root = translation.root
        self._input_count = translation.input_count
        self._pending = [row if i in used else None for i, row in enumerate(translation.rows)]
        self._names = {row.name for row in translation.rows}
        self.rows: list[Row] = []
        self.numbers: dict[int, int] = {i: i for i in range(self._input_count)}  # of values: pending to final
        self._layers: set[str] = set()  # the entries of layers
        self._objects: dict[tuple[str, Layer], Layer] = {}  # one object for all uses of an entry
        self._places: dict[str, tuple[str, str, Arrangement]] = {}  # of weights: entry, path in it, how it is there
        self._arrays: dict[str, tuple[Any, ...]] = {}  # by entry: what _WithWeights declares
        self._sources: dict[Weight, int] = {}  # values of rows without inputs
        self._choose_layers()
        self._place_other_weights()

    # places ----------------------------------------------------------------------------------------------

    def _choose_layers(self) -> None:
        """Keep those layers whose weights have no other use than one that shares the layer's arrays."""
        by_entry = defaultdict(list)
        for row in self._used():
            if row.entry is not None:
                by_entry[row.entry].append(row)
        owners = defaultdict(set)
        for entry, rows in by_entry.items():
            for name in (name for row in rows for name in row.arrays.values()):
                owners[name].add(entry)
        loose = {name for row in self._used() if row.entry is None for name in _weights_of(row)}
        for entry, rows in by_entry.items():
            first = rows[0]
            group = "" if entry == self._root else entry.replace("/", ".")
            nested = any(name.startswith(f"{group}.") and _group(name) != group for name in (*owners, *loose))
            same = all(
                (row.layer, row.arrays, row.arrangements) == (first.layer, first.arrays, first.arrangements)
                for row in rows
            )
            shared = any(len(owners[name]) > 1 for name in first.arrays.values())
            others = any(_group(name) == group and name not in owners for name in loose) and entry != self._root
            if not same or shared or others or nested:
                for row in rows:
                    row.entry = row.layer = None
                continue
            self._layers.add(entry)
            for place, name in first.arrays.items():
                arrangement = first.arrangements.get(place, Arrangement())
                self._places[name] = (entry, place.partition("/")[2], arrangement)

    def _place_other_weights(self) -> None:
        """Choose an entry for each weight that is in no layer: the entry of its module, or a separate one."""
        loose = dict.fromkeys(name for row in self._used() if row.entry is None for name in _weights_of(row))
        groups = defaultdict(list)
        for name in loose:
            if name not in self._places:
                groups[_group(name)].append(name)
        taken = [*self._layers, *(group.replace(".", "/") for group in groups)]
        for group, names in groups.items():
            entry = group.replace(".", "/")
            is_shared = not entry or any(other.startswith(f"{entry}/") for other in taken) or entry in self._layers
            for name in names:
                path = name.replace(".", "/")
                own = (path, "") if is_shared else (entry, path[len(entry) + 1 :])
                self._places[name] = (*own, Arrangement())
        by_entry = defaultdict(list)
        for name, (entry, path, arrangement) in self._places.items():
            tensor = self._program.tensors[name]
            shape = arrangement.sizes(tuple(tensor.shape))
            dtype = jnp.dtype(str(tensor.dtype).removeprefix("torch."))
            known = dtype if not jnp.issubdtype(dtype, jnp.inexact) else None  # floats may be cast to another precision
            by_entry[entry].append((path, shape, known, self._program.kinds[name], name))
        self._arrays = {entry: tuple(arrays) for entry, arrays in by_entry.items()}

    def _used(self) -> list[PendingRow]:
        return [row for row in self._pending if row is not None]

    # rows ------------------------------------------------------------------------------------------------

    def make_rows(self) -> None:
        """Make the rows of the graph in the order of evaluation."""
        for i, pending in enumerate(self._pending):
            if pending is not None:
                self.numbers[self._input_count + i] = self._row(pending)

    def _row(self, pending: PendingRow) -> int:
        if pending.layer is not None:
            layer = pending.layer
            numbers = (self._number(operand, pending) for operand in pending.operands)
            inputs = tuple(number for number in numbers if number is not None)
            if pending.entry:
                layer = self._objects.setdefault((pending.entry, layer), layer)
            return self._add(Row(pending.name, layer, inputs, pending.entry))
        assert pending.op is not None
        return self._with_weights(pending.name, pending.op, pending.operands, batched=pending.batched)

    def _number(self, operand: "int | Weight", pending: PendingRow) -> int | None:
        """Return the number of an input of a layer; None for a weight of the layer itself."""
        if isinstance(operand, int):
            return self.numbers[operand]
        return None if pending.entry else self.source(operand, pending.name)

    def _with_weights(
        self, name: str, op: Callable[..., Any], operands: tuple["int | Weight", ...], *, batched: bool = False
    ) -> int:
        """Add a row for a function of values and weights, after rows for the weights of further entries."""
        sizes: dict[str, int] = defaultdict(int)
        for operand in operands:
            for weight in operand.tensors if isinstance(operand, Weight) else ():
                sizes[self._places[weight][0]] += self._program.tensors[weight].numel()
        entry = max(sizes, key=sizes.__getitem__) if sizes else None
        arguments: list[Any] = []
        inputs: list[int] = []
        for operand in operands:
            number: int | None = None
            if isinstance(operand, int):
                number = self.numbers[operand]
            elif {self._places[weight][0] for weight in operand.tensors} - {entry}:
                number = self.source(operand, name)
            if number is None:
                arguments.append(self._described(operand))  # type: ignore[arg-type]
            else:
                arguments.append(None)
                inputs.append(number)
        if all(argument is None for argument in arguments) and inputs:
            return self._add(Row(name, Function(op, batched=batched), tuple(inputs), None))
        layer: Layer = _WithWeights(op, tuple(arguments), self._arrays[entry] if entry else ())
        layer = self._objects.setdefault((entry or "", layer), layer)
        return self._add(Row(name, layer, tuple(inputs), entry))

    def source(self, weight: Weight, name: str = "") -> int:
        """Return the number of a row whose value is computed from weights alone."""
        if weight not in self._sources:
            if weight.op is None:
                own = weight.tensor.replace(".", "/")
                number = self._with_weights(self._free(own), jax.nn.identity, (weight,))
            else:
                number = self._with_weights(self._free(f"{name}/weight"), weight.op, weight.operands)
            self._sources[weight] = number
        return self._sources[weight]

    def _described(self, weight: Weight) -> tuple[Any, ...]:
        """Return a value as `_WithWeights` describes it."""
        if weight.op is not None:
            return (weight.op, *map(self._described, weight.operands))
        _, path, (order, shape) = self._places[weight.tensor]
        value: tuple[Any, ...] = ("array", path)
        if order:
            value = (partial(jnp.transpose, axes=tuple(int(i) for i in np.argsort(order))), value)
        if shape is not None:
            value = (partial(ops.reshaped, shape=tuple(self._program.tensors[weight.tensor].shape)), value)
        return value

    def _free(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}{count}"
        self._names.add(candidate)
        return candidate

    def _add(self, row: Row) -> int:
        self.rows.append(row)
        return self._input_count + len(self.rows) - 1

    # arrays ----------------------------------------------------------------------------------------------

    def trees(self, copied: Callable[[Any], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters and the state of the graph.

        Args:
            copied: makes an array of a NumPy array.

        Returns:
            Two trees.
        """
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        for row in self.rows:
            if row.params is not None:
                put(params, tuple(row.params.split("/")), {})
                if row.op.stateful:
                    put(state, tuple(row.params.split("/")), {})
        for name, (entry, path, arrangement) in self._places.items():
            array = as_numpy(self._tensors[name])
            tree = params if self._program.kinds[name] == "param" else state
            whole_path = f"{entry}/{path}" if path else entry
            put(tree, tuple(whole_path.split("/")), copied(arrangement.of(array)))
        return params, state

    def keep_unused(self) -> None:
        """Add a row with the weights that the program does not use, and with further names of weights.

        With it, the graph can be converted back to the complete state dict of PyTorch.
        """
        names = {id(tensor): name for name, tensor in self._program.tensors.items() if name in self._places}
        arrays, aliases = [], []
        parameters = {name for name, _ in self._program.module.named_parameters(remove_duplicate=False)}
        self._unused = _UNUSED
        while any(entry.partition("/")[0] == self._unused for entry, _, _ in self._places.values()):
            self._unused += "_"
        for name, tensor in self._program.module.state_dict(keep_vars=True).items():
            if not hasattr(tensor, "detach"):
                continue  # the extra state of a module is not a tensor
            first = names.setdefault(id(tensor), name)
            if first != name:
                aliases.append((name, first))
            elif name not in self._places:
                dtype = jnp.dtype(str(tensor.dtype).removeprefix("torch."))
                kept = None if jnp.issubdtype(dtype, jnp.inexact) else dtype
                kind = "param" if name in parameters else "buffer"
                arrays.append((name.replace(".", "/"), tuple(tensor.shape), kept, kind, name))
                self._program.kinds[name] = kind
                self._places[name] = (self._unused, name.replace(".", "/"), Arrangement())
                self._tensors[name] = tensor
        root = self._root if self._root in self._layers else ""
        if arrays or aliases or root:
            layer = _WithWeights(ops.nothing, (), tuple(arrays), aliases=tuple(aliases), root=root)
            self._add(Row(self._free(self._unused), layer, (), self._unused))


def _group(name: str) -> str:
    """Return the path of the module that a weight belongs to, as the user wrote it."""
    module, _, _ = name.rpartition(".")
    return module.partition(".parametrizations.")[0] if ".parametrizations." in f"{module}." else module


def _weights_of(row: PendingRow) -> list[str]:
    return [name for operand in row.operands if isinstance(operand, Weight) for name in operand.tensors]
