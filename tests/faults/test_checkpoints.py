"""What can happen to a folder of checkpoints: kills, damage, a full disk, other writers, readers during a write."""

import inspect
import os
import re
import signal
import socket
import threading
import warnings
from contextlib import closing, suppress

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import child, cuts, flipped_bits, full_disk

import funcconv as fc
from funcconv._checkpoints import replace as _replace
from funcconv._checkpoints.folder import Checkpoints
from funcconv._checkpoints.step_folders import REMOVED, REPLACED, WRITING
from funcconv._checkpoints.stored import StoredCheckpoints

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # event loops of orbax
    pytest.mark.usefixtures("rest_of_a_failed_read"),
]
HOST = socket.gethostname()
LIKE = {"w": jnp.zeros(100, jnp.float32), "n": jnp.zeros((), jnp.int32), "large": jnp.zeros(1000, jnp.float32)}


def state_of(number, array=jnp.asarray):
    large = np.random.default_rng(number).normal(size=1000)  # orbax writes it to a file of its own
    state = {
        "w": np.full(100, number, np.float32),
        "n": np.asarray(number, np.int32),
        "large": large.astype(np.float32),
    }
    return {name: array(leaf) for name, leaf in state.items()}


def number_in(state):
    """Return the number that all arrays of a state have."""
    number = int(state["n"])
    assert all(np.array_equal(state[name], leaf) for name, leaf in state_of(number).items())
    return number


def snapshot(folder):
    """Return all that can be seen of a folder, but for the times of access."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def save_and_wait(checkpoints, number, state):
    checkpoints.save(number, state)
    checkpoints.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# kills ------------------------------------------------------------------------------------------------------

# For each line that it reads, it starts a process that saves until it is killed; the packages are imported once.
SERVER = """
import os, sys
import jax, jax.numpy as jnp, numpy as np, orbax.checkpoint
import funcconv as fc
from funcconv._checkpoints.folder import Checkpoints

{state_of}

for line in sys.stdin:
    process = os.fork()
    if process:
        print("started", process, flush=True)
        os.waitpid(process, 0)
        print("ended", flush=True)
        continue
    number, how = line.split()
    number = int(number)
    try:
        run = Checkpoints("run", keep=2) if how == "run" else None
        while True:
            number += 1
            state = state_of(number, np.asarray)
            if run:
                run.save(number, state)
                run.wait()
            else:
                fc.train.save("run", state, step=2**40)
            print("saved", number, flush=True)
    except BaseException as error:
        print("failed", repr(error), flush=True)
        os._exit(1)
"""


@pytest.mark.parametrize("kills", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_a_checkpoint_survives_every_kill(tmp_path, kills):
    """Whenever a process is killed: the last state that it has saved, or a later one, is there, and the next can save.

    Half of the processes replace the checkpoint of one step, half of them write one step after the other and remove
    those before. A reader in another process always finds a whole state, and changes nothing.
    """
    rng = np.random.default_rng(0)
    server = child(SERVER.replace("{state_of}", inspect.getsource(state_of)), tmp_path)
    folder = tmp_path / "run"

    def said(word):
        line = server.stdout.readline()
        assert line.startswith(word), line + server.communicate()[1]
        return line.split()[-1]

    last, process = 0, server.pid
    try:
        for i in range(kills):
            how = "run" if i < kills // 2 else "save"
            server.stdin.write(f"{last} {how}\n")
            server.stdin.flush()
            process = int(said("started"))
            last = int(said("saved"))
            if i % 3 == 0:
                assert number_in(fc.train.restore(folder, LIKE)) >= last
                assert number_in(StoredCheckpoints(folder).arrays()) >= last
                if how == "run":  # which keeps the folder, where `save` only takes it while it writes
                    with pytest.raises(fc.FuncconvError, match=f"is being written to by process {process} on {HOST}"):
                        fc.train.save(folder, LIKE)
            threading.Event().wait(rng.uniform(0, 0.1))
            os.kill(process, signal.SIGKILL)
            while (line := server.stdout.readline()).startswith("saved"):
                last = int(line.split()[-1])
            assert line == "ended\n", line
            before = snapshot(folder)
            number = number_in(fc.train.restore(folder, LIKE))
            assert number in (last, last + 1), names(folder)
            assert snapshot(folder) == before
            last = number
        fc.train.save(folder, state_of(7), step=2**41)
        assert all(name.isdigit() for name in names(folder)), names(folder)
        assert len(names(folder)) <= 5
    finally:
        server.kill()
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        server.communicate()


# damage -----------------------------------------------------------------------------------------------------


def read_damaged(folder, whole):
    """Read a folder in which the checkpoint of step 2 is damaged, and return the step that was found, 1 or 2.

    `whole` has the digest and the record of each step. Whatever is returned is what was written.
    """
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        state, about = fc.train.restore(folder, LIKE), fc.train.about(folder)
        arrays = StoredCheckpoints(folder).arrays()
    step = number_in(state)
    assert number_in(arrays) in (1, 2)  # it needs more of the files
    assert step == 2 or any("of step 2 " in str(message.message) for message in messages), [
        str(message.message) for message in messages
    ]
    assert about == whole[about["step"]]
    assert fc.train.digest(state) == whole[step]["digest"]
    for read in (
        fc.train.about,
        lambda folder, step: {"digest": fc.train.digest(fc.train.restore(folder, LIKE, step))},
    ):
        try:
            restored = read(folder, 2)
        except fc.FuncconvError as error:
            assert "of step 2 in" in str(error), error  # noqa: PT017
        else:
            assert restored["digest"] == whole[2]["digest"]
    return step


@pytest.mark.parametrize("count", [1, pytest.param(15, marks=pytest.mark.slow)])
def test_damage_is_never_read_as_numbers(tmp_path, count):
    """Flip bits of each file of a checkpoint, cut it and delete it: the one before is read, or all is as it was."""
    rng = np.random.default_rng(1)
    for number in (1, 2):
        with closing(Checkpoints(tmp_path, keep=None)) as checkpoints:
            checkpoints.save(number, state_of(number), {"best": "1.5"}, about={"architecture": "x" * 30})
    whole = {number: fc.train.about(tmp_path, number) for number in (1, 2)}
    outcomes = set()
    for path in sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file()):
        content = path.read_bytes()
        changes = (
            [changed for kind in (flipped_bits, cuts) for _, changed in kind(content, rng, count)] if content else []
        )
        for change in changes:
            path.write_bytes(change)
            outcomes.add(read_damaged(tmp_path, whole))
        path.unlink()
        outcomes.add(read_damaged(tmp_path, whole))
        path.write_bytes(content)
    assert read_damaged(tmp_path, whole) == 2
    assert outcomes == {1, 2}  # some files, such as the times of writing, do not matter


# a full disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(0, 100, 3000), pytest.param(range(0, 9000, 100), marks=pytest.mark.slow)])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_leaves_the_checkpoints(tmp_path, limits, asynchronous):
    """Whatever could not be written: an error is raised, the folder is as it was, and the next save works."""
    rng = np.random.default_rng(2)
    like = {"w": jnp.zeros(4000, jnp.float32)}
    states = [{"w": jnp.asarray(rng.normal(size=4000), jnp.float32)} for _ in limits]
    with closing(Checkpoints(tmp_path, keep=1, asynchronous=asynchronous)) as checkpoints:
        checkpoints.save(1, like)
        checkpoints.wait()
        before = names(tmp_path / "1"), fc.train.digest(like)
        for step, (limit, state) in enumerate(zip(limits, states, strict=True)):
            for number in (1, 2):  # in place of another one, and as a new one
                with full_disk(limit), pytest.raises(fc.FuncconvError, match="could not be written to"):
                    save_and_wait(checkpoints, number, state)
                assert names(tmp_path) == [".funcconv-lock", "1"]
                assert (names(tmp_path / "1"), fc.train.digest(fc.train.restore(tmp_path, like))) == before
            checkpoints.save(1, state, {"step": step})
            checkpoints.wait()
            before = names(tmp_path / "1"), fc.train.digest(state)
    assert fc.train.digest(fc.train.restore(tmp_path, like)) == before[1]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_an_error_of_the_disk_leaves_the_checkpoints(tmp_path, monkeypatch, call):
    """Each flush and each renaming fails once: the checkpoint before is still there under its name."""
    owner = _replace.os if call == "fsync" else _replace.Path
    working, calls, fail_at = getattr(owner, call), 0, 0

    def failing(*args):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            msg = "input/output error"
            raise OSError(5, msg)
        return working(*args)

    fc.train.save(tmp_path, state_of(0))
    monkeypatch.setattr(owner, call, failing)
    failures = 0
    for fail_at in range(1, 30):
        calls = 0
        try:
            fc.train.save(tmp_path, state_of(fail_at))
        except fc.FuncconvError as error:
            assert "could not be written" in str(error)  # noqa: PT017
            failures += 1
            assert number_in(fc.train.restore(tmp_path, LIKE)) == fail_at - 1
            assert names(tmp_path) == ["0"]
            fc.train.save(tmp_path, state_of(fail_at))
        if calls < fail_at:
            break
    assert failures >= (2 if call == "rename" else 8)


# readers ----------------------------------------------------------------------------------------------------


def test_readers_change_nothing(tmp_path):
    """Also not what a killed writer left, of which they read what is whole."""
    for number in (1, 2, 3):
        fc.train.save(tmp_path, state_of(number), step=number)
    (tmp_path / "3").rename(tmp_path / f"3{REPLACED}")
    (tmp_path / "2").rename(tmp_path / f"4{WRITING}")
    for name in (f"1{REPLACED}", f"5{REMOVED}", "2.orbax-checkpoint-tmp", "notes", "7", "2024"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
    (tmp_path / "8").write_text("a file")
    before = snapshot(tmp_path)
    assert fc.train.about(tmp_path)["step"] == 3
    assert number_in(fc.train.restore(tmp_path, LIKE)) == 3
    assert number_in(fc.train.restore(tmp_path, LIKE, 1)) == 1
    with pytest.raises(fc.FuncconvError, match="has no checkpoint of step 4 that can be read; the last are 1, 3"):
        fc.train.restore(tmp_path, LIKE, 4)
    with pytest.raises(fc.FuncconvError, match="does not fit"):
        fc.train.restore(tmp_path, {"w": jnp.zeros(3)})
    assert snapshot(tmp_path) == before
    with closing(Checkpoints(tmp_path, keep=1)) as checkpoints:  # the next writer clears up, and nothing else
        assert checkpoints.steps == (1, 3)
        with pytest.raises(fc.FuncconvError, match="8 is not a checkpoint, so none can be written to this path"):
            checkpoints.save(8, state_of(8))
        checkpoints.save(9, state_of(9))
        checkpoints.wait()
    assert names(tmp_path) == ["2.orbax-checkpoint-tmp", "2024", "7", "8", "9", "notes"]


@pytest.mark.parametrize("reads", [15, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("replaces", [True, False])
def test_readers_find_whole_states_during_a_run(tmp_path, reads, replaces):
    """While the only checkpoint is replaced, or removed after the next one is written."""
    done = threading.Event()
    fc.train.save(tmp_path, state_of(1), step=1)
    written = []

    def write():
        with closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
            number = 1
            while not done.is_set():
                number += 1
                checkpoints.save(1 if replaces else number, state_of(number))
                written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        numbers = [number_in(fc.train.restore(tmp_path, LIKE)) for _ in range(reads)]
        while numbers[-1] == 1 and writer.is_alive():  # on a busy machine, it may not have written anything yet
            numbers.append(number_in(fc.train.restore(tmp_path, LIKE)))
        steps = [fc.train.about(tmp_path)["step"] for _ in range(reads)]
    finally:
        done.set()
        writer.join()
    assert numbers == sorted(numbers)
    assert steps == sorted(steps)
    assert numbers[-1] > 1
    assert number_in(fc.train.restore(tmp_path, LIKE)) == written[-1]


def test_a_checkpoint_that_is_removed_after_it_was_listed_is_not_damaged(tmp_path, monkeypatch):
    fc.train.save(tmp_path, state_of(3), step=3)
    folders, listed = StoredCheckpoints._folders, iter([{3: tmp_path / "3", 4: tmp_path / "4"}] * 2)
    monkeypatch.setattr(StoredCheckpoints, "_folders", lambda self: next(listed, None) or folders(self))
    assert number_in(fc.train.restore(tmp_path, LIKE)) == 3


# locks ------------------------------------------------------------------------------------------------------


def test_one_writer_at_a_time(tmp_path):
    own = f"being written to by this process itself (process {os.getpid()} on {HOST}), by another call"
    init, step = fc.train.make_step(lambda params, batch, **_: (batch @ params["w"]).mean(), optax.sgd(0.1))
    state = init({"w": jnp.zeros(2, jnp.float32)}, jax.random.key(0))

    def fit(evaluate=None):
        data = fc.train.batches(np.ones((8, 2), np.float32), 2)
        return fc.train.fit(step, state, data, steps=2, checkpoint=tmp_path, progress=False, evaluate=evaluate)

    with closing(Checkpoints(tmp_path)):
        for write in (lambda: fc.train.save(tmp_path, LIKE), lambda: Checkpoints(tmp_path), fit):
            with pytest.raises(fc.FuncconvError, match=re.escape(own)):
                write()
    assert names(tmp_path) == []

    def save_during(_):
        fc.train.save(tmp_path, LIKE)

    with pytest.raises(fc.FuncconvError, match=re.escape(own)):
        fit(save_during)
    assert ".funcconv-lock" not in names(tmp_path)


def test_a_lock_of_a_process_that_is_gone_does_not_matter(tmp_path):
    for said in ('{"pid": 1, "host": "elsewhere"}', "", "not JSON"):
        (tmp_path / ".funcconv-lock").write_text(said)
        fc.train.save(tmp_path, LIKE)
        assert names(tmp_path) == ["0"]


@pytest.mark.once
def test_a_forked_process_does_not_hold_the_lock(tmp_path):
    """A worker that loads data, for example, may live longer than the process that has forked it."""
    code = """
import os, time
from pathlib import Path
from funcconv._checkpoints.lock import FolderLock
lock = FolderLock(Path("."))
worker = os.fork()
if worker:
    print(worker, flush=True)
else:
    time.sleep(1000)
"""
    process = child(code, tmp_path)
    worker = int(process.stdout.readline())
    try:
        process.wait()
        fc.train.save(tmp_path, LIKE)
    finally:
        os.kill(worker, signal.SIGKILL)
        process.communicate()


# digests ----------------------------------------------------------------------------------------------------


def test_arrays_without_numbers_have_no_digest():
    deleted, key = jnp.ones(3), jax.random.key(0)
    deleted.delete()
    key.delete()
    for leaf, said in (
        (deleted, "was deleted"),
        (key, "was deleted"),
        (object(), "is a object"),
        (np.array([None]), "is a ndarray"),
    ):
        with pytest.raises(fc.FuncconvError, match=said):
            fc.train.digest({"a": leaf})
    with pytest.raises(fc.FuncconvError, match="was deleted"):
        fc.train.digest(deleted)
    with pytest.raises(fc.FuncconvError, match=r"\['a'\] is not known while JAX traces"):
        jax.jit(lambda x: fc.train.digest({"a": x}))(np.ones(3))
