"""Networks as compiled programs. They need only JAX to run, and run on other machines and devices."""

import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import jax
from jax import export as jax_export

from .._common.errors import FuncconvError, suggest
from .._common.optional_packages import needs
from .._common.types import Params
from .._graph.use.graph import Graph

_CHECKSUM_MARK = b"\nfuncconv program 1 sha256 "  # in front of the checksum; 1 is the version of this format
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    graph: Graph,
    params: Params | None = None,
    *,
    state: Params | None = None,
    batch: str | int | None = "b",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    orders: int = 0,
) -> bytes:
    """Compile a network into bytes, which `load_exported` or `jax.export.deserialize` converts to a function.

    The bytes end with a checksum, which `load_exported` compares. `jax.export.deserialize` ignores it, and can crash if
    the bytes are damaged.

    Args:
        graph: the network, which is evaluated in evaluation mode.
        params: its parameters, which become part of the program. Default: None, the exported function takes them
            as its first argument, with the shapes that `graph.init` draws.
        state: the state of the graph, such as running statistics, which becomes part of the program. Required if the
            graph has one. Default: None.
        batch: the batch size. A name such as `"b"` allows any batch size; an integer fixes it; None means no batch
            axis. Default: `"b"`.
        platforms: where the program will run: any of `"cpu"`, `"cuda"`, `"rocm"` and `"tpu"`. Default:
            `("cpu", "cuda", "tpu")`.
        orders: how many times the loaded function can be differentiated: 0 means not at all, 1 allows gradients, 2
            allows Hessian-vector products by `jax.vjp` of `jax.grad`. Default: 0.

    Returns:
        The program.

    Raises:
        FuncconvError: if an option is unknown, if the graph has a state and `state` is None, if flatbuffers is not
            installed, or if the program cannot be exported.

    Source: the documentation of `jax.export`, which also says for how long JAX can read such programs.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.Conv(4, 3)(x))
        >>> program = fc.interop.export(graph, graph.init(jax.random.key(0)), platforms=("cpu",))
        >>> fc.interop.load_exported(program)(jnp.ones((5, 8, 8, 1))).shape
        (5, 6, 6, 4)
    """
    if isinstance(orders, bool) or not isinstance(orders, int) or orders < 0:
        msg = f"export: orders must be an integer of at least 0; got {orders!r}"
        raise FuncconvError(msg)
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        msg = f"export: unknown platform {unknown[0]!r}{suggest(unknown[0], PLATFORMS)}"
        raise FuncconvError(msg)
    checked_state = kept_state("export", graph, state)

    def evaluate(*args: Any) -> Any:
        network_params, *xs = args if params is None else (params, *args)
        return graph.apply(network_params, checked_state, *xs)[0]

    _check_flatbuffers()
    try:
        inputs = batched_inputs(graph, params, batch)
        # Only the shapes of the parameters are computed.
        param_types = [jax.eval_shape(graph.init, jax.eval_shape(jax.random.key, 0))] if params is None else []
        exported = jax_export.export(jax.jit(evaluate), platforms=tuple(platforms))(*param_types, *inputs)
        return _with_checksum(bytes(exported.serialize(vjp_order=orders)))
    except FuncconvError:
        raise
    except Exception as error:
        msg = f"export: the network cannot be exported: {str(error)[:300]}"
        raise FuncconvError(msg) from error


def kept_state(op: str, graph: Graph, state: Params | None) -> Params:
    """Return the state with which a graph is evaluated: {} if it has none. Raise an error if it is missing."""
    if state is None and graph.init_state():
        msg = f"{op}: the graph has a state, but state is None. Pass state=, for example graph.init_state()"
        raise FuncconvError(msg)
    return {} if state is None else state


def batched_inputs(graph: Graph, params: Params | None, batch: str | int | None) -> list[Any]:
    """Return the types of the inputs with a batch axis, of any size if `batch` is a name; without it if it is None."""
    axes = () if batch is None else jax_export.symbolic_shape(batch) if isinstance(batch, str) else (batch,)
    shapes = graph.shapes(params)
    return [
        jax.ShapeDtypeStruct((*axes, *shapes[name].shape), shapes[name].dtype)  # type: ignore[no-untyped-call]
        for name in graph.inputs
    ]


def _check_flatbuffers() -> None:
    """Raise an error without flatbuffers: JAX needs this package for programs, but does not install it."""
    with needs("export", "an exported program"):
        import_module("flatbuffers")


def load_exported(program: bytes | bytearray | memoryview) -> Callable[..., Any]:
    """Load a program that `export` compiled.

    Args:
        program: the bytes that `export` returned.

    Returns:
        A function of the inputs; or of the parameters and the inputs, if the program was exported without parameters.
        You can call it, `jit` it, and differentiate it as many times as you requested. It raises `FuncconvError` if the
        number, structure, shapes or dtypes of the arguments are not those of the program, or if it was exported for
        another platform.

    Raises:
        FuncconvError: if the bytes are not a program of `export`, if they are damaged, or if flatbuffers is not
            installed. A program without a checksum, such as one of `jax.export`, raises the error too. If you trust it,
            read it with `jax.export.deserialize(bytearray(program)).call`.

    Example:
        >>> import funcconv as fc
        >>> try:
        ...     fc.interop.load_exported(b"no program")
        ... except fc.FuncconvError as error:
        ...     print(str(error)[:45])
        load_exported: this is not an exported progra
    """
    _check_flatbuffers()
    content = _checked(program)
    try:
        exported = jax_export.deserialize(bytearray(content))  # the type that JAX documents
    except Exception as error:
        msg = f"load_exported: this JAX cannot read the program: {type(error).__name__}: {str(error)[:200]}"
        raise FuncconvError(msg) from error

    def call(*args: Any) -> Any:
        """Evaluate the network."""
        _check_arguments(exported, args)
        try:
            return exported.call(*args)  # type: ignore[no-untyped-call]
        except (
            ValueError,
            TypeError,
            NotImplementedError,
        ) as error:  # axes that must have one size, or another platform
            msg = f"load_exported: the program cannot be called like this: {str(error)[:300]}"
            raise FuncconvError(msg) from error

    return call


def _with_checksum(program: bytes) -> bytes:
    """Return a program with a checksum after its end, which readers of flatbuffers ignore."""
    content = program + _CHECKSUM_MARK  # the checksum includes the mark
    return content + hashlib.sha256(content).digest()


def _checked(program: Any) -> bytes:
    """Return a program without its checksum. Raise an error if the checksum is wrong."""
    if not isinstance(program, bytes | bytearray | memoryview):
        msg = f"load_exported: this is not an exported program: it must be bytes; got a {type(program).__name__}"
        raise FuncconvError(msg)
    size = max(len(program) - hashlib.sha256().digest_size, 0)
    content, digest = bytes(program[:size]), bytes(program[size:])
    if not content.endswith(_CHECKSUM_MARK):
        msg = (
            f"load_exported: this is not an exported program with a checksum, or its end is missing ({len(program)} "
            "bytes). If you trust it, read it with jax.export.deserialize(bytearray(program)).call"
        )
        raise FuncconvError(msg)
    if hashlib.sha256(content).digest() != digest:
        msg = "load_exported: the program is damaged: it does not match its SHA-256. Export or copy it again"
        raise FuncconvError(msg)
    return content[: -len(_CHECKSUM_MARK)]


def _check_arguments(exported: jax_export.Exported, args: Sequence[Any]) -> None:
    """Raise an error for arguments whose number, structure, shapes or dtypes differ from those of the program."""
    expected, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    if len(args) != len(expected):
        arguments = f"{len(expected)} argument{'s' * (len(expected) != 1)}, of {_types(expected)}"
        msg = f"load_exported: the program takes {arguments}; got {len(args)}"
        raise FuncconvError(msg)
    for number, (arg, types) in enumerate(zip(args, expected, strict=True)):
        if jax.tree.structure(arg) != jax.tree.structure(types):  # type: ignore[operator]
            msg = (
                f"load_exported: argument {number} must be {_types(types)}; got a {type(arg).__name__} of another form"
            )
            raise FuncconvError(msg)
        for (path, leaf), aval in zip(jax.tree.leaves_with_path(arg), jax.tree.leaves(types), strict=True):
            name = f"argument {number}{jax.tree_util.keystr(path)}"
            try:
                actual = jax.typeof(leaf)
            except TypeError as error:
                msg = f"load_exported: {name} must be an array of {_types(aval)}; got a {type(leaf).__name__}"
                raise FuncconvError(msg) from error
            # Symbolic sizes are compared by the program itself, which knows the ones that must be equal.
            sizes = zip(actual.shape, aval.shape, strict=False)
            fits = actual.ndim == aval.ndim and all(a == b for a, b in sizes if isinstance(b, int))
            if not fits or actual.dtype != aval.dtype:
                msg = f"load_exported: {name} must be {_types(aval)}; got {_types(actual)}"
                raise FuncconvError(msg)


def _types(tree: Any) -> str:
    """Return the types of the arrays in a tree, cut after 300 letters."""
    text = ", ".join(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(tree))
    return text if len(text) < 300 else f"{text[:300]}…"
