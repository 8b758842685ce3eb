"""What the trained part of a branch sees: augmented images, or cached frozen features."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import filelock
import numpy as np
import safetensors.torch
import torch

from trainable.checkpoint import write_atomically
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.model.augment import Augmentation, matched_sides
from trainable.model.branch import BranchModel
from trainable.parts import AUGMENTS, BACKBONES
from trainable.rng import generator

FORWARD_BATCH = {"cpu": 32, "cuda": 256}
"""Images at once where nothing is learnt. On a CPU, 32 are twice as fast as 256 at 64 and 128 px,
and no peak of memory. Extraction pads its last batch to as many, so that a feature's bits do not
depend on which others were asked for with it."""

RESIDENT_FRACTION = 0.25
"""Of a process's free memory on a GPU: images or features up to this size are kept there."""

SAVE_EVERY_S = 15.0
"""How much work a process that is killed while it stores features may lose."""

FREE_FRACTION = 0.9
"""Of a disk's free space: features that take more are not stored."""

PLAIN_VIEW = 0
"""The image as it is; views from 1 up are augmented."""


def draw_augmentation(data: Data, config: TrialConfig, rng: torch.Generator) -> Augmentation | None:
    """Return an augmentation of every image as `config` says, or None where it says none."""
    if not _is_augmented(config):
        return None
    side_N = None
    if config.match_resolution > 0:
        side_N = matched_sides(data.native_side, data.num_known, config.match_resolution, rng)
    return AUGMENTS.named(config.augment).draw(len(data.images), rng, side_N=side_N)


def _is_augmented(config: TrialConfig) -> bool:
    return config.augment != "none" or config.match_resolution > 0


class ImageInputs:
    """Images for a branch that trains its whole backbone, augmented afresh every epoch."""

    def __init__(self, model: BranchModel, data: Data, config: TrialConfig) -> None:
        self._model, self._data, self._config = model, data, config
        self._images = _resident_images(data.images, model.mean.device)
        self._augmentation: Augmentation | None = None

    def start_epoch(self, epoch: int) -> None:
        """Draw this epoch's augmentation of every image."""
        purpose = (self._config.seed, "augment", epoch, *self._model.branch.tasks)
        self._augmentation = draw_augmentation(self._data, self._config, generator(*purpose))

    def training(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this epoch's augmented images (N, 3, S, S)."""
        augmentation = self._augmentation[rows] if self._augmentation else None
        return self._model.prepare(_pick(self._images, rows), augmentation)

    def plain(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the images as they are (N, 3, S, S)."""
        return self._model.prepare(_pick(self._images, rows))


class FeatureInputs:
    """Frozen features of K fixed views per image; every epoch draws one of them.

    The first view is the image as it is, so that training, validation and a bank share it.

    With a cache folder each (view, image) passes the frozen part once per machine, for all trials
    and after a resume; without one, in every epoch, with the same values.
    """

    def __init__(
        self,
        model: BranchModel,
        data: Data,
        config: TrialConfig,
        *,
        train_rows: torch.Tensor,
        val_rows: torch.Tensor,
        cache: Path | None,
        note: Callable[[str], None],
    ) -> None:
        self._model, self._data, self._config = model, data, config
        self._num_views = config.feature_views if _is_augmented(config) else 1
        self._augmentations = [_view(data, config, view) for view in range(self._num_views)]
        self._view_of_row = torch.zeros(0, dtype=torch.int64)
        self._cached: dict[int, torch.Tensor] = {}
        self._folder: Path | None = None
        if cache is not None:
            try:
                self._store(train_rows, val_rows, cache, note)
            except OSError as error:
                reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
                note(
                    f"features of {model.branch.backbone} are not stored, but computed from the "
                    f"images in every epoch ({reason})"
                )
            else:
                self._folder = cache / "features" / _key(model, data, config, PLAIN_VIEW)

    def _store(
        self,
        train_rows: torch.Tensor,
        val_rows: torch.Tensor,
        cache: Path,
        note: Callable[[str], None],
    ) -> None:
        """Store each view, or map what is stored of it.

        Raises:
            OSError: There is no space for one; those before it are of use.
        """
        model, data, config = self._model, self._data, self._config
        # First what no other process works at: trials that start together share the work.
        for is_patient in (False, True):
            for view in range(self._num_views):
                if view in self._cached:
                    continue
                rows = torch.cat([train_rows, val_rows]) if view == PLAIN_VIEW else train_rows
                folder = cache / "features" / _key(model, data, config, view)
                features = _extract(
                    model, data, view, self._augmentations[view], rows, folder, note,
                    is_patient=is_patient,
                )  # fmt: skip
                if features is not None:
                    self._cached[view] = _resident(features, model.mean.device)

    def start_epoch(self, epoch: int) -> None:
        """Draw which view of every image this epoch trains on."""
        purpose = (self._config.seed, "view", epoch, *self._model.branch.tasks)
        self._view_of_row = torch.randint(
            self._num_views, (len(self._data.images),), generator=generator(*purpose)
        )

    def training(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this epoch's features (N, ...)."""
        return self._gather(rows, self._view_of_row[rows])

    def plain(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the features of the images as they are (N, ...)."""
        return self._gather(rows, torch.full_like(rows, PLAIN_VIEW))

    def once(
        self, what: str, inputs: Sequence[torch.Tensor], compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """Return what `compute` gives, stored beside the plain features if they are.

        It must depend on those features and on `inputs` alone; `what` names the formula.
        """
        if self._folder is None:
            return compute()
        digest = hashlib.sha256(what.encode())
        for tensor in inputs:
            digest.update(tensor.numpy().tobytes())
        file = self._folder / f"{digest.hexdigest()[:32]}.safetensors"
        try:
            return safetensors.torch.load(file.read_bytes())["values"]
        except (FileNotFoundError, safetensors.SafetensorError, KeyError):
            values = compute().contiguous()
            with contextlib.suppress(OSError):  # the next trial computes them again
                write_atomically(file, safetensors.torch.save({"values": values}))
            return values

    def _gather(self, rows: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        device, features = self._model.mean.device, None
        for view in range(self._num_views):
            place = (views == view).nonzero()[:, 0]
            if not len(place):
                continue
            part = self._of_view(view, rows[place]).to(device, non_blocking=True)
            if len(place) == len(rows):
                return part
            if features is None:
                features = part.new_empty(len(rows), *part.shape[1:])
            features.index_copy_(0, place.to(device, non_blocking=True), part)
        assert features is not None, "there must be rows"
        return features

    def _of_view(self, view: int, rows: torch.Tensor) -> torch.Tensor:
        if view in self._cached:
            return _pick(self._cached[view], rows)
        return _encode(self._model, self._data, self._augmentations[view], rows)


def _resident(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `values` on `device` where they take a small part of its free memory."""
    if device.type == "cpu":
        return values
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    allowed_bytes = total_bytes * torch.cuda.get_per_process_memory_fraction(device)
    left_bytes = min(free_bytes, allowed_bytes - torch.cuda.memory_reserved(device))
    return values.to(device) if values.nbytes <= RESIDENT_FRACTION * left_bytes else values


_resident_images = functools.lru_cache(maxsize=1)(_resident)  # a process's trials share them


def _pick(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return `values[rows]`, `rows` being on the CPU: on a GPU nothing waits for its copy."""
    return values[rows.to(values.device, non_blocking=True)]


def inputs_for(
    model: BranchModel,
    data: Data,
    config: TrialConfig,
    *,
    train_rows: torch.Tensor,
    val_rows: torch.Tensor,
    cache: Path | None = None,
    note: Callable[[str], None] = print,
) -> ImageInputs | FeatureInputs:
    """Return what `model` trains on: features where part of its backbone is frozen, else images.

    Args:
        model: The branch, with its weights.
        data: The images.
        config: Augmentation, views and seed.
        train_rows: int64, the rows that training will ask for.
        val_rows: int64, the rows that validation will ask for.
        cache: Folder shared by all trials of a machine; null computes features anew every epoch.
        note: Called with a line of progress now and then.
    """
    if not model.has_frozen_part:
        return ImageInputs(model, data, config)
    return FeatureInputs(
        model, data, config, train_rows=train_rows, val_rows=val_rows, cache=cache, note=note
    )


def _view(data: Data, config: TrialConfig, view: int) -> Augmentation | None:
    """Return the fixed augmentation of every image that defines `view`, the same for all trials."""
    if view == PLAIN_VIEW:
        return None
    return draw_augmentation(data, config, generator("feature view", view))


def _encode(
    model: BranchModel, data: Data, augmentation: Augmentation | None, rows: torch.Tensor
) -> torch.Tensor:
    parts = []
    num_images = FORWARD_BATCH[model.mean.device.type]
    for batch in rows.split(num_images):
        padded = torch.cat([batch, batch[-1:].expand(num_images - len(batch))])
        drawn = augmentation[padded] if augmentation else None
        parts.append(model.encode(model.prepare(data.images[padded], drawn))[: len(batch)])
    return torch.cat(parts).float()


def _key(model: BranchModel, data: Data, config: TrialConfig, view: int) -> str:
    """Name a cache entry by all that its values depend on; which view is in the file name."""
    is_plain = view == PLAIN_VIEW
    what = {
        "augment": "" if is_plain else config.augment,
        "match_resolution": 0.0 if is_plain else config.match_resolution,
        "data": data.fingerprint,
        "backbone": model.branch.backbone,
        "frozen_stages": len(model.frozen),
        "weights": model.frozen_fingerprint,
        "image_size": model.branch.image_size,
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "device": model.mean.device.type,
    }
    named = BACKBONES.file_of(model.branch.backbone), AUGMENTS.file_of(config.augment)
    if own := [each for each in (named[:1] if is_plain else named) if each]:
        what["parts"] = own
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _extract(
    model: BranchModel,
    data: Data,
    view: int,
    augmentation: Augmentation | None,
    rows: torch.Tensor,
    folder: Path,
    note: Callable[[str], None],
    *,
    is_patient: bool,
) -> torch.Tensor | None:
    """Return the memory-mapped features of every row of `data`; those of `rows` are valid.

    None if another process works at this view, unless `is_patient` waits for it.

    The array covers all rows but is sparse: only rows that somebody asked for take space. They
    count as done once a mask file, replaced after the values are on the disk, says so; done rows
    are never written again, so readers need no lock. A process that is killed loses the last
    `SAVE_EVERY_S` of its work.

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
        if done_file.exists() and _is_damaged(values_file, len(data.images)):
            note(f"the stored features in {values_file} are damaged: computed again")
            values_file.unlink()
        if not values_file.exists():  # somebody deleted what is large
            done_file.unlink(missing_ok=True)
        done = _read_mask(done_file, len(data.images))
        missing = rows[~done[rows]].unique()
        if len(missing):
            is_new = not done.any()
            try:
                _fill(model, data, view, augmentation, missing, values_file, done, done_file, note)
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
    model: BranchModel,
    data: Data,
    view: int,
    augmentation: Augmentation | None,
    rows: torch.Tensor,
    file: Path,
    done: torch.Tensor,
    done_file: Path,
    note: Callable[[str], None],
) -> None:
    """Write the features of `rows`, and mark them in `done` and its file now and then.

    Raises:
        OSError: There is no space for them.
    """
    # A writer killed before its first mask may have left less than a file's header.
    mode: Literal["r+b", "w+b"] = "r+b" if done.any() else "w+b"
    what = f"features of {model.branch.backbone} at {model.branch.image_size} px, view {view}"
    note(f"{what}: {len(rows):,} images")
    saved_s = time.monotonic()
    with file.open(mode) as handle:
        place = None
        for batch in rows.split(FORWARD_BATCH[model.mean.device.type]):
            features = _encode(model, data, augmentation, batch).cpu().numpy()
            if place is None:
                _check_space(file.parent, len(rows) * features[0].nbytes, what)
                place = _place(handle, len(data.images), features, is_new=mode == "w+b")
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
