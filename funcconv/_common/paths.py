"""Checks of paths that users pass, before anything is read or written."""

import errno
import os
import stat
from pathlib import Path
from typing import Literal

from .errors import FuncconvError


def checked_path(op: str, path: object, *, wants: Literal["file", "folder"]) -> Path:
    """Return a valid path of a file or a folder, which need not exist.

    Args:
        op: name of the called function, for messages.
        path: the path that the user passed.
        wants: `"file"` or `"folder"`; an existing path of the other kind is an error.

    Returns:
        The path as it was given, relative or absolute.

    Raises:
        FuncconvError: if the path is neither a string nor an `os.PathLike` of one, is empty, has a NUL character or
            other characters that the system cannot encode, is too long, leads through a file, or is of the other kind.
    """
    user_path = path
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str):
        msg = f"{op}: the path of a {wants} must be a string or a pathlib.Path; got {_short(user_path)}"
        raise FuncconvError(msg)
    if not path:
        msg = f"{op}: the path is empty; pass the name of a {wants}"
        raise FuncconvError(msg)
    if wants == "file" and path.endswith(("/", os.sep)):
        msg = f"{op}: {_short(user_path)} is the path of a folder; pass the path of a file"
        raise FuncconvError(msg)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return Path(path)
    except (ValueError, UnicodeError) as error:  # a NUL character, or half of a surrogate pair
        msg = f"{op}: {_short(path)} cannot be a path: {error}"
        raise FuncconvError(msg) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):  # the error of reading or writing it says more
            return Path(path)
        msg = f"{op}: {_short(path)} cannot be a path: {error.strerror}"
        raise FuncconvError(msg) from error
    is_folder = stat.S_ISDIR(mode)
    if is_folder != (wants == "folder"):
        msg = f"{op}: {_short(path)} is a {'folder' if is_folder else 'file'}; pass the path of a {wants}"
        raise FuncconvError(msg)
    return Path(path)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]}...{text[-20:]} ({len(text)} characters)"
