"""An epoch's measurements and its bookkeeping are apart, and together where they are stored; the
best epoch is the best by what no result is made of.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainable.epoch import Epoch, best_epoch

EPOCHS = st.builds(
    Epoch,
    number=st.integers(0, 999),
    metrics=st.dictionaries(st.sampled_from(["score", "tau_sub", "part_a.score"]), st.floats(0, 1)),
    seconds=st.none() | st.floats(0, 1e6),
    images_per_s=st.none() | st.floats(0, 1e6),
    peak_bytes=st.none() | st.integers(0, 2**40),
    host_peak_bytes=st.none() | st.integers(0, 2**40),
    gpu_utilisation=st.none() | st.floats(0, 1),
)


@given(EPOCHS)
def test_epoch_comes_back_as_it_was_stored(epoch: Epoch) -> None:
    assert Epoch.of(epoch.to_dict()) == epoch


def test_bookkeeping_is_not_among_the_measurements() -> None:
    stored = {"epoch": 2, "epoch_s": 0.5, "images_per_s": 80.0, "train_loss": 1.5, "score": 0.25}
    epoch = Epoch.of(stored)
    assert epoch.metrics == {"train_loss": 1.5, "score": 0.25}
    assert (epoch.number, epoch.seconds, epoch.images_per_s) == (2, 0.5, 80.0)
    assert epoch.peak_bytes is None, "of an earlier version, or on no GPU"
    assert epoch.to_dict() == stored


def epochs(*metrics: dict[str, float]) -> list[Epoch]:
    return [Epoch(number=number, metrics=each) for number, each in enumerate(metrics, start=1)]


@pytest.mark.parametrize(
    ("scores", "best"), [((0.1, 0.3, 0.2), 2), ((0.3, 0.1, 0.3), 1), ((0.5,), 1), ((0, 0), 1)]
)
def test_best_epoch_is_the_first_with_the_highest_calibration_score(
    scores: tuple[float, ...], best: int
) -> None:
    kept = epochs(*({"score": 1 - score, "score_calibration": score} for score in scores))
    assert best_epoch(kept).number == best


def test_without_calibration_the_last_epoch_is_the_best() -> None:
    kept = epochs({"train_loss": 1.0}, {"train_loss": 2.0})
    assert best_epoch(kept) is kept[1]


def test_best_epoch_is_best_by_the_metric_and_its_direction() -> None:
    kept = epochs(
        {"score_calibration": 0.9, "ce_sub_calibration": 2.0, "seen_sub": 0.9},
        {"score_calibration": 0.5, "ce_sub_calibration": 1.0, "seen_sub": 0.1},
    )
    assert best_epoch(kept, "ce_sub").number == 2
    assert best_epoch(kept, "seen_sub").number == 1, "no result chooses: as the score says"
