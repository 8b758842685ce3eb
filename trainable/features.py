"""What the trained part of a branch sees: augmented images, or cached frozen features."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import filelock
import numpy as np
import torch

from trainable.augment import Augmentation
from trainable.checkpoint import write_atomically
from trainable.config import TrialConfig
from trainable.data import Data
from trainable.models import BranchModel
from trainable.rng import generator

EXTRACTION_BATCH = {"cpu": 32, "cuda": 256}
"""Every forward pass has this many images (the last is padded), so that a feature's bits do not
depend on which others were asked for with it. On a CPU core 32 images of 64 px passed the default
backbone at twice the rate of 256: their activations stay in the core's cache."""

WRITTEN_ROWS = 256
"""So many features are held in memory before they go to the file."""

PLAIN_VIEW = 0
"""The image as it is; views from 1 up are augmented."""


class ImageInputs:
    """Images for a branch that trains its whole backbone, augmented afresh every epoch."""

    def __init__(self, model: BranchModel, data: Data, config: TrialConfig) -> None:
        self._model, self._data, self._config = model, data, config
        self._augmentation: Augmentation | None = None

    def start_epoch(self, epoch: int) -> None:
        """Draw this epoch's augmentation of every image."""
        if self._config.augment != "none":
            purpose = (self._config.seed, "augment", epoch, *self._model.branch.tasks)
            self._augmentation = Augmentation.draw(len(self._data.images), generator(*purpose))

    def training(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this epoch's augmented images (N, 3, S, S)."""
        augmentation = self._augmentation[rows] if self._augmentation else None
        return self._model.prepare(self._data.images[rows], augmentation)

    def plain(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the images as they are (N, 3, S, S)."""
        return self._model.prepare(self._data.images[rows])


class FeatureInputs:
    """Frozen features of K fixed augmented views per image; every epoch draws one of them.

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
        self._views = [PLAIN_VIEW]
        if config.augment != "none":
            self._views = list(range(1, config.feature_views + 1))
        self._view_of_row = torch.zeros(0, dtype=torch.int64)
        self._cached: dict[int, torch.Tensor] | None = None
        if cache is not None:
            folder = cache / "features" / _key(model, data)
            wanted = dict.fromkeys(self._views, train_rows)
            wanted[PLAIN_VIEW] = torch.cat([wanted.get(PLAIN_VIEW, val_rows), val_rows]).unique()
            self._cached = {}
            # First what no other process works at: trials that start together share the work.
            for is_patient in (False, True):
                for view, rows in wanted.items():
                    if view in self._cached or not len(rows):  # a refit judges nothing
                        continue
                    values = _extract(model, data, view, rows, folder, note, is_patient=is_patient)
                    if values is not None:
                        self._cached[view] = values

    def start_epoch(self, epoch: int) -> None:
        """Draw which view of every image this epoch trains on."""
        purpose = (self._config.seed, "view", epoch, *self._model.branch.tasks)
        drawn = torch.randint(
            len(self._views), (len(self._data.images),), generator=generator(*purpose)
        )
        self._view_of_row = torch.tensor(self._views)[drawn]

    def training(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this epoch's features (N, ...)."""
        return self._gather(rows, self._view_of_row[rows])

    def plain(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the features of the images as they are (N, ...)."""
        return self._gather(rows, torch.full_like(rows, PLAIN_VIEW))

    def _gather(self, rows: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        parts, places = [], []
        for view in views.unique().tolist():
            place = (views == view).nonzero()[:, 0]
            places.append(place)
            if self._cached is not None:
                parts.append(self._cached[view][rows[place]])
            else:
                parts.append(_encode(self._model, self._data, view, rows[place]))
        features = torch.cat(parts)[torch.cat(places).argsort()]
        return features.to(self._model.mean.device, non_blocking=True)


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


def _view(data: Data, view: int) -> Augmentation | None:
    """Return the fixed augmentation of every image that defines `view`, the same for all trials."""
    if view == PLAIN_VIEW:
        return None
    return Augmentation.draw(len(data.images), generator("feature view", view))


def _encode(model: BranchModel, data: Data, view: int, rows: torch.Tensor) -> torch.Tensor:
    augmentation = _view(data, view)
    parts = []
    size = EXTRACTION_BATCH[model.mean.device.type]
    for batch in rows.split(size):
        padded = torch.cat([batch, batch[-1:].expand(size - len(batch))])
        drawn = augmentation[padded] if augmentation else None
        parts.append(model.encode(model.prepare(data.images[padded], drawn))[: len(batch)])
    return torch.cat(parts).float()


def _key(model: BranchModel, data: Data) -> str:
    """Name a cache entry by all that its values depend on; the view is in the file name."""
    what = {
        "data": data.fingerprint,
        "backbone": model.branch.backbone,
        "frozen_stages": len(model.frozen),
        "weights": model.frozen_fingerprint,
        "image_size": model.branch.image_size,
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "device": model.mean.device.type,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def _extract(
    model: BranchModel,
    data: Data,
    view: int,
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
    are never written again, so readers need no lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values_file, done_file = folder / f"view_{view:02d}.npy", folder / f"view_{view:02d}.done"
    lock = filelock.FileLock(folder / f"view_{view:02d}.lock", blocking=is_patient)
    try:
        lock.acquire()
    except filelock.Timeout:
        return None
    try:
        done = _read_mask(done_file, len(data.images))
        missing = rows[~done[rows]]
        if len(missing):
            # A writer killed before its first mask may have left less than a file's header.
            mode: Literal["r+", "w+"] = "r+" if done.any() else "w+"
            _fill(model, data, view, missing, values_file, mode, note)
            done[missing] = True
            write_atomically(done_file, np.packbits(done.numpy()).tobytes())
    finally:
        lock.release()
    return torch.from_numpy(np.load(values_file, mmap_mode="c"))


def _read_mask(file: Path, num_rows: int) -> torch.Tensor:
    if not file.exists():
        return torch.zeros(num_rows, dtype=torch.bool)
    bits = np.unpackbits(np.frombuffer(file.read_bytes(), np.uint8), count=num_rows)
    return torch.from_numpy(bits.astype(bool))


def _fill(
    model: BranchModel,
    data: Data,
    view: int,
    rows: torch.Tensor,
    file: Path,
    mode: Literal["r+", "w+"],
    note: Callable[[str], None],
) -> None:
    values: np.memmap | None = None
    what = f"features of {model.branch.backbone} at {model.branch.image_size} px, view {view}"
    note(f"{what}: {len(rows):,} images")
    for batch in rows.split(WRITTEN_ROWS):
        features = _encode(model, data, view, batch).cpu().numpy()
        if values is None:
            shape = (len(data.images), *features.shape[1:])
            values = np.lib.format.open_memmap(file, mode, features.dtype, shape)
        values[batch.numpy()] = features
    assert values is not None
    values.flush()
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
