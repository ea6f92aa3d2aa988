"""A run with `keep="best"` that anything ends, and that is called again, returns the same best state."""

import collections
import contextlib
import json
from pathlib import Path

import interrupted
import numpy as np
import pytest
from damage import child
from interrupted import InMemory, Places

from funcconv.train._loop import fit as _fit

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

TESTS = str(Path(interrupted.__file__).parent)
OPTIONS = {"keep": "best", "steps": 12, "checkpoint_every": 3}
VALUES = [3.0, 1.0, 2.0, 0.5, 2.0, 1.0]  # of the evaluations after steps 2, 4, ...; the best is at step 8
ON_DISK = OPTIONS | {"values": VALUES, "on_disk": True}


def places_of(folder, **options):
    passed = Places()
    return interrupted.fit(folder, passed, **options), collections.Counter(passed.passed)


def run_children(folder, cases):
    """Kill a run at each place, and return the result of the next run for each."""
    code = f"import sys; sys.path.insert(0, {TESTS!r}); import interrupted; interrupted.kill_each({cases}, {ON_DISK})"
    process = child(code, folder, cached=True)
    said, trouble = process.communicate()
    assert process.returncode == 0, trouble
    return json.loads(said)


KILLS = [  # the place of the kill, and its number
    ("after an evaluation", 3),  # after step 8, which is the best
    ("after saving", 4),  # while its checkpoint is written
    ("before a renaming", 4),  # this checkpoint is put in place
    ("after a renaming", 4),
    ("after a renaming", 5),  # the checkpoint of the best evaluation before is removed
    ("before reading", 1),  # when the run is done
]


def test_the_kills_are_where_they_say(tmp_path):
    passed = Places()
    assert interrupted.fit(tmp_path, passed, **ON_DISK)["best"] == [8, 0.5]
    order = [name for name in passed.passed if "evaluation" in name or name == "before saving"]
    best = [i for i, name in enumerate(order) if name == "after an evaluation"][3]
    assert order[best + 1] == "before saving"
    assert order[:best].count("before saving") == 4
    counts = collections.Counter(passed.passed)
    assert counts["before a renaming"] > 6, "one for each of five checkpoints, and one for each that is removed"
    assert counts["before reading"] == 2, "at the start and at the end"


def test_killed_around_the_best_evaluation(tmp_path):
    """Between the evaluation and the checkpoint, while it is written, and while it is read at the end."""
    expected, _ = places_of(tmp_path / "whole", **ON_DISK)
    for case, result in zip(KILLS, run_children(tmp_path, KILLS), strict=True):
        assert result == expected, case


@pytest.mark.slow
def test_killed_at_each_place(tmp_path):
    expected, counts = places_of(tmp_path / "whole", **ON_DISK)
    cases = [(name, at) for name, count in counts.items() for at in range(count)]
    for case, result in zip(cases, run_children(tmp_path, cases), strict=True):
        assert result == expected, case


@pytest.mark.parametrize("values", [VALUES, [3.0, np.nan, 2.0, 2.5, 2.0, 0.5]])
@pytest.mark.parametrize("count", [6, pytest.param(1000, marks=pytest.mark.slow)])
def test_errors_at_any_place(tmp_path, monkeypatch, rng, values, count):
    """Also if the run fails while it reads the best state."""
    monkeypatch.setattr(_fit, "Checkpoints", InMemory)
    monkeypatch.setattr(InMemory, "stored", {})

    def end(name):
        raise OSError(name)

    options = OPTIONS | {"values": values}
    expected, counts = places_of(tmp_path / "whole", on_disk=True, **options)
    cases = [(name, at) for name, number in counts.items() for at in range(number)]
    chosen = rng.choice(len(cases), min(count, len(cases)), replace=False)
    for i in chosen:
        name, at = cases[i]
        with contextlib.suppress(OSError):
            interrupted.fit(tmp_path / str(i), Places(end, at, name), on_disk=True, **options)
        assert interrupted.fit(tmp_path / str(i), **options) == expected, cases[i]


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_is_the_same_after_errors(tmp_path, monkeypatch, patience):
    monkeypatch.setattr(_fit, "Checkpoints", InMemory)
    monkeypatch.setattr(InMemory, "stored", {})

    def end(name):
        raise OSError(name)

    options = OPTIONS | {"values": VALUES, "patience": patience}
    expected, counts = places_of(tmp_path / "whole", **options)
    assert expected["best"] == {1: [4, 1.0], 2: [8, 0.5]}[patience]
    for at in range(counts["after an evaluation"]):
        with pytest.raises(OSError, match="after an evaluation"):
            interrupted.fit(tmp_path / str(at), Places(end, at, "after an evaluation"), **options)
        assert interrupted.fit(tmp_path / str(at), **options) == expected
