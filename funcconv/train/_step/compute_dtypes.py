"""The dtypes in which a model computes: one for all of it, or one for each pattern of parameters or inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.patterns import meets, path_of

ALL = "*"  # the pattern of everything that no earlier pattern matches, and of the inputs


def checked_dtypes(option: str, value: Any) -> Any:
    """Return a dtype, or a dict from patterns to dtypes in the order in which they are tried.

    Raises:
        FuncconvError: if it is neither, or a dtype is not a floating one.
    """
    if isinstance(value, Mapping):
        if not value or not all(isinstance(pattern, str) and pattern for pattern in value):
            msg = f'train: {option} must be a dict from patterns to dtypes, such as {{"*": "bfloat16"}}; got {value!r}'
            raise FuncconvError(msg)
        return {pattern: _floating(f"{option}[{pattern!r}]", dtype) for pattern, dtype in value.items()}
    return _floating(option, value)


def _floating(name: str, value: Any) -> Any:
    try:
        dtype = None if value is None else jnp.dtype(value)  # NumPy takes None for float64
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        msg = f'train: {name} must be a floating dtype, such as "bfloat16" or "float32"; got {value!r}'
        raise FuncconvError(msg)
    return dtype


def all_dtypes(*options: Any) -> set[Any]:
    """Return every dtype in some options; those that are no dtype and no dict of dtypes have none."""
    lists = [option.values() if isinstance(option, Mapping) else [option] for option in options]
    return {dtype for values in lists for dtype in values if isinstance(dtype, np.dtype)}


def dtype_of(path: str, dtypes: Mapping[str, Any]) -> Any:
    """Return the dtype of the first pattern that matches a path; None if there is none."""
    return next((dtype for pattern, dtype in dtypes.items() if meets(path, pattern)), None)


def check_patterns_of_dtypes(params: Any, compute_dtype: Any) -> None:
    """Refuse a pattern without any effect: one that matches no parameter, or only those of earlier patterns.

    The pattern `"*"` may be left without parameters, because it also gives the dtype of the inputs.
    """
    if not isinstance(compute_dtype, Mapping):
        return
    paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    first = {next((pattern for pattern in compute_dtype if meets(path, pattern)), None) for path in paths}
    for pattern in compute_dtype:
        if pattern in first or pattern == ALL:
            continue
        matched = [path for path in paths if meets(path, pattern)]
        if matched:
            earlier = next(other for other in compute_dtype if meets(matched[0], other))
            msg = (
                f"train: compute_dtype: the first pattern that matches counts, so {pattern!r} has no effect: "
                f"{earlier!r} comes before it and matches {matched[0]!r}. Put {pattern!r} before it"
            )
        else:
            msg = (
                f"train: compute_dtype pattern {pattern!r} matches no parameter; the parameters are {', '.join(paths)}"
            )
        raise FuncconvError(msg)


def cast_parameters(params: Any, compute_dtype: Any) -> Any:
    """Return parameters in the dtypes in which the model computes; those of no pattern stay as they are."""
    dtypes = compute_dtype if isinstance(compute_dtype, Mapping) else {ALL: compute_dtype}

    def cast(path: Any, leaf: Any) -> Any:
        dtype = dtype_of(path_of(path), dtypes) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else None
        return leaf if dtype is None else leaf.astype(dtype)

    return jax.tree.map_with_path(cast, params)
