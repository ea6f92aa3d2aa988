"""The image files of a folder that has a subfolder for each class."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from ..._common.errors import FuncconvError, suggest
from .decode import SUFFIXES

_SHOWN = 5  # of the entries that an error names


@dataclass(frozen=True)
class Listing:
    """The files of a folder, in the order of their names, which does not depend on the system.

    Attributes:
        classes: the names of the classes, by label.
        files: paths relative to the folder, `"cat/001.jpg"`.
        labels: the label of each file, int32.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray


@dataclass
class _Problems:
    """Entries that are neither images nor left out on purpose, by what is wrong with them."""

    root: str
    entries: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        self.entries.append((name, reason))

    def check(self) -> None:
        if self.entries:
            listed = "".join(f"\n  {name}: {reason}" for name, reason in self.entries[:_SHOWN])
            more = f"\n  and {len(self.entries) - _SHOWN} more" if len(self.entries) > _SHOWN else ""
            msg = (
                f"images: {self.root} must have one folder for each class, with images only. These are something else:"
                f"{listed}{more}\nRemove them, or leave them out with ignore=, such as ignore=({self.entries[0][0]!r},)"
            )
            raise FuncconvError(msg)


def listed(
    root: str,
    classes: Sequence[str] | None,
    split: tuple[float, float] | None,
    ignore: Sequence[str],
) -> Listing:
    """Return the image files of a folder, or of a part of them; the arguments are those of `images`.

    Raises:
        FuncconvError: if the folder has other entries, an empty class or no images.
    """
    problems, found = _Problems(root), {}
    for entry in _entries(root, "", ignore):
        if (kind := _kind(entry)) != "folder":
            problems.add(entry.name, f"a {kind}, not a folder")
        elif classes is not None and entry.name not in classes:
            problems.add(entry.name, f"not in classes{suggest(entry.name, classes)}")
        else:
            found[entry.name] = _files(entry, ignore, problems)
    problems.check()
    empty = [name for name, files in found.items() if not files]
    if empty and classes is None:
        msg = (
            f"images: {root} has classes without images: {', '.join(map(repr, empty[:_SHOWN]))} ({len(empty)} in all). "
            f"Leave them out with ignore=, or name all classes with classes="
        )
        raise FuncconvError(msg)
    names = tuple(found) if classes is None else tuple(classes)
    pairs = [(file, label) for label, name in enumerate(names) for file in found.get(name, ()) if _is_in(file, split)]
    if not pairs:
        part = f" in the part {split}" if split else ""
        msg = f"images: {root} has {sum(map(len, found.values()))} images, and none{part}. Check the path and split="
        raise FuncconvError(msg)
    return Listing(names, tuple(file for file, _ in pairs), np.array([label for _, label in pairs], np.int32))


def _entries(root: str, name: str, ignore: Sequence[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name, without hidden ones and those that match `ignore`."""
    path = os.path.join(root, name) if name else root
    try:
        with os.scandir(path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        msg = f"images: the folder {path} cannot be read: {error.strerror}. Check the path and its permissions"
        raise FuncconvError(msg) from error
    return [entry for entry in ordered if not entry.name.startswith(".") and not _matches(name, entry.name, ignore)]


def _files(folder: os.DirEntry[str], ignore: Sequence[str], problems: _Problems) -> list[str]:
    files = []
    for entry in _entries(os.path.dirname(folder.path), folder.name, ignore):
        file = f"{folder.name}/{entry.name}"
        if (kind := _kind(entry)) != "file":
            problems.add(file, f"a {kind}, not a file")
        elif not entry.name.lower().endswith(SUFFIXES):
            problems.add(file, f"its name does not end like that of an image ({', '.join(SUFFIXES)})")
        else:
            files.append(file)
    return files


def _kind(entry: os.DirEntry[str]) -> str:
    """Return what an entry is; links are followed."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # such as a circle of links
        pass
    return "broken link" if entry.is_symlink() else "device or pipe"


def _matches(folder: str, name: str, patterns: Sequence[str]) -> bool:
    path = f"{folder}/{name}" if folder else name
    return any(fnmatchcase(name, pattern) or fnmatchcase(path, pattern) for pattern in patterns)


def _is_in(file: str, split: tuple[float, float] | None) -> bool:
    """Whether a file belongs to a part. Its own name decides, not that of its class or folder."""
    if split is None:
        return True
    digest = hashlib.sha256(os.fsencode(file.rpartition("/")[2])).digest()
    place = int.from_bytes(digest[:6], "big") / 2**48  # exact, from 0 to 1
    return split[0] <= place < split[1]
