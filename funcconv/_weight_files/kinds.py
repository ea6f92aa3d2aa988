"""The format of a weight file. Its content decides, because endings such as `.bin` are ambiguous."""

import json
import os
import re
import tarfile
import zipfile
from typing import Literal, NoReturn

from .._common.errors import FuncconvError

Kind = Literal["torch", "safetensors", "msgpack"]

READ = (
    "PyTorch (a state dict, alone or in a checkpoint), safetensors, msgpack of Flax, or a folder of orbax or fc.train"
)
DOWNLOAD_AGAIN = "The file is damaged or incomplete; download or copy it again"
_HEAD_BYTES = 1024
_CHUNK_BYTES = 1 << 24
_MOST_JSON_BYTES = 1 << 26
_MSGPACK_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # the first byte of a msgpack file that holds a dict
_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # of files of torch.save before version 1.6
_PICKLE_PROTOCOLS = (2, 3, 4, 5)
_OTHERS = {
    b"\x1f\x8b": "it is compressed by gzip; decompress it first (gunzip, or tar -xzf)",
    b"BZh": "it is compressed by bzip2; decompress it first",
    b"\xfd7zXZ\0": "it is compressed by xz; decompress it first",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd; decompress it first",
    b"7z\xbc\xaf\x27\x1c": "it is a 7z archive; extract the file of weights first",
    b"Rar!": "it is a rar archive; extract the file of weights first",
    b"\x89HDF\r\n": "it is an HDF5 file, as Keras writes it; load it with Keras or h5py",
    b"\x93NUMPY": "it is one array of NumPy, without a name; numpy.load reads it",
    b"GGUF": "it is a GGUF file of a language model, which is not read here",
}


def kind_of(path: str) -> Kind:
    """Return the format of a file, and check the archive that PyTorch writes.

    Args:
        path: path of an existing file.

    Returns:
        The format.

    Raises:
        FuncconvError: if the file is of another kind, empty or damaged. The message says what it is and what to do.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        _refuse("it is empty (0 bytes). Was a download interrupted?")
    # The length of the header, which is below 2**32, and the header, which is an object of JSON.
    if len(head) > 8 and head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if head.startswith(b"PK"):
        _check_archive(path)
        return "torch"
    if head[0] == 0x80 and head[1:2] and head[1] in _PICKLE_PROTOCOLS:
        if _TORCH_MAGIC in head[:64]:
            return "torch"
        _refuse(
            "it is a pickle, but not of torch.save. Reading a pickle runs code. If you trust it, load it yourself, and "
            f"pass its arrays by name. {DOWNLOAD_AGAIN} if torch.save wrote it"
        )
    for start, reason in _OTHERS.items():
        if head.startswith(start):
            _refuse(reason)
    if head[0] in _MSGPACK_MAPS:
        return "msgpack"
    return _refuse_other(path, head)


def _refuse_other(path: str, head: bytes) -> NoReturn:
    """Raise an error that says what a file is: a text, a tar archive or an unknown file."""
    _refuse_text(path, head)
    _refuse_tar(path)
    expected = {".msgpack": "a msgpack file of Flax", ".safetensors": "a safetensors file"}.get(
        os.path.splitext(path)[1].lower(), "a file of weights"
    )
    _refuse(f"it is not {expected}: it begins with the bytes {head[:16].hex(' ')}. {DOWNLOAD_AGAIN}")


def _check_archive(path: str) -> None:
    """Raise an error for a zip archive that `torch.save` did not write, or that is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = {record.filename.partition("/")[2] for record in records}
            if "constants.pkl" in names:
                _refuse(
                    "it is a TorchScript archive, which holds a program beside the weights, and loading it can run "
                    f"code. If you trust it, save its weights alone: "
                    f"torch.save(torch.jit.load({path!r}, map_location='cpu').state_dict(), 'weights.pt')"
                )
            if "archive_format" in names or any(name.startswith("models/") for name in names):
                _refuse(
                    "it is a program of torch.export. Save its weights alone: "
                    f"torch.save(torch.export.load({path!r}).state_dict, 'weights.pt')"
                )
            if "data.pkl" not in names:
                _refuse_archive([record.filename for record in records])
            # PyTorch does not compare checksums when it reads. It writes 0 for each if they are switched off.
            for record in records:
                if record.CRC:
                    with archive.open(record) as content:
                        while content.read(_CHUNK_BYTES):
                            pass
    except FuncconvError:
        raise
    except Exception as error:  # damaged files can raise any error
        _refuse(f"it begins like a file of torch.save, but is not a complete zip archive: {error}. {DOWNLOAD_AGAIN}")


def _refuse_archive(names: list[str]) -> NoReturn:
    if names and all(name.endswith(".npy") for name in names):
        _refuse("it is an .npz archive of NumPy; numpy.load reads it, as arrays by name")
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    _refuse(
        f"it is a zip archive that torch.save did not write (it has no data.pkl). It contains {listed or 'no files'}. "
        "If one of them has the weights, extract it and pass its path"
    )


def _refuse_text(path: str, head: bytes) -> None:
    """Raise an error for texts that are often saved instead of weights: pointers, web pages and JSON."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"version https://git-lfs"):
        size = re.search(rb"\nsize (\d+)", head)
        of_bytes = f" of {int(size[1]):,} bytes" if size else ""
        _refuse(f"it is a pointer of Git LFS to a file{of_bytes}, not the file itself; run: git lfs pull")
    if start[:1] == b"<":
        title = re.search(rb"<title[^>]*>\s*([^<]{1,80})", head, re.IGNORECASE)
        titled = f" with the title {title[1].decode(errors='replace').strip()!r}" if title else ""
        _refuse(
            f"it is a web page{titled}, saved in place of the weights. Download the file itself: on a hub, the address "
            "has /resolve/ or /raw/ in place of /blob/, and some files need a login"
        )
    if start[:1] in (b"{", b"["):
        _refuse_json(path)


def _refuse_json(path: str) -> NoReturn:
    content = None
    if os.path.getsize(path) <= _MOST_JSON_BYTES:
        try:
            with open(path, "rb") as file:
                content = json.load(file)
        except (ValueError, RecursionError):
            pass
    files = content.get("weight_map") if isinstance(content, dict) else None
    if isinstance(files, dict) and files:
        listed = ", ".join(dict.fromkeys(map(str, files.values())))
        _refuse(f"it is the index of weights that are in several files; read each and merge the dicts: {listed}")
    _refuse("it is a text of JSON, which has no weights")


def _refuse_tar(path: str) -> None:
    """Raise an error for tar archives. Files called `.pth.tar` are common, but `torch.save` writes no tar archives."""
    try:
        with tarfile.open(path, "r:") as archive:
            names = [member.name.removeprefix("./") for member in archive.getmembers() if member.isfile()]
    except tarfile.TarError:
        return
    if {"pickle", "storages", "tensors"} <= set(names):
        _refuse(
            "it is in the tar format of PyTorch before version 0.1.10, which PyTorch reads only by running code of the "
            f"file. If you trust it, save it again: torch.save(torch.load({path!r}, weights_only=False), 'weights.pt')"
        )
    if names:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        _refuse(f"it is a tar archive; extract it with `tar -xf`, and pass the file of weights in it: {listed}")


def _refuse(reason: str) -> NoReturn:
    raise FuncconvError(reason)
