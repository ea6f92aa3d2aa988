"""Tensors and arrays as NumPy arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._common.errors import FuncconvError


def as_numpy(value: Any) -> np.ndarray:
    """Return a tensor or an array as a NumPy array of the same dtype; of a random key its data."""
    array = value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(value)
    if hasattr(value, "detach"):
        try:
            tensor = value.detach().cpu().resolve_conj().resolve_neg()
            dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))  # JAX adds bfloat16 and float8 to NumPy
            array = tensor.numpy() if dtype.isbuiltin == 1 else tensor.float().numpy().astype(dtype)
        except (TypeError, RuntimeError, NotImplementedError) as error:  # quantized, sparse, without data
            reason = str(error).splitlines()[0]
            msg = f"a tensor of {value.dtype} and shape {tuple(value.shape)} cannot be converted to NumPy: {reason}"
            raise FuncconvError(msg) from error
    array = np.asarray(array)
    if not (array.dtype.kind in "biufc" or jnp.issubdtype(array.dtype, jnp.number)):
        msg = f"weights must be tensors or arrays of numbers; got a {type(value).__name__}, {str(value)[:50]!r}"
        raise FuncconvError(msg)
    return array
