"""A lock on a folder: one writer at a time, even if several processes or machines try."""

import errno
import json
import os
import socket
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from .._common.errors import FuncconvError

if sys.platform != "win32":
    import fcntl

_NAME = ".funcconv-lock"
_NO_LOCKS = (  # errors of file systems without locks
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
)
_held: set[int] = set()  # file descriptors of the locks of this process


class FolderLock:
    """A lock that one process at a time holds to write to a folder.

    The lock is an advisory `flock` on a file in the folder. The operating system releases it when the process ends,
    also when it is killed. The file names the process that holds the lock; readers ignore it. NFS has these locks since
    version 4. On a file system without locks, a warning says so. On Windows nothing is locked.

    Args:
        folder: an existing folder.

    Raises:
        FuncconvError: if another writer holds the lock; the message has its process id and host.
        OSError: if the file cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._file = folder / _NAME, -1
        if sys.platform == "win32":
            return
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = (
                    f"train: only one writer at a time can use a folder of checkpoints, but {folder} is being written "
                    f"to by {_holder(file)}. Wait until that one ends, or pass another folder"
                )
                os.close(file)
                raise FuncconvError(msg) from error
            except OSError as error:
                os.close(file)
                if error.errno not in _NO_LOCKS:
                    raise
                msg = (
                    f"{folder} is on a file system without locks ({error.strerror}). Make sure that only one process "
                    "writes checkpoints there."
                )
                warnings.warn(msg, stacklevel=5)
                return
            if self._is_in_place(file):
                break
            os.close(file)  # the last holder has deleted this file, so a lock on it protects nothing
        self._file = file
        _held.add(file)
        with suppress(OSError):  # the disk is full: the lock works without its text
            os.ftruncate(file, 0)
            os.write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def release(self) -> None:
        """Release the lock, so that another process can write."""
        if self._file in _held:
            _held.discard(self._file)
            with suppress(OSError):
                self._path.unlink()
            os.close(self._file)
        self._file = -1

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False


def _holder(file: int) -> str:
    """Return a text that names the process that holds a lock."""
    try:
        content = json.loads(os.read(file, 1000))
        pid, host = int(content["pid"]), str(content["host"])
    except (OSError, ValueError, KeyError, TypeError):  # the holder has not written it yet
        return "another process"
    if (pid, host) == (os.getpid(), socket.gethostname()):
        return f"this process itself (process {pid} on {host}), by another call"
    return f"process {pid} on {host}"


def _forget() -> None:
    """Close the files in a forked process, because a lock lasts until all processes with its file have ended."""
    for file in _held:
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
