"""The pages: every block of Python in them runs, and the README has exactly two set-up commands."""

import re
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_two_commands():
    commands = [line for body in blocks(PAGES[0], "sh") for line in body.splitlines()]
    assert len(commands) == 2
    assert "examples/siamese_mnist.py" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("climate_of_a_user")
def test_python_runs(page):
    """Each block goes on where the ones before it have ended, and asserts what it says."""
    namespace = {}
    for body in blocks(page, "python"):
        assert "assert" in body
        exec(compile(body, page.name, "exec"), namespace)
    assert namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for file in re.findall(r"`((?:tests|examples|benchmarks|docs)/[\w/.-]*)`", text):
        assert (HOME / file).exists(), file
