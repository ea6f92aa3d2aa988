"""Ctrl-C and SIGTERM during a run."""

import signal
import threading
from typing import Any


class Interrupts:
    """Notes the first Ctrl-C or SIGTERM, so that a loop can end between two steps. The next one acts as usual.

    In other threads than the main one, Python allows no handlers of signals, and nothing is noted.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler is not None:  # if C code handles the signal, Python cannot restore that
                    self._before[number] = handler
                    signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True
        self.close()

    def close(self) -> None:
        """Restore the handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
