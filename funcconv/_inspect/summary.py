"""What a network consists of: a table with a row for each node."""

import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from .._common.errors import FuncconvError
from .._common.types import Params
from .._graph.name.flatten import Row
from .._graph.repeat.layer import Repeat, one_copy
from .._graph.use.network import Network
from .follow import FieldsOfGraph, ReceptiveField
from .table import html_table, rich_table, text_table, totals
from .work import NONE, Flops, flops


class SummaryRow(NamedTuple):
    """A node.

    Attributes:
        name: of the node.
        op: the layer with its options, or the function; "input".
        inputs: the names of the nodes that it is computed from.
        shape: of its value, with the batch axis; of a tree of values the first.
        dtype: of its value.
        parameters: how many numbers it has, those of a shared entry at its first use only.
        shared: the node that has used the same parameters first, or None.
        flops: of its convolutions and products.
        gradient_flops: of those of the backward pass, by its parameters and by those inputs that depend on parameters.
        real_flops: as `flops`, without multiplications by padding.
        bytes: of its value; of a `repeat`, of all values within its copies that a backward pass needs.
        receptive_field: what it sees of each input, as `fc.receptive_field` returns it.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    shared: str | None
    flops: int
    gradient_flops: int
    real_flops: int
    bytes: int
    receptive_field: dict[str, tuple[ReceptiveField, ...]]


@dataclass(frozen=True, repr=False)
class Summary:
    """The result of `summary`, which prints as a table.

    Attributes:
        rows: one `SummaryRow` for each node, the inputs first.
        batch: the number of examples.
        parameters: the number of trainable numbers; shared ones count once.
        flops: operations of convolutions and matrix products in the forward pass.
        gradient_flops: the same in the backward pass.
        real_flops: `flops` without products with padding.
        activation_bytes: memory of all values, inputs included.
        peak_bytes: an estimate of the memory of a training step without parameters and optimizer: all values, which are
            kept for the backward pass, and the largest cotangents of the value and the inputs of one node.
    """

    rows: tuple[SummaryRow, ...]
    batch: int
    parameters: int
    flops: int
    gradient_flops: int
    real_flops: int
    activation_bytes: int
    peak_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as dicts, lists, numbers and strings."""
        rows = []
        for row in self.rows:
            receptive_field = {name: [_as_dict(axis) for axis in axes] for name, axes in row.receptive_field.items()}
            rows.append(row._asdict() | {"receptive_field": receptive_field})
        figures = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "rows"}
        return json.loads(json.dumps(figures | {"rows": rows}))  # type: ignore[no-any-return]

    def to_json(self, **options: Any) -> str:
        """Return `as_dict` as JSON; options are those of `json.dumps`."""
        return json.dumps(self.as_dict(), **options)

    def __str__(self) -> str:
        """Return the table as text; for a terminal as wide as it is, and with colours where rich is installed."""
        if sys.stdout.isatty() and importlib.util.find_spec("rich"):
            from rich.console import Console

            console = Console()
            with console.capture() as captured:
                console.print(self)
            return captured.get().rstrip("\n")
        return text_table(self, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)

    def __repr__(self) -> str:
        return "\n".join([f"Summary of {len(self.rows):,} nodes for a batch of {self.batch:,}:", *totals(self)])

    def __rich__(self) -> Any:
        """Return the table as rich draws it."""
        return rich_table(self)

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return html_table(self)


def summary(graph: Network, batch: int = 1, *, params: Params | None = None) -> Summary:
    """Return a table of the nodes of a network: shapes, parameters, operations, memory and receptive fields.

    Nothing is computed: programs are only traced.

    Args:
        graph: a `Graph`.
        batch: number of examples, a positive integer. Default: 1.
        params: the parameters or their shapes. Needed only if a node has parameters that nothing draws. Default: None,
            the shapes that `graph.init` draws.

    Returns:
        A `Summary`. `print` and notebooks show it as a table. Its attributes are `batch`, `parameters` (the number of
        trainable numbers; shared ones count once), `flops` and `gradient_flops` (operations of the forward and the
        backward pass), `real_flops` (`flops` without products with padding), `activation_bytes` (of all values),
        `peak_bytes` (an estimate of the memory of a training step without parameters and optimizer), and `rows` with
        these numbers for each node. `as_dict()` and `to_json()` return all of them.

        Operations are those of convolutions and matrix products: two for each multiplication with its addition,
        products with padding included, as `torch.utils.flop_counter` counts. Biases, activations, norms and pools are
        not counted.

    Raises:
        FuncconvError: if the batch is not a positive integer, if an op does not accept its inputs, or if nothing draws
            an entry and `params` is None.

    Example:
        >>> import funcconv as fc
        >>> x = fc.Input("x", (28, 28, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(8, 5), fc.max_pool, fc.flatten, fc.Dense(10))(x))
        >>> print(fc.summary(graph))
        name       op          inputs     shape           parameters  MFLOP  gradient    kB  sees of x
        ----------------------------------------------------------------------------------------------
        x          input                  (1, 28, 28, 1)                                3.1  1x1
        conv1      Conv(8, 5)  x          (1, 24, 24, 8)         208  0.230     0.230  18.4  5x5
        max_pool1  max_pool    conv1      (1, 12, 12, 8)                                4.6  6x6 / 2
        flatten1   flatten     max_pool1  (1, 1152)                                     4.6  6x6
        dense1     Dense(10)   flatten1   (1, 10)             11,530  0.023     0.046   0.0  all
        ----------------------------------------------------------------------------------------------
        11,738 parameters; 0.253 MFLOP forward (0.253 without padding) and 0.276 for the gradient
        30.8 kB of activations; about 53.9 kB at once in a training step
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        msg = f"summary: batch must be a positive integer; got {batch!r}"
        raise FuncconvError(msg)
    entries, shapes = graph.entry_shapes(params), graph.shapes(params)
    fields_of = FieldsOfGraph(graph, shapes, params)
    nodes, inputs = graph.nodes, [None] * len(graph.inputs)
    learned: set[str] = set()  # the nodes whose values depend on parameters
    first_use: dict[str, str] = {}
    counted: dict[Any, tuple[Flops, Flops]] = {}  # layers that are alike are traced once
    rows, cotangents = [], []
    for name, row, entry in zip(nodes, [*inputs, *graph.rows], [*inputs, *entries], strict=True):
        operands = [nodes[i] for i in row.inputs] if row else []
        xs = [_batched(shapes[operand], batch) for operand in operands]
        forward = backward = NONE
        if row:
            # JAX computes no cotangent of the data, so the first layer costs only the gradient by its kernel.
            wanted = tuple(operand in learned for operand in operands)
            if any(wanted) or jax.tree.leaves(entry):
                learned.add(name)
            leaves, tree = jax.tree.flatten((entry, xs))
            like = (row.op, tree, wanted, *((leaf.shape, leaf.dtype) for leaf in leaves))
            if like not in counted:
                counted[like] = _flops(row, entry, xs, wanted, batch)
            forward, backward = counted[like]
        value = jax.tree.leaves(_batched(shapes[name], batch))
        size = sum(map(_bytes, value))
        cotangents.append(size + sum(map(_bytes, jax.tree.leaves(xs))) if name in learned else 0)
        first = first_use.setdefault(row.params, name) if row and row.params else name
        summary_row = SummaryRow(
            name=name,
            op=row.operation if row else "input",
            inputs=tuple(operands),
            shape=value[0].shape,
            dtype=str(value[0].dtype),
            parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(entry)) if first == name else 0,
            shared=None if first == name else first,
            flops=forward.all,
            gradient_flops=backward.all,
            real_flops=forward.real,
            bytes=size + (_bytes_within(row.op, entry, shapes[operands[0]], batch) if row and operands else 0),
            receptive_field=fields_of(name, graph.inputs),
        )
        rows.append(summary_row)
    activations = sum(row.bytes for row in rows)
    return Summary(
        rows=tuple(rows),
        batch=batch,
        parameters=sum(row.parameters for row in rows),
        flops=sum(row.flops for row in rows),
        gradient_flops=sum(row.gradient_flops for row in rows),
        real_flops=sum(row.real_flops for row in rows),
        activation_bytes=activations,
        peak_bytes=activations + max(cotangents),
    )


def _as_dict(axis: ReceptiveField) -> dict[str, Any]:
    """Return the public figures of a receptive field, of which JSON knows no fractions."""
    figures = {field.name: getattr(axis, field.name) for field in fields(axis) if not field.name.startswith("_")}
    return figures | {"stride": float(axis.stride)}


def _batched(tree: Any, batch: int) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype),  # type: ignore[no-untyped-call]
        tree,
    )


def _bytes_within(op: Any, entry: Any, x: Any, batch: int) -> int:
    """Return the bytes of the values within a `repeat`, without its value; 0 for other layers."""
    if not isinstance(op, Repeat):
        return 0
    if op.remat is not None:  # the inputs of the other copies; what a policy selects is not known
        return (op.n - 1) * _bytes(_batched(x, batch))
    graph, params = op.graph(x), one_copy(entry) or {}
    nodes, shapes, of_one_copy = graph.nodes, graph.shapes(params), 0
    for row, own in zip(graph.rows, graph.entry_shapes(params), strict=True):
        of_one_copy += sum(map(_bytes, jax.tree.leaves(_batched(shapes[row.name], batch))))
        of_one_copy += _bytes_within(row.op, own, shapes[nodes[row.inputs[0]]], batch) if row.inputs else 0
    return op.n * of_one_copy - _bytes(_batched(x, batch))


def _bytes(leaf: Any) -> int:
    return int(math.prod(leaf.shape) * leaf.dtype.itemsize)


def _flops(row: Row, entry: Any, xs: Sequence[Any], wanted: Sequence[bool], batch: int) -> tuple[Flops, Flops]:
    """Return what a row's value takes, and what its cotangents take beyond that."""
    apply = partial(row.op.apply, batch=(batch,))
    forward = flops(jax.make_jaxpr(apply)(entry, *xs).jaxpr)
    if forward == NONE:  # derivatives of what has no products have none either
        return NONE, NONE
    leaves, tree = jax.tree.flatten((entry, list(xs)))
    asked = [True] * len(jax.tree.leaves(entry)) + [
        is_wanted for is_wanted, x in zip(wanted, xs, strict=True) for _ in jax.tree.leaves(x)
    ]
    asked = [is_asked and jnp.issubdtype(leaf.dtype, jnp.inexact) for is_asked, leaf in zip(asked, leaves, strict=True)]

    def pulled_back(leaves: Sequence[Any]) -> Any:
        fixed = [None if is_asked else leaf for is_asked, leaf in zip(asked, leaves, strict=True)]

        def value(differentiated: Sequence[Any]) -> Any:
            rest = iter(differentiated)
            entry, xs = jax.tree.unflatten(tree, [next(rest) if leaf is None else leaf for leaf in fixed])
            return [y for y in jax.tree.leaves(apply(entry, *xs)) if jnp.issubdtype(y.dtype, jnp.inexact)]

        y, pullback = jax.vjp(value, [leaf for is_asked, leaf in zip(asked, leaves, strict=True) if is_asked])
        return y, pullback(jax.tree.map(jnp.ones_like, y))

    traced = jax.make_jaxpr(pulled_back)(leaves).jaxpr
    # The program has the forward pass too, which is subtracted. What no result needs is removed.
    used, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return forward, flops(used) - forward
