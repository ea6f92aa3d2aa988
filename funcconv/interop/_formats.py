"""Files of weights, read and written in the format that their ending names."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .._checkpoints.step_folders import step_folders
from .._checkpoints.stored import StoredCheckpoints
from .._common.errors import FuncconvError
from .._common.files import existing_file, read_file, sync, write_file
from .._common.optional_packages import needs
from .._graph.use.graph import Graph
from . import _safetensors as safetensors
from ._matching import check_params
from ._onnx import to_onnx
from ._torch.weights import from_torch

READABLE = ".safetensors, .msgpack of Flax, .pt or .pth of PyTorch (a state dict), or a folder of orbax or fc.train"
WRITABLE = ".safetensors, .msgpack, a folder for orbax, or .onnx, which has the network in it"


class Weights(NamedTuple):
    """The content of a file."""

    params: dict[str, Any]
    state: dict[str, Any]
    graph: Graph | None


def network(path: str) -> tuple[Graph, dict[str, Any] | None, dict[str, Any]]:
    """Read a network, its parameters (None if there are none) and its state ({} if the file has none)."""
    if path.endswith(".json"):
        content = read_file("network", path)
        try:
            return Graph.from_json(content), None, {}
        except Exception as error:  # whatever is wrong with it
            msg = f"{path} is not a network: {_first_line(error)}"
            raise FuncconvError(msg) from error
    if not path.endswith(".safetensors"):
        msg = f"{path!r} is not a network: pass a .safetensors file, or a .json file of Graph.to_json"
        raise FuncconvError(msg)
    graph, params, state = safetensors.read(path)
    if graph is None:
        msg = f"{path} has arrays, but not the network: write it with save_safetensors(..., graph=graph)"
        raise FuncconvError(msg)
    return graph, params, state


def read(path: str, graph: Graph | None = None, names: Mapping[str, str] | None = None) -> Weights:
    """Read weights. If a graph is given, they must be its weights."""
    suffix = Path(path).suffix
    if suffix in (".pt", ".pth"):
        if graph is None:
            msg = f"{path} has weights of PyTorch: say of which network, --graph FILE"
            raise FuncconvError(msg)
        return Weights(*from_torch(graph, _torch(path), names=names), graph)
    if suffix == ".safetensors":
        file_graph, params, state = safetensors.read(path)
        weights = Weights(params, state, file_graph if graph is None else graph)
    elif suffix == ".msgpack":
        weights = Weights(*_parted(_msgpack(path), path), graph)
    elif os.path.isdir(path):
        weights = Weights(*_parted(_orbax(path), path), graph)
    else:
        msg = f"{path!r} is not of a format that is read here: {READABLE}"
        raise FuncconvError(msg)
    if graph is not None:
        check_params(graph, weights.params)
    return weights


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
            msg = f"{path} is to have the network in it: say which, --graph FILE"
            raise FuncconvError(msg)
        to_onnx(weights.graph, weights.params, path, state=weights.state or None)
    elif not suffix:
        _write_orbax(path, _joined(weights))
    else:
        msg = f"{path!r} is not of a format that is written here: {WRITABLE}"
        raise FuncconvError(msg)


def _write_orbax(path: str, tree: Any) -> None:
    """Write a new folder. It is written completely under another name, and then renamed."""
    with needs("train", "a folder of orbax"):
        import orbax.checkpoint as ocp
    if os.path.lexists(path) or not path or "\0" in path:
        reason = "exists; choose a new name" if path and "\0" not in path else "is no name"
        msg = f"convert: a folder of orbax is written as a new folder, and {path!r} {reason}"
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


def _msgpack(path: str) -> Any:
    with needs("flax", "a msgpack file"):
        from flax import serialization
    content = read_file("convert", path)
    try:
        return serialization.msgpack_restore(content)
    except Exception as error:  # whatever is wrong with it
        msg = f"{path} is not a msgpack file of Flax: {_first_line(error)}"
        raise FuncconvError(msg) from error


def _torch(path: str) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as error:
        msg = f"{path} needs PyTorch to be read: pip install torch"
        raise FuncconvError(msg) from error
    existing_file("convert", path)
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)  # with weights_only, reading runs no code
    except Exception as error:  # whatever is wrong with it
        msg = f"{path} is not a state dict of PyTorch: {_first_line(error)}"
        raise FuncconvError(msg) from error
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        msg = f"{path} holds a {type(state_dict).__name__}, not a state dict of PyTorch"
        raise FuncconvError(msg)
    return dict(state_dict)


def _joined(weights: Weights) -> dict[str, Any]:
    """Return the parameters; if there is a state, both, under the names that Flax uses."""
    if not weights.state:
        return weights.params
    return {"params": weights.params, "batch_stats": weights.state}


def _parted(content: Any, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the state in a training state, in Flax variables, or in a tree of parameters."""
    if not isinstance(content, Mapping):
        msg = f"{path} holds a {type(content).__name__}, not a dict of arrays"
        raise FuncconvError(msg)
    params: Any = content
    state: Any = {}
    if "params" in content and "optimizer" in content:
        params, state = content["params"], content.get("model") or {}
    elif "params" in content and set(content) <= {"params", "batch_stats"}:
        params, state = content["params"], content.get("batch_stats", {})
    for tree in (params, state):
        if not isinstance(tree, Mapping):
            msg = f"{path} holds a {type(tree).__name__} where a dict of arrays is expected"
            raise FuncconvError(msg)
    return _arrays(params, path, ""), _arrays(state, path, "")


def _arrays(tree: Mapping[Any, Any], path: str, parent: str) -> dict[str, Any]:
    """Return nested dicts of NumPy arrays, with the dtypes of the file."""
    arrays: dict[str, Any] = {}
    for name, value in tree.items():
        full_name = f"{parent}/{name}" if parent else str(name)
        if not isinstance(name, str):
            msg = f"{path}: the names must be texts; got {full_name!r}, of type {type(name).__name__}"
            raise FuncconvError(msg)
        if isinstance(value, Mapping) or value is None:
            arrays[name] = None if value is None else _arrays(value, path, full_name)
        elif isinstance(value, np.ndarray | np.generic | jax.Array | bool | int | float | complex):
            arrays[name] = np.asarray(value)
        else:
            msg = f"{path}: {full_name!r} is a {type(value).__name__}, not an array"
            raise FuncconvError(msg)
    return arrays


def _orbax(path: str) -> Any:
    """Return the content of a checkpoint. In a folder of a run, this is the last complete one."""
    with needs("train", "a folder of orbax"):
        import orbax.checkpoint as ocp
    folder = Path(path).absolute()
    try:
        if step_folders(folder):
            return _of_run(path, folder)
        with ocp.PyTreeCheckpointer() as reader:
            names = reader.metadata(folder).item_metadata.tree
            # NumPy arrays, because JAX would narrow 64 bits
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
            return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kinds))
    except FuncconvError:
        raise
    except Exception as error:  # whatever is wrong with it
        msg = f"{path} is not a checkpoint of orbax: {_first_line(error)}"
        raise FuncconvError(msg) from error


def _of_run(path: str, folder: Path) -> Any:
    """Return the last complete checkpoint of a run."""
    state = StoredCheckpoints(folder).arrays()
    if state is None:
        msg = f"{path} has no checkpoint that can be read"
        raise FuncconvError(msg)
    return state


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text; its type if the text is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
