"""Logs and histories: no line that others wrote is lost, and what cannot be read is skipped and reported."""

import json
import os
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import cuts, flipped_bits, full_disk
from interrupted import InMemory

import funcconv as fc
from funcconv.train._logs.log_file import Beginning, LogFile
from funcconv.train._loop import fit as _fit

pytestmark = pytest.mark.usefixtures("climate_of_a_user")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that goes on with each call."""
    monkeypatch.setattr(_fit, "Checkpoints", InMemory)
    monkeypatch.setattr(InMemory, "stored", {})
    init, step = fc.train.make_step(lambda p, b, **_: jnp.square(p["w"] - b).mean(), optax.sgd(0.1))
    state = init({"w": jnp.zeros(())}, jax.random.key(0))

    def run(steps, log=tmp_path / "log", checkpoint=tmp_path / "run"):
        data = fc.train.batches(np.arange(8, dtype=np.float32), 4)
        return fc.train.fit(step, state, data, steps=steps, checkpoint=checkpoint, log=log, progress=False)[1]

    return run


def step_of(line):
    return json.loads(line)["step"]


FOREIGN = {
    "damaged": b'x{"step": 3, "loss": 0.5}\n',
    "blank": b"\n",
    "spaces": b"  \r\n",
    "text": b"mine\n",
    "a byte": b"\xff\n",
    "no step": b'{"loss": 0.5}\n',
    "a null step": b'{"step": null, "loss": 1.0}\n',
    "a text step": b'{"step": "3"}\n',
    "a negative step": b'{"step": -3}\n',
    "a text": b'{"step": 3, "loss": "small"}\n',
    "a list": b"[1]\n",
    "null": b'{"step": 3, "loss": null}\n',
    "true": b'{"step": true}\n',
    "nested": b'{"step": 3, "loss": {"a": 1}}\n',
    "deep": b"[" * 10**5 + b"\n",
    "many digits": b'{"step": ' + b"9" * 5000 + b"}\n",
    "NUL": b"\0\0\0\n",
    "UTF-16": '{"step": 3}'.encode("utf-16") + b"\n",
    "cut": b'{"step": 3, "lo\n',
}


def test_a_line_that_is_no_record(run, tmp_path):
    """Before, between or after the records; as many lines as possible in one file."""
    log = tmp_path / "log"
    run(4)
    lines = log.read_bytes().splitlines(keepends=True)
    mixed = b"".join([*FOREIGN.values(), *lines[:2], *FOREIGN.values(), *lines[2:], *FOREIGN.values()])
    log.write_bytes(mixed)
    with pytest.warns(UserWarning, match=rf"{3 * len(FOREIGN)} in all: line 1, 2, 3, 4, 5, ...\.") as warned:
        history = run(6)
    assert len(warned) == 1
    assert history.steps("loss") == [1, 2, 3, 4, 5, 6]
    assert log.read_bytes().startswith(mixed)
    assert [*map(step_of, log.read_bytes()[len(mixed) :].splitlines())] == [5, 6]


@pytest.mark.once
@pytest.mark.parametrize("name", FOREIGN)
def test_one_line_that_is_no_record_among_superseded_ones(run, tmp_path, name):
    """It stays, although all records around it are cut."""
    log = tmp_path / "log"
    run(2)
    kept = log.read_bytes()
    log.write_bytes(kept + b'{"step": 3, "loss": 1.0}\n' + FOREIGN[name] + b'{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    with pytest.warns(UserWarning, match="1 in all: line 4"):
        history = run(4)
    assert history.steps("loss") == [1, 2, 3, 4]
    assert log.read_bytes().startswith(kept + FOREIGN[name])
    assert [*map(step_of, log.read_bytes()[len(kept + FOREIGN[name]) :].splitlines())] == [3, 4]


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_damage_anywhere(tmp_path, rng, count):
    """Bits and cuts: each line that is whole and not superseded stays, and is read."""
    whole = b"".join(b'{"step": %d, "loss": 0.5}\n' % i for i in range(1, 31))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs-0.json").write_text('{"../log": 0}')
    log, last = tmp_path / "log", 20
    for _, data in [*flipped_bits(whole, rng, count), *cuts(whole, rng, count)]:
        log.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = LogFile(log, Beginning(last, True, tmp_path / "run"))
        file({"step": last + 1, "loss": 0.5})
        file.close()
        intact = [line for line in whole.splitlines(keepends=True)[:last] if line in data.splitlines(keepends=True)]
        found = log.read_bytes().splitlines(keepends=True)
        following = iter(found)
        assert all(line in following for line in intact), "in this order; a flipped bit may make a line like another"
        assert {b'{"step": %d, "loss": 0.5}\n' % record["step"] for record in file.kept} >= {*intact} - {*found[-1:]}
        assert found[-1] == b'{"step": 21, "loss": 0.5}\n'


@pytest.mark.once
def test_other_files_are_appended_to(run, tmp_path):
    for content in (b"mine\n" * 100, b"\xff\xfe\n", b"import os\n", b"[1, 2]\n"):
        (tmp_path / "notes").write_bytes(content)
        with pytest.warns(UserWarning, match=r"notes exists and none of its lines is a record of a run\. They stay"):
            run(1, log=tmp_path / "notes", checkpoint=None)
        found = (tmp_path / "notes").read_bytes()
        assert found.startswith(content)
        assert step_of(found[len(content) :]) == 1


@pytest.mark.once
@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_earlier_log_is_appended_to(run, tmp_path, checkpoint):
    log = tmp_path / "log"
    earlier = b'{"step": 1, "loss": 9.0}\n{"step": 7, "loss": 9.0}\nmine\n{"step": 9, "loss": 9.0}'
    log.write_bytes(earlier)
    folder = {"checkpoint": tmp_path / "run" if checkpoint else None}
    history = run(3, **folder)
    assert log.read_bytes().startswith(earlier + b"\n")
    added = log.read_bytes()[len(earlier) + 1 :]
    assert [*map(step_of, added.splitlines())] == [1, 2, 3] == history.steps("loss")
    if checkpoint:
        log.write_bytes(log.read_bytes() + b'{"step": 4, "loss": 0.0}\n')
        history = run(5)
        assert history.steps("loss") == [1, 2, 3, 4, 5]
        assert log.read_bytes().startswith(earlier + b"\n" + added)
        assert [*map(step_of, log.read_bytes()[len(earlier) + 1 :].splitlines())] == [1, 2, 3, 4, 5]


@pytest.mark.once
def test_a_run_that_was_killed_before_its_first_checkpoint(run, tmp_path):
    """Its records are reported again. Those of a run in another folder stay."""
    run(3)
    InMemory.stored.clear()
    run(3)
    assert [*map(step_of, (tmp_path / "log").read_bytes().splitlines())] == [1, 2, 3]
    run(2, checkpoint=tmp_path / "other")
    assert [*map(step_of, (tmp_path / "log").read_bytes().splitlines())] == [1, 2, 3, 1, 2]


@pytest.mark.once
def test_a_moved_folder(run, tmp_path):
    (tmp_path / "a").mkdir()
    run(2, log=tmp_path / "a" / "log", checkpoint=tmp_path / "a" / "run")
    (tmp_path / "a").rename(tmp_path / "b")
    InMemory.stored[str(tmp_path / "b" / "run")] = InMemory.stored.popitem()[1]
    assert run(4, log=tmp_path / "b" / "log", checkpoint=tmp_path / "b" / "run").steps("loss") == [1, 2, 3, 4]


@pytest.mark.once
def test_links_stay_and_a_part_of_the_user_too(run, tmp_path):
    (tmp_path / "log.part").write_text("mine")
    (tmp_path / "elsewhere").write_bytes(b"")
    os.chmod(tmp_path / "elsewhere", 0o640)
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    run(2)
    with (tmp_path / "log").open("ab") as file:
        file.write(b'{"step": 3, "loss": 1.0}\nmine\n')  # which cannot be cut without writing the file anew
    with pytest.warns(UserWarning, match="line 4"):
        run(3)
    assert (tmp_path / "log").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes().count(b"\n") == 4
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "log.part").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"log", "elsewhere", "log.part", "run"}


@pytest.mark.once
def test_a_device_gets_the_records(run):
    run(2, log="/dev/null")
    run(3, log="/dev/null")
    assert os.stat("/dev/null").st_rdev


def test_a_full_disk(run, tmp_path):
    """It is an error; afterwards the run gives what it would have given."""
    whole = run(6, log=tmp_path / "whole", checkpoint=tmp_path / "other").records
    run(2)
    size = (tmp_path / "log").stat().st_size
    with full_disk(size + 30), pytest.raises(fc.FuncconvError, match="cannot be read or written: "):
        run(6)
    assert run(6).records == whole
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.once
def test_a_record_is_written_once(tmp_path):
    """Also where an interrupt ends the call before or after it, or within."""
    record = {"step": 1, "loss": 0.5}
    for torn in (b"", b'{"ste', b'{"step": 1, "loss": 0.5}\n'):
        file = LogFile(tmp_path / "log", Beginning(0, True, None))
        before = (tmp_path / "log").read_bytes()
        file({"step": 0})
        file(record)
        with (tmp_path / "log").open("r+b") as other:
            other.truncate(len(before) + len(b'{"step": 0}\n') + len(torn))
        file(record)
        file.close()
        assert (tmp_path / "log").read_bytes() == before + b'{"step": 0}\n{"step": 1, "loss": 0.5}\n'


@pytest.mark.once
@pytest.mark.parametrize(
    ("log", "said"),
    [
        (5, "log must be the path"),
        (b"log", "log must be the path"),
        ({"log"}, "log must be the path"),
        ([5], "log must be the path"),
        ("", "is empty"),
        (".", "is a folder"),
        ("a\0b", "cannot be a path"),
        ("n" * 5000, "cannot be a path"),
        (["a", "b/../a"], "twice"),
        (0, "log must be the path"),
    ],
)
def test_logs_of_another_kind(run, tmp_path, monkeypatch, log, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(fc.FuncconvError, match=said):
        run(1, log=log)
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_logs_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(fc.FuncconvError, match="log"):
        run(1, log=tmp_path / "file" / "log")


# histories ------------------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_a_history_is_a_mapping():
    history = fc.train.History([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}, {"step": 2, "eval/error": 3.0}])
    assert isinstance(history, Mapping)
    assert dict(history) == {"loss": [0.5, 0.25], "eval/error": [3.0]}
    assert [*history] == [*history.names] == [*history.keys()] == ["loss", "eval/error"]
    assert len(history) == 2
    assert "loss" in history
    assert "los" not in history
    assert "step" not in history
    assert history.get("los") is None
    assert history.steps("eval/error") == [2]
    for name, said in (("los", "did you mean 'loss'"), ("step", r"history.steps\(name\)"), (3, "known are 'loss'")):
        for look in (history.__getitem__, history.steps):
            with pytest.raises(KeyError, match=said):
                look(name)
    assert history == fc.train.History([*history.records])
    assert history != fc.train.History([*history.records], stopped="early")
    assert history != fc.train.History(history.records[:1])
    assert len(fc.train.History()) == 0


@pytest.mark.once
def test_a_history_is_printed_briefly():
    records = [{"step": i, "loss": 1 / i, "accuracy": 0.5} for i in range(1, 20_001)]
    assert repr(fc.train.History(records)) == "History(20000 records, steps 1 to 20000: loss=5e-05, accuracy=0.5)"
    assert repr(fc.train.History()) == "History(0 records: no metrics)"
    many = fc.train.History([{"step": 1, **{"m" * i: 0.0 for i in range(1, 500)}}], stopped="s" * 10_000)
    assert len(repr(many)) < 600
    assert repr(fc.train.History([{"loss": 1.0}])) == "History(1 records: loss=1)"
    assert len(repr(fc.train.History([{"loss": 10**400, "name": "a"}]))) < 300


@pytest.mark.once
def test_a_run_that_was_interrupted_prints_why():
    history = fc.train.History([{"step": 1, "loss": 1.0}], stopped="interrupted after step 1")
    assert repr(history) == "History(1 records, steps 1 to 1: loss=1, stopped='interrupted after step 1')"
