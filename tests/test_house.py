"""The shape of the house: who imports whom, what is not used, and what is documented."""

import ast
import doctest
import importlib
import inspect
from functools import partial
from pathlib import Path

import pytest

import funcconv as fc

ROOMS = [  # each imports only from the rooms above it
    {"_errors", "_typing"},
    {"_geometry"},
    {"_layout", "_taps", "_folds", "_joint"},
    {"_padding", "_parameters", "_reduce"},
    {"_init", "_conv", "_local_conv", "_pool", "_adaptive", "_unpool", "_dense", "_matrix"},
    {"_node"},
    {"_flatten", "_entries"},
    {"_graph", "_layers", "_compose"},
    {"__init__"},
]
HOUSE = Path(inspect.getfile(fc)).parent
FILES = {path.stem: ast.parse(path.read_text()) for path in HOUSE.glob("*.py")}
PUBLIC = {name: value for name, value in vars(fc).items() if not name.startswith("_")}


def imported(tree):
    """Return the modules that a file imports, with the names it takes from them, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def test_every_file_has_a_room():
    assert sorted(FILES) == sorted(set().union(*ROOMS))


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    floor = next(i for i, room in enumerate(ROOMS) if name in room)
    above = set().union(*ROOMS[:floor])
    for module, member in imported(FILES[name]):
        assert not module.startswith("funcconv"), "relative imports only"
        if module.startswith("."):
            other = module[1:] or member
            assert other in above, f"{name} imports {other}, which is not above it"


@pytest.mark.parametrize("name", FILES)
def test_only_public_jax(name):
    for module, member in imported(FILES[name]):
        path = f"{module}.{member}" if member else module
        assert not (path.startswith("jax") and "._" in path), path
    names = {node.attr for node in ast.walk(FILES[name]) if isinstance(node, ast.Attribute)}
    assert "custom_vjp" not in names
    assert not any(attribute == "_src" for attribute in names)


def test_geometry_is_integers_only():
    assert {module for module, _ in imported(FILES["_geometry"])} == {
        "operator", "collections.abc", "typing", "._errors", "._typing",
    }  # fmt: skip


def test_runtime_dependencies_are_the_declared_ones():
    outside = {module.split(".")[0] for tree in FILES.values() for module, _ in imported(tree) if module[0] != "."}
    standard = {name for name in outside if name in importlib.import_module("sys").stdlib_module_names}
    assert outside - standard == {"jax", "numpy", "jaxtyping"}  # numpy is JAX's own


def test_the_facade_is_nothing_else():
    body = FILES["__init__"].body
    assert all(isinstance(node, ast.ImportFrom | ast.Expr | ast.Assign) for node in body)
    for node in body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name == alias.asname for alias in node.names)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value)
    assert text
    assert ">>>" in text, "has no example"
    if inspect.isfunction(value):
        assert "Returns:" in text
        assert "Args:" in text
        assert "Raises:" in text
        for parameter in inspect.signature(value).parameters:
            assert f"\n    {parameter}:" in text or f"\n    *{parameter}:" in text or f"\n    **{parameter}:" in text, (
                parameter
            )


@pytest.mark.parametrize("name", [*PUBLIC, "Graph.subgraph"])
@pytest.mark.usefixtures("climate_of_a_user")
def test_examples_in_docstrings_run(name):
    value = fc
    for part in name.split("."):
        value = getattr(value, part)
    if isinstance(value, partial):
        tests = [doctest.DocTestParser().get_doctest(value.__doc__, {}, name, None, None)]
    else:
        tests = [test for test in doctest.DocTestFinder(recurse=False).find(value, name) if test.examples]
    assert tests
    for test in tests:
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
        assert result.attempted
        assert not result.failed
