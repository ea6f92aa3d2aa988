"""Reading whole files, and writing files so that they are never incomplete."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress

from .errors import FuncconvError
from .paths import checked_path


def existing_file(op: str, path: str | os.PathLike[str]) -> str:
    """Return the path of an existing file as a string.

    Args:
        op: name of the called function, for messages.
        path: path of the file.

    Returns:
        The path.

    Raises:
        FuncconvError: if the path is not valid, or there is no regular file (reading a pipe could wait forever).
    """
    text = str(checked_path(op, path, wants="file"))
    try:
        regular = stat.S_ISREG(os.stat(text).st_mode)
    except (OSError, ValueError) as error:
        raise _as_funcconv_error(op, text, "read", error) from error
    if not regular:
        msg = f"{op}: {_short(text)} cannot be read: it is not a regular file; pass the path of a file"
        raise FuncconvError(msg)
    return text


def read_file(op: str, path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file.

    Args:
        op: name of the called function, for messages.
        path: path of the file.

    Returns:
        The bytes of the file.

    Raises:
        FuncconvError: if the path is not valid, there is no regular file, or the file cannot be read.
    """
    text = existing_file(op, path)
    try:
        with open(text, "rb") as file:
            return file.read()
    except OSError as error:
        raise _as_funcconv_error(op, text, "read", error) from error


def write_file(op: str, path: str | os.PathLike[str], content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file. If writing fails, an existing file does not change.

    The content is written to a new file in the same folder, `.funcconv-….tmp`. When it is on the disk, that file is
    renamed. Only a killed process leaves it behind. For a symbolic link, the file that it points to is written. A
    device or a pipe, such as `/dev/stdout`, is written directly. An existing file keeps its permissions.

    Args:
        op: name of the called function, for messages.
        path: path of the file.
        content: bytes, or buffers that are written one after another.

    Raises:
        FuncconvError: if the path is not valid, the file is write-protected, or writing fails (for example because the
            disk is full).
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
        raise _as_funcconv_error(op, text, "written", error) from error


def _is_special(path: str) -> bool:
    """Return whether a renamed file cannot replace the path: it is a device, a pipe, or a deleted file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return False
    try:
        # /dev/stdout can point to a file that was deleted or renamed: then its real path is another file, or none.
        is_real_path = os.path.samestat(status, os.stat(os.path.realpath(path)))
    except FileNotFoundError:
        is_real_path = False
    return not (is_real_path and stat.S_ISREG(status.st_mode))


def _replace(path: str, buffers: Iterable[bytes | memoryview]) -> None:
    """Write a new file, and rename it to `path`."""
    try:
        old = os.stat(path)
    except FileNotFoundError:
        old = None
    if old is not None and not os.access(path, os.W_OK):  # a rename would replace even a write-protected file
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".funcconv-{secrets.token_hex(8)}.tmp")
    file = open(temporary, "xb")  # noqa: SIM115 (the file is removed below if anything fails)
    try:
        with file:
            file.writelines(buffers)
            file.flush()
            os.fsync(file.fileno())  # without it, a crash after the rename could leave an empty file
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
    """Wait until a file, or the names in a folder, are on the disk."""
    with suppress(OSError):  # not every system can sync a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _as_funcconv_error(op: str, path: str, what: str, error: Exception) -> FuncconvError:
    reason = getattr(error, "strerror", None) or str(error)
    return FuncconvError(f"{op}: {_short(path)} cannot be {what}: {reason}")


def _short(path: str) -> str:
    return path if len(path) <= 300 else f"{path[:150]}…{path[-50:]}"
