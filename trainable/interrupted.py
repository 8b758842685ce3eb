"""Ctrl-C where no command answers it itself, as during its imports: one line, no traceback."""

import contextlib
import os
import signal
import sys
import threading
from types import TracebackType

INTERRUPTED = 130
"""Exit code of what somebody stopped."""
_AGAIN_S = 0.05
"""After an interrupt that Python could not pass on."""


def answer_interrupts() -> None:
    """Have an interrupt that nothing catches end this process with a line and `INTERRUPTED`.

    For commands alone: an interactive Python outlives one. One that falls into a destructor or a
    callback of a weak reference, where Python drops what is raised, is raised again.
    """
    tell, tell_dropped = sys.excepthook, sys.unraisablehook

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

    def again(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            tell_dropped(dropped)
            return
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timer.start()

    sys.excepthook, sys.unraisablehook = answer, again


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is one, or what a library made of one in the middle of its own work."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
