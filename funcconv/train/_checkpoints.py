"""States of a run on disk: written whole or not at all, and checked when read, lest a damaged one is taken."""

import hashlib
import importlib.metadata
import json
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import FuncconvError
from .._extras import needs
from .._typing import Number


class Checkpoints:
    """A folder of checkpoints, by the step that they were taken after.

    Args:
        folder: is made where it is missing.
        keep: how many of the last are kept, and how many of the best where `best` is given.
        best: the name of a metric of which the smallest value is the best, `"-name"` for the largest; None for none.
        asynchronous: whether to write while the run goes on.

    Raises:
        FuncconvError: if orbax is not installed, or the folder cannot be made or written to.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, keep: int = 3, best: str | None = None, asynchronous: bool = True
    ) -> None:
        with needs("train", "a checkpoint"):
            import orbax.checkpoint as ocp
        self._ocp, self.folder = ocp, Path(folder).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"train: no checkpoints can be kept in {self.folder}: {error}"
            raise FuncconvError(msg) from error
        if not os.access(self.folder, os.W_OK):
            msg = f"train: no checkpoints can be kept in {self.folder}: it is not to be written to"
            raise FuncconvError(msg)
        policies = ocp.checkpoint_managers.preservation_policy
        kept = [policies.LatestN(keep)]
        if best is not None:
            name, sign = best.removeprefix("-"), -1 if best.startswith("-") else 1
            rank = lambda metrics: -sign * metrics.get(name, sign * np.inf)  # noqa: E731
            kept.append(policies.BestN(get_metric_fn=rank, n=keep))
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                enable_async_checkpointing=asynchronous, cleanup_tmp_directories=True,
            ),
        )  # fmt: skip

    @property
    def steps(self) -> tuple[int, ...]:
        """After which steps there is one, the last one last."""
        return tuple(sorted(self._manager.all_steps()))

    def save(
        self,
        step: int,
        state: Any,
        run: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Number] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a state in place of one of this step, such as a damaged one.

        What it holds is copied at once, so that the next step may take over its memory.
        """
        args = self._ocp.args
        held = jax.tree.map(jnp.copy, state)
        told = {
            "arrays": _described(held), "digest": digest(held), "run": dict(run or {}), "about": dict(about or {}),
            "versions": _versions(),
        }  # fmt: skip
        try:
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step, args=args.Composite(state=args.StandardSave(held), told=args.JsonSave(told)),
                metrics=None if metrics is None else dict(metrics), force=True,
            )  # fmt: skip
        except Exception as error:
            msg = f"train: the checkpoint of step {step} could not be written to {self.folder}: {error}"
            raise FuncconvError(msg) from error

    def told(self, step: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Return the step of each one that can be read, and what it tells, the last one first; or of a certain one."""
        self.wait()
        for number in (step,) if step is not None else reversed(self.steps):
            try:
                told = self._read(number, told=self._ocp.args.JsonRestore())["told"]
                told = {name: told[name] for name in ("arrays", "digest", "run", "about", "versions")}
            except Exception as error:  # whatever is wrong with it
                _warn(number, self.folder, error)
                continue
            yield number, told

    def restore(
        self, like: Any, step: int | None = None, about: Mapping[str, Any] | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Return the step, the state and what the loop said, of the last one that is whole, or of a certain one."""
        for number, told in self.told(step):
            where = f"{self.folder}, step {number}"
            _check_alike(told["arrays"], _described(like), where)
            if about is not None:
                was, now = (
                    {name: json.dumps(value, sort_keys=True) for name, value in each.items()}
                    for each in (told["about"], about)
                )
                _check_alike(was, now, where)
            try:
                state = self._read(number, state=self._ocp.args.StandardRestore(jax.tree.map(_spec, like)))["state"]
            except Exception as error:
                _warn(number, self.folder, error)
                continue
            if digest(state) != told["digest"]:
                _warn(number, self.folder, "its arrays are not those that were written")
                continue
            if told["versions"] != _versions():
                _warn_of_versions(number, told["versions"])
            return number, state, told["run"]
        return None

    def wait(self) -> None:
        """Return when all is written; raise what went wrong."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            msg = f"train: a checkpoint could not be written to {self.folder}: {error}"
            raise FuncconvError(msg) from error

    def close(self) -> None:
        """Wait, and let go of the folder."""
        self.wait()
        self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=self._ocp.args.Composite(**items))


def save(folder: str | os.PathLike[str], state: Any, step: int = 0) -> None:
    """Write a tree of arrays, such as a `State`, to a folder.

    Args:
        folder: is made where it is missing; one that has checkpoints keeps them.
        state: the tree.
        step: the number that it goes by; one that is there under it is replaced.

    Raises:
        FuncconvError: if orbax is not installed or the folder cannot be written to.

    Returns:
        None.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"w": jnp.ones(2)})
        ...     fc.train.restore(folder, {"w": jnp.zeros(2)})["w"].tolist()
        [1.0, 1.0]
    """
    with closing(Checkpoints(folder, keep=2**31, asynchronous=False)) as checkpoints:
        checkpoints.save(step, state)


def restore(folder: str | os.PathLike[str], like: Any, step: int | None = None) -> Any:
    """Read what `save` or `fit` wrote.

    Args:
        folder: of checkpoints.
        like: a tree of arrays or of their types, with the names, shapes and dtypes that are expected.
        step: which one; None is the last one that is whole: of one that is not, a warning tells.

    Returns:
        A tree like `like`, on the devices of its arrays.

    Raises:
        FuncconvError: if there is none, or what is there has other names, shapes or dtypes; each is named.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> try:
        ...     fc.train.restore("nowhere", {"w": jnp.zeros(2)})
        ... except fc.FuncconvError as error:
        ...     print(error)
        train: there is no folder nowhere
    """
    with closing(_there(folder)) as checkpoints:
        found = checkpoints.restore(like, step)
    if found is None:
        raise _none(folder, step)
    return found[1]


def _there(folder: str | os.PathLike[str]) -> Checkpoints:
    if not Path(folder).is_dir():
        msg = f"train: there is no folder {folder}"
        raise FuncconvError(msg)
    return Checkpoints(folder, keep=2**31)


def _none(folder: str | os.PathLike[str], step: int | None) -> FuncconvError:
    which = "" if step is None else f" of step {step}"
    return FuncconvError(f"train: {folder} has no checkpoint{which} that can be read")


def about(folder: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """Read what a checkpoint says of itself, without its arrays.

    Args:
        folder: of checkpoints.
        step: which one; None is the last one that can be read.

    Returns:
        `{"step": ..., "arrays": {path: "float32[3, 3, 1, 8]"}, "digest": ..., "versions": {"jax": ...}, "about": ...}`,
        where the last is what was given to `fit`.

    Raises:
        FuncconvError: if there is none.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"w": jnp.ones(2)}, step=7)
        ...     fc.train.about(folder)["step"], fc.train.about(folder)["arrays"]
        (7, {'w': 'float32[2]'})
    """
    with closing(_there(folder)) as checkpoints:
        for number, told in checkpoints.told(step):
            return {"step": number} | {name: told[name] for name in ("arrays", "digest", "versions", "about")}
    raise _none(folder, step)


def digest(tree: Any) -> str:
    """Return the SHA-256 of a tree of arrays: of names, dtypes, shapes and bytes.

    Args:
        tree: of arrays; random keys are taken by their data.

    Returns:
        64 hexadecimal digits.

    Raises:
        Nothing.

    Example:
        >>> import funcconv as fc, numpy as np
        >>> fc.train.digest({"w": np.ones(2)}) == fc.train.digest({"w": np.float32([1, 1])})
        False
    """
    found = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        values = np.asarray(_whole(_data(leaf)))
        found.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape};".encode())
        found.update(values.tobytes())
    return found.hexdigest()


def _data(leaf: Any) -> Any:
    is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _whole(leaf: Any) -> Any:
    """Return an array of which other processes hold parts with those parts."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def _described(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _spec(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=getattr(leaf, "sharding", None))  # type: ignore[no-untyped-call]


def _check_alike(found: Mapping[str, str], wanted: Mapping[str, str], where: str) -> None:
    differences = [
        f"{name}: {found.get(name, 'missing')} there, {wanted.get(name, 'not known')} here"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        msg = f"train: the checkpoint in {where} is of something else:\n  " + "\n  ".join(differences)
        raise FuncconvError(msg)


@cache
def _versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "optax", "flax")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _warn_of_versions(step: int, was: Mapping[str, str]) -> None:
    now = _versions()
    changes = ", ".join(f"{name} {was.get(name)} came to be {now[name]}" for name in now if was.get(name) != now[name])
    warnings.warn(
        f"the checkpoint of step {step} was written with other versions, so what follows may differ in its last bits: "
        f"{changes}", stacklevel=4,
    )  # fmt: skip


def _warn(step: int, folder: Path, why: object) -> None:
    text = str(why).splitlines()[0][:200] if str(why) else type(why).__name__
    warnings.warn(f"the checkpoint of step {step} in {folder} is left out, it is damaged: {text}", stacklevel=4)
