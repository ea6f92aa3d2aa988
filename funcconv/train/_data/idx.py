"""The IDX format, in which MNIST and its likes come."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ..._common.errors import FuncconvError

# By the third byte of the file; numbers are big-endian.
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 24  # bytes; a damaged header may announce more than fits into memory


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one array in the IDX format of MNIST, compressed by gzip or not.

    Args:
        path: the path of the file. Only as much of it is read as its header announces.

    Returns:
        An array with the shape and dtype that the file states, in native byte order. The images of MNIST are
        `(examples, height, width)` in uint8.

    Raises:
        FuncconvError: if the file cannot be read, is not in the IDX format, or is longer or shorter than its header
            says.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".

    Example:
        >>> import funcconv as fc, tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     count = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))  # one axis of three bytes
        ...     file.flush()
        ...     fc.train.read_idx(file.name).tolist()
        [7, 8, 9]
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"  # the magic number of gzip
            file.seek(0)
            with gzip.open(file) if gzipped else file as content:
                return _read(path, cast("BinaryIO", content))
    except (OSError, EOFError, zlib.error) as error:
        msg = f"read_idx: {path} cannot be read: {error}. Check the path, or get the file again"
        raise FuncconvError(msg) from None


def _read(path: Path, file: BinaryIO) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
        msg = (
            f"read_idx: {path} is not in the IDX format: it begins with {head.hex(' ') or 'nothing'}. "
            "Get the file again"
        )
        raise FuncconvError(msg)
    dtype, sizes = np.dtype(_TYPES[head[2]]), file.read(4 * head[3])
    shape = np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4").tolist()
    expected = math.prod(shape) * dtype.itemsize
    content = bytearray()
    # One byte more than announced shows that the file is too long.
    while len(content) <= expected and (chunk := file.read(min(_CHUNK, expected + 1 - len(content)))):
        content += chunk
    if len(shape) != head[3] or len(content) != expected:
        many = "more" if len(content) > expected else len(content)
        msg = (
            f"read_idx: {path} is damaged: its header promises {expected} bytes for shape {tuple(shape)}, it has {many}"
            ". Get the file again"
        )
        raise FuncconvError(msg)
    # JAX takes native byte order only.
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))
