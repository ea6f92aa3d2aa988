"""Files that are read whole, and written completely or not at all."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress

from .errors import FuncconvError
from .paths import checked_path


def existing_file(op: str, path: str | os.PathLike[str]) -> str:
    """Return the path of a file that exists, as a text.

    Args:
        op: the function that was called, for messages.
        path: of the file.

    Returns:
        The path.

    Raises:
        FuncconvError: as `checked_path`, and if there is no regular file: reading a pipe could wait without end.
    """
    text = str(checked_path(op, path, wants="file"))
    try:
        regular = stat.S_ISREG(os.stat(text).st_mode)
    except (OSError, ValueError) as error:
        raise _retold(op, text, "read", error) from error
    if not regular:
        msg = f"{op}: {_short(text)} cannot be read: it is not a regular file"
        raise FuncconvError(msg)
    return text


def read_file(op: str, path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file.

    Args:
        op: the function that was called, for messages.
        path: of the file.

    Returns:
        Its bytes.

    Raises:
        FuncconvError: as `existing_file`, and if the file cannot be read.
    """
    text = existing_file(op, path)
    try:
        with open(text, "rb") as file:
            return file.read()
    except OSError as error:
        raise _retold(op, text, "read", error) from error


def write_file(op: str, path: str | os.PathLike[str], content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file. If anything fails, the file that was there before stays as it was.

    The content goes to a new file in the same folder, `.funcconv-….tmp`. When all of it is on the disk, this file is
    renamed. Only a killed process leaves it behind. A symbolic link stays, and the file that it names is written. A
    device or a pipe, such as `/dev/stdout`, is written to directly. An existing file keeps its permissions.

    Args:
        op: the function that was called, for messages.
        path: of the file.
        content: bytes, or buffers that are written one after another.

    Raises:
        FuncconvError: as `checked_path`, if the file is write-protected, and if writing fails, as on a full disk.
    """
    text = str(checked_path(op, path, wants="file"))
    buffers: Iterable[bytes | memoryview] = [content] if isinstance(content, bytes) else content
    try:
        if _is_special(text):
            with open(text, "wb") as file:
                file.writelines(buffers)
        else:
            _replace(os.path.realpath(text), buffers)
    except FuncconvError:
        raise
    except (OSError, ValueError) as error:
        raise _retold(op, text, "written", error) from error


def _is_special(path: str) -> bool:
    """Return whether a path leads to what a renamed file cannot replace: a device, a pipe, or a deleted file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    try:
        same = os.path.samestat(found, os.stat(os.path.realpath(path)))
    except FileNotFoundError:
        same = False
    return not (same and stat.S_ISREG(found.st_mode))


def _replace(path: str, buffers: Iterable[bytes | memoryview]) -> None:
    """Write a new file, and put it in the place of another."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        old = None
    if old is not None and not os.access(path, os.W_OK):  # renaming would replace it all the same
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".funcconv-{secrets.token_hex(8)}.tmp")
    file = open(temporary, "xb")  # noqa: SIM115 (from here on it is removed if anything fails)
    try:
        with file:
            file.writelines(buffers)
            file.flush()
            os.fsync(file.fileno())
        if old is not None:
            _copy_permissions(old, temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync(folder)


def _copy_permissions(old: os.stat_result, path: str) -> None:
    new = os.stat(path)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(OSError):  # only root may give a file to another user
            os.chown(path, old.st_uid, old.st_gid)
    os.chmod(path, stat.S_IMODE(old.st_mode))


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or the names in a folder, are on the disk; not every system can do that."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _retold(op: str, path: str, what: str, error: Exception) -> FuncconvError:
    reason = getattr(error, "strerror", None) or str(error)
    return FuncconvError(f"{op}: {_short(path)} cannot be {what}: {reason}")


def _short(path: str) -> str:
    return path if len(path) <= 300 else f"{path[:150]}…{path[-50:]}"
