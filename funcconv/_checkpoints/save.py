"""Functions for one checkpoint: save a tree, read it, and read its description."""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, Literal

from .._common.errors import FuncconvError
from .._common.paths import checked_path
from .folder import Checkpoints
from .parts.restore import restored_parts
from .step_folders import checked_step, checked_which
from .stored import StoredCheckpoints

_PASS_A_FOLDER = "pass a folder to which `fit` or `save` has written"


def save(folder: str | os.PathLike[str], state: Any, step: int = 0) -> None:
    """Write a tree of arrays, such as a `State`, to a folder.

    The checkpoint is written completely before it replaces an earlier one of the same step. If writing fails or the
    process is killed, the earlier one is still there.

    Args:
        folder: the folder for checkpoints; it is created if it is missing. Checkpoints of other steps in it are kept.
        state: the tree. JAX arrays, NumPy arrays and Python numbers are stored exactly, each in its dtype. Random keys
            and trees without arrays can be saved too.
        step: the number of the checkpoint, at least 0. An earlier checkpoint with this number is replaced. Default: 0.

    Raises:
        FuncconvError: if orbax is not installed, if the folder cannot be written or another process writes to it, or if
            the state contains anything but arrays and numbers, such as an array that was donated.

    Returns:
        None.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"w": jnp.ones(2)})
        ...     fc.train.restore(folder, {"w": jnp.zeros(2)})["w"].tolist()
        [1.0, 1.0]
    """
    step = checked_step("train.save", step)
    checked_path("train.save", folder, wants="folder")
    # The checkpoint is there when the call returns.
    with closing(Checkpoints(folder, keep=None, asynchronous=False)) as checkpoints:
        checkpoints.save(step, state)


def restore(
    path: str | os.PathLike[str] | Any,
    like: Any = None,
    which: int | Literal["best", "last"] = "last",
    *,
    into: Any = None,
    match: Mapping[str, str] | None = None,
    missing: Literal["raise", "keep"] = "raise",
    mismatched: Literal["raise", "keep"] = "raise",
    key: str | None = None,
) -> Any:
    """Read a checkpoint that `save` or `fit` wrote; or with `into`, the parts of a tree that any file of weights has.

    With `like`, the checkpoint must have exactly the arrays of a tree. With `into`, arrays are paired by name, and the
    result has the arrays of the file in place of those of `into`. The file may be a folder of `save` or `fit`, a
    safetensors file, a file of PyTorch (`.pt`, `.pth`, `.bin`), a msgpack file of Flax, or a folder of orbax. Nothing
    is converted: dtypes and shapes must be those of `into`. In names and patterns, `.` and `/` are the same, so
    `encoder.conv1.weight` is `encoder/conv1/weight`.

    A file of PyTorch, and a safetensors file with its names, has kernels as `(out, in, *window)`. They are read as
    `(*window, in, out)` if this is the only order of axes in which their shapes fit. Otherwise, as for a kernel of
    shape `(3, 3, 3, 3)`, and for each dense kernel, an error says how to convert them with the graph. Files of Flax
    need no conversion, except for transposed convolutions (`fc.interop.from_linen`).

    No file is changed; a running `fit` may use the folder meanwhile.

    Args:
        path: the folder of checkpoints. With `into` also the path of a file, or a tree of arrays such as those of
            `fc.interop.read_weights` or `fc.interop.from_torch`, whose axes are in the order of `into`.
        like: a tree of arrays, or of their types (`jax.ShapeDtypeStruct`), with the names, shapes and dtypes that you
            expect. Pass either `like` or `into`.
        which: which checkpoint of a folder to read. `"last"`: the last one that is complete; a warning names each later
            one that is damaged. `"best"`: the one of the best evaluation of a `fit` with `monitor=`. A whole number:
            the one of this step. Default: `"last"`.
        into: a tree of arrays, such as the parameters of a new model, that gets the arrays of the file.
        match: a dict from names in the file to names in `into`, `{"encoder/*": "trunk/*"}`. Each `*` stands for any
            text, the same on both sides. A name without `*` is that of one array, or of a dict with all its entries.
            The first pattern that matches counts; what no pattern matches is not used, so `"*": "*"` at the end takes
            all other equal names. Default: equal names.
        missing: what happens if the file lacks an array of `into`: `"raise"`, or `"keep"` the array of `into`.
            Default: `"raise"`.
        mismatched: what happens if an array of the file has another shape or dtype: `"raise"`, or `"keep"` the array of
            `into`. Default: `"raise"`.
        key: the entry of the file to read, such as `"state_dict"`, `"ema"` or `"model"`; names in the file begin below
            it. `"."` is the whole file. Default: for a checkpoint of `fit` its parameters; for PyTorch the only dict
            with weights; for other files everything. Only with `into`.

    Returns:
        With `like`: a tree like it, with JAX arrays on the devices of its arrays, and NumPy arrays and numbers where it
        has those. With `into`: `(tree, report)`, a tree like `into` of the same types, and a `RestoreReport` that lists
        what was restored, is missing, does not fit, and was not used.

    Raises:
        FuncconvError: if there is no such checkpoint or file, it is damaged, or the package that reads it is not
            installed; for checkpoints with a list of the steps that exist.
            With `like`, if names, shapes or dtypes differ; the message lists each difference. With `into`, if two names
            of the file belong to one entry (the message shows both), if a pattern has no effect or can be read in two
            ways, if the order of axes is not certain, if nothing was restored, or as `missing` and `mismatched` say.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (10, 20):
        ...         fc.train.save(folder, {"w": jnp.full(2, float(step))}, step)
        ...     [fc.train.restore(folder, {"w": jnp.zeros(2)}, which)["w"].tolist() for which in ("last", 10)]
        [[20.0, 20.0], [10.0, 10.0]]
        >>> params = {"trunk": {"w": jnp.zeros(2)}, "head": {"w": jnp.zeros(3)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"encoder": {"w": jnp.ones(2)}, "decoder": {"w": jnp.ones(2)}})
        ...     params, report = fc.train.restore(
        ...         folder, into=params, match={"encoder/*": "trunk/*"}, missing="keep")
        >>> params["trunk"]["w"].tolist(), params["head"]["w"].tolist()
        ([1.0, 1.0], [0.0, 0.0, 0.0])
        >>> report
        RestoreReport: 1 of 2 arrays restored
          renamed: trunk/w from encoder/w
          missing in the file, kept: head/w
          unused in the file: decoder/w
    """
    which = checked_which("train.restore", which)
    if into is not None and like is None:
        best = _best_step(_stored("train.restore", path), path) if which == "best" else None
        number = best if isinstance(which, str) else which
        return restored_parts(
            "train.restore", path, into, match=match, missing=missing, mismatched=mismatched, key=key, step=number
        )
    if like is None or into is not None or (match, missing, mismatched, key) != (None, "raise", "raise", None):
        msg = (
            "train.restore: pass like=, a tree with the same names, shapes and dtypes as the checkpoint; or into=, a "
            "tree that gets the arrays with its names. match, missing, mismatched and key need into="
        )
        raise FuncconvError(msg)
    stored = _stored("train.restore", path)
    for step in _steps(stored, path, which):
        if (result := stored.restore(like, step)) is not None:
            return result[1]
    raise _none(stored, path, step)


def about(folder: str | os.PathLike[str], which: int | Literal["best", "last"] = "last") -> dict[str, Any]:
    """Read the description of a checkpoint, without its arrays. The folder is not changed.

    Args:
        folder: the folder of checkpoints.
        which: which checkpoint to describe. `"last"`: the last one whose description can be read. `"best"`: the one of
            the best evaluation of a `fit` with `monitor=`. A whole number: the one of this step. Default: `"last"`.

    Returns:
        `{"step": ..., "arrays": {path: "float32[3, 3, 1, 8]"}, "digest": ..., "versions": {"jax": ...}, "about": ...}`.
        The last entry is the dict that you passed to `fit` as `about`.

    Raises:
        FuncconvError: if orbax is not installed; or if there is no such checkpoint, or the one of a step or the best
            one is damaged, with a list of the steps that exist.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"w": jnp.ones(2)}, step=7)
        ...     fc.train.about(folder)["step"], fc.train.about(folder)["arrays"]
        (7, {'w': 'float32[2]'})
    """
    stored = _stored("train.about", folder)
    for step in _steps(stored, folder, checked_which("train.about", which)):
        if (result := stored.about(step)) is not None:
            number, record = result
            return {"step": number} | {name: record[name] for name in ("arrays", "digest", "versions", "about")}
    raise _none(stored, folder, step)


def _steps(
    stored: StoredCheckpoints, folder: str | os.PathLike[str], which: int | Literal["best", "last"]
) -> Iterator[int | None]:
    """Yield the step to read, None for the last one; if it is gone, also the one that has become the best meanwhile."""
    if which == "last":
        yield None
        return
    step = _best_step(stored, folder) if which == "best" else which
    yield step
    while which == "best" and (best := _best_step(stored, folder)) != step:
        step = best
        yield step


def _best_step(stored: StoredCheckpoints, folder: str | os.PathLike[str]) -> int:
    """Return the step of the best evaluation, as the last checkpoint records it."""
    last = stored.about()
    if last is None:
        raise _none(stored, folder, None)
    number, record = last
    step: int | None = record["run"].get("best_at")
    if step is None:
        msg = (
            f"train: the last checkpoint in {folder}, of step {number}, does not say which one is the best: `fit` had "
            f"no monitor=, or no evaluation yet, or an older version wrote it. The last are {stored.listed()}. Pass "
            'one of these, or "last"'
        )
        raise FuncconvError(msg)
    return step


def _stored(op: str, folder: str | os.PathLike[str]) -> StoredCheckpoints:
    path = checked_path(op, folder, wants="folder")
    try:
        exists = path.is_dir()
    except OSError as error:
        msg = f"train: the folder {folder} cannot be read: {error}. Check the path and its permissions"
        raise FuncconvError(msg) from error
    if not exists:
        msg = f"train: there is no folder {folder}; {_PASS_A_FOLDER}"
        raise FuncconvError(msg)
    return StoredCheckpoints(path.absolute())


def _none(stored: StoredCheckpoints, folder: str | os.PathLike[str], step: int | None) -> FuncconvError:
    if step is None:
        return FuncconvError(f"train: {folder} has no checkpoint that can be read; {_PASS_A_FOLDER}")
    msg = (
        f"train: {folder} has no checkpoint of step {step} that can be read; the last are {stored.listed()}. Pass one "
        'of these, or "last"'
    )
    return FuncconvError(msg)
