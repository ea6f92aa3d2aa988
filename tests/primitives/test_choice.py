"""The choice of forms is good on measured shapes: with two versions of JAX, with and without AVX-512."""

import sys
from pathlib import Path

import pytest

from funcconv._primitives.forms import CHOICES

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks" / "results").glob("choice-*.json"))
# This is what the choice reached when the files were recorded, and no target: 0 to 7.1 % of the rows of a map are below
# 0.9 of the speed of lax, and the chosen forms take at most 1.15 times as long as the fastest ones. A change must not
# make it worse.
MOST_SLOW = 0.08  # of the rows
MOST_BEHIND = 1.16  # times as long as the fastest forms, in the geometric mean


@pytest.fixture(scope="module")
def choice():
    sys.path.insert(0, str(ROOT))
    from benchmarks import choice

    yield choice
    sys.path.remove(str(ROOT))


def test_there_are_measurements():
    assert len(FILES) >= 4


@pytest.mark.once
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_choice_is_close_to_the_fastest_form(path, name, choice):
    rows = [row for row in choice.recorded(path) if row.map == name]
    found = choice.summary(rows)
    assert found["rows"] >= 50
    assert found["below 0.9 of lax"] <= MOST_SLOW * found["rows"]
    assert found["times slower than the fastest form"] < MOST_BEHIND
    assert found["times faster than lax"] > 1.9


@pytest.mark.once
def test_a_bad_choice_is_noticed(choice):
    row = next(row for row in choice.recorded(FILES[0]) if row.chosen < row.lax / 2)
    slow = row._replace(
        milliseconds=row.milliseconds | {form: 10 * row.lax for form in row.milliseconds if form != "lax"}
    )
    assert choice.summary([slow])["below 0.9 of lax"] == 1 > choice.summary([row])["below 0.9 of lax"]
