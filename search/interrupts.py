"""Ctrl-C and SIGTERM: the first asks to stop, the second stops."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TextIO

from trainable.interrupted import INTERRUPTED

ANSWER = "stopping after this step; again stops now"
_LEAVE_SCREEN = "\x1b[?25h\n"
"""A live screen hides the cursor, and leaves it at the end of its last line."""


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, as Ctrl-C does: a batch system ends a command by it.

    Ray takes SIGTERM for itself while it starts, and leaves by SystemExit: that is one, too.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    if is_main:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except SystemExit as left:
        if left.code == signal.SIGTERM:
            raise KeyboardInterrupt from left
        raise
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; the second ends the process.

    Only the main thread may take signals: in another one, whoever started it does. A notebook or
    an interactive Python outlives the second, which raises KeyboardInterrupt there.
    """

    def __init__(
        self, resume_command: str, output: TextIO, note: Callable[[str], None] = lambda line: None
    ) -> None:
        """Take no signal yet.

        Args:
            resume_command: The last line.
            output: Where it goes.
            note: Told at once that the first signal is taken: in another thread, as the main one
                may be in the middle of a line.
        """
        self._resume_command, self._output, self._note = resume_command, output, note
        self._asked, self._heard = threading.Event(), threading.Event()
        self._answering = threading.Thread(target=self._answer, name="interrupts", daemon=True)
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self._answering.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._heard.set()
        self._answering.join()

    def listen(self) -> None:
        """Take the signals; once more after Ray has started, which takes SIGTERM for itself."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def requested(self) -> bool:
        """Return whether somebody asked to stop."""
        return self._asked.is_set()

    def _handle(self, _number: int, _frame: Any) -> None:
        if self._asked.is_set():
            self._answering.join(1.0)  # the last line comes last
            if self._output.isatty():
                self._output.write(_LEAVE_SCREEN)
            print(self._resume_command, file=self._output, flush=True)
            if hasattr(sys, "ps1"):
                raise KeyboardInterrupt
            os._exit(INTERRUPTED)
        self._asked.set()
        self._heard.set()

    def _answer(self) -> None:
        self._heard.wait()
        if self.requested():
            self._note(ANSWER)
