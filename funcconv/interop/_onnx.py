"""Networks as ONNX files, written by the package jax2onnx."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._common.errors import FuncconvError
from .._common.files import write_file
from .._common.optional_packages import needs
from .._common.paths import checked_path
from .._common.types import Params
from .._graph.repeat.unstack import unstack
from .._graph.use.graph import Graph
from .._primitives.plain import plain
from ._export import batched_inputs, kept_state

_BATCH_SIZE = 2  # of the random inputs on which a file is checked


def to_onnx(
    graph: Graph,
    params: Params,
    path: str | os.PathLike[str],
    *,
    state: Params | None = None,
    batch: str | int | None = "b",
    opset: int | None = None,
) -> tuple[str, ...]:
    """Write a network to an ONNX file, using the package jax2onnx.

    The model is first run by onnxruntime on random inputs. If the results differ from those of the graph, no file is
    written. If writing fails, an earlier file with this name is unchanged. The copies of `fc.repeat` are written as
    separate operations.

    Args:
        graph: the network, which is evaluated in evaluation mode. The inputs of the file have the names of its inputs.
        params: its parameters, in float32; they become part of the file.
        path: the path of the file.
        state: the state of the graph, such as running statistics, which becomes part of the file. Required if the graph
            has one. Default: None.
        batch: the batch size. A name such as `"b"` allows any batch size; an integer fixes it; None means no batch
            axis. Default: `"b"`.
        opset: the version of the ONNX operator set, an integer. Default: None, the version that jax2onnx uses.

    Returns:
        The names of the file's outputs, in the order of `jax.tree.leaves`. Each is the path in the structure that the
        graph returns, such as `"head/0"`. If the graph returns one array, it is the name of its node.

    Raises:
        FuncconvError: if jax2onnx or onnxruntime is not installed; if the graph has a state and `state` is None; if a
            floating array is not in float32; if jax2onnx cannot express an operation or onnxruntime cannot run it (the
            message names it); if the results differ; if an input and an output have the same name; if the file cannot
            be written.

    Example:
        >>> import funcconv as fc, jax, os, tempfile
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.max_pool)(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.interop.to_onnx(graph, graph.init(jax.random.key(0)), os.path.join(folder, "net.onnx"))
        ('max_pool1',)
    """
    checked = str(checked_path("to_onnx", path, wants="file"))
    checked_state = kept_state("to_onnx", graph, state)
    with needs("onnx", "to_onnx"):
        jax2onnx, onnxruntime = import_module("jax2onnx"), import_module("onnxruntime")
    _check_dtypes("parameter", params)
    _check_dtypes("state", checked_state)
    inputs = batched_inputs(graph, params, batch)
    _check_dtypes("input", dict(zip(graph.inputs, inputs, strict=True)))
    separate, own_params, own_state = unstack(graph, params, checked_state)  # converters know no convolutions in loops

    def evaluate(*xs: Any) -> Any:
        # What depends on weights alone, such as a normalized kernel, is computed now. Its loops and random numbers have
        # no counterpart in the file.
        with jax.ensure_compile_time_eval():
            return separate.apply(own_params, own_state, *xs)[0]

    # The model must be in float32, because onnxruntime has convolutions in float32 only.
    with jax.enable_x64(False):  # noqa: FBT003
        names = _output_names(graph, jax.eval_shape(evaluate, *inputs))
        options = {} if opset is None else {"opset": opset}
        try:
            with _restored_packages():
                model = jax2onnx.to_onnx(
                    plain(evaluate, *inputs),  # jax2onnx does not know the primitives of funcconv
                    inputs,
                    model_name=graph.name or "funcconv",
                    input_names=graph.inputs,
                    output_names=names,
                    **options,
                ).SerializeToString()
        except Exception as error:
            msg = f"to_onnx: jax2onnx cannot express the network: {type(error).__name__}: {str(error)[:300]}"
            raise FuncconvError(msg) from error
        _check(onnxruntime, model, evaluate, inputs, names)
    write_file("to_onnx", checked, model)
    return names


@contextmanager
def _restored_packages() -> Iterator[None]:
    """Restore functions such as `jnp.cumsum`, which jax2onnx 0.17 replaces in other packages and leaves replaced."""
    linen = import_module("flax.linen")
    owners = [jnp, jax.lax, jax.nn, *(value for value in vars(linen).values() if isinstance(value, type))]
    saved = [(owner, dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for owner, names in saved:
            for name, value in names.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)
            for name in vars(owner).keys() - names.keys() if isinstance(owner, type) else ():
                delattr(owner, name)  # it would hide an inherited attribute


def _check_dtypes(kind: str, tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype != jnp.float32:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            msg = (
                f"to_onnx: {kind} {name!r} must be float32, as onnxruntime has no other convolutions; got {leaf.dtype}"
            )
            raise FuncconvError(msg)


def _output_names(graph: Graph, outputs: Any) -> tuple[str, ...]:
    """Return a name for each array that the graph returns."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(outputs)]
    names = tuple(jax.tree_util.keystr(path, simple=True, separator="/") or graph.outputs[0] for path in paths)
    if shared_names := set(names) & set(graph.inputs):
        msg = (
            f"to_onnx: an input and an output are both called {sorted(shared_names)[0]!r}. Give the node another name="
        )
        raise FuncconvError(msg)
    return names


def _check(onnxruntime: Any, model: bytes, evaluate: Any, inputs: Sequence[Any], names: Sequence[str]) -> None:
    """Run the model on random inputs, and compare its outputs with those of the graph."""
    rng = np.random.default_rng(0)
    random_inputs = []
    for item in inputs:
        shape = [size if isinstance(size, int) else _BATCH_SIZE for size in item.shape]
        floating = jnp.issubdtype(item.dtype, np.floating)
        random_inputs.append((rng.normal(size=shape) if floating else np.zeros(shape)).astype(item.dtype))
    expected = jax.tree.leaves(jax.jit(evaluate)(*random_inputs))
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        onnx_outputs = session.run(
            list(names), dict(zip((item.name for item in session.get_inputs()), random_inputs, strict=True))
        )
    except Exception as error:
        msg = f"to_onnx: onnxruntime cannot run the file that jax2onnx wrote: {str(error)[:300]}"
        raise FuncconvError(msg) from error
    for name, own_output, onnx_output in zip(names, map(np.asarray, expected), onnx_outputs, strict=True):
        if own_output.shape != onnx_output.shape or own_output.dtype != onnx_output.dtype:
            file_type = f"{onnx_output.dtype} {onnx_output.shape}"
            msg = f"to_onnx: {name!r} must be {own_output.dtype} {own_output.shape}; in the file it is {file_type}"
            raise FuncconvError(msg)
        # The two programs round differently, so half of the digits must agree.
        tolerance = np.sqrt(np.finfo(own_output.dtype).eps) if np.issubdtype(own_output.dtype, np.floating) else 0
        scale = np.abs(own_output).max(initial=0)
        if not np.allclose(onnx_output, own_output, rtol=0, atol=tolerance * scale, equal_nan=True):
            msg = (
                f"to_onnx: on random inputs {name!r} of the file differs by "
                f"{np.abs(onnx_output - own_output).max():.3g}, where values are up to {scale:.3g}"
            )
            raise FuncconvError(msg)
