"""Weights and architectures as safetensors files. Reading such a file runs no code."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._common.dtypes import exact
from .._common.errors import FuncconvError
from .._common.files import existing_file, write_file
from .._common.types import Params
from .._graph.use.graph import Graph
from .._weight_files import safetensors_format
from .._weight_files.safetensors_format import ESCAPE, STATE_PREFIX
from ._matching import check_params

_ARCHITECTURE = "funcconv"  # the entry of the metadata with the JSON of the graph
_HASH = "funcconv-hash"
_EMPTY = "funcconv-empty"  # the names under which the tree has {} or None in place of an array
_RESERVED = (_EMPTY, safetensors_format.CHECKSUMS, safetensors_format.SHA256)


def save_safetensors(
    path: str | os.PathLike[str],
    params: Params,
    *,
    graph: Graph | None = None,
    state: Params | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a tree of arrays to a safetensors file. Each array is named by its path, such as `"trunk/conv1/kernel"`.

    A weight that a network uses twice is one entry of the tree, and so one array of the file. Every array, and the file
    as a whole, gets a checksum, so that `load_safetensors` refuses a damaged file. The file is written under a
    temporary name in the same folder and then renamed. If that fails, an earlier file with this name is unchanged.

    An `@` at the start of a name is doubled in the file, because `"@state/"` marks the state.

    Args:
        path: the path of the file.
        params: nested dicts of arrays. Names must not be empty or contain `/`. An empty dict and None, which stands for
            a missing bias, are stored too. All dtypes of the format are kept: bool; integers of 8 to 64 bits; float8
            (`e4m3fn`, `e5m2`, `e8m0fnu`, `e4m3fnuz`, `e5m2fnuz`), float16, bfloat16, float32 and float64; complex64.
        graph: the network, which is written into the metadata, so that `load` needs only the file. Default: None, the
            file contains only the arrays.
        state: the state of the graph, such as running statistics, which `load_state` reads. Default: None.
        metadata: further strings by name. Default: None.

    Returns:
        None.

    Raises:
        FuncconvError: if a name, a dtype or a text cannot be written; if an array was deleted or is a random key; if
            metadata uses a name that funcconv needs; if the file cannot be written.

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
    arrays, empty = _named(params, "parameters", "")
    for collected, state_part in zip(
        (arrays, empty), _named({} if state is None else state, "state", STATE_PREFIX), strict=True
    ):
        collected |= state_part
    texts = _texts(metadata)
    own_texts = {} if graph is None else {_ARCHITECTURE: graph.to_json(), _HASH: graph.content_hash}
    for name in texts:
        if name in _RESERVED or own_texts.get(name, texts[name]) != texts[name]:
            msg = f"save_safetensors: the name {name!r} in metadata is reserved for funcconv. Use another name"
            raise FuncconvError(msg)
    own_texts |= {_EMPTY: json.dumps(empty)} if empty else {}
    try:
        buffers = safetensors_format.encoded(arrays, texts | own_texts)
    except FuncconvError as error:
        msg = f"save_safetensors: {path} cannot be written: {error}"
        raise FuncconvError(msg) from None
    write_file("save_safetensors", path, buffers)


def load_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the arrays and the metadata of a safetensors file.

    Arrays are JAX arrays. An array whose dtype JAX would narrow stays a NumPy array: float64, complex128 and integers
    of 64 bits, unless `jax_enable_x64` is set. JAX rounds such arrays when you compute with them. A call of a graph
    warns about that, but `jax.jit` does not. Checksums are compared if the file has them; the files of
    `save_safetensors` do, and those of other libraries do not.

    Args:
        path: the path of the file.

    Returns:
        `(params, metadata)`: nested dicts, by the parts of the names between `/`, and texts by name.

    Raises:
        FuncconvError: if the file is not in this format; if it is damaged (the message names the array); if one name is
            the beginning of another one.

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
    """Read a network and its weights.

    Args:
        path: the path of a safetensors file that was written with `save_safetensors(..., graph=graph)`.

    Returns:
        `(graph, params)`. The parameters have the names and shapes that the graph needs, and the dtypes of the file.
        They are JAX arrays; arrays of 64 bits are NumPy arrays unless `jax_enable_x64` is set.

    Raises:
        FuncconvError: if the file is not in this format or is damaged; if it has no graph, or a graph that was changed;
            if its parameters are not those of the graph: other names or shapes, a dtype that differs from the one that
            a layer declares (`Conv(..., dtype=...)`), or integers where a layer has floats.

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
        msg = f"load: {path} has arrays, but not the network; read the arrays with load_safetensors"
        raise FuncconvError(msg)
    return graph, params


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the state, such as running statistics, that `save_safetensors` wrote beside the parameters.

    Args:
        path: the path of the file.

    Returns:
        A tree like `graph.init_state()`; `{}` if the file has no state.

    Raises:
        FuncconvError: if the file is not in this format, or is damaged (the message names the array).

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
    """Return the network (None if the file does not have it), its parameters and its state."""
    params, state, metadata = _arrays(path)
    if _ARCHITECTURE not in metadata:
        return None, params, state
    graph = Graph.from_json(metadata[_ARCHITECTURE])
    if metadata.get(_HASH) != graph.content_hash:
        msg = f"load: the network in {path} does not match its hash; the hash of the network is {graph.content_hash}"
        raise FuncconvError(msg)
    try:
        for entry in graph.entries:  # the entry of a layer without parameters is {}, which is not stored
            _put(params, entry, {}, once=False)
        check_params(graph, params)
    except FuncconvError as error:
        msg = f"load: the arrays of {path} are not those of its network: {error}"
        raise FuncconvError(msg) from None
    return graph, params, state


def _arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Return the parameters, the state and the metadata."""
    existing = existing_file("load_safetensors", path)
    try:
        arrays, metadata, checked = safetensors_format.read(existing)
        empty = json.loads(metadata.pop(_EMPTY, "{}")) if checked else {}
    except (OSError, FuncconvError) as error:
        msg = f"load_safetensors: {existing} cannot be read: {error}"
        raise FuncconvError(msg) from error
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for name in [*empty, *arrays]:
        # `pop` releases each array, so that it is in memory once.
        value = exact(arrays.pop(name)) if name in arrays else empty[name]
        if name.startswith(STATE_PREFIX):
            _put(state, name.removeprefix(STATE_PREFIX), value)
        else:
            _put(params, safetensors_format.name_in_tree(name) if checked else name, value)
    return params, state, metadata


def _put(tree: dict[str, Any], name: str, value: Any, *, once: bool = True) -> None:
    """Put a value at its path. A value that is already there is an error, or with `once=False` it stays."""
    *parents, leaf_name = name.split("/")
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            msg = f"load_safetensors: {name!r} begins with the name of another array. Rename one of them"
            raise FuncconvError(msg)
    if tree.setdefault(leaf_name, value) is not value and once:
        msg = f"load_safetensors: the names of other arrays begin with {name!r}, which is an array. Rename one of them"
        raise FuncconvError(msg)


def _texts(metadata: Mapping[str, str] | None) -> dict[str, str]:
    if not isinstance(metadata, Mapping | None) or not all(
        isinstance(text, str) for pair in (metadata or {}).items() for text in pair
    ):
        msg = f"save_safetensors: metadata must be strings by name; got {str(metadata)[:100]}. Convert it by json.dumps"
        raise FuncconvError(msg)
    return dict(metadata or {})


def _named(tree: Any, kind: str, prefix: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a tree by their names in a file, and the empty dicts and None in it."""
    arrays: dict[str, np.ndarray] = {}
    empty: dict[str, Any] = {}

    def walk(subtree: Any, name: str) -> None:
        if isinstance(subtree, Mapping) and (subtree or not name):
            for key, value in subtree.items():
                if not isinstance(key, str) or not key or "/" in key:
                    location = f"the entry {name!r}" if name else f"the {kind}"
                    rule = "must be nested dicts, with names without '/' that are not empty"
                    msg = f"save_safetensors: {location} {rule}; got the name {key!r}"
                    raise FuncconvError(msg)
                escaped = ESCAPE + key if not name and key.startswith(ESCAPE) and not prefix else key
                walk(value, f"{name}/{escaped}" if name else escaped)
        elif subtree is None or isinstance(subtree, Mapping):
            empty[prefix + name] = None if subtree is None else {}
        else:
            arrays[prefix + name] = _array(subtree, name)

    if not isinstance(tree, Mapping):
        msg = f"save_safetensors: the {kind} must be nested dicts of arrays; got a value of type {type(tree).__name__}"
        raise FuncconvError(msg)
    walk(tree, "")
    return arrays, empty


def _array(leaf: Any, name: str) -> np.ndarray:
    """Return a leaf as a contiguous NumPy array of the same dtype, in the byte order of the format."""
    reason: object = ""
    if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
        reason = "the tree must be nested dicts of arrays"
    elif isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        reason = (
            "this is a random key; jax.random.key_data(key) can be saved, and jax.random.wrap_key_data takes it back"
        )
    else:
        try:
            array = np.asarray(leaf, order="C")
            return array.astype(array.dtype.newbyteorder("<"), copy=False)
        except (
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # a JAX array that was deleted, is traced, or is on other hosts
            reason = str(error).splitlines()[0]
    msg = f"save_safetensors: {name!r}, of type {type(leaf).__name__}, cannot be saved: {reason}"
    raise FuncconvError(msg)
