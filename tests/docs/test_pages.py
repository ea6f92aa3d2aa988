"""The pages: each block of Python in them runs where what it imports is installed, links lead somewhere."""

import ast
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from torch_models import import_torchvision

import funcconv as fc

HOME = Path(__file__).parents[2]
DOCS = HOME / "docs"
README = HOME / "README.md"
OUTSIDE = [README, HOME / "ARCHITECTURE.md", HOME / "CONTRIBUTING.md"]  # of the site
PAGES = [*OUTSIDE, *sorted(DOCS.glob("**/*.md"))]
PACKAGE = Path(fc.__file__).parent
os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Return the anchors of a page's headings, as both GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


PACKAGES = {  # by what is imported
    "PIL": "'.[images]'",
    "haiku": "dm-haiku",
    "jax2onnx": "'.[onnx]'",
    "sklearn": "scikit-learn",
    "torch": "torch==2.13.0",
    "torchvision": "torchvision==0.28.0",
}


def imported(bodies):
    """Return the packages that blocks import."""
    found = set()
    for node in ast.walk(ast.parse("".join(bodies))):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        found |= {
            name.partition(".")[0] for name in [*names, *([node.module] if isinstance(node, ast.ImportFrom) else [])]
        }
    return found


def missing(bodies):
    """Return the packages that blocks import and that are not installed."""
    return sorted(name for name in imported(bodies) if importlib.util.find_spec(name) is None)


def test_there_are_two_commands():
    commands = [line for body in blocks(README, "sh") for line in body.splitlines()]
    assert len(commands) == 2
    assert "examples/siamese_mnist.py" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(HOME)), marks=[] if page == README else pytest.mark.once)
        for page in PAGES
        if blocks(page, "python")
    ],
)
@pytest.mark.usefixtures("climate_of_a_user")
def test_python_runs(page, tmp_path, monkeypatch):
    """Each block goes on where the ones before it have ended, and asserts what it says."""
    bodies = blocks(page, "python")
    if lacking := missing(bodies):
        pytest.skip(f"{page.name} needs more: pip install {' '.join(PACKAGES.get(name, name) for name in lacking)}")
    if "torchvision" in imported(bodies):
        import_torchvision()
    monkeypatch.chdir(tmp_path)  # for what they write
    namespace = {}
    for body in bodies:
        assert "assert" in body
        exec(compile(body, page.name, "exec"), namespace)
    assert namespace
    if plots := sys.modules.get("matplotlib.pyplot"):
        plots.close("all")


@pages
def test_links_lead_somewhere(page):
    text = prose(page)
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", text):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"
    for file in re.findall(r"`((?:tests|examples|benchmarks|docs)/[\w/.-]*)`", text):
        assert (HOME / file).exists(), file
    for file in re.findall(r"`((?:_|attribution/|train/|interop/|plot/|spatial/|zoo/)[\w/]*\.py)`", text):
        assert (PACKAGE / file).exists(), file


def test_every_picture_is_shown_and_is_small():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", prose(page))
    }
    pictures = {path for path in (DOCS / "pictures").iterdir()}
    assert pictures <= shown
    assert all(path.stat().st_size < 60_000 for path in pictures)


def test_pages_for_those_who_come_from_elsewhere_have_all_their_parts():
    found = sorted((DOCS / "migrate").glob("*.md"))
    assert [page.stem for page in found] == ["equinox", "flax", "haiku", "keras", "pytorch", "stax"]
    for page in found:
        headings = re.findall(r"^## (.*)$", prose(page), re.MULTILINE)
        if page.stem == "pytorch":  # its models can be imported too
            assert headings[:3] == ["Import a model", "Load a weight file", "What cannot be traced"]
            del headings[:3]
        network = headings.pop(1)
        assert network.startswith("One network in ")
        assert headings == ["What is where", "Shared weights", "A step of training", "What differs", "What is not here"]


def test_every_page_is_in_the_contents():
    contents = (HOME / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"[\w/]+\.md", re.sub(r"^ *#.*$", "", contents, flags=re.MULTILINE))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES if page not in OUTSIDE)
