"""Files that are complete or absent: atomic writes, and the newest valid checkpoint of a trial."""

from __future__ import annotations

import io
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from upath import UPath

KEPT_CHECKPOINTS = 2
"""The newest may be torn by a crash of the machine; the one before it is then used."""


def write_atomically(file: Path | UPath, content: bytes) -> None:
    """Write `content` to `file` so that a reader sees the old or the new file, never a part."""
    if not isinstance(file, Path):
        if file.protocol not in ("file", "local"):
            file.write_bytes(content)  # an object appears whole or not at all
            return
        file = Path(file.path)
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_checkpoint(folder: UPath, epoch: int, state: dict[str, Any]) -> None:
    """Write `state` as the checkpoint after `epoch` and drop all but the two newest.

    The name carries a checksum of the content, so that a torn file is known as such.

    Args:
        folder: The trial's folder.
        epoch: Epochs finished; 0 for an evaluation without training.
        state: Tensors, numbers, strings, and lists and dicts of them.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    file = folder / f"checkpoint_{epoch:05d}_{zlib.crc32(content):08x}.pt"
    write_atomically(file, content)
    # Another file of this epoch is a torn one, whose epoch was trained again.
    others = [f for f in _checkpoints(folder) if f.name[:17] != file.name[:17]]
    torn = [f for f in _checkpoints(folder) if f.name[:17] == file.name[:17] and f != file]
    for old in torn + others[KEPT_CHECKPOINTS - 1 :]:
        old.unlink(missing_ok=True)


def load_checkpoint(folder: UPath, note: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the newest valid checkpoint's state, or None; `note` gets a line per invalid one."""
    for file in _checkpoints(folder):
        content = file.read_bytes()
        if f"{zlib.crc32(content):08x}" == file.stem.rpartition("_")[2]:
            state: dict[str, Any] = torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
            return state
        note(f"{file.name} is damaged; using the checkpoint before it")
    return None


def drop_checkpoints(folder: UPath) -> None:
    """Delete a finished trial's checkpoints; its best model and outputs stay."""
    for file in _checkpoints(folder):
        file.unlink(missing_ok=True)


def remove_folder(folder: UPath) -> None:
    """Delete a folder and all in it, if it is there."""
    if folder.exists():
        folder.fs.rm(folder.path, recursive=True)


def has_checkpoints(folder: UPath) -> bool:
    """Return whether an earlier run left any, damaged ones included."""
    return bool(_checkpoints(folder))


def _checkpoints(folder: UPath) -> list[UPath]:
    """Return the checkpoint files, newest first."""
    return sorted(folder.glob("checkpoint_*.pt"), key=lambda file: file.name, reverse=True)
