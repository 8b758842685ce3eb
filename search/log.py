"""search.log: what a search says, line by line with the time, kept in its folder."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upath import UPath

from results.terminal import HeardConsole, plain_console, without_control
from trainable.errors import UserError, reason_of
from trainable.urls import hidden

LOG_FILE = "search.log"
SEND_EVERY_S = 60.0
"""To storage that is no disk: an object is written whole."""


class SearchLog:
    """Keeps what is said until there is a folder, and then appends it to the file there.

    A file that cannot be written is told once, and nothing more is kept: no search stops for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: UPath | None = None
        self._before = ""
        """What an object holds of earlier runs."""
        self._said: list[str] = []
        """What is not in the file; of an object, all of this run."""
        self._sent_s = 0.0
        self._is_given_up = False

    def console(self, **options: Any) -> HeardConsole:
        """Return a console that this hears; options are those of `plain_console`."""
        return plain_console(listener=self.add, **options)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the mistake that ends the search, if one does, and write the rest."""
        try:
            yield
        except UserError as error:
            self.add(f"error: {error}")
            raise
        finally:
            self.close()

    def add(self, text: str) -> None:
        """Take lines as they are said."""
        with self._lock:
            if self._is_given_up:
                return
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            for line in hidden(without_control(text)).splitlines():
                self._said.append(f"{stamp}  {line}".rstrip() + "\n")
            if self._file is not None:
                self._write(is_last=False)

    def open(self, folder: UPath) -> None:
        """Write to the folder's file from now on, behind what earlier runs said."""
        with self._lock:
            if self._file is not None:
                return
            self._file = folder / LOG_FILE
            try:
                if not isinstance(self._file, Path) and self._file.exists():
                    self._before = self._file.read_text()
            except Exception as error:  # noqa: BLE001 (object stores raise types of their own)
                self._give_up(error)
            else:
                self._write(is_last=False)

    def close(self) -> None:
        """Write the rest."""
        with self._lock:
            if self._file is not None and not self._is_given_up:
                self._write(is_last=True)

    def _write(self, *, is_last: bool) -> None:
        assert self._file is not None
        try:
            if isinstance(self._file, Path):
                with self._file.open("a", encoding="utf-8") as file:
                    file.writelines(self._said)
                self._said.clear()
            elif self._said and (is_last or time.monotonic() - self._sent_s >= SEND_EVERY_S):
                self._file.write_text(self._before + "".join(self._said))
                self._sent_s = time.monotonic()
        except Exception as error:  # noqa: BLE001 (object stores raise types of their own)
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._is_given_up = True
        self._said.clear()
        line = f"{self._file} cannot be written ({reason_of(error)}); the search goes on without"
        plain_console(stderr=True).print(line)
