"""Files of weights by their endings: what they hold, read and written."""

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
    """What is in a file."""

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
    own, params, state = safetensors.read(path)
    if own is None:
        msg = f"{path} has arrays, but not the network: write it with save_safetensors(..., graph=graph)"
        raise FuncconvError(msg)
    return own, params, state


def read(path: str, graph: Graph | None = None, names: Mapping[str, str] | None = None) -> Weights:
    """Read weights, those of a graph where one is given."""
    suffix = Path(path).suffix
    if suffix in (".pt", ".pth"):
        if graph is None:
            msg = f"{path} has weights of PyTorch: say of which network, --graph FILE"
            raise FuncconvError(msg)
        return Weights(*from_torch(graph, _torch(path), names=names), graph)
    if suffix == ".safetensors":
        own, params, state = safetensors.read(path)
        found = Weights(params, state, own if graph is None else graph)
    elif suffix == ".msgpack":
        found = Weights(*_parted(_msgpack(path), path), graph)
    elif os.path.isdir(path):
        found = Weights(*_parted(_orbax(path), path), graph)
    else:
        msg = f"{path!r} is not of a format that is read here: {READABLE}"
        raise FuncconvError(msg)
    if graph is not None:
        check_params(graph, found.params)
    return found


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
    """Write a new folder: completely under another name, which is then changed."""
    with needs("train", "a folder of orbax"):
        import orbax.checkpoint as ocp
    if os.path.lexists(path) or not path or "\0" in path:
        why = "exists; choose a new name" if path and "\0" not in path else "is no name"
        msg = f"convert: a folder of orbax is written as a new folder, and {path!r} {why}"
        raise FuncconvError(msg)
    place = os.path.abspath(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".funcconv-", suffix=".tmp", dir=os.path.dirname(place)) as temporary:
            folder = Path(temporary) / "checkpoint"
            with ocp.StandardCheckpointer() as writer:
                writer.save(folder, tree)
            for each in (*folder.rglob("*"), folder):
                sync(each)
            folder.rename(place)
        sync(os.path.dirname(place))
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
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with it
        msg = f"{path} is not a state dict of PyTorch: {_first_line(error)}"
        raise FuncconvError(msg) from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        msg = f"{path} holds a {type(found).__name__}, not a state dict of PyTorch"
        raise FuncconvError(msg)
    return dict(found)


def _joined(weights: Weights) -> dict[str, Any]:
    """Return the parameters, and where there is a state both, as Flax calls them."""
    if not weights.state:
        return weights.params
    return {"params": weights.params, "batch_stats": weights.state}


def _parted(found: Any, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the state of a run, of variables of Flax, or of parameters alone."""
    if not isinstance(found, Mapping):
        msg = f"{path} holds a {type(found).__name__}, not a dict of arrays"
        raise FuncconvError(msg)
    params: Any = found
    state: Any = {}
    if "params" in found and "optimizer" in found:
        params, state = found["params"], found.get("model") or {}
    elif "params" in found and set(found) <= {"params", "batch_stats"}:
        params, state = found["params"], found.get("batch_stats", {})
    for tree in (params, state):
        if not isinstance(tree, Mapping):
            msg = f"{path} holds a {type(tree).__name__} where a dict of arrays is expected"
            raise FuncconvError(msg)
    return _arrays(params, path, ""), _arrays(state, path, "")


def _arrays(tree: Mapping[Any, Any], path: str, above: str) -> dict[str, Any]:
    """Return nested dicts of arrays of NumPy, with the dtypes that they have in the file."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        where = f"{above}/{name}" if above else str(name)
        if not isinstance(name, str):
            msg = f"{path}: the names must be texts; got {where!r}, of type {type(name).__name__}"
            raise FuncconvError(msg)
        if isinstance(value, Mapping) or value is None:
            found[name] = None if value is None else _arrays(value, path, where)
        elif isinstance(value, np.ndarray | np.generic | jax.Array | bool | int | float | complex):
            found[name] = np.asarray(value)
        else:
            msg = f"{path}: {where!r} is a {type(value).__name__}, not an array"
            raise FuncconvError(msg)
    return found


def _orbax(path: str) -> Any:
    """Return a checkpoint: of a run, the one of its last step."""
    with needs("train", "a folder of orbax"):
        import orbax.checkpoint as ocp
    folder = Path(path).absolute()
    try:
        if step_folders(folder):
            return _of_run(path, folder)
        with ocp.PyTreeCheckpointer() as reader:
            names = reader.metadata(folder).item_metadata.tree
            # arrays of NumPy, because JAX would narrow 64 bits
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
            return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kinds))
    except FuncconvError:
        raise
    except Exception as error:  # whatever is wrong with it
        msg = f"{path} is not a checkpoint of orbax: {_first_line(error)}"
        raise FuncconvError(msg) from error


def _of_run(path: str, folder: Path) -> Any:
    """Return the last checkpoint of a run that is whole."""
    found = StoredCheckpoints(folder).arrays()
    if found is None:
        msg = f"{path} has no checkpoint that can be read"
        raise FuncconvError(msg)
    return found


def _first_line(error: Exception) -> str:
    """Return the first line of what an error says, or what it is if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
