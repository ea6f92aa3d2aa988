"""Reading of checkpoints. Nothing is written, created or deleted, and damage is detected."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._common.errors import FuncconvError
from .._common.optional_packages import needs
from .._common.patterns import path_of
from .leaves import as_saved, described, digest, digest_in_order, returned, target
from .record import as_json, check_alike, read_record, versions, warn_of_versions
from .step_folders import step_folders

_MAX_LISTED_STEPS = 10  # in a message
_Read = TypeVar("_Read")


class StoredCheckpoints:
    """The checkpoints in a folder, for reading. A writer in any process may change them at the same time.

    Args:
        folder: an absolute path.

    Raises:
        FuncconvError: if orbax is not installed.
    """

    def __init__(self, folder: Path) -> None:
        with needs("train", "a checkpoint"):
            import orbax.checkpoint as ocp
        self._ocp, self.folder = ocp, folder

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints, in ascending order."""
        return tuple(self._folders())

    def about(self, step: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Return the step and the record of the last checkpoint that can be read, or of one step."""
        return self._last(step, lambda _, record: record)

    def listed(self) -> str:
        """Return the steps of the last checkpoints, for messages."""
        return ", ".join(map(str, self.steps[-_MAX_LISTED_STEPS:])) or "none"

    def restore(
        self, like: Any, step: int | None = None, about: Mapping[str, Any] | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Read the last checkpoint that is complete, or the one of a step.

        Args:
            like: a tree of arrays or of their types, with the expected names, shapes and dtypes.
            step: the step of the checkpoint. None: the last one that is complete; a warning names each damaged one.
            about: the expected description of the checkpoint. None accepts any description.

        Returns:
            The step, the state and the settings that the training loop saved, or None if there is no checkpoint.

        Raises:
            FuncconvError: if the checkpoint has other names, shapes or dtypes than `like`, or another description; or
                if the checkpoint of `step` is damaged.
        """
        expected_about = None if about is None else as_json(dict(about))

        def read(path: Path, record: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            location = f"{self.folder}, step {path.name.partition('.')[0]}"
            # Checkpoints of funcconv 0.1 have no paths, and contain Python numbers as JAX arrays.
            expected = like if record["paths"] else jax.tree.map(_number_of_jax, like)
            check_alike(record["arrays"], described(expected), location)
            if expected_about is not None:
                check_alike(record["about"], expected_about, location)
            state = self._arrays(path, expected)
            _check_digest(digest_in_order(state, record["paths"]) if record["paths"] else digest(state), record)
            return state, record

        result = self._last(step, read)
        if result is None:
            return None
        number, (state, record) = result
        if record["versions"] != versions():
            warn_of_versions(number, record["versions"])
        return number, state, record["run"]

    def arrays(self, step: int | None = None, *, typed_keys: bool = False) -> Any:
        """Return the last complete state, or the one of a step, as nested dicts and lists of NumPy arrays.

        Random keys are arrays of their data, or with `typed_keys` keys.

        The arrays of a checkpoint of funcconv 0.1 are not checked, because it does not record their order.
        """

        def read(path: Path, record: dict[str, Any]) -> Any:
            if not record["arrays"]:
                return {}
            with self._ocp.PyTreeCheckpointer() as reader:
                names = reader.metadata(path / "state").item_metadata.tree
                kinds = jax.tree.map(lambda _: self._ocp.RestoreArgs(restore_type=np.ndarray), names)
                args = self._ocp.args.PyTreeRestore(restore_args=kinds)
                state = reader.restore(path / "state", args=args)
            if record["paths"]:
                state = as_saved(state, record["arrays"], record["keys"])
                _check_digest(digest_in_order(state, record["paths"]), record)
            return _with_keys(state, record["arrays"]) if typed_keys else state

        result = self._last(step, read)
        return None if result is None else result[1]

    def _arrays(self, path: Path, like: Any) -> Any:
        if not jax.tree.leaves(like):
            return like
        with self._ocp.StandardCheckpointer() as reader:
            return returned(reader.restore(path / "state", target(like)), like)

    def _last(self, step: int | None, read: Callable[[Path, dict[str, Any]], _Read]) -> tuple[int, _Read] | None:
        """Return the step of the last complete checkpoint, or `step`, and the result of `read` for it."""
        while True:
            steps = self.steps
            for number in reversed(steps) if step is None else (step,):
                if (result := self._read(number, read, skip=step is None)) is not None:
                    return number, result
            if (
                step is not None or self.steps == steps
            ):  # otherwise a writer has removed checkpoints meanwhile, so look again
                return None

    def _read(self, step: int, read: Callable[[Path, dict[str, Any]], _Read], *, skip: bool) -> _Read | None:
        """Return the result of `read` for a checkpoint; None if there is none, or it is damaged and `skip` is true."""
        while (path := self._folders().get(step)) is not None:
            identity = _identity(path)
            try:
                return read(path, read_record(path))
            except FuncconvError:  # the checkpoint is complete, but not the expected one
                raise
            except Exception as error:  # damaged files can raise any error
                if identity is None or _identity(path) != identity:
                    continue  # a writer has replaced or removed it meanwhile
                damage = f"is damaged: {(str(error).splitlines() or [''])[0][:200] or type(error).__name__}"
                if not skip:
                    msg = (
                        f"train: the checkpoint of step {step} in {self.folder} {damage}. The last checkpoints are "
                        f"those of steps {self.listed()}"
                    )
                    raise FuncconvError(msg) from error
                warnings.warn(f"the checkpoint of step {step} in {self.folder} is skipped: it {damage}", stacklevel=5)
                return None
        return None

    def _folders(self) -> dict[int, Path]:
        try:
            return step_folders(self.folder)
        except OSError as error:
            msg = f"train: the folder {self.folder} cannot be read: {error}. Check the path and its permissions"
            raise FuncconvError(msg) from error


def _check_digest(digest_read: str, record: Mapping[str, Any]) -> None:
    if digest_read != record["digest"]:
        msg = "its arrays do not match their checksum"
        raise ValueError(msg)


def _with_keys(state: Any, descriptions: Mapping[str, str]) -> Any:
    """Return a state with a random key for each array that was one."""
    known = {f"{jax.random.key(0, impl=name).dtype}": name for name in ("threefry2x32", "rbg", "unsafe_rbg")}

    def with_key(path: Any, leaf: Any) -> Any:
        impl = known.get(descriptions[path_of(path)].partition("[")[0])
        return leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl)

    return jax.tree.map_with_path(with_key, state)


def _number_of_jax(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex) else leaf


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return numbers that change if a folder is replaced by another one of the same name."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
