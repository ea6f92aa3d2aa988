"""Restore the parts of a tree that a file has."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ..._common.errors import FuncconvError, suggest
from ..._common.patterns import path_of
from ..._weight_files.closest_names import closest_names
from ..leaves import described, like_leaf
from .layouts import in_order, is_certain, readings
from .names import paired, same_form
from .report import RestoreReport, listed
from .source import Source, arrays_of, named

_CHOICES = ("raise", "keep")


def restored_parts(
    op: str,
    source: Any,
    into: Any,
    *,
    match: Mapping[str, str] | None,
    missing: str,
    mismatched: str,
    key: str | None,
    step: int | None,
) -> tuple[Any, RestoreReport]:
    """Return a tree with the arrays that a file has for it, and a report.

    Args:
        op: the name of the called function, for messages.
        source: the path of a file or folder, or a tree of arrays.
        into: the tree.
        match: patterns of names in the file, and of the names in the tree that they belong to. None: equal names.
        missing: `"raise"` or `"keep"`, for entries of the tree that the file does not have.
        mismatched: `"raise"` or `"keep"`, for entries that have another shape or dtype in the file.
        key: the entry of the file, or None.
        step: the step of a checkpoint in a folder, or None.

    Raises:
        FuncconvError: if the file cannot be read, or something does not fit as the arguments say.
    """
    for name, choice in (("missing", missing), ("mismatched", mismatched)):
        if choice not in _CHOICES:
            msg = f"{op}: {name} must be 'raise' or 'keep'; got {choice!r}{suggest(choice, _CHOICES)}"
            raise FuncconvError(msg)
    leaves = named(op, "into", into)
    found = arrays_of(op, source, key, step)
    entries, names = _in_same_form(op, "into", leaves), _in_same_form(op, "the file", found.arrays)
    try:
        pairing = paired(names, entries, match)
    except FuncconvError as error:
        msg = "\n".join([f"{op}: {error}", *found.notes])
        raise FuncconvError(msg) from None
    sources = {entries[entry]: names[name] for entry, name in pairing.sources.items()}
    values, differences = _fitting(op, sources, leaves, found)
    report = RestoreReport(
        restored={name: sources[name] for name in leaves if name in values},
        missing=tuple(name for name in leaves if name not in sources),
        mismatched=differences,
        unused=tuple(names[name] for name in pairing.unused),
        notes=found.notes,
    )
    _check(op, report, leaves, missing=missing, mismatched=mismatched)
    restored = jax.tree.map_with_path(lambda path, leaf: values.get(path_of(path), leaf), into)
    return restored, report


def _in_same_form(op: str, owner: str, names: Iterable[str]) -> dict[str, str]:
    """Return names by their form with `/`.

    Raises:
        FuncconvError: if two names have the same form.
    """
    by_form: dict[str, str] = {}
    for name in names:
        if (other := by_form.setdefault(same_form(name), name)) != name:
            msg = f"{op}: the names {other!r} and {name!r} in {owner} are the same if a dot is read as /. Rename one"
            raise FuncconvError(msg)
    return by_form


def _fitting(
    op: str, sources: Mapping[str, str], leaves: Mapping[str, Any], found: Source
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arrays for the entries of a tree, and the differences of those that do not fit.

    Raises:
        FuncconvError: if the order of the axes is not certain.
    """
    values, differences, uncertain = {}, {}, {}
    for name, source in sources.items():
        array, leaf = found.arrays[source], leaves[name]
        types = f"{_type(array)} in the file, {_type(leaf)} expected"
        ways = readings(np.shape(array), np.shape(leaf)) if found.of_torch else []
        if ways and not is_certain(ways):
            uncertain[name] = types
            continue
        value = in_order(array, ways[0]) if ways else array
        if _type(value) == _type(leaf):
            values[name] = like_leaf(value, leaf)
        else:
            differences[name] = types
    if uncertain:
        texts = [f"{name}: {text}" for name, text in uncertain.items()]
        msg = (
            f"{op}: the file may have the axes in the order of PyTorch, and shapes do not show how to read:"
            f"{listed(texts)}\nConvert the weights with the graph that has them, and pass the result in place of the "
            "path: fc.interop.from_torch(graph, fc.interop.read_weights(path))[0]. If the axes are in the order of "
            "into, pass fc.interop.read_weights(path)"
        )
        raise FuncconvError(msg)
    return values, differences


def _check(op: str, report: RestoreReport, leaves: Mapping[str, Any], *, missing: str, mismatched: str) -> None:
    """Refuse what may not be kept, and a tree from which nothing is restored."""
    problems = []
    if report.mismatched and mismatched == "raise":
        texts = [f"{name}: {text}" for name, text in report.mismatched.items()]
        problems.append(
            f"{len(texts)} arrays have another shape or dtype:{listed(texts)}\nmismatched='keep' keeps those of into; "
            "to change a dtype, pass the arrays of fc.interop.read_weights(path), cast to it, in place of the path"
        )
    if report.missing and missing == "raise":
        problems.append(
            f"the file lacks {len(report.missing)} of {len(leaves)} arrays. Rename with match={{name in the file: name "
            "in into}, or keep those of into with missing='keep'\n"
            + closest_names(report.missing, report.unused, left_side="into", right_side="the file")
        )
    if not problems and not report.restored:
        problems.append(f"no array was restored, because the file has none for into. {report!r}")
    kept = [name for name in (*report.missing, *report.mismatched) if isinstance(leaves[name], jax.ShapeDtypeStruct)]
    if not problems and kept:
        problems.append(f"into has only the types, and no values to keep, of these entries. Pass arrays:{listed(kept)}")
    if problems:
        msg = f"{op}: " + "\n".join([*problems, *report.notes])
        raise FuncconvError(msg)


def _type(leaf: Any) -> str:
    """Return the dtype and shape of an array or a number, `"float32[3]"`."""
    (text,) = described(leaf).values()
    return text
