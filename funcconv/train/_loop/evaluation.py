"""The numbers that the `evaluate` of `fit` returns."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from .._logs.values import Value

_EXPECTED = "train: evaluate must return a dict of numbers"


def numbers_of(returned: Any) -> dict[str, Value]:
    """Return the numbers that `evaluate` returned, and the lists of its arrays.

    Args:
        returned: a mapping from names to real numbers or to arrays of real numbers.

    Raises:
        FuncconvError: if it is anything else. The message names the wrong entry.
    """
    if not isinstance(returned, Mapping):
        msg = f"{_EXPECTED}; got {type(returned).__name__}. Write for example {{'accuracy': ...}}"
        raise FuncconvError(msg)
    for name in returned:
        if not isinstance(name, str):
            msg = f"{_EXPECTED}, whose names are strings; got the name {name!r}. Write str(name)"
            raise FuncconvError(msg)
    return {name: _number(name, value) for name, value in returned.items()}


def _number(name: str, value: Any) -> Value:
    is_list = getattr(value, "shape", ()) != ()
    # NumPy's scalars include complex numbers and dates, so their dtype decides.
    if isinstance(value, np.generic) or not isinstance(value, numbers.Real):
        kind = f"of dtype {value.dtype}" if hasattr(value, "dtype") else f"a {type(value).__name__}"
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:
            msg = f"{_EXPECTED}; {name!r} is {kind}. Convert it with float(...)"
            raise FuncconvError(msg) from error
        if (array.shape != () and not is_list) or not _is_real(array.dtype):
            msg = f"{_EXPECTED}; {name!r} is {kind}. Convert it with float(...)"
            raise FuncconvError(msg)
        if is_list:
            values: list[Any] = array.astype(np.float64).tolist()
            return values
        value = array
    try:
        return float(value)
    except OverflowError as error:
        msg = f"{_EXPECTED}; {name!r} is larger than any float64. Rescale it"
        raise FuncconvError(msg) from error


def _is_real(dtype: Any) -> bool:
    real = any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))
    return real and dtype.kind != "m"  # NumPy counts time spans as integers
