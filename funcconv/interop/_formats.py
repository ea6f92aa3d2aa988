"""Files of weights by their endings: what they hold, read and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .._errors import FuncconvError
from .._extras import needs
from .._graph import Graph
from . import _safetensors as safetensors
from ._matching import check_params
from ._onnx import to_onnx
from ._torch import from_torch

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
        graph = Graph.from_json(Path(path).read_bytes())
        return graph, None, {}
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
        with needs("flax", "a msgpack file"):
            from flax import serialization
        try:
            found = Weights(*_parted(serialization.msgpack_restore(Path(path).read_bytes())), graph)
        except (OSError, ValueError, TypeError, KeyError) as error:
            msg = f"{path} is not a msgpack file of Flax: {error}"
            raise FuncconvError(msg) from error
    elif Path(path).is_dir():
        found = Weights(*_parted(_orbax(path)), graph)
    else:
        msg = f"{path} is not of a format that is read here: {READABLE}"
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
        Path(path).write_bytes(serialization.to_bytes(_joined(weights)))
    elif suffix == ".onnx":
        if weights.graph is None:
            msg = f"{path} is to have the network in it: say which, --graph FILE"
            raise FuncconvError(msg)
        to_onnx(weights.graph, weights.params, path, state=weights.state or None)
    elif not suffix:
        with needs("train", "a folder of orbax"):
            import orbax.checkpoint as ocp
        with ocp.StandardCheckpointer() as writer:
            writer.save(Path(path).absolute(), _joined(weights))
    else:
        msg = f"{path} is not of a format that is written here: {WRITABLE}"
        raise FuncconvError(msg)


def _torch(path: str) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as error:
        msg = f"{path} needs PyTorch to be read: pip install torch"
        raise FuncconvError(msg) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with it
        msg = f"{path} is not a state dict of PyTorch: {str(error)[:200]}"
        raise FuncconvError(msg) from error
    if not isinstance(found, Mapping):
        msg = f"{path} holds a {type(found).__name__}, not a state dict of PyTorch"
        raise FuncconvError(msg)
    return dict(found)


def _joined(weights: Weights) -> dict[str, Any]:
    """Return the parameters, and where there is a state both, as Flax calls them."""
    if not weights.state:
        return weights.params
    return {"params": weights.params, "batch_stats": weights.state}


def _parted(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the state of a run, of variables of Flax, or of parameters alone."""
    params: Any = found
    state: Any = {}
    if "params" in found and "optimizer" in found:
        params, state = found["params"], found.get("model") or {}
    elif "params" in found and set(found) <= {"params", "batch_stats"}:
        params, state = found["params"], found.get("batch_stats", {})
    return jax.tree.map(np.asarray, (dict(params), state))  # type: ignore[no-any-return]


def _orbax(path: str) -> dict[str, Any]:
    """Return a checkpoint: of a run, that of its last step."""
    with needs("train", "a folder of orbax"):
        import orbax.checkpoint as ocp
    steps = sorted((each for each in Path(path).iterdir() if each.name.isdigit()), key=lambda each: int(each.name))
    place = steps[-1] / "state" if steps else Path(path)
    try:
        with ocp.StandardCheckpointer() as reader:
            found = reader.restore(place.absolute())
    except Exception as error:  # whatever is wrong with it
        msg = f"{place} is not a checkpoint of orbax: {str(error).splitlines()[0][:200]}"
        raise FuncconvError(msg) from error
    return dict(found)
