"""A checkpoint is whole or absent, and a damaged one costs an epoch, not the trial."""

import errno
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from tests.trainable.tiny import Bait
from trainable.checkpoint import (
    KEPT_CHECKPOINTS,
    drop_checkpoints,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)


def state(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "weights": torch.full((100,), float(epoch)), **more}


def checkpoint(folder: Path, epoch: int) -> Path:
    """Return the only file of `epoch`."""
    (file,) = folder.glob(f"checkpoint_{epoch:05d}_*.pt")
    return file


def load(folder: Path) -> tuple[int | None, list[str]]:
    """Return the epoch of the loaded checkpoint and the notes."""
    notes: list[str] = []
    loaded = load_checkpoint(UPath(folder), notes.append)
    return None if loaded is None else loaded["epoch"], notes


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_written_file_holds_the_content_and_is_readable_by_all(tmp_path: Path) -> None:
    file = tmp_path / "made" / "on the way" / "file"
    write_atomically(file, b"content")
    assert file.read_bytes() == b"content"
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.usefixtures("full_disk")
def test_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_content_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        events.append(f"fsync {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    write_atomically(tmp_path / "file", b"content")
    assert events[:2] == ["fsync 7", "rename"]


@pytest.mark.usefixtures("full_disk")
def test_file_uri_is_written_as_safely_as_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(UPath(f"file://{tmp_path}/file"), b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("uri", ["{}", "file://{}", "memory://{}"])
def test_loaded_state_equals_the_saved_one(tmp_path: Path, uri: str) -> None:
    folder = UPath(uri.format(tmp_path / "trial"))
    saved = state(3, history=[{"epoch": 1, "score": 0.5}], words={"a": ["b", None, True]})
    for epoch in (1, 2, 3):
        save_checkpoint(folder, epoch, saved)
    assert len(list(folder.glob("checkpoint_*.pt"))) == 2
    loaded = load_checkpoint(folder, print)
    assert loaded is not None
    assert torch.equal(loaded.pop("weights"), saved.pop("weights"))
    assert loaded == saved


def test_two_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for epoch in (8, 9, 10, 11):
        save_checkpoint(UPath(tmp_path), epoch, state(epoch))
    assert sorted(tmp_path.iterdir()) == [checkpoint(tmp_path, 10), checkpoint(tmp_path, 11)]
    assert KEPT_CHECKPOINTS == 2
    assert load(tmp_path) == (11, [])


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty])
def test_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: Any) -> None:
    for epoch in (1, 2):
        save_checkpoint(UPath(tmp_path), epoch, state(epoch))
    damage(checkpoint(tmp_path, 2))
    loaded, notes = load(tmp_path)
    assert loaded == 1
    assert len(notes) == 1
    assert notes[0].startswith("checkpoint_00002_")
    assert notes[0].endswith(".pt is damaged; using the checkpoint before it")


def test_damage_to_every_checkpoint_starts_the_trial_anew(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_checkpoint(UPath(tmp_path), epoch, state(epoch))
        flip_a_byte(checkpoint(tmp_path, epoch))
    loaded, notes = load(tmp_path)
    assert loaded is None
    assert len(notes) == 2


def test_folder_without_checkpoints_starts_the_trial(tmp_path: Path) -> None:
    assert load(tmp_path) == (None, [])
    assert load(tmp_path / "absent") == (None, [])


def test_damaged_checkpoint_does_not_count_among_the_two_kept(tmp_path: Path) -> None:
    """Epoch 3 is trained again after its file was torn; epoch 2 must still be there."""
    for epoch in (2, 3):
        save_checkpoint(UPath(tmp_path), epoch, state(epoch))
    torn = checkpoint(tmp_path, 3)
    truncate(torn)
    assert load(tmp_path)[0] == 2
    save_checkpoint(UPath(tmp_path), 3, state(3, epoch_s=0.2))
    assert load(tmp_path)[0] == 3
    for file in tmp_path.glob("checkpoint_00003_*.pt"):
        truncate(file)
    assert load(tmp_path)[0] == 2


@pytest.mark.usefixtures("full_disk")
def test_checkpoint_that_does_not_fit_leaves_the_earlier_ones(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for epoch in (1, 2):
            save_checkpoint(UPath(tmp_path), epoch, state(epoch))
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(UPath(tmp_path), 3, state(3))
    assert len(list(tmp_path.iterdir())) == 2
    assert load(tmp_path) == (2, [])


@pytest.mark.parametrize("as_torch_file", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, as_torch_file: bool) -> None:
    """Its checksum is right, so only the loading itself protects."""
    trap = tmp_path / "trap"
    file = tmp_path / "file"
    if as_torch_file:
        torch.save({"history": Bait(trap)}, file)
    else:
        file.write_bytes(pickle.dumps(Bait(trap), protocol=2))
        pickle.loads(file.read_bytes())  # the bait works
        trap.rmdir()
    content = file.read_bytes()
    file.rename(tmp_path / f"checkpoint_00001_{zlib.crc32(content):08x}.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_checkpoint(UPath(tmp_path), print)
    assert not trap.exists()


def test_dropping_checkpoints_leaves_the_best_model(tmp_path: Path) -> None:
    save_checkpoint(UPath(tmp_path), 1, state(1))
    save_checkpoint(UPath(tmp_path), 2, state(2))
    best = tmp_path / "model.safetensors"
    best.write_bytes(b"weights")
    drop_checkpoints(UPath(tmp_path))
    assert list(tmp_path.iterdir()) == [best]
