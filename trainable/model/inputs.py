"""What the trained part of a branch sees: augmented images, or cached frozen features."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch

from trainable.checkpoint import write_atomically
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.model.augment import Augmentation, matched_sides
from trainable.model.branch import BranchModel
from trainable.model.feature_files import FeatureFiles
from trainable.model.folding import FOLDED
from trainable.parts import AUGMENTS, BACKBONES
from trainable.rng import generator

FORWARD_BATCH = {"cpu": 32, "cuda": 256}
"""Images at once where nothing is learnt. On a CPU, 32 are twice as fast as 256 at 64 and 128 px,
and no peak of memory. Extraction pads its last batch to as many, so that a feature's bits do not
depend on which others were asked for with it."""

RESIDENT_FRACTION = 0.25
"""Of a process's free memory on a GPU: images or features up to this size are kept there."""

JOINED_BYTES = 2**27
"""Stored features of a view up to this size are read into a process's memory: to pick a batch from
several files takes several times as long."""

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
        self._cached: dict[int, list[torch.Tensor]] = {}
        """Of each view, the features of all rows, one file after the other."""
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
        what = f"features of {model.branch.backbone} at {model.branch.image_size} px"
        views = [
            FeatureFiles(
                functools.partial(_encode, model, data, augmentation),
                torch.cat([train_rows, val_rows]) if view == PLAIN_VIEW else train_rows,
                len(data.images),
                cache / "features" / _key(model, data, config, view) / f"view_{view:02d}",
                batch_size=FORWARD_BATCH[model.mean.device.type],
                what=f"{what}, view {view}", note=note,
            )
            for view, augmentation in enumerate(self._augmentations)
        ]  # fmt: skip
        # First what no other process works at: trials that start together share the work.
        for is_patient in (False, True):
            for view, files in enumerate(views):
                if view not in self._cached and files.extract(is_patient=is_patient):
                    self._cached[view] = _resident_parts(files.mapped(), model.mean.device)

    def start_epoch(self, epoch: int) -> None:
        """Draw which view of every image this epoch trains on."""
        purpose = (self._config.seed, "view", epoch, *self._model.branch.tasks)
        self._view_of_row = torch.randint(
            self._num_views, (len(self._data.images),), generator=generator(*purpose)
        )

    def training(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this epoch's features (N, ...)."""
        if self._num_views == 1:
            return self.plain(rows)
        return self._gather(rows, self._view_of_row[rows])

    def plain(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the features of the images as they are (N, ...)."""
        return self._of_view(PLAIN_VIEW, rows).to(self._model.mean.device, non_blocking=True)

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
            return _pick_from(self._cached[view], rows)
        return _encode(self._model, self._data, self._augmentations[view], rows)


def _resident(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `values` on `device` where they take a small part of its free memory."""
    return values.to(device) if _is_small(values.nbytes, device) else values


def _resident_parts(parts: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Return `parts` joined on `device` where they take a small part of its memory."""
    num_bytes = sum(part.nbytes for part in parts)
    is_joined = num_bytes <= JOINED_BYTES if device.type == "cpu" else _is_small(num_bytes, device)
    if not is_joined:
        return parts
    return [torch.cat([part.to(device) for part in parts])]


def _is_small(num_bytes: int, device: torch.device) -> bool:
    if device.type == "cpu":
        return False
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    allowed_bytes = total_bytes * torch.cuda.get_per_process_memory_fraction(device)
    left_bytes = min(free_bytes, allowed_bytes - torch.cuda.memory_reserved(device))
    return num_bytes <= RESIDENT_FRACTION * left_bytes


_resident_images = functools.lru_cache(maxsize=1)(_resident)  # a process's trials share them


def _pick(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return `values[rows]`, `rows` being on the CPU: on a GPU nothing waits for its copy."""
    return values[rows.to(values.device, non_blocking=True)]


def _pick_from(parts: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Return `torch.cat(parts)[rows]`."""
    if len(parts) == 1:
        return parts[0].index_select(0, rows.to(parts[0].device, non_blocking=True))
    features = parts[0].new_empty(len(rows), *parts[0].shape[1:])
    size = len(parts[0])  # of all but the last
    order = rows.argsort(stable=True)
    numbers, counts = torch.unique_consecutive(rows[order] // size, return_counts=True)
    for number, place in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
        features[place] = parts[number][rows[place] - number * size]
    return features


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
        "folded": FOLDED,
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
    files = filter(None, map(BACKBONES.file_of, model.branch.backbone.split("+")))
    named = " ".join(files), AUGMENTS.file_of(config.augment)
    if own := [each for each in (named[:1] if is_plain else named) if each]:
        what["parts"] = own
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
