"""The leaves of a saved tree: their names, the types that can be saved, and how each one is stored exactly."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from .._common.errors import FuncconvError
from .._common.patterns import path_of

_ORBAX_DTYPES = {
    *("bool", "int2", "int4", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "bfloat16", "float16", "float32", "float64"),
    *("complex64", "complex128"),
}
_STORED_AS = {"uint2": "uint8", "uint4": "uint8"}  # dtypes that orbax does not write, and how their values are stored
_SCALARS = (bool, int, float, complex)


def snapshot(tree: Any, step: int) -> Any:
    """Return a copy of a tree with the same values and dtypes. JAX arrays stay JAX arrays; others become NumPy arrays.

    Args:
        tree: arrays and numbers.
        step: the number of the checkpoint, for messages.

    Returns:
        A tree of the same structure.

    Raises:
        FuncconvError: if a leaf cannot be saved, or two leaves have the same path.
    """
    paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(tree)]
    if duplicates := sorted({name for name in paths if paths.count(name) > 1}) if len({*paths}) < len(paths) else []:
        msg = (
            f"train: each entry of a state must have its own name; the state of step {step} has several entries called "
            f"{duplicates[0]!r}. Rename all but one"
        )
        raise FuncconvError(msg)
    return jax.tree.map_with_path(
        lambda path, leaf: _snapshot_leaf(leaf, f"{path_of(path) or 'the state'} of step {step}"), tree
    )


def _check_known(leaf: Any, description: str, call: str) -> None:
    """Raise an error for an array whose values are not available."""
    if isinstance(leaf, jax.core.Tracer):
        msg = f"train: {description} is not known while JAX traces a function. Call `{call}` outside of jax.jit"
        raise FuncconvError(msg)
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        msg = (
            f"train: {description} was deleted, because a training step that donates its arguments reuses their "
            f"memory. Pass the state that the step returned to `{call}`"
        )
        raise FuncconvError(msg)


def _snapshot_leaf(leaf: Any, description: str) -> Any:
    _check_known(leaf, description, "save")
    if isinstance(leaf, jax.Array):
        copy: Any = jnp.copy(leaf)
    elif isinstance(leaf, np.ndarray | np.generic | bool | int | float | complex):
        copy = np.array(leaf)
        copy = copy.astype(copy.dtype.newbyteorder("="))
    else:
        msg = (
            f"train: a checkpoint contains only arrays and numbers; {description} is a {type(leaf).__name__}. "
            "Remove it, or convert it to an array"
        )
        raise FuncconvError(msg)
    name = str(copy.dtype)
    if not (_is_key(copy.dtype) or name in _ORBAX_DTYPES or name in _STORED_AS):
        msg = f"train: {description} has dtype {name}, which a checkpoint cannot contain. Convert it to another dtype"
        raise FuncconvError(msg)
    return copy


def described(tree: Any) -> dict[str, str]:
    """Return the dtype and shape of each leaf by its name, `{"params/w": "float32[3]"}`; nothing is converted."""
    return {path_of(path): f"{_dtype(leaf)}{list(np.shape(leaf))}" for path, leaf in jax.tree.leaves_with_path(tree)}


def like_leaf(array: Any, leaf: Any) -> Any:
    """Return a copy of an array with the dtype and shape of a leaf, as the type of the leaf and on its devices."""
    if _is_read_as_numpy(leaf):
        return _as_kind_of(np.array(array), leaf)
    return jax.device_put(array if _is_key(_dtype(array)) else np.array(array), _sharding(leaf))


def paths(tree: Any) -> dict[str, str]:
    """Return the path of each leaf, in the form that `digest` uses, by its name, in order."""
    return {path_of(path): jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)}


def keys(tree: Any) -> dict[str, list[str]]:
    """Return the keys on the path to each leaf, by its name, in order."""
    return {path_of(path): _keys(path) for path, _ in jax.tree.leaves_with_path(tree)}


def for_orbax(tree: Any) -> Any:
    """Return a tree with the same values that orbax can write. Orbax cannot write all dtypes and names.

    Args:
        tree: the result of `snapshot`.

    Returns:
        The same tree; or a dict of numbered leaves, if orbax would give two leaves the same name.
    """
    return _named(jax.tree.map(_written, tree))


def target(like: Any) -> Any:
    """Return the target with which orbax reads a tree that `for_orbax` has converted from a tree like this."""
    return _named(jax.tree.map(_expected, like))


def returned(stored: Any, like: Any) -> Any:
    """Return a tree like `like`, with the values that orbax read for `target(like)`."""
    order = _order(keys(like))
    leaves = jax.tree.leaves(stored) if order is None else [stored[str(number)] for number in order]
    kinds, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [_as_kind_of(leaf, kind) for leaf, kind in zip(leaves, kinds, strict=True)])


def as_saved(stored: Any, descriptions: Mapping[str, str], by_name: Mapping[str, list[str]]) -> Any:
    """Return a tree that orbax read without a target, with the names, dtypes and shapes of the saved tree.

    Args:
        stored: nested dicts and lists of NumPy arrays.
        descriptions: what `described` returned for the tree that was saved.
        by_name: what `keys` returned for it.

    Returns:
        Nested dicts and lists of NumPy arrays.

    Raises:
        KeyError: if there are leaves with other names, because the checkpoint is damaged.
    """
    order = _order(by_name)
    if order is None:
        return jax.tree.map_with_path(lambda path, leaf: _saved(leaf, descriptions[path_of(path)]), stored)
    nested: dict[str, Any] = {}
    for number, (name, path) in zip(order, by_name.items(), strict=True):
        inner = nested
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1] if path else ""] = _saved(stored[str(number)], descriptions[name])
    return nested


def digest(tree: Any) -> str:
    """Compute the SHA-256 of a tree of arrays, from its names, dtypes, shapes and bytes.

    Args:
        tree: a tree of arrays and numbers. For a random key, the data of the key is used.

    Returns:
        64 hexadecimal digits, which are the same for trees that are equal bit for bit.

    Raises:
        FuncconvError: if the values of a leaf are not available: the array was deleted, JAX is tracing it, or the leaf
            is not an array.

    Example:
        >>> import funcconv as fc, numpy as np
        >>> fc.train.digest({"w": np.ones(2)}) == fc.train.digest({"w": np.float32([1, 1])})
        False
    """
    return _digest((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree))


def digest_in_order(tree: Any, order: Mapping[str, str]) -> str:
    """Return the digest of a tree, with the paths and in the order of the tree that was saved.

    Args:
        tree: the tree that was read. Its containers may differ, for example a dict instead of a dataclass.
        order: the paths in the form that `digest` uses, by the names of the leaves.

    Returns:
        64 hexadecimal digits.
    """
    leaves = {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    return _digest((path, leaves[name]) for name, path in order.items())


def _digest(leaves: Iterable[tuple[str, Any]]) -> str:
    sha256 = hashlib.sha256()
    for path, leaf in leaves:
        _check_known(leaf, f"the entry {path}" if path else "the array", "digest")
        values = np.asarray(_gathered(jax.random.key_data(leaf) if _is_key(_dtype(leaf)) else leaf))
        if values.dtype.hasobject:  # the bytes of Python objects are addresses
            msg = (
                f"train: `digest` needs arrays and numbers; the entry {path} is a {type(leaf).__name__}. Remove it, or "
                "convert it to an array"
            )
            raise FuncconvError(msg)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        sha256.update(f"{path} {values.dtype} {values.shape};".encode())
        sha256.update(values.tobytes())
    return sha256.hexdigest()


def _gathered(leaf: Any) -> Any:
    """Return the whole array, with the parts that are on other processes."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def _dtype(leaf: Any) -> Any:
    """Return the dtype of an array or a number, as it is."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype


def _is_key(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jax.dtypes.prng_key))


def _keys(path: Any) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def _order(keys_by_name: Mapping[str, list[str]]) -> list[int] | None:
    """Return a number for each leaf, in order of their names, or None if orbax can distinguish the leaves by name.

    Orbax joins the keys of a path by dots, and cannot write a tree without a container.
    """
    joined = {".".join(path) for path in keys_by_name.values()}
    if len(joined) == len(keys_by_name) and all(
        path and not {"", ".", ".."} & {*path} for path in keys_by_name.values()
    ):
        return None
    numbers = {name: number for number, name in enumerate(sorted(keys_by_name))}
    return [numbers[name] for name in keys_by_name]


def _named(tree: Any) -> Any:
    order = _order(keys(tree))
    if order is None:
        return tree
    return {str(number): leaf for number, leaf in zip(order, jax.tree.leaves(tree), strict=True)}


def _written(leaf: Any) -> Any:
    """Return a leaf in a form that orbax can write. It cannot write arrays without elements."""
    if leaf.size == 0:
        return np.zeros(1, np.uint8)
    return leaf.astype(_STORED_AS[str(leaf.dtype)]) if str(leaf.dtype) in _STORED_AS else leaf


def _expected(leaf: Any) -> Any:
    """Return the target with which orbax reads a leaf: a NumPy array for a NumPy array, a type for a JAX array."""
    shape, dtype = np.shape(leaf), _dtype(leaf)
    if 0 in shape:
        return np.zeros(1, np.uint8)
    dtype = np.dtype(_STORED_AS[str(dtype)]) if str(dtype) in _STORED_AS else dtype
    if _is_read_as_numpy(leaf):
        return np.broadcast_to(np.zeros((), dtype), shape)  # a target without memory
    return jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(leaf))  # type: ignore[no-untyped-call]


def _as_kind_of(stored: Any, leaf: Any) -> Any:
    """Convert a leaf that orbax read to the type of `leaf`: a JAX array, a NumPy array or a Python number."""
    if 0 in np.shape(leaf):
        zeros = np.zeros(np.shape(leaf), _dtype(leaf))
        return zeros if _is_read_as_numpy(leaf) else jax.device_put(zeros, _sharding(leaf))
    if str(_dtype(leaf)) in _STORED_AS:
        stored = stored.astype(_dtype(leaf))
    if isinstance(leaf, _SCALARS) and not isinstance(leaf, np.generic):
        return type(leaf)(stored[()])
    return stored[()] if isinstance(leaf, np.generic) else stored


def _saved(leaf: Any, description: str) -> Any:
    """Convert a leaf that orbax read to the dtype and shape of its description."""
    dtype, _, sizes = description.removesuffix("]").partition("[")
    shape = tuple(int(size) for size in sizes.split(",") if size)
    if 0 in shape:
        return np.zeros(shape, jnp.dtype(dtype))
    return leaf.astype(jnp.dtype(dtype)) if dtype in _STORED_AS else leaf


def _is_read_as_numpy(leaf: Any) -> bool:
    """Return whether a leaf is read as a NumPy array. This includes dtypes that JAX would narrow to 32 bits."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return not _is_key(leaf.dtype) and jnp.result_type(leaf) != leaf.dtype
    return not isinstance(leaf, jax.Array)


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.devices()[0])
