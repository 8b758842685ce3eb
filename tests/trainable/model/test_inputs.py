"""Frozen features are computed once, by one process, and equal those computed without a cache."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.disks import small_file_system
from tests.made_data import NUM_NUMBERED, numbered_data
from tests.processes import other_processes
from tests.trainable.tiny import (
    BACKBONE,
    silent,
    tiny_backbone,
    tiny_branch,
    tiny_config,
    write_weights,
)
from trainable.config import Task, TrialConfig
from trainable.data.dataset import Data
from trainable.epoch import Epoch
from trainable.model import feature_files
from trainable.model import inputs as inputs_module
from trainable.model.backbones import Backbone
from trainable.model.branch import BranchModel
from trainable.model.inputs import FeatureInputs, ImageInputs, inputs_for
from trainable.train import TrialResult, train

NUM_CLASSES: dict[Task, int] = {"super": 3, "sub": 3}
DEADLINE_S = 120
ALL = torch.arange(NUM_NUMBERED)
PLAIN = tiny_config(augment="none")
AUGMENTED = tiny_config(feature_views=2)


class CountingModel(BranchModel):
    """Notes which rows of `numbered_data` pass its frozen part: a shade is a row."""

    def __init__(self, backbone: Backbone | None = None, **changes: Any) -> None:
        super().__init__(tiny_branch(**changes), backbone or tiny_backbone(), NUM_CLASSES, 0)
        self.encoded: list[list[int]] = []

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        middle = x.shape[-1] // 2  # rotations leave it as it is
        self.encoded.append(x[:, 0, middle, middle].round().int().unique().tolist())
        return super().encode(x)

    @property
    def rows(self) -> list[int]:
        """Return every row encoded so far, sorted; one encoded twice is in it twice."""
        return sorted(row for rows in self.encoded for row in rows)


def cached(
    model: BranchModel,
    cache: Path | None,
    train_rows: torch.Tensor,
    val_rows: torch.Tensor,
    *,
    config: TrialConfig = PLAIN,
    data: Data | None = None,
    note: Callable[[str], None] = silent,
) -> FeatureInputs:
    inputs = inputs_for(
        model,
        data or numbered_data(),
        config,
        train_rows=train_rows,
        val_rows=val_rows,
        cache=cache,
        note=note,
    )
    assert isinstance(inputs, FeatureInputs)
    return inputs


def expected_features(rows: torch.Tensor) -> torch.Tensor:
    model = BranchModel(tiny_branch(), tiny_backbone(), NUM_CLASSES, 0).eval()
    return model.encode(model.prepare(numbered_data().images[rows]))


def real_branch(weights: Path, config: TrialConfig) -> BranchModel:
    return BranchModel.build(config.branches()[0], NUM_CLASSES, 0, weights)


# --- Values ------------------------------------------------------------------------------


@pytest.mark.parametrize("fine_tune", ["frozen", "last_1", "last_3"])
@pytest.mark.parametrize(
    ("augment", "match_resolution"), [("none", 0.0), ("flip_rotate", 0.0), ("strong", 0.5)]
)
def test_cached_features_equal_computed_ones(
    tmp_path: Path,
    tiny_data: Data,
    tiny_weights: Path,
    fine_tune: str,
    augment: str,
    match_resolution: float,
) -> None:
    """To the last bit: a resumed or repeated trial may find a cache or not."""
    config = tiny_config(fine_tune=fine_tune, augment=augment, match_resolution=match_resolution)
    train_rows, val_rows = torch.arange(0, 90), torch.arange(80, 144)
    with_cache, without = (
        cached(
            real_branch(tiny_weights, config),
            cache,
            train_rows,
            val_rows,
            config=config,
            data=tiny_data,
        )
        for cache in (tmp_path, None)
    )
    rows = torch.tensor([5, 88, 17, 17, 0, 41, 89])
    for epoch in (1, 2):
        for inputs in (with_cache, without):
            inputs.start_epoch(epoch)
        assert torch.equal(with_cache.training(rows), without.training(rows))
    rows = torch.tensor([143, 80, 99])
    assert torch.equal(with_cache.plain(rows), without.plain(rows))


def test_view_0_is_the_plain_image(tmp_path: Path, tiny_data: Data, tiny_weights: Path) -> None:
    config = tiny_config(fine_tune="last_1")
    model = real_branch(tiny_weights, config)
    rows = torch.tensor([3, 100, 50])
    inputs = cached(model, tmp_path, rows, rows, config=config, data=tiny_data)
    expected = model.encode(model.prepare(tiny_data.images[rows]))
    torch.testing.assert_close(inputs.plain(rows), expected)
    (file,) = tmp_path.rglob("view_00_000.npy")
    stored = torch.from_numpy(np.load(file))
    assert torch.equal(stored[rows], inputs.plain(rows))


def test_without_augmentation_training_sees_the_plain_images(tmp_path: Path) -> None:
    inputs = cached(CountingModel(), tmp_path, ALL, ALL)
    inputs.start_epoch(1)
    assert torch.equal(inputs.training(ALL), inputs.plain(ALL))
    assert [file.name for file in tmp_path.rglob("*.npy")] == ["view_00_000.npy"]
    torch.testing.assert_close(inputs.plain(ALL), expected_features(ALL))


def test_every_epoch_draws_one_view_of_each_image(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    config = tiny_config(fine_tune="frozen", feature_views=3)
    rows = torch.arange(60)
    model = real_branch(tiny_weights, config)
    inputs = cached(model, tmp_path, rows, rows[:1], config=config, data=tiny_data)
    names = [f"view_{view:02d}_000.npy" for view in range(3)]
    assert sorted(file.name for file in tmp_path.rglob("*.npy")) == names
    views = [torch.from_numpy(np.load(next(tmp_path.rglob(name))))[rows] for name in names]
    drawn = []
    for epoch in range(1, 5):
        inputs.start_epoch(epoch)
        seen = inputs.training(rows)
        is_view = torch.stack([(seen == view).flatten(1).all(1) for view in views])
        assert torch.equal(is_view.sum(0), torch.ones(60, dtype=torch.int64))
        drawn.append(is_view.int().argmax(0))
        assert set(drawn[-1].tolist()) == {0, 1, 2}
    assert not any(torch.equal(drawn[0], later) for later in drawn[1:])


def test_branch_without_a_frozen_part_sees_images() -> None:
    data = numbered_data()
    model = CountingModel(fine_tune="full")
    inputs = inputs_for(model, data, AUGMENTED, train_rows=ALL, val_rows=ALL)
    assert isinstance(inputs, ImageInputs)
    rows = torch.tensor([7, 100])
    assert torch.equal(inputs.plain(rows), model.prepare(data.images[rows]))
    inputs.start_epoch(1)
    first = inputs.training(ALL)
    assert torch.equal(inputs.training(ALL[50:60]), first[50:60])  # a property of the image
    inputs.start_epoch(2)
    assert not torch.equal(inputs.training(ALL), first)
    inputs.start_epoch(1)
    assert torch.equal(inputs.training(ALL), first)
    assert model.rows == []


def test_changing_returned_features_does_not_change_the_cache(tmp_path: Path) -> None:
    cached(CountingModel(), tmp_path, ALL, ALL).plain(ALL).zero_()
    inputs = cached(CountingModel(), tmp_path, ALL, ALL)
    torch.testing.assert_close(inputs.plain(ALL), expected_features(ALL))


# --- What is computed --------------------------------------------------------------------


def test_second_trial_computes_nothing(tmp_path: Path) -> None:
    first, second = CountingModel(), CountingModel()
    notes: list[str] = []
    for model in (first, second):
        cached(model, tmp_path, ALL[:100], ALL[100:], config=AUGMENTED, note=notes.append)
    assert first.rows == sorted([*range(100)] * 2 + [*range(100, 144)])
    assert second.encoded == []
    assert notes == [
        "features of by hand at 8 px, view 0: 144 images",
        "features of by hand at 8 px, view 1: 100 images",
    ]


def test_values_that_were_deleted_without_their_mask_are_computed_anew(tmp_path: Path) -> None:
    cached(CountingModel(), tmp_path, ALL[:40], ALL[40:])
    (values,) = tmp_path.rglob("view_*.npy")
    values.unlink()
    second = CountingModel()
    inputs = cached(second, tmp_path, ALL[:30], ALL[30:40])
    assert second.rows == ALL[:40].tolist()
    assert torch.equal(inputs.plain(ALL[:40]), expected_features(ALL[:40]))
    assert second.rows == ALL[:40].tolist(), "stored"


@pytest.mark.parametrize("damage", ["cut", "no array"])
def test_damaged_values_are_computed_anew_and_that_is_said(tmp_path: Path, damage: str) -> None:
    cached(CountingModel(), tmp_path, ALL[:40], ALL[40:])
    (values,) = tmp_path.rglob("view_*.npy")
    values.write_bytes(values.read_bytes()[:-9] if damage == "cut" else b"features")
    notes: list[str] = []
    inputs = cached(CountingModel(), tmp_path, ALL[:30], ALL[30:40], note=notes.append)
    assert torch.equal(inputs.plain(ALL[:40]), expected_features(ALL[:40]))
    assert notes[0] == f"the stored features in {values} are damaged: computed again"


def test_other_seeds_share_the_features(tmp_path: Path) -> None:
    cached(CountingModel(), tmp_path, ALL, ALL, config=AUGMENTED)
    model = CountingModel()
    cached(model, tmp_path, ALL, ALL, config=replace(AUGMENTED, seed=1, lr=0.5, alpha=0.0))
    assert model.encoded == []


def test_one_view_is_the_plain_image(tmp_path: Path) -> None:
    inputs = cached(CountingModel(), tmp_path, ALL, ALL, config=tiny_config(feature_views=1))
    inputs.start_epoch(1)
    assert torch.equal(inputs.training(ALL), inputs.plain(ALL))
    assert [file.name for file in tmp_path.rglob("*.npy")] == ["view_00_000.npy"]


@pytest.mark.parametrize("change", [{"augment": "strong"}, {"match_resolution": 0.5}])
def test_plain_view_is_shared_by_every_kind_of_augmentation(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    data = numbered_data()
    data.superclass[100:] = len(data.superclasses)  # borrowed
    cached(CountingModel(), tmp_path, ALL, ALL, config=AUGMENTED, data=data)
    notes: list[str] = []
    config = replace(AUGMENTED, **change)
    cached(CountingModel(), tmp_path, ALL, ALL, config=config, data=data, note=notes.append)
    assert notes == ["features of by hand at 8 px, view 1: 144 images"]
    assert len(list(tmp_path.rglob("view_00_000.npy"))) == 1
    assert len(list(tmp_path.rglob("view_01_000.npy"))) == 2


def test_more_views_compute_only_the_new_ones(tmp_path: Path) -> None:
    cached(CountingModel(), tmp_path, ALL, ALL[:1], config=AUGMENTED)
    model = CountingModel()
    notes: list[str] = []
    config = replace(AUGMENTED, feature_views=3)
    cached(model, tmp_path, ALL, ALL[:1], config=config, note=notes.append)
    assert notes == ["features of by hand at 8 px, view 2: 144 images"]


def test_only_rows_asked_for_are_computed_and_done(tmp_path: Path) -> None:
    first, second, third = CountingModel(), CountingModel(), CountingModel()
    cached(first, tmp_path, ALL[:50], ALL[100:110])
    assert first.rows == [*range(50), *range(100, 110)]
    cached(second, tmp_path, ALL[40:70], ALL[105:120])
    assert second.rows == [*range(50, 70), *range(110, 120)]
    cached(third, tmp_path, ALL, ALL)
    assert third.rows == [*range(70, 100), *range(120, 144)]


def test_features_do_not_depend_on_what_was_asked_with_them(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    """Bit for bit, or a resumed trial with a grown pool would not repeat itself."""
    config = tiny_config(fine_tune="last_1", augment="none")
    model = real_branch(tiny_weights, config)
    steps = {"once": [ALL], "growing": [ALL[:1], ALL[90:97], ALL[1:50], ALL.flip(0)]}
    results = []
    for name, requests in steps.items():
        for rows in requests:
            inputs = cached(model, tmp_path / name, rows, rows[:1], config=config, data=tiny_data)
        results.append(inputs.plain(ALL))
    assert torch.equal(*results)


@pytest.mark.parametrize("joined_bytes", [0, inputs_module.JOINED_BYTES])
def test_more_images_than_a_batch_or_a_file_takes_are_all_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined_bytes: int
) -> None:
    monkeypatch.setattr(inputs_module, "JOINED_BYTES", joined_bytes)
    monkeypatch.setitem(inputs_module.FORWARD_BATCH, "cpu", 30)
    monkeypatch.setattr(feature_files, "ROWS_PER_FILE", 50)
    for rows in (ALL[110:], ALL):  # of the last file alone; then of all
        model = CountingModel()
        inputs = cached(model, tmp_path, rows, rows)
        torch.testing.assert_close(inputs.plain(rows), expected_features(rows))
    assert model.rows == ALL[:110].tolist()
    assert len(list(tmp_path.rglob("*.npy"))) == 3
    torch.testing.assert_close(inputs.plain(ALL), expected_features(ALL))
    assert len(inputs._cached[0]) == (1 if joined_bytes else 3)
    mixed = ALL.flip(0)[::7].repeat(2)
    torch.testing.assert_close(inputs.training(mixed), expected_features(mixed))


def test_rows_asked_for_nothing_are_no_problem(tmp_path: Path) -> None:
    """A refit judges nothing."""
    model = CountingModel()
    inputs = cached(model, tmp_path, ALL, ALL[:0], config=AUGMENTED)
    inputs.start_epoch(1)
    assert len(inputs.training(ALL)) == NUM_NUMBERED
    assert model.rows == sorted([*range(NUM_NUMBERED)] * 2)


def folders(cache: Path) -> set[str]:
    return {folder.name for folder in (cache / "features").iterdir()}


def test_all_that_features_depend_on_names_another_entry(tmp_path: Path) -> None:
    cached(CountingModel(), tmp_path, ALL, ALL)
    known = folders(tmp_path)
    assert len(known) == 1
    other_statistic = tiny_backbone()
    batch_norm = other_statistic.stages[0][1]
    assert isinstance(batch_norm, nn.BatchNorm2d)
    batch_norm.running_mean[0] += 1
    first, second, last = tiny_backbone().stages
    with_relu = replace(tiny_backbone(), stages=(first, second, nn.ReLU(), last))
    others: dict[str, tuple[CountingModel, Data]] = {
        "weights": (CountingModel(tiny_backbone(seed=1)), numbered_data()),
        "statistics": (CountingModel(other_statistic), numbered_data()),
        "size": (CountingModel(image_size=9), numbered_data()),
        "boundary": (CountingModel(fine_tune="frozen"), numbered_data()),
        "boundary after a stage without weights": (CountingModel(with_relu), numbered_data()),
        "data": (CountingModel(), numbered_data("other")),
        "normalisation": (
            CountingModel(replace(tiny_backbone(), mean=(0.5, 0.5, 0.5))),
            numbered_data(),
        ),
    }
    for what, (model, data) in others.items():
        cached(model, tmp_path, ALL, ALL, data=data)
        assert len(folders(tmp_path) - known) == 1, what
        known = folders(tmp_path)


def test_trained_part_has_no_say_in_the_entry(tmp_path: Path) -> None:
    first, second = CountingModel(), CountingModel(heads=("cosine", "cosine"), lr=0.5)
    with torch.no_grad():
        second.tuned[0][2].weight.add_(1)
    for model in (first, second):
        cached(model, tmp_path, ALL, ALL)
    assert second.encoded == []


# --- Trials ------------------------------------------------------------------------------


def trial(
    data: Data, weights: Path, cache: Path | None, **changes: Any
) -> tuple[dict[str, float], list[str], TrialResult]:
    """Train two epochs; return the metrics that can be compared, the notes and the result."""
    notes: list[str] = []
    config = tiny_config(**({"epochs": 2} | changes))
    result = train(
        config, data, lambda metrics: None, cache=cache, weights=weights, note=notes.append
    )
    metrics = dict(Epoch.of(result.metrics).metrics)
    return metrics, [line for line in notes if line.startswith("features of")], result


@pytest.mark.parametrize("fine_tune", ["frozen", "last_1"])
def test_trial_does_not_depend_on_the_state_of_the_cache(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path, fine_tune: str
) -> None:
    caches = {"cold": tmp_path, "warm": tmp_path, "none": None}
    trials = {
        name: trial(tiny_data, tiny_weights, cache, fine_tune=fine_tune)
        for name, cache in caches.items()
    }
    metrics, notes, result = trials["cold"]
    assert len(notes) == 2
    weights = result.branches[0].state_dict()
    for name in ("warm", "none"):
        other_metrics, other_notes, other = trials[name]
        assert other_metrics == metrics
        assert other_notes == []
        for key, tensor in other.branches[0].state_dict().items():
            assert torch.equal(tensor, weights[key]), (name, key)


def test_both_branches_of_a_trial_share_the_features(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    changes = {"architecture": "two_models", "fine_tune": "frozen", "epochs": 1}
    _, notes, _ = trial(tiny_data, tiny_weights, tmp_path, **changes)
    assert len(notes) == 2


def test_other_weights_are_not_served_the_old_features(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    trial(tiny_data, tiny_weights, tmp_path, fine_tune="frozen", epochs=0)
    other = write_weights(tmp_path / f"{BACKBONE}.pth", seed=1)
    _, notes, _ = trial(tiny_data, other, tmp_path, fine_tune="frozen", epochs=0)
    assert len(notes) == 2


# --- Faults ------------------------------------------------------------------------------


def garble(file: Path) -> None:
    values = np.load(file, mmap_mode="r+")
    values[:] = -1
    values.flush()


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("left_behind", [garble, remove, empty])
def test_values_whose_mask_was_not_written_are_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_behind: Callable[[Path], None]
) -> None:
    def killed(file: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(CountingModel(), tmp_path, ALL, ALL)
    assert list(tmp_path.rglob("*.done")) == []
    (file,) = tmp_path.rglob("*.npy")
    left_behind(file)
    model = CountingModel()
    inputs = cached(model, tmp_path, ALL, ALL)
    assert model.rows == ALL.tolist()
    torch.testing.assert_close(inputs.plain(ALL), expected_features(ALL))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; the features of ALL take 110 KB."""
    with small_file_system(tmp_path / "disk", "64k") as folder:
        yield folder


def extract_into(cache: Path, free_fraction: float, lines_file: Path) -> None:
    torch.set_num_threads(1)
    feature_files.FREE_FRACTION = free_fraction
    lines: list[str] = []
    inputs = cached(CountingModel(fine_tune="last_1"), cache, ALL, ALL, note=lines.append)
    torch.testing.assert_close(inputs.plain(ALL[:5]), expected_features(ALL[:5]))
    lines_file.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("free_fraction", "reason"),
    [(0.9, r"view 0: 0.000221 GB, but .* GB free\)"), (1e9, r"\(No space left on device\)")],
)
def test_features_that_the_disk_cannot_take_are_computed_from_the_images(
    small_disk: Path, tmp_path: Path, free_fraction: float, reason: str
) -> None:
    """Noticed before the first is written, or when the disk is full after all."""
    lines_file = tmp_path / "lines"
    process = other_processes().Process(
        target=extract_into, args=(small_disk, free_fraction, lines_file)
    )
    process.start()
    process.join(DEADLINE_S)
    assert process.exitcode == 0, "a full disk kills what writes through a memory map"
    (line,) = [line for line in lines_file.read_text().split("\n") if "not stored" in line]
    assert re.search("computed from the images in every epoch .*" + reason, line)
    assert list(small_disk.rglob("*.npy")) == [], "the space goes back"


class KilledModel(CountingModel):
    """Its process is killed before the third batch passes, with two batches in the file."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.encoded) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(x)


def extract_and_be_killed(cache: Path, save_every_s: float) -> None:
    torch.set_num_threads(1)
    feature_files.SAVE_EVERY_S = save_every_s
    inputs_module.FORWARD_BATCH["cpu"] = 32
    cached(KilledModel(), cache, ALL, ALL)


class WaitingModel(CountingModel):
    """Holds the cache's lock until the other process is about to ask for it."""

    holding: Event
    other_asks: Event

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.holding.set()
        assert self.other_asks.wait(DEADLINE_S)
        return super().encode(x)


def extract_while_another_waits(
    cache: Path,
    holding: Event,
    other_asks: Event,
    config: TrialConfig = PLAIN,
    rows_per_file: int = feature_files.ROWS_PER_FILE,
) -> None:
    torch.set_num_threads(1)
    feature_files.ROWS_PER_FILE = rows_per_file
    model = WaitingModel()
    model.holding, model.other_asks = holding, other_asks
    cached(model, cache, ALL[:100], ALL[:0], config=config)
    (cache / "rows").write_text(repr(model.rows))


@pytest.mark.parametrize(("save_every_s", "kept"), [(60.0, 0), (0.0, 64)])
def test_process_killed_while_it_computes_leaves_what_it_saved(
    tmp_path: Path, save_every_s: float, kept: int
) -> None:
    process = other_processes().Process(target=extract_and_be_killed, args=(tmp_path, save_every_s))
    process.start()
    process.join(DEADLINE_S)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    model = CountingModel()
    inputs = cached(model, tmp_path, ALL, ALL)
    assert model.rows == ALL[kept:].tolist()
    torch.testing.assert_close(inputs.plain(ALL), expected_features(ALL))


def test_two_processes_at_once_compute_each_row_once(tmp_path: Path) -> None:
    context = other_processes()
    holding, this_asks = context.Event(), context.Event()
    process = context.Process(
        target=extract_while_another_waits, args=(tmp_path, holding, this_asks)
    )
    process.start()
    assert holding.wait(DEADLINE_S)
    this_asks.set()
    model = CountingModel()
    inputs = cached(model, tmp_path, ALL[50:], ALL[:0])
    process.join(DEADLINE_S)
    assert process.exitcode == 0
    assert (tmp_path / "rows").read_text() == repr([*range(100)])
    assert model.rows == [*range(100, 144)]
    torch.testing.assert_close(inputs.plain(ALL), expected_features(ALL))


def test_two_processes_that_want_the_same_view_share_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is augmented there is no other view to work at meanwhile."""
    monkeypatch.setattr(feature_files, "ROWS_PER_FILE", 40)
    context = other_processes()
    holding, this_asks = context.Event(), context.Event()
    process = context.Process(
        target=extract_while_another_waits, args=(tmp_path, holding, this_asks, PLAIN, 40)
    )
    process.start()
    assert holding.wait(DEADLINE_S)  # of the first file

    class LastModel(CountingModel):
        """Lets the other process go on once all is done that it does not hold."""

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            features = super().encode(x)
            if len(self.rows) == NUM_NUMBERED - 40:
                this_asks.set()
            return features

    model, notes = LastModel(), list[str]()
    inputs = cached(model, tmp_path, ALL, ALL[:0], note=notes.append)
    process.join(DEADLINE_S)
    assert process.exitcode == 0
    assert (tmp_path / "rows").read_text() == repr([*range(40)])
    assert model.rows == [*range(40, NUM_NUMBERED)]
    assert notes == ["features of by hand at 8 px, view 0: 144 images"]
    rows = ALL.flip(0)[::3]
    assert torch.equal(inputs.plain(rows), cached(model, None, ALL, ALL).plain(rows))


def test_a_view_that_another_process_works_at_comes_last(tmp_path: Path) -> None:
    context = other_processes()
    holding, this_asks = context.Event(), context.Event()
    process = context.Process(
        target=extract_while_another_waits, args=(tmp_path, holding, this_asks, AUGMENTED)
    )
    process.start()
    assert holding.wait(DEADLINE_S)  # of its first view
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        this_asks.set()

    cached(CountingModel(), tmp_path, ALL, ALL, config=AUGMENTED, note=note)
    process.join(DEADLINE_S)
    assert process.exitcode == 0
    assert notes[0].endswith(": 144 images")
    assert notes[-1].endswith(": 44 images")
