"""The arrays that a part of a model can be restored from: those of a file, of a folder, or of a tree."""

import os
from typing import Any, NamedTuple

import jax

from ..._common.errors import FuncconvError
from ..._common.patterns import path_of
from ..._weight_files.arrays import as_numpy
from ..._weight_files.content import Content
from ..._weight_files.read import named_arrays
from ..._weight_files.safetensors_format import name_in_tree
from ..._weight_files.trees import MISSING, at, children, is_container
from ..content import read_content

_PARAMS = "params"  # the entry of a run that is used if no other one is named


class Source(NamedTuple):
    """Arrays by name."""

    arrays: dict[str, Any]
    of_torch: bool  # whether the order of their axes may be that of PyTorch
    notes: tuple[str, ...]  # sentences about what was chosen in a file


def arrays_of(op: str, source: Any, key: str | None, step: int | None) -> Source:
    """Return the arrays of a file, a folder or a tree, by their names in it.

    Args:
        op: the name of the called function, for messages.
        source: a path, or a tree of arrays.
        key: the path of an entry of the file, or None.
        step: the step of a checkpoint in a folder, or None.

    Returns:
        The arrays.

    Raises:
        FuncconvError: if the file cannot be read or has no such entry, or if `key` or `step` is given with a tree.
    """
    if key is not None and not (isinstance(key, str) and key):
        msg = f"{op}: key must be the path of an entry, such as 'ema' or 'state_dict'; got {key!r:.100}"
        raise FuncconvError(msg)
    if not isinstance(source, str | os.PathLike):
        if key is not None or step is not None:
            msg = f"{op}: key= and which= choose a part of a file; pass the part of the tree itself"
            raise FuncconvError(msg)
        arrays, of_torch = named(op, "the tree", source), False
        if any(hasattr(leaf, "detach") for leaf in arrays.values()):  # tensors of PyTorch
            arrays, of_torch = {name: as_numpy(leaf) for name, leaf in arrays.items()}, True
        return Source(arrays, of_torch, notes=())
    content = read_content(op, source, step)
    if content.kind in ("torch", "safetensors"):
        chosen = named_arrays(op, source, content, key)
        if content.is_own:
            arrays = {name_in_tree(name): array for name, array in chosen.names_of_file().items()}
            return Source(arrays, of_torch=False, notes=())
        return Source(chosen.arrays, of_torch=True, notes=chosen.notes)
    tree, notes = _entry(op, source, content, key)
    return Source(named(op, "the file", tree), of_torch=False, notes=notes)


def _entry(op: str, path: Any, content: Content, key: str | None) -> tuple[Any, tuple[str, ...]]:
    """Return the entry of a folder or a Flax file that is named; for a run, its parameters by default."""
    notes = [content.note] if content.note else []
    if key is None and content.kind == "run":
        key = _PARAMS
        others = ", ".join(name for name in content.tree if name != key and jax.tree.leaves(content.tree[name]))
        notes.append(f"used the entry {key!r}; the state also has {others}")
    if key is None or key.strip("/") in ("", "."):
        return content.tree, tuple(notes)
    entry = at(content.tree, key.strip("/"))
    if entry is MISSING:
        known = ", ".join(map(repr, children(content.tree))) if is_container(content.tree) else "one array"
        msg = f"{op}: {path} has no entry {key!r}; it has {known}"
        raise FuncconvError(msg)
    return entry, tuple(notes)


def named(op: str, owner: str, tree: Any) -> dict[str, Any]:
    """Return the arrays and numbers of a tree by their paths.

    Args:
        op: the name of the called function, for messages.
        owner: what the tree is, for messages.
        tree: the tree.

    Raises:
        FuncconvError: if two of them have the same path, because a name has a `/`.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = path_of(path)
        if name in leaves:
            msg = f"{op}: two arrays in {owner} have the name {name!r}. Rename one"
            raise FuncconvError(msg)
        leaves[name] = leaf
    return leaves
