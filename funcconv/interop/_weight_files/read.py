"""Reading arrays by name from the files of weights that other libraries write."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ..._common.errors import FuncconvError
from .._torch.weights import as_numpy
from .choice import Choice, chosen
from .content import Content, read_content
from .trees import leaves

_LOGGER = logging.getLogger("funcconv")
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


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a file of weights, by their names in the file.

    The content of the file decides the format, not its name:

    - Files of `torch.save`, new and old: `.pt`, `.pth`, `.pth.tar`, `.ckpt`, `.bin`. They are loaded with
      `weights_only=True`, which runs no code of the file. Needs PyTorch.
    - `.safetensors`.
    - Flax's msgpack files (`flax.serialization.to_bytes`), and folders of orbax and of `fc.train`.

    A checkpoint often holds more than weights. If one dict in it has weights, as in
    `{"epoch": 3, "state_dict": ..., "optimizer": ...}`, that dict is used. States of optimizers are never taken for
    weights. Other objects, such as numbers and strings, are left out. If all names share the prefix `module.`,
    `_orig_mod.` or `model.`, it is removed. The logger `funcconv` reports what was used and removed, by default on
    standard error.

    In a Flax file, `params` and `batch_stats` are read together. `from_linen` takes the result.

    Args:
        path: the path of the file or folder.
        key: the path of the entry to read, such as `"ema"`, `"ema/state_dict"` or `"ema.state_dict"`; or the beginning
            of the names to read, such as `"encoder"` for `"encoder.conv1.weight"`. `"."` reads the whole file, with
            nested names. Default: the only dict with weights.

    Returns:
        A dict of NumPy arrays, in the order of the file and with its dtypes, float16, bfloat16 and float8 included.
        Names of nested dicts are joined by `.` in files of PyTorch, and by `/` in files of Flax and orbax.

    Raises:
        FuncconvError: if the file is missing, empty, damaged, or of another kind (the message says which, such as a web
            page or a pointer of Git LFS); if it can only be read by running code of the file; if several dicts have
            weights or none (the message lists them); if there is no entry `key`; if an array is quantized, sparse or
            without data; if the package that reads the format is not installed.

    Example:
        >>> import funcconv as fc, numpy as np, os, tempfile
        >>> weights = {"module.conv.weight": np.ones((4, 3, 3, 3), np.float16), "module.conv.bias": np.zeros(4)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "weights.safetensors")
        ...     fc.interop.save_safetensors(path, weights)
        ...     arrays = fc.interop.read_weights(path)
        >>> sorted(arrays), arrays["conv.weight"].dtype.name
        (['conv.bias', 'conv.weight'], 'float16')
    """
    chosen_arrays = named_arrays("read_weights", path, read_content("read_weights", path), key)
    for note in chosen_arrays.notes:
        _LOGGER.warning("read_weights: %s: %s", path, note)
    return chosen_arrays.arrays


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
