"""Features on the disk: each is computed by one process, once, and mapped by all."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import filelock
import numpy as np
import torch

from trainable.checkpoint import write_atomically

SAVE_EVERY_S = 15.0
"""How much work a process that is killed while it stores features may lose."""

FREE_FRACTION = 0.9
"""Of a disk's free space: features that take more are not stored."""


def extract(
    encode: Callable[[torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    num_rows: int,
    view: int,
    folder: Path,
    *,
    batch_size: int,
    is_patient: bool,
    what: str,
    note: Callable[[str], None],
) -> torch.Tensor | None:
    """Return the memory-mapped features of every row of the data; those of `rows` are valid.

    None if another process works at this view, unless `is_patient` waits for it.

    The array covers all rows but is sparse: only rows that somebody asked for take space. They
    count as done once a mask file, replaced after the values are on the disk, says so; done rows
    are never written again, so readers need no lock. A process that is killed loses the last
    `SAVE_EVERY_S` of its work.

    Args:
        encode: Rows -> their features, of `batch_size` rows at most.
        rows: int64, what is asked for.
        num_rows: Of the data.
        view: Number of the view in `folder`.
        folder: Of this and other views, created if need be.
        batch_size: Rows at once.
        is_patient: Whether to wait for another process that works at this view.
        what: What the features are, in a line.
        note: Called with a line of progress now and then.

    Raises:
        OSError: There is no space for them, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values_file, done_file = folder / f"view_{view:02d}.npy", folder / f"view_{view:02d}.done"
    lock = filelock.FileLock(folder / f"view_{view:02d}.lock", blocking=is_patient)
    try:
        held = lock.acquire()
    except filelock.Timeout:
        return None
    with held:
        if done_file.exists() and _is_damaged(values_file, num_rows):
            note(f"the stored features in {values_file} are damaged: computed again")
            values_file.unlink()
        if not values_file.exists():  # somebody deleted what is large
            done_file.unlink(missing_ok=True)
        done = _read_mask(done_file, num_rows)
        missing = rows[~done[rows]].unique()
        if len(missing):
            is_new = not done.any()
            try:
                note(f"{what}: {len(missing):,} images")
                _fill(encode, missing.split(batch_size), values_file, done, done_file, what)
            except OSError:
                if is_new:  # the space goes back to those who need it
                    done_file.unlink(missing_ok=True)
                    values_file.unlink(missing_ok=True)
                raise
    return torch.from_numpy(np.load(values_file, mmap_mode="c"))


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


def _fill(
    encode: Callable[[torch.Tensor], torch.Tensor],
    batches: Sequence[torch.Tensor],
    file: Path,
    done: torch.Tensor,
    done_file: Path,
    what: str,
) -> None:
    """Write the features of rows, and mark them in `done` and its file now and then.

    Raises:
        OSError: There is no space for them.
    """
    # A writer killed before its first mask may have left less than a file's header.
    mode: Literal["r+b", "w+b"] = "r+b" if done.any() else "w+b"
    saved_s = time.monotonic()
    with file.open(mode) as handle:
        place = None
        for batch in batches:
            features = encode(batch).cpu().numpy()
            if place is None:
                num_missing = sum(map(len, batches))
                _check_space(file.parent, num_missing * features[0].nbytes, what)
                place = _place(handle, len(done), features, is_new=mode == "w+b")
            for row, values in zip(batch.tolist(), features, strict=True):
                # Not through a memory map: on a full disk that kills the process.
                _write_at(handle.fileno(), values.tobytes(), place + row * values.nbytes)
            done[batch] = True
            if time.monotonic() - saved_s > SAVE_EVERY_S:
                _save(handle, done, done_file)
                saved_s = time.monotonic()
        _save(handle, done, done_file)


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
