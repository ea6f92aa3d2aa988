"""Shapes and dtypes of what each row takes, draws and returns; errors name the node."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..declare.inference import drawn, result, retold, spec
from ..declare.layer import Layer
from ..name.flatten import InputRow, Row

T = TypeVar("T")


class RowShapes(NamedTuple):
    """What is known of a row before any parameters are; each is None where it is not known."""

    op: Layer  # the layer as it is evaluated
    drawn: Any  # the parameters that it draws
    inputs: list[Any]
    value: Any


def input_specs(inputs: Sequence[InputRow]) -> list[Any]:
    """Return the shapes and dtypes of the inputs, without batch axes."""
    return [
        jax.ShapeDtypeStruct(row.shape, row.dtype or jnp.result_type(float))  # type: ignore[no-untyped-call]
        for row in inputs
    ]


def infer_rows(rows: Sequence[Row], specs: Sequence[Any]) -> list[RowShapes]:
    """Return what is known of each row from the inputs alone.

    A row is not known if it fails, or if nothing draws its parameters. Then the rows that need its value are not known.

    Args:
        rows: in the order of evaluation.
        specs: the shapes and dtypes of the inputs.

    Returns:
        What is known of each row.
    """
    values = list(specs)
    entries: dict[str | None, Any] = {None: None}
    known = []
    for row in rows:
        xs = [values[i] for i in row.inputs]
        op, own, value = row.op, None, None
        if all(x is not None for x in xs):
            own = none_if_it_fails(lambda op=op, xs=xs: drawn(op, xs)) if op.draws else None  # type: ignore[misc]
            entry = entries.setdefault(row.params, own)
            if entry is not None or row.params is None:
                op = in_node(row, lambda op=op, entry=entry, xs=xs: op.decided(entry, xs))  # type: ignore[misc]
                value = none_if_it_fails(lambda op=op, entry=entry, xs=xs: result(op, entry, xs))  # type: ignore[misc]
        values.append(value)
        known.append(RowShapes(op, own, xs, value))
    return known


def row_value(row: Row, entry: Any, xs: Sequence[Any]) -> Any:
    """Return the shape and dtype of a row's value, without batch axes."""
    entry = jax.tree.map(spec, entry)
    op = in_node(row, lambda: row.op.decided(entry, xs))
    return naming_the_node(row, xs, lambda: result(op, entry, xs))


def none_if_it_fails(infer: Callable[[], T]) -> T | None:
    """Call; return None instead of an error, which `Graph.init` will raise with the name of the node."""
    try:
        return infer()
    except Exception:
        return None


def in_node(row: Row, infer: Callable[[], T]) -> T:
    """Call; raise an error of funcconv as an error of the node, and any other as it is."""
    try:
        return infer()
    except FuncconvError as error:
        msg = f"node {row.name!r}: {error}"
        raise FuncconvError(msg) from None


def naming_the_node(row: Row, xs: Sequence[Any], infer: Callable[[], T]) -> T:
    """Call; raise any error as an error of the node, with the shapes of its inputs."""
    try:
        return infer()
    except Exception as error:
        cause = None if isinstance(error, FuncconvError) else error
        raise FuncconvError(retold(row.name, row.op, xs, error)) from cause
