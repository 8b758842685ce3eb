"""The commands of this project, run as people run them: in a process and a folder of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """Python with some arguments (`-m search.run --space ...`), running in a folder."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self._said = tempfile.TemporaryDirectory(prefix="said-")
        self._files = [Path(self._said.name, name) for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                stdout=out,
                stderr=err,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
                start_new_session=True,
            )

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
        self.process.wait(DEADLINE_S)
        return self.done()

    def done(self) -> Done:
        out, err = (file.read_text() for file in self._files)
        return Done(self.process.poll() or 0, out, err)

    def clean_up(self) -> None:
        """Kill what it left: it was started as a group of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._said.cleanup()


def run(folder: Path, *arguments: str, **environment: str) -> Done:
    """Run Python with these arguments in `folder` to its end."""
    command = Command(folder, *arguments, **environment)
    try:
        return command.ended()
    finally:
        command.clean_up()
