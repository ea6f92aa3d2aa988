"""Ctrl-C and SIGTERM during a run."""

import signal
import threading
from typing import Any


class Interrupts:
    """A context that notes the first Ctrl-C or SIGTERM, so that a loop can end between two steps.

    The next signal acts as it would without this context, so that a second Ctrl-C ends a loop at once. Python allows
    signal handlers in the main thread only; in other threads nothing is noted.
    """

    def __init__(self) -> None:
        self.came = False
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler is not None:  # a handler in C; Python could not restore it
                    self._old_handlers[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, *_: object) -> None:
        self.came = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}
