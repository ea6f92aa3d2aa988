"""A parameter tree as nested dicts of entries, each under a path such as `("trunk", "conv1")`."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Params

Path = tuple[str, ...]


def get(tree: Params, path: Path) -> Any:
    """Return the entry at a path; KeyError where there is none."""
    for name in path:
        if not isinstance(tree, Mapping):
            raise KeyError(name)
        tree = tree[name]
    return tree


def put(tree: dict[str, Any], path: Path, value: Any) -> None:
    """Set the entry at a path, making the dicts above it."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def tree_of(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree that has these entries, each by its path such as `"trunk/conv1"`."""
    tree: dict[str, Any] = {}
    for path, entry in entries.items():
        put(tree, tuple(path.split("/")), entry)
    return tree


def replaced(tree: Any, path: Path, value: Any) -> Any:
    """Return the tree with another value at a path."""
    if not path:
        return value
    return {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}


def check(
    tree: Params,
    paths: Iterable[Path],
    *,
    what: str = "the parameters",
    partial: bool = False,
    optional: Iterable[Path] = (),
) -> None:
    """Raise an error unless a tree has exactly the entries of these paths; a partial one may lack some.

    Args:
        tree: the tree.
        paths: of its entries.
        what: what the tree is, for messages.
        partial: whether any entry may be missing.
        optional: paths of further entries, each of which may be missing.

    Raises:
        FuncconvError: if an entry is missing or unknown.
    """
    left_out = {path for path in optional if not has(tree, path)}
    _check(tree, _nested((*paths, *(path for path in optional if path not in left_out))), (), what, partial=partial)


def has(tree: Params, path: Path) -> bool:
    """Return whether a tree has an entry at a path."""
    try:
        get(tree, path)
    except KeyError:
        return False
    return True


def select(tree: Params, paths: Iterable[Path]) -> dict[str, Any]:
    """Return the part of a tree that has the entries of these paths."""
    selected: dict[str, Any] = {}
    for path in paths:
        try:
            put(selected, path, get(tree, path))
        except KeyError:
            msg = f"select: the parameters have no entry {'/'.join(path)!r}{_suggest_entry(tree, path)}"
            raise FuncconvError(msg) from None
    return selected


def _nested(paths: Iterable[Path]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for path in paths:
        put(known, path, None)
    return known


def _check(tree: Any, known: dict[str, Any], above: Path, what: str, *, partial: bool) -> None:
    if not isinstance(tree, Mapping):
        where = f"the entry {'/'.join(above)!r}" if above else what
        method = "init" if what == "the parameters" else "init_state"
        msg = (
            f"graph: {where} must be a dict with the entries {sorted(known)}; got {type(tree).__name__}. Pass a tree "
            f"like that of graph.{method}"
        )
        raise FuncconvError(msg)
    for name in tree:
        if name not in known:
            verb = "have" if what == "the parameters" else "has"
            msg = f"graph: {what} {verb} an entry {'/'.join((*above, str(name)))!r} that the graph does not use"
            method = "select" if what == "the parameters" else "select_state"
            msg += suggest(name, known) if partial else f"; graph.{method} leaves it out"
            raise FuncconvError(msg)
    for name, below in known.items():
        if name not in tree:
            if not partial:
                entry = "/".join((*above, name))
                msg = f"graph: the entry {entry!r} is missing in {what}{_suggest_entry(tree, (name,))}"
                raise FuncconvError(msg)
        elif below is not None:
            _check(tree[name], below, (*above, name), what, partial=partial)


def _suggest_entry(tree: Params, path: Path) -> str:
    return suggest(path[0], map(str, tree)) if isinstance(tree, Mapping) and tree else "; they are empty"
