"""Do intervals resample classes, and do they agree with references?"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.trainable.made_outputs import make_outputs
from trainable.config import TrialConfig
from trainable.data.splits import NOVEL_SUPER, SEEN
from trainable.novelty.intervals import (
    flat,
    interval_of,
    outputs_intervals,
    percentiles,
    rate_intervals,
    resamples,
)
from trainable.novelty.metrics import MAIN, accuracies
from trainable.novelty.rule import decide
from trainable.novelty.thresholds import Answers, Outputs, choose_rule


def answers(outputs: Outputs, chosen_on: Outputs) -> Answers:
    return Answers(*decide(outputs, choose_rule(chosen_on, TrialConfig())))


def clustered(num_classes: int, images: int, seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    """Return the class of each image, and which are right: all or none of most classes."""
    rng = np.random.default_rng(seed)
    share = rng.beta(0.3, 0.3, num_classes)
    right = rng.random((num_classes, images)) < share[:, None]
    return np.repeat(np.arange(num_classes), images), torch.from_numpy(right.ravel())


def rates(right: torch.Tensor, weights: np.ndarray) -> tuple[float, float]:
    everything = torch.ones_like(right)
    return rate_intervals({"rate": (everything, right)}, weights)["rate"]


def test_interval_agrees_with_scipys_bootstrap_of_class_means() -> None:
    classes, right = clustered(30, 12)
    low, high = rates(right, resamples(np.zeros_like(classes), classes, num=4000))
    means = right.reshape(30, 12).double().mean(1).numpy()
    reference = stats.bootstrap(
        (means,), np.mean, method="percentile", n_resamples=4000, rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.015)


def test_classes_that_err_alike_make_the_interval_wider_than_their_images() -> None:
    classes, right = clustered(30, 12)
    by_class = rates(right, resamples(np.zeros_like(classes), classes))
    by_image = rates(right, resamples(np.zeros_like(classes), np.full_like(classes, -1)))
    assert by_class[1] - by_class[0] > 2 * (by_image[1] - by_image[0])
    share = right.double().mean().item()
    half = 1.96 * math.sqrt(share * (1 - share) / len(right))
    assert by_image == pytest.approx((share - half, share + half), abs=0.01)


def test_whole_classes_are_drawn_and_each_stratum_keeps_how_many_it_has() -> None:
    classes = np.repeat(np.arange(20), 3)
    stratum = (classes >= 10).astype(int)
    weights = resamples(stratum, classes, num=50)
    by_class = weights.reshape(50, 20, 3)
    assert (by_class == by_class[:, :, :1]).all()
    assert (by_class[:, :10, 0].sum(1) == 10).all()
    assert (by_class[:, 10:, 0].sum(1) == 10).all()
    assert by_class.std() > 0


def test_images_of_few_classes_are_resampled_too() -> None:
    classes = np.repeat(np.arange(2), 40)
    right = torch.from_numpy(np.arange(80) % 2 == 0)  # both classes alike, at one half
    low, high = rates(right, resamples(np.zeros_like(classes), classes))
    assert (low, high) == pytest.approx((0.5 - 0.11, 0.5 + 0.11), abs=0.02)


def test_intervals_hold_the_metrics_themselves_and_are_the_same_every_time() -> None:
    outputs = make_outputs(1, num=400)
    given = answers(outputs, outputs)
    found, again = outputs_intervals(outputs, given), outputs_intervals(outputs, given)
    assert found == again
    point = accuracies(outputs, given)
    assert found.keys() == point.keys()
    assert all(found[name][0] <= point[name] <= found[name][1] for name in point)
    assert all(found[name][0] < found[name][1] for name in MAIN)


def test_metric_without_images_has_no_interval() -> None:
    outputs = make_outputs(1, kinds=[SEEN])
    found = outputs_intervals(outputs, answers(outputs, make_outputs(1)))
    assert "seen_super" in found
    assert not {"unseen_super", "score", "unseen_sub_far"} & found.keys()
    assert all(math.isnan(end) for end in percentiles([math.nan, math.nan]))


def test_stored_interval_comes_back_and_an_old_trial_has_none() -> None:
    outputs = make_outputs(2, kinds=[SEEN, NOVEL_SUPER])
    found = outputs_intervals(outputs, answers(outputs, outputs))
    stored = flat(found)
    assert interval_of(stored, "score") == found["score"]
    assert interval_of({"score": 0.5}, "score") is None
    assert len(stored) == 2 * len(MAIN)


def of_superclasses(shares: tuple[float, ...]) -> tuple[float, float]:
    """Return the interval where each class has its superclass's share right, so that only
    superclasses differ.
    """
    classes = np.repeat(np.arange(30), 20)
    weights = resamples(np.zeros_like(classes), classes)
    of_fold = classes % len(shares)
    right = torch.from_numpy(np.arange(len(classes)) % 20 < 20 * np.array(shares)[of_fold])
    judged = {
        f"unseen_super_left_out.{fold}": (torch.from_numpy(of_fold == fold), right)
        for fold in range(len(shares))
    }
    everything = torch.ones(len(classes), dtype=torch.bool)
    found = rate_intervals(judged | {"seen_super_seen": (everything, ~everything)}, weights)
    assert not any(name.rpartition(".")[2].isdigit() for name in found)
    return found["unseen_super"]


def test_another_superclass_is_drawn_as_its_t_distribution_says() -> None:
    shares = (0.5, 0.7, 0.9)
    logits = np.log(shares) - np.log1p(-np.array(shares))
    variance = (3 * 1.0 + 2 * logits.var(ddof=1)) / 5
    half = stats.t.ppf(0.975, 5) * math.sqrt(variance * (1 + 1 / 3))
    expected = [1 / (1 + math.exp(-(logits.mean() + sign * half))) for sign in (-1, 1)]
    assert of_superclasses(shares) == pytest.approx(expected, abs=0.02)


def test_the_more_superclasses_were_alike_the_surer_is_another() -> None:
    widths = [high - low for low, high in (of_superclasses((0.9,) * num) for num in (1, 3, 10))]
    assert 0.95 > widths[0] > widths[1] + 0.2 > widths[2] + 0.4 > 0.55


@pytest.mark.parametrize(("num_classes", "expected"), [(4, 0.85), (13, 0.87), (40, 0.91)])
def test_interval_of_other_classes_holds_what_they_show(num_classes: int, expected: float) -> None:
    """Nearly as often as it says; those of the classes themselves do so much more rarely."""
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(num_classes), 15)
    held = {True: 0, False: 0}
    for _ in range(200):
        share = rng.beta(2, 1, (2, num_classes))
        right, other = rng.random((2, num_classes, 15)) < share[..., None]
        for of_others in held:
            weights = resamples(np.zeros_like(classes), classes, num=199, of_others=of_others)
            low, high = rates(torch.from_numpy(right.ravel()), weights)
            held[of_others] += low <= other.mean() <= high
    assert held[True] / 200 >= expected
    assert held[False] / 200 < expected - 0.02
