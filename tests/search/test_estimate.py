"""What a search will cost is told from a few images of each kind of trial."""

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from upath import UPath

from search import estimate as module
from search.estimate import Cost, Estimate, estimate
from trainable.config import TrialConfig
from trainable.data.dataset import Data, load_data
from trainable.model import backbones
from trainable.novelty.thresholds import Outputs
from trainable.train import train
from trainable.trainer import Trainer

FROZEN = TrialConfig(fine_tune="frozen", image_size=32, novel_images=16, epochs=1)
TUNED = TrialConfig(fine_tune="last_1", image_size=32, novel_images=16, epochs=1)


@pytest.fixture(scope="module")
def images(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    cache = tmp_path_factory.mktemp("cache")
    return load_data(str(data), str(data / "novel_images"), cache, note=lambda line: None)


def of(
    images: Data,
    *samples: TrialConfig,
    trials: int,
    weights: Path | None = None,
    measure_s: float = float("inf"),
) -> tuple[Estimate | None, list[str]]:
    """Return the estimate, and what was said."""
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MEASURE_S", measure_s)  # every kind, on a slow machine too
        found = estimate(
            samples, images, num_trials=trials, slots=1, threads=1, weights=weights, is_fast=True,
            note=lines.append,
        )  # fmt: skip
    return found, lines


@pytest.mark.slow
def test_what_trials_leave_on_the_disk_is_what_was_estimated(images: Data, tmp_path: Path) -> None:
    found, lines = of(images, FROZEN, TUNED, trials=2)
    assert found is not None
    assert lines == []
    assert (found.num_kinds, found.num_measured) == (2, 2)
    assert found.seconds > 0
    assert found.feature_bytes > 0
    left = 0
    for number, config in enumerate((FROZEN, TUNED)):
        folder = UPath(tmp_path / str(number))
        train(config, images, lambda metrics: None, folder=folder, cache=tmp_path / "cache",
              note=lambda line: None)  # fmt: skip
        files = [file for file in folder.iterdir() if not file.name.startswith("checkpoint")]
        left += sum(file.stat().st_size for file in files)
    assert left < found.kept_bytes < 6 * left, "with two checkpoints of the one that runs"


def test_kind_of_trial_that_would_fail_is_named_with_its_reason(
    images: Data, tmp_path: Path
) -> None:
    found, (line,) = of(images, FROZEN, trials=2, weights=tmp_path / "none")
    assert found is None
    assert line.startswith("a trial of efficientnet_lite0 frozen linear")
    assert " would fail: " in line


def test_features_that_trials_share_are_computed_once(
    images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = Cost(features_s=100.0, epoch_s=1.0, around_s=0.5, kept_bytes=1, checkpoint_bytes=1,
                feature_bytes=1)  # fmt: skip
    monkeypatch.setattr(module, "_cost", lambda *args, **more: cost)
    cosine, larger = replace(FROZEN, head="cosine"), replace(FROZEN, image_size=64)
    found, _ = of(images, FROZEN, cosine, larger, trials=3)
    assert found is not None
    assert found.num_kinds == 3
    assert found.seconds == pytest.approx(2 * 100 + 3 * (1 + 0.5))


def test_what_a_first_call_takes_alone_is_not_scaled_to_all_images(
    images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_s = 0.0

    class SlowAtFirst(Trainer):
        def outputs(self, *, all_scores: bool = False) -> Outputs:
            nonlocal late_s
            late_s = 1000.0
            return super().outputs(all_scores=all_scores)

    now_s = time.perf_counter
    monkeypatch.setattr(module, "Trainer", SlowAtFirst)
    monkeypatch.setattr("search.estimate.time.perf_counter", lambda: now_s() + late_s)
    found, _ = of(images, FROZEN, trials=1)
    assert found is not None
    assert found.seconds < 500


def test_features_of_kinds_that_were_not_measured_are_told_from_those_that_were(
    images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost_of(config: TrialConfig, *_: object, **more: object) -> Cost:
        has_features = config.fine_tune == "frozen"
        return Cost(features_s=100.0 * has_features, epoch_s=1.0, around_s=0.0, kept_bytes=1,
                    checkpoint_bytes=1, feature_bytes=10 * has_features)  # fmt: skip

    monkeypatch.setattr(module, "_cost", cost_of)
    sizes = [replace(FROZEN, image_size=size) for size in (32, 64, 96)]
    for samples, num_measured in ((sizes, 1), ([TUNED, *sizes], 2)):
        seconds = iter([0.0, *[1.0] * (num_measured - 1), 3.0])
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=seconds.__next__))
        found, _ = of(images, *samples, trials=len(samples), measure_s=2.0)
        assert found is not None
        assert (found.num_kinds, found.num_measured) == (len(samples), num_measured)
        assert found.seconds == pytest.approx(3 * 100 + len(samples))
        assert found.feature_bytes == 3 * 10


def test_weights_that_are_read_once_are_not_scaled_to_all_images(
    images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_s, make, now_s = 0.0, backbones._built.__wrapped__, time.perf_counter

    def slowly(*args: Any) -> backbones.Backbone:
        nonlocal late_s
        late_s += 1000.0
        return make(*args)

    monkeypatch.setattr(backbones, "_built", lru_cache(slowly))
    monkeypatch.setattr("search.estimate.time.perf_counter", lambda: now_s() + late_s)
    found, _ = of(images, FROZEN, trials=1)
    assert found is not None
    assert late_s == 1000
    assert found.seconds < 500
