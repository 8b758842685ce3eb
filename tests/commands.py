"""Commands, run as people run them: in a process and a folder of their own."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DEADLINE_S = 900.0
"""For a command that takes half a minute on an idle machine."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.rstrip().rpartition("\n")[2]


class Command:
    """Python with some arguments (`-m search.run --space ...`), running in a folder.

    As a context it kills at the end what is left of it.

    Args:
        folder: Where it runs.
        arguments: Of the program.
        program: In place of Python.
        within: An environment in place of this process's.
        terminal: A descriptor of one that is its own, which then has what it says.
        environment: What is added.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: str = sys.executable,
        within: Mapping[str, str] = os.environ,
        terminal: int | None = None,
        **environment: str,
    ) -> None:
        self._said = tempfile.TemporaryDirectory(prefix="said-")
        self._files = [Path(self._said.name, name) for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                [program, *arguments],
                cwd=folder,
                stdin=subprocess.PIPE if terminal is None else terminal,
                stdout=out if terminal is None else terminal,
                stderr=err if terminal is None else terminal,
                text=True,
                env={**within, "PYTHONPATH": str(ROOT), **environment},
                start_new_session=True,
                preexec_fn=None if terminal is None else _own_terminal,
            )

    def tell(self, line: str) -> None:
        """Write a line to its input."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def wait_for(self, event: Callable[[], object]) -> None:
        """Return as soon as `event` is true.

        Raises:
            AssertionError: The command ended before, or the deadline passed.
        """
        end_s = time.monotonic() + DEADLINE_S
        while not event():
            assert self.process.poll() is None, self.done()
            assert time.monotonic() < end_s, self.done()
            time.sleep(0.02)

    def ended(self) -> Done:
        """Wait for the end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(DEADLINE_S)
        return self.done()

    def done(self) -> Done:
        out, err = (file.read_text() for file in self._files)
        return Done(self.process.poll() or 0, out, err)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.clean_up()

    def clean_up(self) -> None:
        """Kill what it left: it was started as a group of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        self._said.cleanup()


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def run(folder: Path, *arguments: str, **options: Any) -> Done:
    """Run Python with these arguments in `folder` to its end; the options are `Command`'s."""
    with Command(folder, *arguments, **options) as command:
        return command.ended()
