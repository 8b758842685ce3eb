"""Ctrl-C and SIGTERM: the first asks to stop, the second stops."""

import os
import signal
import sys
import threading
from typing import Any, Self, TextIO

INTERRUPTED = 130
"""Exit code of a search that somebody stopped."""


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; the second ends the process.

    Only the main thread may take signals: in another one, whoever started it does. A notebook or
    an interactive Python outlives the second, which raises KeyboardInterrupt there.
    """

    def __init__(self, resume_command: str, output: TextIO) -> None:
        self._resume_command, self._output = resume_command, output
        self._asked = threading.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals; once more after Ray has started, which takes SIGTERM for itself."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def requested(self) -> bool:
        """Return whether somebody asked to stop."""
        return self._asked.is_set()

    def _handle(self, _number: int, _frame: Any) -> None:
        if self._asked.is_set():
            print(self._resume_command, file=self._output, flush=True)
            if hasattr(sys, "ps1"):
                raise KeyboardInterrupt
            os._exit(INTERRUPTED)
        self._asked.set()
