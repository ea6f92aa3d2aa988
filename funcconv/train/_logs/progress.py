"""What a run shows while it trains."""

import sys
import time
from collections.abc import Mapping

from ..._common.optional_packages import needs
from ..._common.types import Number


class Progress:
    """A progress bar, or lines where there is no terminal.

    Args:
        steps: how many the run has.
        done: how many of them were taken before.
        shown: whether anything is shown.
    """

    def __init__(self, steps: int, done: int, *, shown: bool) -> None:
        self._done, self._bar, self._due = done, None, 0.0
        if not shown:
            return
        self._pause = 0.5 if sys.stderr.isatty() else 30
        with needs("train", "a progress bar"):
            from tqdm import tqdm
        self._bar = tqdm(
            total=steps, initial=done, unit="step", desc="training", dynamic_ncols=True,
            mininterval=self._pause,
        )  # fmt: skip

    def update(self, number: int, record: Mapping[str, Number], evaluated: Mapping[str, Number]) -> None:
        """Show a step and the last evaluation."""
        if self._bar is None or (time.monotonic() < self._due and number < self._bar.total):
            return
        self._due = time.monotonic() + self._pause
        told = {name: value for name, value in record.items() if name not in ("step", "grad_norm", "skipped")}
        if record.get("skipped"):
            told["skipped"] = record["skipped"]
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in (told | dict(evaluated)).items()}, refresh=False)
        self._bar.update(number - self._done)
        self._done = number

    def close(self, stopped: str) -> None:
        """End the bar, and say why the run ended early."""
        if self._bar is not None:
            self._bar.close()
            if stopped:
                self._bar.write(f"training ended: {stopped}", file=sys.stderr)
