"""The content of a file of weights or of orbax, before any weights are chosen. Reading it runs no code of the file."""

import os
import re
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import numpy as np

from .._common.errors import FuncconvError
from .._common.files import existing_file, read_file
from .._common.optional_packages import needs
from . import safetensors_format
from .kinds import DOWNLOAD_AGAIN, READ, Kind, kind_of

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".ckpt", ".bin", ".msgpack")
_MOST_CLASSES = 5  # in a message
_MOST_LEVELS = 3  # of folders in which checkpoints of orbax are searched


class Content(NamedTuple):
    """The content of a file."""

    kind: Literal["torch", "safetensors", "flax", "run"]
    tree: Any  # nested dicts and lists of arrays or tensors, and of other objects
    note: str = ""  # what the reader should know
    is_own: bool = False  # whether it has names and arrays of funcconv


def file_content(op: str, path: str | os.PathLike[str]) -> Content:
    """Read a file of weights, in the format that its content shows.

    Args:
        op: the name of the called function, for messages.
        path: path of the file.

    Returns:
        The content.

    Raises:
        FuncconvError: if the path is not valid, the file is of another kind, damaged or refused, or a package is
            missing that reads it.
    """
    kind = file_kind(op, path)
    existing = os.fspath(path)
    if kind == "msgpack":
        return Content("flax", _of_msgpack(op, existing))
    try:
        if kind == "torch":
            return Content("torch", _of_torch(existing))
        arrays, _, checked = safetensors_format.read(existing)
    except (OSError, FuncconvError) as error:
        raise _unreadable(op, existing, error) from error
    is_nested = checked and any("/" in name for name in arrays)
    own = "funcconv wrote this file; load_safetensors reads it as nested dicts" if is_nested else ""
    # Arrays of PyTorch keep their names if funcconv writes them.
    is_own = checked and all("/" in name or "." not in name for name in arrays)
    return Content("safetensors", arrays, own, is_own=is_own)


def file_kind(op: str, path: str | os.PathLike[str]) -> Kind:
    """Return the format of a file; errors name the function and the file."""
    existing = existing_file(op, path)
    try:
        return kind_of(existing)
    except (OSError, FuncconvError) as error:
        raise _unreadable(op, existing, error) from error


def _unreadable(op: str, path: str, error: OSError | FuncconvError) -> FuncconvError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return FuncconvError(f"{op}: {path} cannot be read: {reason}")


def _of_torch(path: str) -> Any:
    try:
        import torch
    except ImportError as error:
        msg = "it is a file of PyTorch, which is not installed: pip install torch"
        raise FuncconvError(msg) from error
    try:
        # Opened here, because for a path PyTorch decides by the ending. Its warnings are about the writer of the file.
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # damaged files can raise any error
        _refuse_torch(path, str(error) or type(error).__name__, error)


def _refuse_torch(path: str, text: str, error: Exception) -> NoReturn:
    """Raise an error that says why PyTorch could not read a file, without its advice to run code of the file."""
    refused = _classes(path) or re.findall(r"GLOBAL (\S+) (?:was not|whose)", text)
    save_again = (
        f"No code was run. If you trust the file, save its weights alone: checkpoint = torch.load({path!r}, "
        "map_location='cpu', weights_only=False), then torch.save(checkpoint.state_dict(), 'weights.pt') if it is a "
        "module, or torch.save(checkpoint['state_dict'], 'weights.pt') for an entry of a dict"
    )
    if "Weights only load failed" not in text:
        msg = f"PyTorch cannot read it: {text.strip().splitlines()[0][:300]}. {DOWNLOAD_AGAIN}"
    elif refused:
        names = ", ".join(refused[:_MOST_CLASSES]) + (", ..." if len(refused) > _MOST_CLASSES else "")
        msg = (
            f"it has more than weights: its objects of {names} are built by code that the file names. {save_again}. Or "
            "allow classes that you know to be harmless, with torch.serialization.safe_globals"
        )
    elif "Unsupported operand" in text:
        msg = f"PyTorch reads other pickle protocols than 2 only by running code of the file. {save_again}"
    else:
        msg = f"PyTorch cannot read it without running code of the file: {_last_reason(text)}. {save_again}"
    raise FuncconvError(msg) from error


def _classes(path: str) -> list[str]:
    """Return the classes and functions in a file of `torch.save` that are not allowed. Nothing of it is run."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of an old or damaged file
        return []


def _last_reason(text: str) -> str:
    """Return what PyTorch says itself, between its advice before and after."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Weights only", "Please file", "Check the doc"))]
    return lines[-1][:300] if lines else "it does not say why"


def _of_msgpack(op: str, path: str) -> Any:
    with needs("flax", "a msgpack file"):
        from flax import serialization
    content = read_file(op, path)
    try:
        return serialization.msgpack_restore(content)
    except Exception as error:  # damaged files can raise any error
        msg = f"{op}: {path} is not a msgpack file of Flax: {_first_line(error)}. {DOWNLOAD_AGAIN}"
        raise FuncconvError(msg) from error


def orbax_content(op: str, path: str) -> Content:
    """Read a checkpoint of orbax.

    Args:
        op: the name of the called function, for messages.
        path: path of an existing folder.

    Returns:
        The content.

    Raises:
        FuncconvError: if the folder is no checkpoint of orbax or has several, it is damaged, or orbax is not installed.
    """
    with needs("train", "a folder of orbax"):
        import orbax.checkpoint as ocp
    folder = Path(path).absolute()
    try:
        checkpoint = _checkpoint_in(op, path, folder)
        with ocp.PyTreeCheckpointer() as reader:
            names = reader.metadata(checkpoint).item_metadata.tree
            # NumPy arrays, because JAX would narrow 64 bits
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
            tree = reader.restore(checkpoint, args=ocp.args.PyTreeRestore(restore_args=kinds))
    except FuncconvError:
        raise
    except Exception as error:  # damaged files can raise any error
        names = _weight_files_in(folder)
        advice = f"Pass the path of a file in it: {', '.join(names)}" if names else f"Formats that are read: {READ}"
        msg = f"{op}: {path} is a folder, but not a checkpoint of orbax: {_first_line(error)}. {advice}"
        raise FuncconvError(msg) from error
    inside = "" if checkpoint == folder else f"read the checkpoint in {checkpoint.relative_to(folder)}"
    return Content("flax", tree, inside)


def _checkpoint_in(op: str, path: str, folder: Path) -> Path:
    """Return the checkpoint that a folder is, or the only one in it. A manager of orbax writes `5/default`."""
    if (folder / "_METADATA").exists():
        return folder
    patterns = ["/".join(["*"] * level) + "/_METADATA" for level in range(1, _MOST_LEVELS + 1)]
    inner = sorted(found.parent for pattern in patterns for found in folder.glob(pattern))
    if len(inner) > 1:
        listed = ", ".join(str(Path(path) / checkpoint.relative_to(folder)) for checkpoint in inner)
        msg = f"{op}: {path} has {len(inner)} checkpoints of orbax; pass the path of one: {listed}"
        raise FuncconvError(msg)
    return inner[0] if inner else folder


def _weight_files_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _WEIGHT_SUFFIXES)
    except OSError:
        return []


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text; its type if the text is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
