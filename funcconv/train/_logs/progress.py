"""The progress bar of a run."""

import sys
import time
from collections.abc import Mapping

import numpy as np

from ..._common.optional_packages import needs
from .values import Value, short

_TERMINAL_SECONDS = 0.5  # between two updates of the bar
_FILE_SECONDS = 30  # between two updates where each one is a line of a file


class Progress:
    """A progress bar. If the standard error is not a terminal, each update is a line.

    Args:
        steps: how many steps the run has; None if that is not known.
        done: how many of them were taken before.
        shown: whether anything is shown.
        name: what is done. Default: "training".
        unit: what is counted. Default: "step".
    """

    def __init__(
        self, steps: int | None, done: int, *, shown: bool, name: str = "training", unit: str = "step"
    ) -> None:
        self._done, self._bar, self._next_update = done, None, 0.0
        if not shown:
            return
        self._seconds = _TERMINAL_SECONDS if sys.stderr.isatty() else _FILE_SECONDS
        with needs("train", "a progress bar"):
            from tqdm import tqdm
        self._bar = tqdm(total=steps, initial=done, unit=unit, desc=name, dynamic_ncols=True, mininterval=self._seconds)

    def begin_compiling(self) -> None:
        """Show that the step is being compiled, which can take minutes in which no step is done."""
        if self._bar is not None:
            self._bar.set_postfix_str("compiling...")

    def end_compiling(self) -> None:
        """Show the bar without that note."""
        if self._bar is not None:
            self._bar.set_postfix_str("")

    def update(self, step: int, record: Mapping[str, Value], evaluated: Mapping[str, Value]) -> None:
        """Show a step and the last evaluation."""
        if self._bar is None or (time.monotonic() < self._next_update and step != self._bar.total):
            return
        self._next_update = time.monotonic() + self._seconds
        metrics = {name: value for name, value in record.items() if name not in ("step", "grad_norm", "skipped")}
        skipped = record.get("skipped", 0)
        if np.any(skipped):  # worth the space only if there are any
            metrics["skipped"] = skipped
        texts = {name: short(value) for name, value in (metrics | dict(evaluated)).items()}
        self._bar.set_postfix(texts, refresh=False)
        self._bar.update(step - self._done)
        self._done = step

    def close(self, stopped: str) -> None:
        """End the bar, and show the reason if the run ended early.

        Args:
            stopped: the reason, or an empty text.
        """
        if self._bar is not None:
            self._bar.close()
            if stopped:
                self._bar.write(f"training ended: {stopped}", file=sys.stderr)
