"""Files of weights: the command line reads them by their content and writes them by their ending."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from .._checkpoints.content import read_content
from .._common.errors import FuncconvError
from .._common.files import read_file, sync, write_file
from .._common.optional_packages import needs
from .._graph.name.entries import check
from .._graph.use.graph import Graph
from .._weight_files.content import Content, file_kind
from .._weight_files.read import choose, named_arrays
from . import _safetensors as safetensors
from ._flax import from_linen
from ._matching import check_params
from ._onnx import to_onnx
from ._torch.weights import from_torch

READABLE = (
    ".safetensors, .msgpack of Flax, .pt, .pth, .pth.tar, .ckpt or .bin of PyTorch (a state dict, alone or in a "
    "checkpoint), or a folder of orbax or fc.train"
)
WRITABLE = ".safetensors, .msgpack, a folder for orbax, or .onnx, which has the network in it"


_TORCH_SUFFIXES = (".pt", ".pth", ".tar", ".ckpt", ".bin")


class Weights(NamedTuple):
    """The content of a file."""

    params: dict[str, Any]
    state: dict[str, Any]
    graph: Graph | None
    notes: tuple[str, ...] = ()  # what the user should know about how the file was read


def network(path: str) -> tuple[Graph, dict[str, Any] | None, dict[str, Any]]:
    """Read a network, its parameters (None if there are none) and its state ({} if the file has none)."""
    if path.endswith(".json"):
        content = read_file("network", path)
        try:
            return Graph.from_json(content), None, {}
        except Exception as error:  # damaged files can raise any error
            msg = f"{path} is not a network: {_first_line(error)}"
            raise FuncconvError(msg) from error
    if not path.endswith(".safetensors"):
        msg = f"{path!r} is not a network: pass a .safetensors file, or a .json file of Graph.to_json"
        raise FuncconvError(msg)
    graph, params, state = safetensors.read(path)
    if graph is None:
        msg = f"{path} has arrays, but no network. Write it with save_safetensors(..., graph=graph)"
        raise FuncconvError(msg)
    return graph, params, state


def read(
    path: str,
    graph: Graph | None = None,
    names: Mapping[str, str] | None = None,
    key: str | None = None,
    pairing: str | None = None,
) -> Weights:
    """Read weights, in the format that the content of the file shows. If a graph is given, they must be its weights.

    Args:
        path: path of the file or folder.
        graph: the graph; needed for weights of PyTorch.
        names: the module of each entry of the graph, for weights of PyTorch and Flax. None pairs them.
        key: the entry of the file that has the weights. None chooses the only one.
        pairing: `"order"` pairs the modules of PyTorch in their order. None pairs them by names and shapes.

    Returns:
        The weights of the graph, or without a graph the arrays of the file.

    Raises:
        FuncconvError: if the file cannot be read, or has other weights than the graph.
    """
    suffix = Path(path).suffix.lower()
    if graph is None and suffix in _TORCH_SUFFIXES:
        _refuse_without_graph(path)
    if suffix not in (*_TORCH_SUFFIXES, ".safetensors", ".msgpack", "") and not os.path.lexists(path):
        msg = f"convert: there is no file {path!r}. Pass a file in one of the formats {READABLE}"
        raise FuncconvError(msg)
    if os.path.isfile(path) and file_kind("convert", path) == "safetensors":
        return _of_safetensors(path, graph, names, key, pairing)
    content = read_content("convert", path)
    if content.kind != "torch":
        return _of_flax(path, content, graph, names, key)
    if graph is None:
        _refuse_without_graph(path)
    return _of_torch(path, content, graph, names, key, pairing)


def _of_safetensors(
    path: str, graph: Graph | None, names: Mapping[str, str] | None, key: str | None, pairing: str | None
) -> Weights:
    """Read a safetensors file. Its names are paths of funcconv, which have `/`, or names of PyTorch."""
    file_graph, params, state = safetensors.read(path)
    is_nested = bool(state) or any(isinstance(value, Mapping) for value in params.values())
    if graph is not None and not is_nested and not set(params) <= set(graph.entries):
        return _of_torch(path, Content("safetensors", params), graph, names, key, pairing)
    if key is not None:
        msg = f"convert: {path} has the weights of a single network. Omit --key"
        raise FuncconvError(msg)
    if graph is not None:
        check_params(graph, params)
    return Weights(params, state, file_graph if graph is None else graph)


def _of_torch(
    path: str, content: Content, graph: Graph, names: Mapping[str, str] | None, key: str | None, pairing: str | None
) -> Weights:
    """Return the weights in a file with names of PyTorch."""
    content_arrays = named_arrays("convert", path, content, key)
    arrays, notes = content_arrays.arrays, content_arrays.notes
    prefix = content_arrays.prefix.replace(".", "/")
    if prefix and all(entry.startswith(prefix) for entry in graph.entries):  # the prefix is a part of the module
        arrays, notes = content_arrays.names_of_file(), notes[:-1]
    try:
        return Weights(*from_torch(graph, arrays, names=names, pairing=pairing), graph, notes)
    except FuncconvError as error:
        msg = "\n".join([str(error), *notes])
        raise FuncconvError(msg) from None


def _of_flax(
    path: str, content: Content, graph: Graph | None, names: Mapping[str, str] | None, key: str | None
) -> Weights:
    """Return the weights in a file of Flax or orbax: of the graph itself, or of a Flax module."""
    choice = choose("convert", path, content, key)
    params, state = _parted(choice.tree, path)
    notes = tuple(note for note in (content.note, *choice.notes) if note)
    if graph is None:
        return Weights(params, state, None, notes)
    if names is None and _has_entries(params, graph):
        check_params(graph, params)
        return Weights(params, state, graph, notes)
    return Weights(*from_linen(graph, {"params": params, "batch_stats": state}, names=names), graph, notes)


def _has_entries(params: dict[str, Any], graph: Graph) -> bool:
    """Return whether parameters have the entries of a graph, as `convert` and `to_linen` write them."""
    try:
        check(params, [tuple(entry.split("/")) for entry in graph.entries])
    except FuncconvError:
        return False
    return True


def _refuse_without_graph(path: str) -> NoReturn:
    msg = f"convert: {path} has weights of PyTorch, which need a network. Pass --graph FILE"
    raise FuncconvError(msg)


def write(path: str, weights: Weights) -> None:
    """Write weights."""
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        safetensors.save_safetensors(path, weights.params, graph=weights.graph, state=weights.state)
    elif suffix == ".msgpack":
        with needs("flax", "a msgpack file"):
            from flax import serialization
        write_file("convert", path, serialization.to_bytes(_joined(weights)))
    elif suffix == ".onnx":
        if weights.graph is None:
            msg = f"{path} must contain the network. Pass --graph FILE"
            raise FuncconvError(msg)
        to_onnx(weights.graph, weights.params, path, state=weights.state or None)
    elif not suffix:
        _write_orbax(path, _joined(weights))
    else:
        msg = f"{path!r} must have the ending of a format that can be written: {WRITABLE}"
        raise FuncconvError(msg)


def _write_orbax(path: str, tree: Any) -> None:
    """Write a new folder. It is written completely under another name, and then renamed."""
    with needs("train", "a folder of orbax"):
        import orbax.checkpoint as ocp
    if os.path.lexists(path) or not path or "\0" in path:
        reason = "exists; choose a new name" if path and "\0" not in path else "is no name"
        msg = f"convert: orbax writes a new folder, but {path!r} {reason}"
        raise FuncconvError(msg)
    target = os.path.abspath(path)
    try:
        # In the same folder, because a folder cannot be renamed to another file system.
        with tempfile.TemporaryDirectory(prefix=".funcconv-", suffix=".tmp", dir=os.path.dirname(target)) as temporary:
            folder = Path(temporary) / "checkpoint"
            with ocp.StandardCheckpointer() as writer:
                writer.save(folder, tree)
            for written in (*folder.rglob("*"), folder):
                sync(written)
            folder.rename(target)
        sync(os.path.dirname(target))
    except Exception as error:
        msg = f"convert: {path} cannot be written: {_first_line(error)}"
        raise FuncconvError(msg) from error


def _joined(weights: Weights) -> dict[str, Any]:
    """Return the parameters; if there is a state, both, under the names that Flax uses."""
    if not weights.state:
        return weights.params
    return {"params": weights.params, "batch_stats": weights.state}


def _parted(content: Any, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the state in Flax variables, or in a tree of parameters."""
    params: Any = content
    state: Any = {}
    if isinstance(content, Mapping) and "params" in content and set(content) <= {"params", "batch_stats"}:
        params, state = content["params"], content.get("batch_stats") or {}
    for tree in (params, state):
        if not isinstance(tree, Mapping):
            msg = f"convert: {path} must contain a dict of arrays; it contains a {type(tree).__name__}"
            raise FuncconvError(msg)
    return _arrays(params, path, ""), _arrays(state, path, "")


def _arrays(tree: Mapping[Any, Any], path: str, parent: str) -> dict[str, Any]:
    """Return nested dicts of NumPy arrays, with the dtypes of the file."""
    arrays: dict[str, Any] = {}
    for name, value in tree.items():
        full_name = f"{parent}/{name}" if parent else str(name)
        if not isinstance(name, str):
            msg = f"{path}: the names must be strings; got {full_name!r} of type {type(name).__name__}"
            raise FuncconvError(msg)
        if isinstance(value, Mapping) or value is None:
            arrays[name] = None if value is None else _arrays(value, path, full_name)
        elif isinstance(value, np.ndarray | np.generic | jax.Array | bool | int | float | complex):
            arrays[name] = np.asarray(value)
        else:
            msg = f"{path}: {full_name!r} must be an array; it is a {type(value).__name__}"
            raise FuncconvError(msg)
    return arrays


def _first_line(error: Exception) -> str:
    """Return the first line of an error message, or the type of the error if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
