"""The pages for those who come from another library: each runs where that library is installed, and says what is so."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_readme import blocks

PAGES = sorted((Path(__file__).parents[1] / "docs" / "migrate").glob("*.md"))
NEEDED = {  # by page; the others are there wherever funcconv is
    "equinox": "equinox", "haiku": "haiku", "keras": "keras", "pytorch": "torch",
}  # fmt: skip
os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported


def test_there_is_a_page_for_each():
    assert {page.stem for page in PAGES} == {*NEEDED, "flax", "stax"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.usefixtures("climate_of_a_user")
@pytest.mark.once
def test_a_page_runs(page):
    """Each block goes on where the ones before it have ended, and asserts what it says."""
    library = NEEDED.get(page.stem)
    if library and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    namespace = {}
    for body in blocks(page, "python"):
        assert "assert" in body
        exec(compile(body, page.name, "exec"), namespace)
    assert namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_all_its_parts(page):
    headings = [line for line in page.read_text().splitlines() if line.startswith("#")]
    assert [each for each in headings[1:] if each.startswith("## ")] == [
        "## What is where", headings[2], "## Shared weights", "## A step of training", "## What differs",
        "## What is not here",
    ]  # fmt: skip
    assert headings[2].startswith("## One network in ")
