"""The shape of the house: who imports whom, what is not used, and what is documented."""

import ast
import doctest
import inspect
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from available import needed

import funcconv as fc

ROOMS = [  # each imports only from the rooms above it
    {"_errors", "_typing"},
    {"_paths"},
    {"_dtypes", "_standardize", "_files"},
    {"derivatives/__init__"},
    {"_geometry", "_extras", "_programs", "_step_folders"},
    {"_checkpoint_leaves", "_checkpoint_record"},
    {"_stored_checkpoints"},
    {"_reach", "_varying"},
    {"_layout", "_taps", "_take", "_folds", "_joint"},
    {"_primitives"},
    {"_padding", "_parameters", "_reduce"},
    {"_lowering/_form"},
    {"_lowering/_cuts", "_lowering/_problem"},
    {
        f"_lowering/{form}"
        for form in ("_lax", "_windows", "_depthwise", "_pointwise", "_blocks", "_groups", "_depth", "_phases")
    },
    {"_lowering/_turned", "_lowering/_choice"},
    {"_lowering/_maps"},
    {"_lowering/_named"},
    {"_lowering/__init__"},
    {"_family", "_select", "_placement", "_compiler"},
    {"_gradient_norm", "_explain", "_dependence", "_long_axes", "_work", "_plain"},
    {"_init", "_conv", "_local_conv", "_pool", "_adaptive", "_unpool", "_dense", "_matrix", "_norms", "_dropout"},
    {"_inference", "_portable", "_readings", "_strict_json"},
    {"_node", "_registry"},
    {"_flatten", "_entries"},
    {"_evaluate"},
    {"_at_nodes"},
    {"_network", "_picture", "_render"},
    {"_receptive_field", "_draw", "_draw_autodiff", "_architecture"},
    {"_summary"},
    {"_graph", "_layers", "_compose"},
    {"_training_layers", "_known_ops"},
    {"interop/__init__", "plot/__init__", "spatial/__init__", "train/__init__"},
    {"_command_line"},
    {"__init__", "__main__"},
]
PACKAGES = {  # what a package below the house may import of it, and its own rooms
    "derivatives": [
        {"_errors", "_typing", "_dtypes", "_extras"},
        {"_trees"},
        {"_hvp", "_per_example", "_linear_map", "_blocks"},
        {"_in_batches", "_hutchinson", "_density", "_scipy"},
        {"_operator"},
        {"_curvature"},
        {"__init__"},
    ],
    "interop": [
        {
            "_dtypes",
            "_errors",
            "_typing",
            "_files",
            "_paths",
            "_extras",
            "_step_folders",
            "_stored_checkpoints",
            "_entries",
            "_plain",
            "_programs",
            "_flatten",
            "_node",
            "_registry",
            "_graph",
            "_layers",
            "_training_layers",
            "_adaptive",
            "_compose",
            "_dense",
            "_norms",
        },
        {"_matching", "_export", "_torch_ops", "_uses", "_safetensors_format"},
        {"_pairing"},
        {"_torch", "_flax", "_flax_modules", "_safetensors", "_onnx"},
        {"_trace_torch", "_formats"},
        {"__init__"},
    ],
    "plot": [
        {"_errors", "_typing", "_extras", "_paths", "_geometry", "_receptive_field", "_graph"},
        {"_axes"},
        {"_images", "_windows", "_curves"},
        {"__init__"},
    ],
    "spatial": [
        {"_errors", "_typing", "_dtypes", "_geometry", "_layout", "_varying", "_parameters", "_conv", "_pool"},
        {"_halo"},
        {"_ops"},
        {"__init__"},
    ],
    "train": [
        {
            "_errors",
            "_typing",
            "_dtypes",
            "_extras",
            "_paths",
            "_files",
            "_step_folders",
            "_checkpoint_leaves",
            "_checkpoint_record",
            "_stored_checkpoints",
            "_compiler",
        },
        {
            "_state",
            "_batches",
            "_history",
            "_lock",
            "_replace",
            "_retention",
            "_idx",
            "_tensorboard",
            "_memory",
            "_loss",
            "_sums",
            "_watch",
            "_constants",
            "_evaluation",
            "_interrupts",
            "_log_file",
            "_progress",
        },
        {"_logs", "_settings", "_source"},
        {"_options"},
        {"_processes"},
        {"_checkpoints"},
        {"_save"},
        {"_partition"},
        {"_frozen", "_inputs"},
        {"_step"},
        {"_compiled"},
        {"_run"},
        {"_fit"},
        {"__init__"},
    ],
}
HOUSE = Path(inspect.getfile(fc)).parent
FILES = {
    path.relative_to(HOUSE).with_suffix("").as_posix(): ast.parse(path.read_text()) for path in HOUSE.rglob("*.py")
}
PUBLIC = {name: value for name, value in vars(fc).items() if not name.startswith("_") and not inspect.ismodule(value)}
PUBLIC |= {f"plot.{name}": value for name, value in vars(fc.plot).items() if inspect.isfunction(value)}
PUBLIC |= {f"interop.{name}": value for name, value in vars(fc.interop).items() if inspect.isfunction(value)}
PUBLIC |= {f"spatial.{name}": value for name, value in vars(fc.spatial).items() if inspect.isfunction(value)}
PUBLIC |= {f"train.{name}": value for name, value in vars(fc.train).items() if name[0] != "_"}
METHODS = {
    f"{kind.__name__}.{name}": value for kind in (fc.Graph, fc.Operator) for name, value in inspect.getmembers(kind)
    if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
}  # fmt: skip
EXAMPLES = [name for name, value in METHODS.items() if ">>>" in value.__doc__]
EXTRAS = {
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


def rooms_of(package):
    """Return the rooms of a package, with its own files by their whole names."""
    shared, *own = PACKAGES[package]
    return [shared, *({f"{package}/{name}" for name in room} for room in own)]


def target(name, module, member):
    """Return the file that a relative import names."""
    path = module.lstrip(".")
    up = len(module) - len(path)
    folder = Path(name).parents[up - 1]
    found = (folder / (path or member).replace(".", "/")).as_posix()
    return found if found in FILES else f"{found}/__init__"


def test_every_file_has_a_room():
    rooms = [*ROOMS, *(room for package in PACKAGES for room in rooms_of(package))]
    assert sorted(FILES) == sorted(set().union(*rooms))


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    package = Path(name).parent.as_posix()
    rooms = rooms_of(package) if package in PACKAGES else ROOMS
    floor = next(i for i, room in enumerate(rooms) if name in room)
    above = set().union(*rooms[:floor])
    for module, member in imported(FILES[name]):
        assert not module.startswith("funcconv"), "relative imports only"
        if module.startswith("."):
            other = target(name, module, member)
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2.0"], done.stderr[-2000:]


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded, late_enough = done.stdout.splitlines()
    assert "funcconv" in loaded.split()
    assert not optional & set(loaded.split())
    assert late_enough == "True", done.stderr[-2000:]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("__init__")])
def test_a_facade_is_nothing_else(name):
    body = FILES[name].body
    assert all(isinstance(node, ast.ImportFrom | ast.Expr | ast.Assign) for node in body)
    for node in body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name == alias.asname for alias in node.names)


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
    if package := {"interop.trace_torch": "torch", "interop.to_onnx": "jax2onnx"}.get(name):
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
