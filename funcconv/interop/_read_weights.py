"""Reading arrays by name from the files of weights that other libraries write."""

import logging
import os

import numpy as np

from .._checkpoints.content import read_content
from .._weight_files.read import named_arrays

_LOGGER = logging.getLogger("funcconv")


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """Read the arrays of a file of weights, by their names in the file.

    The content of the file decides the format, not its name:

    - Files of `torch.save`, new and old: `.pt`, `.pth`, `.pth.tar`, `.ckpt`, `.bin`. They are loaded with
      `weights_only=True`, which runs no code of the file. Needs PyTorch.
    - `.safetensors`.
    - Flax's msgpack files (`flax.serialization.to_bytes`), and folders of orbax and of `fc.train`.

    A checkpoint often holds more than weights. If one dict in it has weights, as in
    `{"epoch": 3, "state_dict": ..., "optimizer": ...}`, that dict is used. States of optimizers are never taken for
    weights. Other objects, such as numbers and strings, are left out. If all names share the prefix `module.`,
    `_orig_mod.` or `model.`, it is removed. The logger `funcconv` reports what was used and removed, by default on
    standard error.

    In a Flax file, `params` and `batch_stats` are read together. `from_linen` takes the result.

    Args:
        path: the path of the file or folder.
        key: the path of the entry to read, such as `"ema"`, `"ema/state_dict"` or `"ema.state_dict"`; or the beginning
            of the names to read, such as `"encoder"` for `"encoder.conv1.weight"`. `"."` reads the whole file, with
            nested names. Default: the only dict with weights.

    Returns:
        A dict of NumPy arrays, in the order of the file and with its dtypes, float16, bfloat16 and float8 included.
        Names of nested dicts are joined by `.` in files of PyTorch, and by `/` in files of Flax and orbax.

    Raises:
        FuncconvError: if the file is missing, empty, damaged, or of another kind (the message says which, such as a web
            page or a pointer of Git LFS); if it can only be read by running code of the file; if several dicts have
            weights or none (the message lists them); if there is no entry `key`; if an array is quantized, sparse or
            without data; if the package that reads the format is not installed.

    Example:
        >>> import funcconv as fc, numpy as np, os, tempfile
        >>> weights = {"module.conv.weight": np.ones((4, 3, 3, 3), np.float16), "module.conv.bias": np.zeros(4)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "weights.safetensors")
        ...     fc.interop.save_safetensors(path, weights)
        ...     arrays = fc.interop.read_weights(path)
        >>> sorted(arrays), arrays["conv.weight"].dtype.name
        (['conv.bias', 'conv.weight'], 'float16')
    """
    chosen_arrays = named_arrays("read_weights", path, read_content("read_weights", path), key)
    for note in chosen_arrays.notes:
        _LOGGER.warning("read_weights: %s: %s", path, note)
    return chosen_arrays.arrays
