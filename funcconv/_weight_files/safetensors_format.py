"""The safetensors format: a header in JSON that names the arrays, followed by the bytes of each array.

funcconv has its own reader and writer, so that every dtype is kept and each array is in memory once. Files of funcconv
also have checksums in the metadata of the header. Other libraries ignore them.

- `funcconv-checksums`: the CRC-32 of each array, with its name, dtype and shape.
- `funcconv-sha256`: the SHA-256 of the rest of the header. This covers the checksums of the arrays, and so the file.

Source: https://github.com/huggingface/safetensors, "Format".
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from .._common.errors import FuncconvError

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
CHECKSUMS, SHA256 = "funcconv-checksums", "funcconv-sha256"
_METADATA = "__metadata__"
_MAX_HEADER_BYTES = 100_000_000  # a limit of the format
_MAX_NAMES = 5  # of damaged arrays in a message
STATE_PREFIX = "@state/"  # of the names in a state
ESCAPE = "@"  # doubled in front of a name that starts with it, so that no parameter is taken for a state


class Content(NamedTuple):
    """The content of a file."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]  # without checksums
    checked: bool  # whether there were checksums


class _Entry(NamedTuple):
    """An array as the header describes it."""

    name: str
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def name_in_tree(name: str) -> str:
    """Return the name of a parameter in a tree of funcconv, from its name in a file; names of a state stay."""
    return name if name.startswith(STATE_PREFIX) else name.removeprefix(ESCAPE)


def encoded(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Return the buffers of a file, with checksums.

    Args:
        arrays: contiguous arrays by name.
        metadata: texts by name.

    Returns:
        The length of the header, the header, and the bytes of each array.

    Raises:
        FuncconvError: if the format has no such dtype, name or text, or the header would be too long.
    """
    codes = {jnp.dtype(dtype): code for code, dtype in DTYPES.items()}
    for name, array in arrays.items():
        if array.dtype not in codes:
            msg = f"the array {name!r} must have one of the dtypes {', '.join(DTYPES.values())}; got {array.dtype}"
            raise FuncconvError(msg)
    if _METADATA in arrays:
        msg = f"no array can have the name {_METADATA!r}, which the format uses for metadata"
        raise FuncconvError(msg)
    # Larger items come first, so that every array begins at a multiple of its item's size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    checksums, begin = {}, 0
    for name, array in ordered:
        entry = _Entry(name, codes[array.dtype], array.shape, begin, begin + array.nbytes)
        checksums[name] = _checksum(entry, _bytes(array))
        header[name] = {"dtype": entry.code, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
        begin = entry.end
    texts = {**metadata, CHECKSUMS: json.dumps(checksums)}
    texts[SHA256] = _digest(header, texts)
    try:
        text = json.dumps({_METADATA: texts, **header}, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        msg = f"a name or a string has a character that UTF-8 cannot encode: {error}"
        raise FuncconvError(msg) from error
    text += b" " * (-len(text) % 8)  # so that the first array is aligned to 8 bytes
    if len(text) > _MAX_HEADER_BYTES:
        msg = f"the header can have at most {_MAX_HEADER_BYTES:,} bytes; it would have {len(text):,}"
        raise FuncconvError(msg)
    return iter([len(text).to_bytes(8, "little"), text, *(_bytes(array) for _, array in ordered)])


def read(path: str) -> Content:
    """Return the content of a file, after all checks.

    Args:
        path: path of the file.

    Returns:
        The arrays, the texts, and whether checksums were there.

    Raises:
        FuncconvError: if the file is not in this format, or is damaged. The message names the array.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            _refuse(f"it ends after {size} bytes, before the end of its header")
        if length > _MAX_HEADER_BYTES:
            _refuse(f"its header has {length:,} bytes, and the format allows {_MAX_HEADER_BYTES:,}")
        header = _parsed(file.read(length))
        metadata = _metadata(header.pop(_METADATA, {}))
        entries = _entries(header, size - 8 - length)
        checksums, header_digest = metadata.pop(CHECKSUMS, None), metadata.get(SHA256)
        arrays, damaged = {}, []
        expected = _sums(checksums)
        for entry in entries:
            buffer = np.empty(entry.end - entry.begin, np.uint8)
            if file.readinto(buffer.data) != buffer.size:
                _refuse(f"it ended while the array {entry.name!r} was read")
            if expected is not None and _checksum(entry, buffer.data) != expected.get(entry.name):
                damaged.append(entry)
            arrays[entry.name] = _array(entry, buffer)
    if checksums is None and header_digest is None:
        return Content(arrays, metadata, checked=False)
    if damaged:
        listed = ", ".join(f"{item.name!r} ({DTYPES[item.code]}, shape {item.shape})" for item in damaged[:_MAX_NAMES])
        further = f" and {len(damaged) - _MAX_NAMES} more" if len(damaged) > _MAX_NAMES else ""
        _refuse(f"the checksums of its arrays are not those that were written, so these are damaged: {listed}{further}")
    if missing := [name for name in expected or () if name not in arrays]:
        _refuse(f"the array {missing[0]!r} is missing")
    if (
        checksums is None
        or header_digest is None
        or _digest(header, {**metadata, CHECKSUMS: checksums}) != header_digest
    ):
        _refuse("its header is damaged: the names, shapes or texts in it are not those that were written")
    del metadata[SHA256]
    return Content(arrays, metadata, checked=True)


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checksum(entry: _Entry, content: memoryview) -> str:
    # With the name, so that exchanged arrays of equal shapes are detected.
    described = json.dumps([entry.name, entry.code, entry.shape]).encode()
    return f"{zlib.crc32(content, zlib.crc32(described)):08x}"


def _digest(header: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of a header and its texts, which does not depend on their order and on spaces."""
    texts = {name: text for name, text in metadata.items() if name != SHA256}
    return hashlib.sha256(json.dumps([header, texts], sort_keys=True).encode()).hexdigest()


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(f"its header is not JSON: {str(error)[:100]}")
    if not isinstance(header, dict):
        _refuse("its header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        msg = "it contains a name twice"
        raise ValueError(msg)
    return result


def _metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        _refuse("its metadata must be strings by name")
    return metadata


def _sums(text: str | None) -> dict[str, Any] | None:
    """Return the checksums of arrays; None if there are none, or they cannot be read."""
    try:
        checksums = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return checksums if isinstance(checksums, dict) else None


def _entries(header: Mapping[str, Any], size: int) -> list[_Entry]:
    """Return the arrays in the order of their bytes, which must fill the file."""
    entries = []
    for name, description in header.items():
        if not isinstance(description, dict) or set(description) != {"dtype", "shape", "data_offsets"}:
            _refuse(f"the array {name!r} must have a dtype, a shape and data_offsets")
        code, shape, offsets = description["dtype"], description["shape"], description["data_offsets"]
        if not isinstance(code, str) or code not in DTYPES:
            _refuse(f"the array {name!r} has the dtype {str(code)[:20]!r}; known are {', '.join(DTYPES)}")
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            _refuse(f"the shape and the offsets of the array {name!r} must be lists of integers of at least 0")
        begin, end = offsets
        needed = math.prod(shape) * jnp.dtype(DTYPES[code]).itemsize
        if end - begin != needed:
            _refuse(f"the array {name!r} needs {needed} bytes; according to its offsets it has {end - begin}")
        entries.append(_Entry(name, code, tuple(shape), begin, end))
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            _refuse(f"the array {entry.name!r} begins at byte {entry.begin}, and the one before it ends at {position}")
        position = entry.end
    if position != size:
        _refuse(f"its arrays have {position} bytes, but {size} follow the header")
    return entries


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _array(entry: _Entry, buffer: np.ndarray) -> np.ndarray:
    if entry.code == "BOOL" and buffer.max(initial=0) > 1:
        _refuse(f"the boolean array {entry.name!r} has a byte that is neither 0 nor 1")
    try:
        return buffer.view(jnp.dtype(DTYPES[entry.code])).reshape(entry.shape)
    except ValueError as error:  # more axes than NumPy has, or sizes beyond its integers
        _refuse(f"the array {entry.name!r} has the shape {str(entry.shape)[:100]}: {error}")


def _refuse(reason: str) -> NoReturn:
    raise FuncconvError(reason)
