"""Features on the disk: each is computed by one process, once, and mapped by all."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import filelock
import numpy as np
import torch

from trainable.checkpoint import write_atomically

ROWS_PER_FILE = 2048
"""A file is filled by one process at a time: several that want the same view share its files."""

SAVE_EVERY_S = 15.0
"""How much work a process that is killed while it stores features may lose."""

FREE_FRACTION = 0.9
"""Of a disk's free space: features that take more are not stored."""


class FeatureFiles:
    """The features of one view of the data, in files of `ROWS_PER_FILE` rows each.

    A file covers all its rows but is sparse: only rows that somebody asked for take space. They
    count as done once a mask file, replaced after the values are on the disk, says so; done rows
    are never written again, so readers need no lock. A process that is killed loses the last
    `SAVE_EVERY_S` of its work.
    """

    def __init__(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        rows: torch.Tensor,
        num_rows: int,
        stem: Path,
        *,
        batch_size: int,
        what: str,
        note: Callable[[str], None],
    ) -> None:
        """Name the files; nothing is read or written yet.

        Args:
            encode: Rows -> their features, of `batch_size` rows at most.
            rows: int64, what is asked for.
            num_rows: Of the data.
            stem: Folder, created if need be, and what their names start with.
            batch_size: Rows at once.
            what: What the features are, in a line.
            note: Called with a line of progress now and then.
        """
        self._encode, self._stem, self._batch_size = encode, stem, batch_size
        self._what, self._note = what, note
        starts = range(0, num_rows, ROWS_PER_FILE)
        self._sizes = [min(ROWS_PER_FILE, num_rows - start) for start in starts]
        wanted = [rows[rows // ROWS_PER_FILE == number] for number in range(len(self._sizes))]
        self._wanted: list[torch.Tensor] = [
            each.unique() - start for each, start in zip(wanted, starts, strict=True)
        ]
        """Of each file, which of its rows."""
        self._left = [number for number, each in enumerate(self._wanted) if len(each)]
        self._is_said = False

    def extract(self, *, is_patient: bool) -> bool:
        """Compute what is missing; return whether all is done.

        It is not where another process works at a file, unless `is_patient` waits for it.

        Raises:
            OSError: There is no space for it, or the folder cannot be written.
        """
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        for number in [*self._left]:
            lock = filelock.FileLock(self._file(number, "lock"), blocking=is_patient)
            with contextlib.suppress(filelock.Timeout), lock:
                self._complete(number)
                self._left.remove(number)
        return not self._left

    def mapped(self) -> list[torch.Tensor]:
        """Return the memory-mapped features of each file's rows; of use are those asked for."""
        files = [self._file(number, "npy") for number in range(len(self._sizes))]
        found = {
            number: torch.from_numpy(np.load(file, mmap_mode="c"))
            for number, file in enumerate(files)
            if len(self._wanted[number])
        }
        none = next(iter(found.values()))[:1]
        return [
            found[number] if number in found else none.expand(size, *none.shape[1:])
            for number, size in enumerate(self._sizes)
        ]

    def _file(self, number: int, suffix: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}_{number:03d}.{suffix}")

    def _missing(self, number: int, done: torch.Tensor) -> torch.Tensor:
        return self._wanted[number][~done[self._wanted[number]]]

    def _complete(self, number: int) -> None:
        values_file, done_file = self._file(number, "npy"), self._file(number, "done")
        if done_file.exists() and _is_damaged(values_file, self._sizes[number]):
            self._note(f"the stored features in {values_file} are damaged: computed again")
            values_file.unlink()
        if not values_file.exists():  # somebody deleted what is large
            done_file.unlink(missing_ok=True)
        done = _read_mask(done_file, self._sizes[number])
        missing = self._missing(number, done)
        if not len(missing):
            return
        is_new = not done.any()
        try:
            self._fill(number, missing, done)
        except OSError:
            if is_new:  # the space goes back to those who need it
                done_file.unlink(missing_ok=True)
                values_file.unlink(missing_ok=True)
            raise

    def _num_missing(self) -> int:
        """Return how many images are left for this and other processes."""
        masks = {
            number: _read_mask(self._file(number, "done"), self._sizes[number])
            for number in self._left
        }
        return sum(len(self._missing(number, done)) for number, done in masks.items())

    def _fill(self, number: int, rows: torch.Tensor, done: torch.Tensor) -> None:
        """Write the features of `rows`, and mark them in `done` and its file now and then.

        Raises:
            OSError: There is no space for them and those of the files to come.
        """
        num_missing = self._num_missing()
        if not self._is_said:
            self._note(f"{self._what}: {num_missing:,} images")
            self._is_said = True
        file, done_file = self._file(number, "npy"), self._file(number, "done")
        # A writer killed before its first mask may have left less than a file's header.
        mode: Literal["r+b", "w+b"] = "r+b" if done.any() else "w+b"
        saved_s = time.monotonic()
        with file.open(mode) as handle:
            place = None
            for batch in rows.split(self._batch_size):
                features = self._encode(batch + number * ROWS_PER_FILE).cpu().numpy()
                if place is None:
                    _check_space(file.parent, num_missing * features[0].nbytes, self._what)
                    place = _place(handle, len(done), features, is_new=mode == "w+b")
                for row, values in zip(batch.tolist(), features, strict=True):
                    # Not through a memory map: on a full disk that kills the process.
                    _write_at(handle.fileno(), values.tobytes(), place + row * values.nbytes)
                done[batch] = True
                if time.monotonic() - saved_s > SAVE_EVERY_S:
                    _save(handle, done, done_file)
                    saved_s = time.monotonic()
            _save(handle, done, done_file)


def _is_damaged(file: Path, num_rows: int) -> bool:
    """Return whether a file of features is there and not whole, as after a copy that was cut."""
    try:
        return file.exists() and len(np.load(file, mmap_mode="r")) != num_rows
    except (ValueError, EOFError, TypeError, SyntaxError):
        return True


def _read_mask(file: Path, num_rows: int) -> torch.Tensor:
    if not file.exists():
        return torch.zeros(num_rows, dtype=torch.bool)
    bits = np.unpackbits(np.frombuffer(file.read_bytes(), np.uint8), count=num_rows)
    return torch.from_numpy(bits.astype(bool))


def _check_space(folder: Path, needed_bytes: int, what: str) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if not needed_bytes <= FREE_FRACTION * free_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{what}: {needed_bytes / 1e9:.3g} GB, but {folder} has {free_bytes / 1e9:.3g} GB free",
        )


def _place(handle: BinaryIO, num_rows: int, features: np.ndarray, *, is_new: bool) -> int:
    """Return where the first row lies in the file; a new one gets its header and its length."""
    if is_new:
        shape = (num_rows, *features.shape[1:])
        header = {"descr": features.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, header)
        handle.flush()
        place = handle.tell()
        os.ftruncate(handle.fileno(), place + num_rows * features[0].nbytes)
        return place
    np.lib.format.read_magic(handle)
    np.lib.format.read_array_header_1_0(handle)
    return handle.tell()


def _write_at(descriptor: int, content: bytes, place: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, place)
        content, place = content[written:], place + written


def _save(handle: BinaryIO, done: torch.Tensor, done_file: Path) -> None:
    """Put the values on the disk, and then the mask that says so."""
    os.fsync(handle.fileno())
    write_atomically(done_file, np.packbits(done.numpy()).tobytes())
