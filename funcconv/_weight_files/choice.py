"""Choose the weights in a file that also contains other objects, such as a training checkpoint."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn

from .._common.errors import FuncconvError, suggest
from .content import Content
from .trees import (
    MISSING,
    WHOLE,
    at,
    children,
    is_array,
    is_container,
    is_optimizer,
    leaves,
    shape_of,
    state_dicts,
    subtrees,
)

_CHOOSE = "Choose one by key=, or --key on the command line"
_COLLECTIONS = ("params", "batch_stats")  # of the variables of a Linen module


class Choice(NamedTuple):
    """The chosen part of a file."""

    tree: Any  # nested dicts of arrays and other objects
    key: str  # "." for the whole file
    notes: tuple[str, ...] = ()


def chosen(content: Content, key: str | None) -> Choice:
    """Choose the weights in the content of a file.

    Args:
        content: the content of the file.
        key: the path of an entry that the user names, `"."` for everything, or None.

    Returns:
        The part of the content. Its notes say what was chosen and what was left out.

    Raises:
        FuncconvError: if there is no entry with this key, if several entries are possible, or if no entry has arrays.
    """
    if key is not None:
        if not isinstance(key, str) or not key:
            msg = f"key must be the path of an entry, such as 'state_dict' or 'ema/state_dict'; got {key!r:.100}"
            raise FuncconvError(msg)
        key = key.strip("/") or WHOLE
    tree = content.tree
    if not is_container(tree):
        msg = f"it must contain a dict of arrays; it contains {_described(tree)}"
        raise FuncconvError(msg)
    if content.kind in ("torch", "safetensors"):
        return _state_dict(tree, key)
    tree = _unboxed(tree)
    return _variables(tree, key, "model" if content.kind == "run" else "batch_stats", is_run=content.kind == "run")


def _state_dict(tree: Any, key: str | None) -> Choice:
    """Choose a state dict: the only dict with arrays, or the one that the user names."""
    if key == WHOLE:
        return Choice(tree, WHOLE)
    if key is not None:
        tree_at_key = _entry(tree, key)
        below = state_dicts(tree_at_key)
        if len(below) == 1 and below[0][0]:
            path, inner = below[0]
            used = "/".join((key, *path))
            return Choice(inner, used, (f"used the entry {used!r}, the only one in {key!r} with weights",))
        return Choice(tree_at_key, key)
    candidates = state_dicts(tree)
    if not candidates:
        _refuse_without_arrays(tree)
    if len(candidates) > 1:
        msg = f"{len(candidates)} dicts in it have weights. {_CHOOSE}:\n{_listing(tree)}"
        raise FuncconvError(msg)
    ((path, state_dict),) = candidates
    if not path:
        return Choice(tree, WHOLE)
    used = "/".join(path)
    others = [name for name, value in children(tree).items() if name != path[0] and value is not None]
    also = f"; the file also has {', '.join(others)}" if others else ""
    return Choice(state_dict, used, (f"used the entry {used!r}{also}",))


def _variables(tree: Any, key: str | None, statistics: str, *, is_run: bool) -> Choice:
    """Choose the variables of a Flax module: params and batch_stats, or the tree of parameters.

    A checkpoint of `fc.train` stores the statistics as `model`. They are read together with the chosen entry, for
    example a moving average of the parameters.

    Args:
        tree: the content of the file.
        key: the entry that the user names, `"."` for everything, or None.
        statistics: the name of the statistics beside the parameters.
        is_run: whether `fc.train` wrote the file.

    Returns:
        The choice.
    """
    if key == WHOLE:
        return Choice(tree, WHOLE)
    has_statistics = bool(leaves(subtrees(tree).get(statistics, {}), "/"))
    if key is None and is_run:
        key = "params"
    if key is not None:
        entry = _entry(tree, key)
        if "params" in children(entry):
            inner = _variables(entry, None, "batch_stats", is_run=False)
            return inner._replace(key=key if inner.key == WHOLE else f"{key}/{inner.key}")
        if not (has_statistics and key in children(tree) and key != statistics):
            return Choice(entry, key)
        return _with_statistics(tree, key, statistics)
    with_arrays = [name for name, value in subtrees(tree).items() if leaves(value, "/")]
    if not leaves(tree, "/"):
        _refuse_without_arrays(tree)
    if "params" not in children(tree):
        if len(with_arrays) == 1 and "params" in subtrees(children(tree)[with_arrays[0]]):
            return _variables(tree, with_arrays[0], statistics, is_run=False)
        return Choice(tree, WHOLE)
    if others := set(with_arrays) - set(_COLLECTIONS):
        lines = _lines((name, leaves(children(tree)[name], "/")) for name in with_arrays if name != statistics)
        msg = f"it has {', '.join(sorted(others))} beside params. {_CHOOSE}:\n{lines}"
        raise FuncconvError(msg)
    return _with_statistics(tree, "params", statistics)


def _with_statistics(tree: Any, key: str, statistics: str) -> Choice:
    """Choose an entry with parameters, and the statistics beside it."""
    entries = children(tree)
    collections = {"params": entries[key]}
    used = [key]
    if statistics in entries:
        collections["batch_stats"] = entries[statistics]
        used.append(statistics)
    left_out = [name for name, value in entries.items() if name not in used and value is not None]
    if not left_out and key == "params":
        return Choice(collections, WHOLE)
    also = f"; the file also has {', '.join(left_out)}" if left_out else ""
    return Choice(collections, key, (f"used the entries {' and '.join(used)}{also}",))


def _unboxed(tree: Any) -> Any:
    """Return a tree without the level `value` of NNX, if each array is the only value in such a dict."""

    def is_box(value: Any) -> bool:
        return isinstance(value, Mapping) and list(value) == ["value"] and is_array(value["value"])

    def unbox(value: Any) -> Any:
        if is_box(value):
            return value["value"]
        return {name: unbox(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value

    names = leaves(tree, "/")
    return unbox(tree) if names and all(name.endswith("/value") for name in names) else tree


def _entry(tree: Any, key: str) -> Any:
    """Return the entry that the user names."""
    entry = at(tree, key)
    if entry is MISSING:
        names = ["/".join(path) for path, _ in state_dicts(tree) if path]
        listing = _listing(tree)
        has = f"\nEntries with weights:\n{listing}" if listing else f"\n{_contents(tree)}"
        msg = f"it has no entry {key!r}{suggest(key, [*names, *children(tree)])}{has}"
        raise FuncconvError(msg)
    if not is_container(entry):
        msg = f"its entry {key!r} is {_described(entry)}; key= must name a dict of arrays"
        raise FuncconvError(msg)
    if not leaves(entry, "/"):
        msg = f"its entry {key!r} has no arrays. {_contents(tree)}"
        raise FuncconvError(msg)
    return entry


def _listing(tree: Any) -> str:
    """Return the keys that the user can choose, with the number of arrays in each."""
    paths = [path for path, _ in state_dicts(tree) if path]
    # Entries above several of them, because the weights may be nested dicts, with one for each layer.
    above = Counter(path[:depth] for path in paths for depth in range(len(path)))
    paths += [path for path, count in above.items() if path and count > 1 and path not in paths]
    entries = [("/".join(path), leaves(_at_path(tree, path), "/")) for path in paths]
    return _lines([*entries, (WHOLE, leaves(tree, "/"))] if entries else [])


def _at_path(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = children(tree)[name]
    return tree


def _lines(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    lines = []
    for name, arrays in entries:
        first = ", ".join(list(arrays)[:2]) + (", ..." if len(arrays) > 2 else "")
        whole = " (everything, with nested names)" if name == WHOLE else ""
        lines.append(f"  key={name!r}: {len(arrays)} {'array' if len(arrays) == 1 else 'arrays'}{whole}: {first}")
    return "\n".join(lines)


def _refuse_without_arrays(tree: Any) -> NoReturn:
    msg = f"it has no weights. {_contents(tree)}"
    raise FuncconvError(msg)


def _contents(tree: Any) -> str:
    entries = children(tree)
    if not isinstance(tree, Mapping):
        return f"It is {_described(tree)}"
    described = [
        f"{name} ({'the state of an optimizer' if is_optimizer(name, value) else _described(value)})"
        for name, value in entries.items()
    ]
    listed = ", ".join(described[:30]) + (", ..." if len(described) > 30 else "")
    return f"It contains {listed or 'nothing'}"


def _described(value: Any) -> str:
    if is_array(value):
        return f"an array of shape {shape_of(value)}"
    if is_container(value):
        arrays = leaves(value, "/")
        return f"a {type(value).__name__} with {len(arrays) or 'no'} arrays"
    return f"a value of type {type(value).__name__}"
