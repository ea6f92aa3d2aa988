"""Checks that parameters have the entries and shapes that the layers of a graph draw."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..._common.dtypes import is_kept
from ..._common.errors import FuncconvError
from ..._common.types import Array, Params
from ..declare.inference import drawn, result, retold, shapes, spec
from ..declare.layer import Layer
from ..name import entries as _entries
from ..name.flatten import Row
from .rows import in_node, infer_rows, input_specs, naming_the_node, none_if_it_fails

GIVEN = "as given"  # by the user, in a message about the shapes of parameters


def checked_entries(graph: Any, params: Params, xs: Sequence[Array] | None = None) -> list[Any]:
    """Return the entry that each row uses, None where it uses none; refuse entries that do not suit the rows.

    Args:
        graph: a graph.
        params: its parameters, or their shapes.
        xs: the inputs, where the graph is evaluated.

    Returns:
        An entry for each row.

    Raises:
        FuncconvError: if an entry is missing, unknown or of another shape than its layer draws.
    """
    _entries.check(params, graph._entries, optional=graph._optional)
    missing = {path for path in graph._optional if not _entries.has(params, path)}
    uses = [_entries.get(params, path) if path and path not in missing else None for path in graph._paths]
    # Shapes alone are compared, so that a training loop pays for the check once.
    leaves, tree = jax.tree.flatten(uses)
    key = (tree, *map(np.shape, leaves))
    if key not in graph._checked_shapes:
        _check_drawn_shapes(graph, uses)
        graph._checked_shapes.add(key)
    if xs is not None:
        # Only NumPy arrays can have a dtype that JAX does not keep; a `jax.Array` was rounded when it was made.
        if any(type(leaf) is np.ndarray and not is_kept(leaf.dtype) for leaf in leaves):
            _warn_of_narrowing(params)
        if graph._undecided:
            _check_undecided(graph, uses, xs)
    return uses


def check_shared_entry(row: Row, whose: str, entry: Any, xs: Sequence[Any]) -> None:
    """Refuse parameters of other shapes than the layer would draw."""
    if not row.op.draws:
        return
    expected = naming_the_node(row, xs, lambda: drawn(row.op, xs))
    if shapes(entry) != shapes(expected):
        raise FuncconvError(_other_shapes(row, whose, entry, expected))


def check_shared_state(row: Row, other: str, state: Any, expected: Any) -> None:
    """Refuse a state of other shapes than the layer needs, which another node with the same entry has made."""
    if shapes(state) != shapes(expected):
        msg = (
            f"node {row.name!r}: its state {row.params!r} must have shapes {shapes(expected)}; as node {other!r} has "
            f"it, it has {shapes(state)}. Call the layer on inputs of equal sizes, or give each size a layer"
        )
        raise FuncconvError(msg)


def _check_drawn_shapes(graph: Any, uses: Sequence[Any]) -> None:
    """Refuse parameters of other shapes than the layers draw, as far as these are known."""
    known = infer_rows(graph._rows, input_specs(graph._signature))
    for row, entry, row_shapes in zip(graph._rows, uses, known, strict=True):
        if entry is None and row.op.optional:
            continue
        if row_shapes.drawn is not None and not _fits(entry, row_shapes.drawn):
            raise FuncconvError(_shape_error(row, row_shapes.op, entry, row_shapes.drawn, row_shapes.inputs))


def _check_undecided(graph: Any, uses: Sequence[Any], xs: Sequence[Array]) -> None:
    """Refuse functions that compute something else on a batch; the shapes that they need are known only now."""
    values: list[Any] = [
        jax.ShapeDtypeStruct(row.shape, x.dtype)  # type: ignore[no-untyped-call]
        for row, x in zip(graph._signature, xs, strict=True)
    ]
    for row, entry in zip(graph._rows, (jax.tree.map(spec, entry) for entry in uses), strict=True):
        operands = [values[i] for i in row.inputs]
        op = value = None
        if all(x is not None for x in operands):
            op = in_node(row, lambda row=row, entry=entry, xs=operands: row.op.decided(entry, xs))  # type: ignore[misc]
            value = none_if_it_fails(lambda op=op, entry=entry, xs=operands: result(op, entry, xs))  # type: ignore[misc]
        values.append(value)


def _fits(entry: Any, expected: Any) -> bool:
    """Whether parameters have the shapes that a layer draws; a bias may be missing, which means that there is none."""
    if isinstance(entry, Mapping) and isinstance(expected, Mapping):
        actual = {name: value for name, value in entry.items() if value is not None}
        wanted = {name: value for name, value in expected.items() if value is not None}
        if not actual.keys() <= wanted.keys() <= actual.keys() | {"bias"}:
            return False
        return all(_fits(value, wanted[name]) for name, value in actual.items())
    given_shapes, wanted_shapes = ([np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (entry, expected))
    return given_shapes == wanted_shapes


def _shape_error(row: Row, op: Layer, entry: Any, expected: Any, xs: Any) -> str:
    """Return the op's own error for parameters of these shapes, which says more, or else one that shows the shapes."""
    # An op may refuse a dtype before it looks at the shapes, which are what is wrong here.
    dtype = jax.tree.leaves((xs, expected))[0].dtype
    actual = jax.tree.map(lambda leaf: spec(leaf).update(dtype=dtype), entry)
    try:
        result(op, actual, xs)
    except FuncconvError as error:
        return retold(row.name, op, xs, error)
    except Exception:  # of a function of the user's
        return _other_shapes(row, GIVEN, entry, expected)
    return _other_shapes(row, GIVEN, entry, expected)


def _other_shapes(row: Row, whose: str, entry: Any, expected: Any) -> str:
    advice = "Pass arrays of these shapes, such as those of graph.init"
    if whose != GIVEN:
        advice = "Give one of the two another entry with params=, or give both inputs with equal channels"
    return (
        f"node {row.name!r}: the parameters {row.params!r} must have shapes {shapes(expected)}; {whose}, they have "
        f"{shapes(entry)}. {advice}"
    )


def _warn_of_narrowing(params: Params) -> None:
    """Warn that JAX rounds 64-bit parameters, such as those of a file, which it does without a word."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if isinstance(leaf, np.ndarray) and not is_kept(leaf.dtype):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            warnings.warn(
                f"graph: the parameter {name!r} is a NumPy array of {leaf.dtype}, which JAX computes with in "
                f"{jax.dtypes.canonicalize_dtype(leaf.dtype)}. Set jax_enable_x64, or cast the parameters yourself",
                stacklevel=5,  # the line of the user's that calls the graph
            )
            return
