"""Type names for signatures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Shaped

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = Shaped[jax.Array | np.ndarray, "..."]
Params: TypeAlias = Mapping[str, Any]
Shape: TypeAlias = tuple[int, ...]

# One value for all spatial axes, or one per axis.
Sizes: TypeAlias = int | Sequence[int]
Padding: TypeAlias = int | str | Sequence[int | Sequence[int]]
PadMode: TypeAlias = str | Sequence[str | None]

# A name, or a function of taps (..., taps) that is called with axis=-1.
Reduce: TypeAlias = str | Callable[..., Any]
Number: TypeAlias = int | float
Scalar: TypeAlias = Number | ArrayLike

Precision: TypeAlias = Any  # as in jax.lax: None, a name, a jax.lax.Precision, or a pair of these
Initializer: TypeAlias = str | Callable[..., Any]

__all__ = [
    "Array",
    "ArrayLike",
    "DTypeLike",
    "Initializer",
    "Number",
    "PadMode",
    "Padding",
    "Params",
    "Precision",
    "Reduce",
    "Scalar",
    "Shape",
    "Sizes",
]
