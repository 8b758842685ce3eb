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
        self._writing = threading.Lock()
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
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = [f"{stamp}  {line}".rstrip() for line in hidden(without_control(text)).splitlines()]
        with self._lock:
            if self._is_given_up:
                return
            self._said += [f"{line}\n" for line in lines]
        self._flush(is_last=False)

    def open(self, folder: UPath) -> None:
        """Write to the folder's file from now on, behind what earlier runs said."""
        if self._file is not None:
            return
        file = folder / LOG_FILE
        try:
            if not isinstance(file, Path) and file.exists():
                self._before = file.read_text()
        except Exception as error:  # noqa: BLE001 (object stores raise types of their own)
            self._give_up(file, error)
        else:
            self._file = file
            self._flush(is_last=False)

    def close(self) -> None:
        """Write the rest."""
        self._flush(is_last=True)

    def _flush(self, *, is_last: bool) -> None:
        """Write what is there, while others may say more: a store may speak itself meanwhile.

        Nothing where the folder went with a start that failed.
        """
        file = self._file
        if file is None or self._is_given_up:
            return
        is_local = isinstance(file, Path)
        if not self._writing.acquire(blocking=is_last or is_local):
            return  # whoever writes now, or the next line, sends it
        try:
            is_due = is_local or is_last or time.monotonic() - self._sent_s >= SEND_EVERY_S
            if not is_due or not file.parent.exists():
                return
            with self._lock:
                said = [*self._said]
                if is_local:
                    self._said.clear()
            if isinstance(file, Path):
                with file.open("a", encoding="utf-8") as lines:
                    lines.writelines(said)
            elif said:
                file.write_text(self._before + "".join(said))
                self._sent_s = time.monotonic()
        except Exception as error:  # noqa: BLE001 (object stores raise types of their own)
            self._give_up(file, error)
        finally:
            self._writing.release()

    def _give_up(self, file: UPath, error: Exception) -> None:
        with self._lock:
            self._is_given_up = True
            self._said.clear()
        line = f"{file} cannot be written ({reason_of(error)}); the search goes on without"
        plain_console(stderr=True).print(line)
