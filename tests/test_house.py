"""The shape of the house: who imports whom, what is not used, and what is documented."""

import ast
import doctest
import graphlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from available import needed

import funcconv as fc

PACKAGES = [  # a module imports from its own package and from those above it, never from those below
    "_common",
    "_windows",
    "_primitives/forms",
    "_primitives",
    "_ops",
    "_derivatives",
    "_graph/declare",
    "_graph/name",
    "_graph/combine",
    "_graph/to_file",
    "_graph/infer",
    "_graph/masked",
    "_graph/evaluate",
    "_graph/derive",
    "_graph/prune",
    "_graph/use",
    "_graph/repeat",
    "_graph/stream",
    "_graph",
    "_inspect",
    "_weight_files",
    "_checkpoints",
    "attribution",
    "plot",
    "train/_state",
    "train/_data",
    "train/_distributed",
    "train/_optimizer",
    "train/_step",
    "train/_logs",
    "train/_loop",
    "train/_diagnosis",
    "train",
    "interop",
    "spatial",
    "zoo",
    "_launch",
    "_bench",
    "_command_line",
    "__init__",
    "__main__",
]
NAMESPACES = {"attribution", "plot", "train", "interop", "spatial", "zoo"}  # public, and none imports another
MOST_FILES = 14  # of a folder
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_CLASS, MOST_LINES_OF_A_FUNCTION = 300, 200, 60  # the last two: of code
HOUSE = Path(inspect.getfile(fc)).parent
FILES = {
    path.relative_to(HOUSE).with_suffix("").as_posix(): ast.parse(path.read_text()) for path in HOUSE.rglob("*.py")
}
PUBLIC = {name: value for name, value in vars(fc).items() if not name.startswith("_") and not inspect.ismodule(value)}
PUBLIC |= {f"attribution.{name}": value for name, value in vars(fc.attribution).items() if name[0] != "_"}
PUBLIC |= {f"plot.{name}": value for name, value in vars(fc.plot).items() if inspect.isfunction(value)}
PUBLIC |= {f"interop.{name}": value for name, value in vars(fc.interop).items() if inspect.isfunction(value)}
PUBLIC |= {f"spatial.{name}": value for name, value in vars(fc.spatial).items() if inspect.isfunction(value)}
PUBLIC |= {f"zoo.{name}": value for name, value in vars(fc.zoo).items() if inspect.isfunction(value)}
PUBLIC |= {f"train.{name}": value for name, value in vars(fc.train).items() if name[0] != "_"}
METHODS = {
    f"{kind.__name__}.{name}": value
    for kind in (fc.Graph, fc.Operator)
    for name, value in inspect.getmembers(kind)
    if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
}
EXAMPLES = [name for name, value in METHODS.items() if ">>>" in value.__doc__]
EXTRAS = {
    "PIL",
    "flax",
    "lineax",
    "matfree",
    "matplotlib",
    "orbax",
    "rich",
    "scipy",
    "tensorboardX",
    "torch",
    "tqdm",
}  # imported where they are used, never with the file


def imported(tree):
    """Return the modules that a file imports, with the names it takes from them, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def package_of(name):
    """Return the place of a file's package in the list: that with the longest name that the path begins with."""
    packages = [package for package in PACKAGES if name == package or name.startswith(f"{package}/")]
    assert packages, f"{name} is in no package"
    return PACKAGES.index(max(packages, key=len))


def targets(name):
    """Return the files of funcconv that a file imports."""
    for module, member in imported(FILES[name]):
        assert not module.startswith("funcconv"), "relative imports only"
        if module.startswith("."):
            path = module.lstrip(".")
            folder = Path(name).parents[len(module) - len(path) - 1]
            base = [part for part in (*folder.parts, *path.split(".")) if part]
            choices = [
                "/".join(parts) for parts in ([*base, member], [*base, member, "__init__"], base, [*base, "__init__"])
            ]
            yield next(choice for choice in choices if choice in FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    own = package_of(name)
    for other in targets(name):
        assert package_of(other) <= own, f"{name} imports {other}, whose package is below"
        public = {Path(path).parts[0] for path in (name, other)} & NAMESPACES
        assert name == "__init__" or len(public) < 2, f"{name} imports {other}, of another public namespace"


def test_the_architecture_lists_the_packages_in_their_order():
    text = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| (.*?) \|", text.partition("\n## ")[0], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    packages = [package for package in PACKAGES if not package.startswith(("train/", "__"))]
    assert sorted(listed) == sorted(packages)
    assert [package for package in listed if package[0] == "_"] == [
        package for package in packages if package[0] == "_"
    ]


def test_no_imports_in_a_circle():
    graphlib.TopologicalSorter({name: list(targets(name)) for name in FILES}).prepare()


def test_a_private_path_has_one_underscore():
    for name in FILES:
        private = [part for part in name.split("/") if part.startswith("_") and not part.startswith("__")]
        assert len(private) == 1 or (not private and name.endswith(("__init__", "__main__"))), name


def test_folders_are_small():
    folders = Counter(Path(name).parent.as_posix() for name in FILES if not name.endswith("__init__"))
    assert max(folders.values()) <= MOST_FILES, folders


def code_lines(name, node):
    """Return how many lines of a function or class are code: no docstring, comment or blank line."""
    lines = (HOUSE / f"{name}.py").read_text().splitlines()
    documentation = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            documentation |= set(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    own = (lines[i - 1].strip() for i in range(node.lineno, node.end_lineno + 1) if i not in documentation)
    return sum(bool(line) and not line.startswith("#") for line in own)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_too_long_to_read_at_once(name):
    assert len((HOUSE / f"{name}.py").read_text().splitlines()) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(FILES[name]):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(name, node) <= MOST_LINES_OF_A_FUNCTION, node.name
        if isinstance(node, ast.ClassDef):
            assert code_lines(name, node) <= MOST_LINES_OF_A_CLASS, node.name


@pytest.mark.parametrize("name", FILES)
def test_only_public_jax(name):
    for module, member in imported(FILES[name]):
        path = f"{module}.{member}" if member else module
        assert not (path.startswith("jax") and "._" in path), path
    names = {node.attr for node in ast.walk(FILES[name]) if isinstance(node, ast.Attribute)}
    assert "custom_vjp" not in names
    assert not any(attribute == "_src" for attribute in names)


def test_geometry_is_integers_only():
    own = {module for module, _ in imported(FILES["_windows/geometry"]) if module.startswith(".")}
    assert own == {".._common.errors", ".._common.types"}
    assert not {"jax", "numpy"} & {module.split(".")[0] for module, _ in imported(FILES["_windows/geometry"])}


def test_runtime_dependencies_are_the_declared_ones():
    standard = sys.stdlib_module_names
    anywhere, with_the_file = set(), set()
    for tree in FILES.values():
        anywhere |= {module.split(".")[0] for module, _ in imported(tree) if module[0] != "."}
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        with_the_file |= {module.split(".")[0] for module, _ in imported(top) if module[0] != "."}
    assert with_the_file - standard == {"jax", "numpy", "jaxtyping", "optax"}  # numpy is JAX's own
    assert anywhere - standard - with_the_file == EXTRAS


def test_the_package_needs_no_extra():
    """It is imported, and multiplies by a Hessian, in a process that has none of them."""
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in sorted(EXTRAS))
    code = f"import sys; {hidden}import funcconv as fc; print(fc.hessian(lambda x: x * x, 1.0).mv(1.0))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout.split() == ["2.0"], process.stderr[-2000:]


def test_importing_loads_no_extra_and_starts_no_backend():
    """Whoever imports it pays for JAX and optax alone, and may still say where JAX is to run."""
    optional = EXTRAS | {"equinox", "flatbuffers", "graphviz", "jax2onnx", "onnx", "onnxruntime"}
    code = """
import sys, jax, optax, jaxtyping
before = set(sys.modules)
import funcconv
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
jax.config.update("jax_platforms", "nonsense")
try:
    jax.devices()
except RuntimeError as error:
    print("nonsense" in str(error))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded, late_enough = process.stdout.splitlines()
    assert "funcconv" in loaded.split()
    assert not optional & set(loaded.split())
    assert late_enough == "True", process.stderr[-2000:]


def test_namespaces_are_imported_when_they_are_used():
    code = """
import sys, jax, funcconv as fc
late = "attribution", "interop", "plot", "spatial", "train", "zoo"
print([name for name in (*(f"funcconv.{name}" for name in late), "optax") if name in sys.modules])
print([name for name in late if name not in dir(fc)], "conv" in dir(fc))
print(fc.train.State.__name__, "optax" in sys.modules, "train" in vars(fc), hasattr(fc, "trian"))
from funcconv import plot, spatial
print(plot.filters.__name__, spatial.conv.__name__)
from funcconv._graph.to_file.registry import named
for name, module in (("torch.masked", "interop"), ("zoo.small_scale", "zoo")):
    module = f"funcconv.{module}"
    print(module in sys.modules, named(f"funcconv.{name}").__name__, module in sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    printed = ["[]", "[] True", "State True True False", "filters conv", "False masked True", "False small_scale True"]
    assert process.stdout.splitlines() == printed, process.stderr


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("__init__")])
def test_a_facade_is_nothing_else(name):
    body = FILES[name].body
    for node in body:  # `if TYPE_CHECKING` has imports for type checkers
        body = body + node.body + node.orelse if isinstance(node, ast.If) else body
    assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign | ast.If) for node in body)
    for node in body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname in (alias.name, f"_{alias.name}") for alias in node.names)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    text = inspect.getdoc(PUBLIC[name])
    assert ">>>" in text, "has no example"
    if inspect.isfunction(PUBLIC[name]):
        check_sections(text, inspect.signature(PUBLIC[name]).parameters)


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_documented(name):
    text = inspect.getdoc(METHODS[name])
    assert text
    if not isinstance(METHODS[name], property):
        check_sections(text, [*inspect.signature(METHODS[name]).parameters][1:])


def check_sections(text, parameters):
    assert "Returns:" in text or "Yields:" in text
    if parameters:
        assert "Args:" in text
        assert "Raises:" in text
    for parameter in parameters:
        assert any(f"\n    {stars}{parameter}:" in text for stars in ("", "*", "**")), parameter


@pytest.mark.parametrize("name", [*PUBLIC, *EXAMPLES])
@pytest.mark.usefixtures("climate_of_a_user")
@pytest.mark.once
@pytest.mark.filterwarnings("ignore:::(jax2onnx|onnx|onnx_ir|onnxscript|flax|equinox).*")  # of jax2onnx 0.17
def test_examples_in_docstrings_run(name):
    if package := {
        "interop.trace_torch": "torch",
        "interop.to_torch_module": "torch",
        "interop.to_onnx": "jax2onnx",
    }.get(name):
        needed(package)
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
