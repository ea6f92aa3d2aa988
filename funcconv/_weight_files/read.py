"""Arrays by name, from the content of a file of weights."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .._common.errors import FuncconvError
from .arrays import as_numpy
from .choice import Choice, chosen
from .content import Content
from .trees import leaves

_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, and modules inside of others


class NamedArrays(NamedTuple):
    """The arrays of a file by name, and what was done to read them."""

    arrays: dict[str, np.ndarray]
    key: str  # "." for the whole file
    prefix: str  # the prefix that was removed from all names
    notes: tuple[str, ...]  # sentences about what was chosen and removed

    def names_of_file(self) -> dict[str, np.ndarray]:
        """Return the arrays with the prefix that was removed."""
        return {self.prefix + name: array for name, array in self.arrays.items()}


def choose(op: str, path: str | os.PathLike[str], content: Content, key: str | None) -> Choice:
    """Choose the weights in the content of a file; errors name the function and the file."""
    with _naming(op, path):
        return chosen(content, key)


@contextmanager
def _naming(op: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the function and the file in errors about its content."""
    try:
        yield
    except FuncconvError as error:
        msg = f"{op}: {path}: {error}"
        raise FuncconvError(msg) from error
    except RecursionError as error:
        msg = f"{op}: {path} cannot be read: its dicts are nested too deeply, or contain themselves"
        raise FuncconvError(msg) from error


def named_arrays(op: str, path: str | os.PathLike[str], content: Content, key: str | None) -> NamedArrays:
    """Return the chosen arrays of a file by name.

    Args:
        op: the name of the called function, for messages.
        path: path of the file, for messages.
        content: the content of the file.
        key: the entry that the user names, or None.

    Returns:
        The arrays.

    Raises:
        FuncconvError: if they cannot be chosen, or a value cannot become an array.
    """
    is_torch = content.kind in ("torch", "safetensors")
    with _naming(op, path):
        choice = chosen(content, key)
        values = leaves(choice.tree, "." if is_torch else "/")
        arrays = {name: _array(name, value) for name, value in values.items()}
    prefix = _shared_prefix(arrays) if is_torch else ""
    notes = [content.note, *choice.notes, f"removed the prefix {prefix!r} of all names" if prefix else ""]
    arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return NamedArrays(arrays, choice.key, prefix, tuple(note for note in notes if note))


def _array(name: str, value: Any) -> np.ndarray:
    """Return a tensor or an array as an array that the caller may change."""
    try:
        array = as_numpy(value)
    except Exception as error:  # of tensors of a kind that has no shape, dtype or data
        reason = " ".join(str(error).split())[:300].rstrip(".")
        msg = (
            f"the array {name!r} cannot be read: {reason}. Make quantized, sparse and nested tensors dense in PyTorch "
            "(dequantize(), to_dense()) and save again; meta tensors have no data"
        )
        raise FuncconvError(msg) from error
    return array if array.flags.writeable else array.copy()


def _shared_prefix(names: Iterable[str]) -> str:
    """Return the known prefixes that all names share, each at most once: a second one is part of the module."""
    shared, remaining = "", list(_PREFIXES)
    while remaining:
        for prefix in remaining:
            longer = shared + prefix
            if names and all(name.startswith(longer) and len(name) > len(longer) for name in names):
                shared = longer
                remaining.remove(prefix)
                break
        else:
            break
    return shared
