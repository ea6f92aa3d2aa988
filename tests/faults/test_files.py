"""Every writer of a file writes all of it or leaves the old one; links, devices and permissions stay."""

import os
import stat
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import child, full_disk, kill_after

import funcconv as fc
from funcconv._command_line import main
from funcconv._common.files import read_file, write_file

KEY = jax.random.key(0)
X = fc.Input("x", (40, 40, 1))
GRAPH = fc.Graph(X, fc.serial(fc.Conv(2, 3), fc.flatten)(X))
LIMIT = 200  # bytes, of which every file here has more


def by_command(*arguments):
    """Run the command, and raise where it fails."""
    if status := main([str(each) for each in arguments]):
        raise fc.FuncconvError(status)


WRITERS = {  # the ending of a name, and what writes more than LIMIT bytes to a path; the sources are in a folder
    "file": ("", lambda path, _: write_file("test", path, b"new" * LIMIT)),
    "buffers": ("", lambda path, _: write_file("test", path, (np.ones(LIMIT) for _ in range(3)))),
    "save_safetensors": ("", lambda path, _: fc.interop.save_safetensors(path, GRAPH.init(KEY), graph=GRAPH)),
    "draw": (".dot", lambda path, _: fc.draw(GRAPH, path)),
    "draw_autodiff": (".dot", lambda path, _: fc.draw_autodiff(lambda x: jnp.sin(x) * x, jnp.ones(3), path=path)),
    "command draw": (".md", lambda path, sources: by_command("draw", sources / "net.safetensors", "-o", path)),
    "command convert": (".msgpack", lambda path, sources: by_command("convert", sources / "net.safetensors", path)),
    "command predict": (
        ".npy",
        lambda path, sources: by_command("predict", sources / "net.safetensors", sources / "x.npy", "-o", path),
    ),
}
every_writer = pytest.mark.parametrize(("ending", "write"), WRITERS.values(), ids=WRITERS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    fc.interop.save_safetensors(folder / "net.safetensors", GRAPH.init(KEY), graph=GRAPH)
    np.save(folder / "x.npy", np.ones((2, 40, 40, 1)))
    return folder


@every_writer
@pytest.mark.usefixtures("capsys")  # otherwise messages go to a file too
def test_a_full_disk_leaves_the_old_file(tmp_path, sources, ending, write):
    path, users = tmp_path / f"file{ending}", tmp_path / f"file{ending}.part"
    users.write_bytes(b"of the user")
    path.write_bytes(b"old")
    with full_disk(LIMIT), pytest.raises(fc.FuncconvError):
        write(path, sources)
    assert path.read_bytes() == b"old"
    path.unlink()
    with full_disk(LIMIT), pytest.raises(fc.FuncconvError):
        write(path, sources)
    assert os.listdir(tmp_path) == [users.name]
    write(path, sources)
    assert path.stat().st_size > LIMIT
    assert users.read_bytes() == b"of the user"
    assert sorted(os.listdir(tmp_path)) == [path.name, users.name]


@every_writer
def test_links_and_permissions_stay(tmp_path, sources, ending, write):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / f"link{ending}"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to("elsewhere/target")
    write(link, sources)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    for _ in range(2):
        assert link.is_symlink()
        assert target.stat().st_size > LIMIT
        assert os.listdir(tmp_path / "elsewhere") == ["target"]
        target.unlink()
        write(link, sources)  # a link to a file that is not there makes it


@every_writer
def test_a_pipe_is_written_to(tmp_path, sources, ending, write):
    path = tmp_path / f"pipe{ending}"
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    write(path, sources)
    reader.join()
    assert len(found[0]) > LIMIT
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.once
@every_writer
def test_paths_of_no_file(tmp_path, sources, monkeypatch, ending, write):
    monkeypatch.chdir(tmp_path)
    os.mkdir(f"folder{ending}")
    for name in ("", ".", "..", f"folder{ending}"):
        with pytest.raises(fc.FuncconvError):
            write(name, sources)
    for name in ("a\0b", "x" * 300, "y" * 5000, "nowhere/file", "\ud800"):
        with pytest.raises(fc.FuncconvError):
            write(f"{name}{ending}", sources)
    assert os.listdir() == [f"folder{ending}"]


@pytest.mark.once
@pytest.mark.parametrize("path", [b"file.dot", 5, None, ["file.dot"]])
def test_paths_that_are_no_texts(path):
    for write in (
        lambda: fc.interop.save_safetensors(path, {}),
        lambda: fc.interop.load_safetensors(path),
        lambda: fc.interop.load(path),
        lambda: fc.interop.load_state(path),
        lambda: fc.draw(GRAPH).save(path),
    ):
        with pytest.raises(fc.FuncconvError, match=r"must be a string or a pathlib\.Path"):
            write()


@pytest.mark.once
def test_a_device_stays_one():
    before = os.stat("/dev/null")
    fc.interop.save_safetensors("/dev/null", {"a": np.ones(3)})
    assert os.stat("/dev/null").st_rdev == before.st_rdev
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(fc.FuncconvError, match="No space left"):
        fc.interop.save_safetensors("/dev/full", {"a": np.ones(3)})


@pytest.mark.once
def test_standard_output(tmp_path):
    code = """
import funcconv as fc, numpy as np
fc.interop.save_safetensors("/dev/stdout", {"a": np.ones(3)})
"""
    with child(code, tmp_path) as process:
        (tmp_path / "file").write_bytes(process.stdout.buffer.read())
        assert not process.stderr.read()
    assert list(fc.interop.load_safetensors(tmp_path / "file")[0]) == ["a"]


@pytest.mark.once
def test_new_files_have_the_permissions_of_new_files(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_file("test", tmp_path / "new", b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.once
def test_what_is_protected_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(fc.FuncconvError, match="Permission denied"):
        write_file("test", path, b"new")
    assert read_file("test", path) == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.once
def test_an_interrupt_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file("test", path, interrupted())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.once
def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for write in (lambda path: write_file("test", path, b""), lambda path: read_file("test", path)):
        with pytest.raises(fc.FuncconvError, match="symbolic links"):
            write(tmp_path / "a")


@pytest.mark.once
@pytest.mark.parametrize("count", [pytest.param(2, id="few"), pytest.param(30, id="many", marks=pytest.mark.slow)])
def test_kills(tmp_path, rng, count):
    """Whenever a process is killed, the file is one of those that it wrote."""
    code = """
import funcconv as fc, numpy as np
for number in range(1_000_000):
    fc.interop.save_safetensors("file", {"a": np.full(100_000, number)})
    if not number:
        print("begun", flush=True)
"""
    for _ in range(count):
        kill_after(child(code, tmp_path), rng.uniform(0, 0.3))
        numbers = np.asarray(fc.interop.load_safetensors(tmp_path / "file")[0]["a"])
        assert (numbers == numbers[0]).all()
    assert all(each == "file" or each.startswith(".funcconv-") for each in os.listdir(tmp_path))
