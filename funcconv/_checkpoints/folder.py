"""The checkpoints of a run. A checkpoint is written completely before it replaces an earlier one."""

import itertools
import os
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._common.errors import FuncconvError
from .._common.paths import checked_path
from .._common.types import Number
from .leaves import described, digest, for_orbax, keys, paths, snapshot
from .lock import FolderLock
from .record import as_json, read_record, text_of, versions
from .replace import clean, discard, put_in_place, remove
from .retention import steps_to_keep
from .step_folders import RECORD, WRITING, checked_step, is_checkpoint
from .stored import StoredCheckpoints

_save_numbers = itertools.count()  # all processes count alike, so the number names their barrier
_BARRIER_SECONDS = 600  # how long processes wait for each other, as in orbax
_ERROR_BYTES = 2000  # the length of an error message that process 0 sends to the others


class Checkpoints(StoredCheckpoints):
    """A folder of checkpoints, for writing. No other writer can use it until `close`.

    If several processes train one state, all of them call each method. Process 0 locks and changes the folder.

    Args:
        folder: the path of the folder; it is created if it is missing.
        keep: how many of the last checkpoints are kept; with `score`, also how many of the best. A checkpoint that one
            of these names as its best, `run["best_at"]`, is kept too. None keeps all. Default: 3.
        score: a function of the metrics of a checkpoint, whose smallest result is the best. None or NaN is never the
            best. Default: None, metrics are ignored.
        asynchronous: whether to write in a thread, while the run continues. Default: True.

    Raises:
        FuncconvError: if orbax is not installed, the folder cannot be created or written to, or another writer uses it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        score: Callable[[Mapping[str, Number]], float | None] | None = None,
        asynchronous: bool = True,
    ) -> None:
        super().__init__(checked_path("train: no checkpoints can be kept", folder, wants="folder").absolute())
        self._keep, self._score, self._asynchronous = keep, score, asynchronous
        self._ranks: dict[int, tuple[float | None, int | None]] = {}  # the score and the best step of each checkpoint
        self._thread = ThreadPoolExecutor(1, "checkpoints")  # one thread, so that checkpoints are written in order
        self._writing: Future[None] | None = None
        _on_process_0(self._open)

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.folder)
            self._release = weakref.finalize(self, lock.release)  # also if a failed run never calls `close`
            try:
                clean(self.folder)
            except OSError:
                self._release()
                raise
        except OSError as error:
            msg = f"train: no checkpoints can be kept in {self.folder}: {error}. Check the path and its permissions"
            raise FuncconvError(msg) from error

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints, in ascending order."""
        self.wait()
        return super().steps

    def save(
        self,
        step: int,
        state: Any,
        run: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Number] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a state. Once it is written, it replaces an earlier one of this step.

        The state is copied immediately, so that the next step may overwrite its memory. The rest is done in a thread.
        Several processes begin to write before this method returns, because they exchange messages.

        Args:
            step: the number of steps that were taken.
            state: a tree of arrays and numbers.
            run: the settings that the training loop needs to resume, in values that JSON can contain.
            metrics: numbers by their names.
            about: a description of the checkpoint, in values that JSON can contain.

        Raises:
            FuncconvError: if the state cannot be saved, or if this write or the asynchronous one before it fails. Then
                the checkpoints in the folder do not change.
        """
        self.wait()
        step = checked_step("train", step)
        self._check_path(step)
        state = snapshot(state, step)
        described_run = {
            "run": as_json(dict(run or {})),
            "about": as_json(dict(about or {})),
            "metrics": as_json(dict(metrics or {})),
        }
        number = next(_save_numbers)
        if jax.process_count() == 1:
            self._writing = self._thread.submit(self._write, step, state, described_run, number)
        else:  # the processes exchange messages here, which must not come between those of the next steps
            record, finish = self._begin(step, state, described_run)
            self._writing = self._thread.submit(self._finish, step, record, finish, number)
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written, and raise an error of the writing thread."""
        if self._writing:
            try:
                self._writing.result()
            except FuncconvError:
                raise
            except Exception as error:  # for example if processes wait for each other too long
                msg = f"train: a checkpoint could not be written to {self.folder}: {error}"
                raise FuncconvError(msg) from error
            finally:
                if self._writing.done():  # an interrupt does not stop the thread
                    self._writing = None

    def close(self) -> None:
        """Wait until everything is written, and release the folder for other writers."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if jax.process_index() == 0:
                self._release()

    def _check_path(self, step: int) -> None:
        path = self.folder / str(step)
        try:
            is_in_the_way = os.path.lexists(path) and not is_checkpoint(path)
        except OSError as error:
            raise self._failed(step, error) from error
        if is_in_the_way:
            msg = f"train: {path} is not a checkpoint, so none can be written to this path. Rename or move it"
            raise FuncconvError(msg)

    def _write(self, step: int, state: Any, described_run: Mapping[str, Any], number: int) -> None:
        """Write a checkpoint from beginning to end."""
        record, finish = self._begin(step, state, described_run)
        self._finish(step, record, finish, number)

    def _begin(
        self, step: int, state: Any, described_run: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Callable[[], None]]:
        """Begin to write the arrays; return the record, and a function that waits until the arrays are written."""
        record = {
            "arrays": described(state),
            "paths": paths(state),
            "keys": keys(state),
            "digest": digest(state),
            **described_run,
            "versions": versions(),
        }
        try:
            return record, self._start(step, state)
        except Exception as error:
            if jax.process_index() == 0:
                discard(self.folder, step)
            raise self._failed(step, error) from error

    def _start(self, step: int, state: Any) -> Callable[[], None]:
        """Begin to write the arrays; return a function that waits until they are written."""
        written = self.folder / f"{step}{WRITING}"
        if jax.process_index() == 0:
            discard(self.folder, step)
            written.mkdir()
        if not jax.tree.leaves(state):
            return lambda: None
        options = self._ocp.options.AsyncOptions(create_directories_asynchronously=False, timeout_secs=_BARRIER_SECONDS)
        writer = self._ocp.StandardCheckpointer(async_options=options)
        try:
            writer.save(written / "state", for_orbax(state))
        except BaseException:
            with suppress(Exception):
                writer.close()
            raise

        def finish() -> None:
            try:
                writer.wait_until_finished()
            finally:
                writer.close()

        return finish

    def _finish(self, step: int, record: Mapping[str, Any], finish: Callable[[], None], number: int) -> None:
        """Wait for the arrays; then process 0 puts the checkpoint in place and removes old ones."""
        try:
            finish()
        except Exception as error:
            if jax.process_index() == 0:
                discard(self.folder, step)
            raise self._failed(step, error) from error
        try:
            if jax.process_index() == 0:
                (self.folder / f"{step}{WRITING}" / RECORD).write_text(text_of(record))
                put_in_place(self.folder, step)
                self._remove_others(step, record)
        except Exception as error:
            discard(self.folder, step)
            raise self._failed(step, error) from error
        finally:  # the other processes continue when the checkpoint is in place
            wait = self._ocp.multihost.get_barrier_sync_fn()
            wait(key=f"funcconv-checkpoint-{number}", timeout_ms=1000 * _BARRIER_SECONDS)

    def _remove_others(self, step: int, record: Mapping[str, Any]) -> None:
        if self._keep is None:
            return
        folders = self._folders()
        self._ranks[step] = self._rank(record)
        for number in {*folders} - {*self._ranks}:
            self._ranks[number] = self._rank_in(folders[number])
        kept = steps_to_keep(folders, step, self._keep, {number: rank[0] for number, rank in self._ranks.items()})
        # A run that is resumed from one of these checkpoints needs its best one.
        for number in {*folders} - kept - {self._ranks[number][1] for number in kept}:
            with suppress(OSError):  # removal is tried again after the next checkpoint
                remove(self.folder, number)

    def _rank(self, record: Mapping[str, Any]) -> tuple[float | None, int | None]:
        score = self._score(record["metrics"]) if self._score else None
        return score, record["run"].get("best_at")

    def _rank_in(self, path: Path) -> tuple[float | None, int | None]:
        try:
            return self._rank(read_record(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it is damaged
            return None, None

    def _failed(self, step: int, error: Exception) -> FuncconvError:
        why = str(error).splitlines() or [type(error).__name__]
        return FuncconvError(f"train: the checkpoint of step {step} could not be written to {self.folder}: {why[0]}")


def _on_process_0(action: Callable[[], None]) -> None:
    """Call a function in process 0, and raise its error in all processes."""
    error: FuncconvError | None = None
    if jax.process_index() == 0:
        try:
            action()
        except FuncconvError as failure:
            error = failure
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        text = str(error or "").encode()[:_ERROR_BYTES].ljust(_ERROR_BYTES, b"\0")
        received = bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8)))
        if error is None and received.strip(b"\0"):
            error = FuncconvError(received.rstrip(b"\0").decode(errors="replace"))
    if error:
        raise error
