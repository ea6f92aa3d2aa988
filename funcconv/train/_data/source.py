"""The batches of a run, and the position in them at which a later call continues."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..._common.errors import FuncconvError
from .batches import Batches

END: Any = object()  # returned in place of a batch if there are no more


class Source:
    """Batches that are taken one after the other, one for each step.

    A position has two parts: a state of the iterator, and how many batches to skip from there. An iterator can only
    give its state after the batch that it returned last. If no step was trained on that batch, the position is counted
    from an earlier state.

    Args:
        batches: the argument of `fit`.

    Raises:
        FuncconvError: if it is not an iterator.
    """

    def __init__(self, batches: Any) -> None:
        if not (isinstance(batches, Iterator) or has_state(batches)):
            msg = (
                "train: batches must be an iterator, so that a run that goes on can pass over those of earlier steps: "
                f"train.batches(...), or iter(...) of a list or a loader; got {type(batches).__name__}"
            )
            raise FuncconvError(msg)
        self._batches = batches
        self._settable = isinstance(batches, Batches) or has_state(batches)
        self._iterator: Iterator[Any] | None = None
        self._taken = 0  # the number of the step that the last batch is for
        self._known: tuple[int, Any] = (0, None)  # a step, and the state that the iterator had after it

    def begin(self, done: int) -> None:
        """Begin at the current position of the iterator: its next batch is for step `done + 1`."""
        self._taken, self._known = done, (done, None)

    def go_to(self, done: int, position: Mapping[str, Any] | None) -> None:
        """Make the next batch the one for step `done + 1`.

        Args:
            done: the number of steps before that batch.
            position: the result of `place`; None if it is not known. An iterator that cannot be set is at its
                beginning.
        """
        state, pass_over = (None, done) if position is None else (position["state"], int(position["pass_over"]))
        if isinstance(self._batches, Batches):
            self._batches.seek(state["position"] + pass_over if state and "position" in state else done)
        else:
            if not self._set_state(state) and state is not None:
                pass_over = done  # the state is that of another kind of iterator, so count from the beginning
            for number in range(done - pass_over, done):
                self._next(number + 1)
        self._taken, self._known = done, (done - pass_over, None)

    def take(self) -> Any:
        """Return the batch of the next step, or `END`."""
        self._taken += 1
        return self._next(self._taken)

    def note(self, done: int) -> None:
        """Remember the state of the iterator after a step, unless a later batch was already taken."""
        if self._settable and self._taken == done:
            self._known = done, self._state()

    def place(self, done: int) -> dict[str, Any]:
        """Return the position of the batch for step `done + 1`, in the form in which checkpoints store it."""
        self.note(done)
        known, state = self._known
        return {"state": state, "pass_over": done - known}

    def put_back(self, done: int) -> None:
        """Return to the position after a step, if the iterator can be set, because no step used the last batch."""
        if self._settable:
            self.go_to(done, self.place(done))

    def _next(self, step: int) -> Any:
        try:
            if self._iterator is None:
                self._iterator = iter(self._batches)
            return next(self._iterator, END)
        except Exception as error:
            error.add_note(f"train: batches raised this error for the batch of step {step}")
            raise

    def _state(self) -> Any:
        if isinstance(self._batches, Batches):
            return {"position": self._batches.position}
        state = self._batches.get_state()
        if isinstance(state, bytes):
            return {"bytes": state.decode("latin-1")}  # which has a character for each byte, as JSON needs
        try:
            return {"value": json.loads(json.dumps(state))}  # a copy, since the iterator may go on to change it
        except (TypeError, ValueError) as error:
            msg = f"train: get_state() of {type(self._batches).__name__} must return bytes or what JSON has: {error}"
            raise FuncconvError(msg) from error

    def _set_state(self, state: Any) -> bool:
        """Set the iterator to an earlier state; return whether it can be set."""
        if not (has_state(self._batches) and isinstance(state, dict) and ("bytes" in state or "value" in state)):
            return False
        self._batches.set_state(state["bytes"].encode("latin-1") if "bytes" in state else state["value"])
        self._iterator = None
        return True


def has_state(batches: Any) -> bool:
    """Whether an iterator can be set to an earlier state."""
    return hasattr(batches, "get_state") and hasattr(batches, "set_state")
