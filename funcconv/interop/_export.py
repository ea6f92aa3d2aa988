"""Networks as programs that need JAX alone to be run, on another machine and another kind of device."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import jax
from jax import export as jax_export

from .._errors import FuncconvError, suggest
from .._extras import needs
from .._graph import Graph
from .._typing import Params

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
    """Compile a network into bytes that `load_exported`, or `jax.export.deserialize`, makes a function of again.

    Args:
        graph: which is evaluated as outside of training.
        params: become a part of the program; None leaves them to be its first argument, of the shapes that the graph
            draws.
        state: of a graph that keeps one; becomes a part of the program.
        batch: the name of a batch axis of any size, a size, or None for no batch axis.
        platforms: on which it is to run, of `"cpu"`, `"cuda"`, `"rocm"`, `"tpu"`.
        orders: how often it can be differentiated: 1 for gradients, 2 for products with the Hessian, by `jax.vjp` of
            `jax.grad`.

    Returns:
        Bytes.

    Raises:
        FuncconvError: if an option is unknown, or the program cannot be exported.

    Source: the documentation of `jax.export`, which also says for how long such programs can be read.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.Conv(4, 3)(x))
        >>> program = fc.interop.export(graph, graph.init(jax.random.key(0)), platforms=("cpu",))
        >>> fc.interop.load_exported(program)(jnp.ones((5, 8, 8, 1))).shape
        (5, 6, 6, 4)
    """
    if isinstance(orders, bool) or not isinstance(orders, int) or orders < 0:
        msg = f"export: orders must be an integer from 0 on; got {orders!r}"
        raise FuncconvError(msg)
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        msg = f"export: unknown platform {unknown[0]!r}{suggest(unknown[0], PLATFORMS)}"
        raise FuncconvError(msg)
    kept = kept_state("export", graph, state)

    def evaluate(*args: Any) -> Any:
        given, *xs = args if params is None else (params, *args)
        return graph.apply(given, kept, *xs)[0]

    _check_flatbuffers()
    try:
        inputs = batched_inputs(graph, params, batch)
        first = [jax.eval_shape(graph.init, jax.eval_shape(jax.random.key, 0))] if params is None else []
        exported = jax_export.export(jax.jit(evaluate), platforms=tuple(platforms))(*first, *inputs)
        return bytes(exported.serialize(vjp_order=orders))
    except FuncconvError:
        raise
    except Exception as error:
        msg = f"export: the network cannot be exported: {str(error)[:300]}"
        raise FuncconvError(msg) from error


def kept_state(op: str, graph: Graph, state: Params | None) -> Params:
    """Return the state with which a graph is evaluated, which one that keeps none need not be given."""
    if state is None and graph.init_state():
        msg = f"{op}: the graph keeps a state; give it, state=..."
        raise FuncconvError(msg)
    return {} if state is None else state


def batched_inputs(graph: Graph, params: Params | None, batch: str | int | None) -> list[Any]:
    """Return the types of the inputs, in front a batch axis: of any size if it is a name, none if it is None."""
    axes = () if batch is None else jax_export.symbolic_shape(batch) if isinstance(batch, str) else (batch,)
    shapes = graph.shapes(params)
    return [
        jax.ShapeDtypeStruct((*axes, *shapes[name].shape), shapes[name].dtype)  # type: ignore[no-untyped-call]
        for name in graph.inputs
    ]


def _check_flatbuffers() -> None:
    """JAX writes and reads programs by this package, which it does not install."""
    with needs("export", "an exported program"):
        import_module("flatbuffers")


def load_exported(program: bytes | bytearray) -> Callable[..., Any]:
    """Return the function that was exported.

    Args:
        program: of `export`.

    Returns:
        A function of the inputs, or of the parameters and the inputs, to be called, jitted, and differentiated as often
        as was asked for.

    Raises:
        FuncconvError: if the bytes are not such a program.

    Example:
        >>> import funcconv as fc
        >>> try:
        ...     fc.interop.load_exported(b"no program")
        ... except fc.FuncconvError as error:
        ...     print(str(error)[:45])
        load_exported: this is not an exported progra
    """
    _check_flatbuffers()
    try:
        return jax_export.deserialize(bytearray(program)).call
    except Exception as error:
        msg = f"load_exported: this is not an exported program: {type(error).__name__}: {str(error)[:200]}"
        raise FuncconvError(msg) from error
