"""Paths that cannot be, and what is said of them."""

import os
from pathlib import Path

import pytest

import funcconv as fc
from funcconv._common.paths import checked_path


class Encoded:
    """A path whose name is bytes, which `os.PathLike` allows."""

    def __fspath__(self):
        return b"run"


BAD = [
    ("", "the path is empty"),
    ("a\0b", "cannot be a path: .*null"),
    ("a/\ud800", "cannot be a path: .*surrogates not allowed"),
    ("x" * 5000, r"^save: 'xxx.*x' \(5002 characters\) cannot be a path: File name too long"),
    ("run/" + "x" * 300, "cannot be a path: File name too long"),
    (b"run", "must be a string or a pathlib.Path; got b'run'"),
    (Encoded(), "must be a string or a pathlib.Path"),
    (5, "got 5"),
    (None, "got None"),
]


@pytest.mark.parametrize("wants", ["file", "folder"])
def test_what_cannot_be_a_path(wants, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for path, said in BAD:
        with pytest.raises(fc.FuncconvError, match=said):
            checked_path("save", path, wants=wants)
    os.symlink("loop", "loop")
    with pytest.raises(fc.FuncconvError, match="save: 'loop' cannot be a path"):
        checked_path("save", "loop", wants=wants)
    assert sorted(os.listdir()) == ["loop", "run"]


def test_files_and_folders_are_told_apart(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert checked_path("load", str(file), wants="file") == file
    assert checked_path("load", tmp_path, wants="folder") == tmp_path
    assert checked_path("load", tmp_path / "new" / "run", wants="folder") == tmp_path / "new" / "run"
    assert checked_path("load", ".", wants="folder") == Path()
    with pytest.raises(fc.FuncconvError, match=r"load: '\.' is a folder; pass the path of a file"):
        checked_path("load", ".", wants="file")
    with pytest.raises(fc.FuncconvError, match=r"load: '.*' is a file; pass the path of a folder"):
        checked_path("load", file, wants="folder")
    with pytest.raises(fc.FuncconvError, match=r"cannot be a path: Not a directory"):
        checked_path("load", file / "run", wants="folder")
