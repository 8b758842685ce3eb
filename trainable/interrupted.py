"""Ctrl-C where no command answers it itself, as during its imports: one line, no traceback."""

import contextlib
import os
import sys
from types import TracebackType

INTERRUPTED = 130
"""Exit code of what somebody stopped."""


def answer_interrupts() -> None:
    """Have an interrupt that nothing catches end this process with a line and `INTERRUPTED`.

    For commands alone: an interactive Python outlives one.
    """
    tell = sys.excepthook

    def answer(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not _is_interrupt(error):
            tell(kind, error, trace)
            return
        with contextlib.suppress(OSError, ValueError):  # whoever read it may be gone
            sys.stdout.flush()
            over = "\r" if sys.stderr.isatty() else ""  # the ^C of the terminal
            print(f"{over}interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # all is unwound; taking torch and MLflow apart takes seconds

    sys.excepthook = answer


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is one, or what a library made of one in the middle of its own work."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
