"""The reference has every public name once, and no other."""

import inspect
import re
from pathlib import Path

import pytest

import funcconv as fc

PAGES = sorted((Path(__file__).parents[2] / "docs" / "reference").glob("*.md"))
NAMESPACES = [value for name in dir(fc) if name[0] != "_" and inspect.ismodule(value := getattr(fc, name))]
NAMESPACES = [value for value in NAMESPACES if value.__name__.count(".") == 1 and value.__name__[9] != "_"]


def public(module):
    return {
        f"{module.__name__}.{name}": value
        for name, value in vars(module).items()
        if name[0] != "_" and not inspect.ismodule(value)
    }


def names():
    """Return the public names; what `fc` has too is named there only."""
    found = public(fc)
    for module in NAMESPACES:
        found |= {name: value for name, value in public(module).items() if value not in public(fc).values()}
    return sorted(found)


def listed():
    return [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]


def test_the_namespaces_are_those_that_are_public():
    found = {module.__name__.partition(".")[2] for module in NAMESPACES}
    assert found == {"attribution", "interop", "plot", "spatial", "train", "zoo"}


def test_every_public_name_is_there_once():
    assert sorted(listed()) == names()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_contents_list_the_page(page):
    assert page.name == "index.md" or f"({page.name})" in (page.parent / "index.md").read_text()
