"""Weights and architectures as safetensors files, which hold arrays by name and run nothing when they are read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import FuncconvError
from .._extras import needs
from .._graph import Graph
from .._typing import Params
from ._matching import check_params

_ARCHITECTURE = "funcconv"  # the entry of the metadata
_HASH = "funcconv-hash"
_STATE = "@state/"  # before the names of a state: no layer's name has an @


def save_safetensors(
    path: str | os.PathLike[str],
    params: Params,
    *,
    graph: Graph | None = None,
    state: Params | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a tree of arrays to a safetensors file, under the names of their paths: `"trunk/conv1/kernel"`.

    A weight that a network uses twice is one entry of the tree, and so one array of the file. The file is written
    beside its place and put there when it is whole.

    Args:
        path: of the file.
        params: nested dicts of arrays; None, a missing bias, is left out.
        graph: is written into the metadata, so that `load` needs the file alone.
        state: of the layers that keep one; `load_state` reads it.
        metadata: more texts by name.

    Returns:
        None.

    Raises:
        FuncconvError: if safetensors is not installed, a name has a `/`, an array is of a type that such a file cannot
            hold, or the file cannot be written.

    Example:
        >>> import funcconv as fc, jax, tempfile, os
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.Conv(4, 3)(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "net.safetensors")
        ...     fc.interop.save_safetensors(path, graph.init(jax.random.key(0)), graph=graph)
        ...     found, params = fc.interop.load(path)
        >>> found == graph, params["conv1"]["kernel"].shape
        (True, (3, 3, 1, 4))
    """
    with needs("safetensors", "a safetensors file"):
        from safetensors import SafetensorError
        from safetensors.numpy import save
    arrays = _named(params) | {f"{_STATE}{name}": array for name, array in _named(state or {}).items()}
    told = dict(metadata or {})
    if graph is not None:
        told |= {_ARCHITECTURE: graph.to_json(), _HASH: graph.content_hash}
    part = Path(path).with_name(Path(path).name + ".part")
    try:
        part.write_bytes(save(arrays, told))
        part.replace(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        part.unlink(missing_ok=True)
        msg = f"save_safetensors: {path} cannot be written: {error}"
        raise FuncconvError(msg) from error


def load_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the arrays of a safetensors file, and its metadata.

    The file is mapped into memory, and each array is read when it is copied to the device.

    Args:
        path: of the file.

    Returns:
        `(params, metadata)`: nested dicts by the parts of the names between `/`, and texts by name.

    Raises:
        FuncconvError: if safetensors is not installed, the file is not one or is damaged, or of two names one is a
            part of the other.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "weights.safetensors")
        ...     fc.interop.save_safetensors(path, {"dense1": {"kernel": jnp.ones((3, 2))}}, metadata={"of": "me"})
        ...     params, metadata = fc.interop.load_safetensors(path)
        >>> params["dense1"]["kernel"].shape, metadata
        ((3, 2), {'of': 'me'})
    """
    params, _, metadata = _arrays(path)
    return params, metadata


def load(path: str | os.PathLike[str]) -> tuple[Graph, dict[str, Any]]:
    """Read a network with its weights.

    Args:
        path: of a safetensors file that was written with `graph=`.

    Returns:
        `(graph, params)`; the parameters have the names and shapes that the graph needs, and the dtypes of the file.

    Raises:
        FuncconvError: as `load_safetensors`, and if the file has no graph, one that was changed, or other parameters.

    Example:
        >>> import funcconv as fc, jax, os, tempfile
        >>> x = fc.Input("x", (8, 8, 1))
        >>> net = fc.Graph(x, fc.Conv(4, 3)(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "net.safetensors")
        ...     fc.interop.save_safetensors(path, net.init(jax.random.key(0)), graph=net)
        ...     graph, params = fc.interop.load(path)
        >>> graph == net, params["conv1"]["kernel"].shape
        (True, (3, 3, 1, 4))
    """
    graph, params, _ = read(path)
    if graph is None:
        msg = f"load: {path} has arrays, but says nothing of the network; load_safetensors reads those"
        raise FuncconvError(msg)
    return graph, params


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the state that `save_safetensors` was given beside the parameters, such as running statistics.

    Args:
        path: of the file.

    Returns:
        A tree like `graph.init_state()`, `{}` where there is none.

    Raises:
        FuncconvError: as `load_safetensors`.

    Example:
        >>> import funcconv as fc, os, tempfile
        >>> x = fc.Input("x", (3,))
        >>> graph = fc.Graph(x, fc.BatchNorm()(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "state.safetensors")
        ...     fc.interop.save_safetensors(path, {}, state=graph.init_state())
        ...     list(fc.interop.load_state(path))
        ['batch_norm1']
    """
    return _arrays(path)[1]


def read(path: str | os.PathLike[str]) -> tuple[Graph | None, dict[str, Any], dict[str, Any]]:
    """Return the network, None where the file says nothing of it, its parameters and its state."""
    params, state, metadata = _arrays(path)
    if _ARCHITECTURE not in metadata:
        return None, params, state
    graph = Graph.from_json(metadata[_ARCHITECTURE])
    if metadata.get(_HASH) != graph.content_hash:
        msg = f"load: the network in {path} is not the one that was written: its hash is {graph.content_hash}"
        raise FuncconvError(msg)
    try:
        for entry in graph.entries:  # that of a layer without parameters, {}, is no array
            _put(params, entry, {}, once=False)
        check_params(graph, params)
    except FuncconvError as error:
        msg = f"load: the arrays of {path} are not those of its network: {error}"
        raise FuncconvError(msg) from None
    return graph, params, state


def _arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Return the parameters, the state and the metadata."""
    with needs("safetensors", "a safetensors file"):
        from safetensors import SafetensorError, safe_open
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    try:
        with safe_open(os.fspath(path), framework="flax") as file:
            metadata = dict(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                array = jnp.asarray(file.get_tensor(name))
                _put(state if name.startswith(_STATE) else params, name.removeprefix(_STATE), array)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, FuncconvError):
            raise
        msg = f"load_safetensors: {path} cannot be read: {str(error)[:300]}"
        raise FuncconvError(msg) from error
    return params, state, metadata


def _put(tree: dict[str, Any], name: str, value: Any, *, once: bool = True) -> None:
    """Put a value where its name says; without `once`, only where nothing is."""
    *above, last = name.split("/")
    for part in above:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            msg = f"load_safetensors: {name!r} would lie inside of another array"
            raise FuncconvError(msg)
    if tree.setdefault(last, value) is not value and once:
        msg = f"load_safetensors: {name!r} is an array, and a part of the names of others"
        raise FuncconvError(msg)


def _named(tree: Params) -> dict[str, np.ndarray]:
    arrays = {}
    for keys, leaf in jax.tree.leaves_with_path(tree):
        names = [str(getattr(key, "key", "")) for key in keys]
        if not names or not all(names) or any("/" in name for name in names):
            where = jax.tree_util.keystr(keys) or "that is an array"
            msg = f"save_safetensors: the parameters must be nested dicts with names without '/'; got an entry {where}"
            raise FuncconvError(msg)
        arrays["/".join(names)] = np.asarray(leaf, order="C")
    return arrays
