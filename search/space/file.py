"""A user's space file: read, run within a time limit, and without names that nothing reads."""

import difflib
import importlib.util
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from upath import UPath

from trainable.errors import UserError
from trainable.modules import UserModule

DRY_TRIALS = 40
"""How often `space` is called before anything starts, to meet its conditional branches."""

TIME_LIMIT_S = 20.0
"""For running the file and its dry trials: one that takes longer loops, or trains."""
SUGGESTION_S = 0.1

NAMES = ("NUM_TRIALS", "EPOCHS", "METRIC", "BASELINES", "PARTS")
PLANNED = ("SAMPLER", "PRUNER", "CONSTRAINTS")
"""Names that a later version may read: not free for other use, and refused until then."""
_COUNTING_WORDS = {"NUM", "N", "NR", "NUMBER", "OF", "MAX", "TOTAL"}


class SpaceError(UserError):
    """A space file that cannot be loaded, or that returns configurations that cannot be."""


class TimeUp(BaseException):
    """The file loops. No `except Exception` of its own stops this."""


def read(file: UPath) -> bytes:
    """Return the file's bytes.

    Raises:
        SpaceError: It cannot be read, or is no text.
    """
    try:
        source = file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SpaceError(f"--space {file}: cannot be read ({reason})") from error
    try:
        importlib.util.decode_source(source)
    except (UnicodeDecodeError, SyntaxError) as error:
        raise SpaceError(f"--space {file}: not a text file ({error})") from error
    if b"\0" in source:
        raise SpaceError(f"--space {file}: not a text file (it has null bytes)")
    return source


def execute(file: UPath, module: UserModule, source: bytes) -> dict[str, Any]:
    """Run the file; return its names.

    Raises:
        SpaceError: It raised, or imports what lies beside it and would get another module.
    """
    if clash := module.clash(source):
        raise SpaceError(f"--space {file}: {clash}")
    try:
        return module.execute(source)
    except (TimeUp, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        where = file if error.filename == str(file) else error.filename
        raise SpaceError(f"{where}, line {error.lineno}: SyntaxError: {error.msg}") from error
    except BaseException as error:  # sys.exit's, too
        raise SpaceError(
            f"{file}, line {line_of(file, error)}: {type(error).__name__}: {error}"
        ) from error


def line_of(file: UPath, error: BaseException) -> int | None:
    """Return the last line of the space file on the way to `error`."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(file)), None)


def check_names(file: UPath, values: Mapping[str, Any]) -> None:
    """Refuse names that nothing reads, though they look as if something did."""
    for name in PLANNED:
        if name in values:
            raise SpaceError(f"{file}: {name} is not supported yet: leave it out")
    for name in values:
        if name.isupper() and name not in NAMES and (meant := _meant(name, values)):
            remedy = "leave it out" if meant in PLANNED else "rename it"
            raise SpaceError(
                f"{file}: nothing reads {name} (did you mean {meant}?): {remedy}, or give it "
                "a name that is less like it"
            )
        if name.upper() in NAMES and name.upper() not in values:
            raise SpaceError(f"{file}: nothing reads {name} (did you mean {name.upper()}?)")


def _meant(name: str, values: Mapping[str, Any]) -> str | None:
    """Return which of our names an upper-case one was meant for, if it looks like one.

    BASELINE and METRCI do; BASELINE_LR, of several words, does not; NUM_EPOCHS does as long as
    there is no EPOCHS.
    """
    words = name.strip("_").split("_")
    counted = [word for word in words if word not in _COUNTING_WORDS]
    for known in (*NAMES, *PLANNED):
        stem = known.removeprefix("NUM_")
        for those in (words, counted if known not in values else []):
            alike = difflib.SequenceMatcher(None, "".join(those), stem).ratio()
            whole = difflib.SequenceMatcher(None, "".join(words), known.replace("_", "")).ratio()
            if alike >= (0.82 if len(those) == 1 else 0.95) or whole >= 0.9:
                return known
    return None


@contextmanager
def time_limit(file: UPath) -> Iterator[None]:
    """Stop a file that loops. Signals reach the main thread alone; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: Any) -> None:
        raise TimeUp

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        yield
    except TimeUp:
        raise SpaceError(
            f"{file}: running it and {DRY_TRIALS} dry trials took over {TIME_LIMIT_S:g} s: "
            "a space file must only describe, and end"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def barely_counted() -> Iterator[None]:
    """Hold the time limit for what is not the file's: only `SUGGESTION_S` of it counts."""
    left_s = 0.0
    if threading.current_thread() is threading.main_thread():
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    start_s = time.monotonic()
    try:
        yield
    finally:
        if left_s:
            counted_s = min(time.monotonic() - start_s, SUGGESTION_S)
            signal.setitimer(signal.ITIMER_REAL, max(left_s - counted_s, 1e-6))
