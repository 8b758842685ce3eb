"""Scores equal the published detectors', and thresholds are the best there are."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytorch_ood.detector import GEN, EnergyBased, MaxLogit, MaxSoftmax
from scipy.stats import hmean

from trainable.config import NOVELTY_SCORES
from trainable.novelty import (
    GEN_GAMMA,
    GEN_TOP,
    acceptance,
    calibrate,
    decide,
    harmonic_mean,
    novelty_score,
)

INF = math.inf
Image = tuple[float, bool, bool]  # score, known, argmax is right


def random_logits(num_known: int, scale: float = 1.5, num: int = 200) -> torch.Tensor:
    rng = torch.Generator().manual_seed(num_known)
    return scale * torch.randn(num, num_known + 1, generator=rng, dtype=torch.float64)


# --- Scores ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_known", [1, 3, 87])
def test_msp_of_an_impossible_novel_class_is_max_softmax(num_known: int) -> None:
    logits = random_logits(num_known)
    logits[:, -1] = -INF
    theirs = MaxSoftmax.score(logits[:, :-1])
    torch.testing.assert_close(novelty_score(logits, "msp"), -theirs)


def test_msp_keeps_novel_in_the_denominator() -> None:
    logits = torch.tensor([[2.0, 1.0, 3.0]])
    expected = math.exp(2) / (math.exp(2) + math.exp(1) + math.exp(3))
    assert float(novelty_score(logits, "msp")) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_known", [1, 3, 87])
@pytest.mark.parametrize(
    ("name", "detector"), [("max_logit", MaxLogit), ("energy", EnergyBased)], ids=["max", "energy"]
)
def test_score_is_the_published_one_over_the_known_classes(
    name: str, detector: Any, num_known: int
) -> None:
    logits = random_logits(num_known)
    torch.testing.assert_close(novelty_score(logits, name), -detector.score(logits[:, :-1]))


@pytest.mark.parametrize("num_known", [2, 3, 87, 130])
def test_gen_is_the_published_one_over_the_known_classes(num_known: int) -> None:
    """They average where the paper sums; the logits are mild, as they clamp probabilities."""
    logits = random_logits(num_known, scale=1.0)
    assert (GEN_GAMMA, GEN_TOP) == (0.1, 100)
    theirs = GEN.score(logits[:, :-1], gamma=0.1, M=100) * min(100, num_known)
    torch.testing.assert_close(novelty_score(logits, "gen"), -theirs)


@pytest.mark.parametrize("name", ["max_logit", "energy", "gen"])
def test_novel_logit_does_not_change_scores_over_the_known_classes(name: str) -> None:
    logits = random_logits(5)
    other = logits.clone()
    other[:, -1] += 100.0
    assert torch.equal(novelty_score(other, name), novelty_score(logits, name))


@pytest.mark.parametrize("name", NOVELTY_SCORES)
def test_certain_image_looks_more_known_than_an_uncertain_one(name: str) -> None:
    certain, uncertain = novelty_score(torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), name)
    assert certain > uncertain


@pytest.mark.parametrize("name", NOVELTY_SCORES)
def test_extreme_logits_have_finite_scores(name: str) -> None:
    corners = torch.tensor(list(itertools.product([-1e4, 0.0, 1e4], repeat=3)))
    score = novelty_score(corners, name)
    assert score.dtype == torch.float64
    assert score.isfinite().all()


@pytest.mark.parametrize("name", NOVELTY_SCORES)
def test_acceptance_is_never_where_novel_is_the_argmax(name: str) -> None:
    logits = random_logits(3)
    is_novel = torch.tensor([max(row) == row[-1] for row in logits.tolist()])
    assert 0 < is_novel.sum() < len(logits)
    accepted = acceptance(logits, name)
    assert (accepted[is_novel] == -INF).all()
    assert torch.equal(accepted[~is_novel], novelty_score(logits, name)[~is_novel])


# --- The decision rule -----------------------------------------------------------------------


def logits_with_ties(num_classes: int) -> st.SearchStrategy[Any]:
    return arrays(np.float32, (6, num_classes), elements=st.integers(-2, 2).map(float))


@given(
    logits_with_ties(3),
    logits_with_ties(5),
    st.sampled_from(NOVELTY_SCORES),
    st.sampled_from([-INF, -1.0, 0.0, 0.3, 0.5, 1.0, 2.0, INF]),
    st.sampled_from([-INF, -1.0, 0.0, 0.3, 0.5, 1.0, 2.0, INF]),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_decision_is_the_argmax_where_the_score_reaches_tau_else_novel(
    super_logits: Any, sub_logits: Any, name: str, tau_super: float, tau_sub: float, couple: bool
) -> None:
    logits = torch.tensor(super_logits), torch.tensor(sub_logits)
    scores = [novelty_score(each, name) for each in logits]
    superclass, subclass = decide(
        *logits,
        *(acceptance(each, name) for each in logits),
        tau_super=tau_super,
        tau_sub=tau_sub,
        couple_novel=couple,
    )
    for i in range(len(super_logits)):
        expected_super = int(super_logits[i].argmax()) if scores[0][i] >= tau_super else 2
        expected_sub = int(sub_logits[i].argmax()) if scores[1][i] >= tau_sub else 4
        if couple and expected_super == 2:
            expected_sub = 4
        assert (superclass[i], subclass[i]) == (expected_super, expected_sub)


@given(logits_with_ties(4), logits_with_ties(7), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_fixed_tau_on_msp_is_the_papers_rule(
    super_logits: Any, sub_logits: Any, tau_super: float, tau_sub: float
) -> None:
    """The argmax over all classes if its softmax probability is at least tau, else novel."""
    logits = torch.tensor(super_logits), torch.tensor(sub_logits)
    decided = decide(
        *logits,
        *(acceptance(each, "msp") for each in logits),
        tau_super=tau_super,
        tau_sub=tau_sub,
        couple_novel=False,
    )
    for each, tau, predictions in zip(logits, (tau_super, tau_sub), decided, strict=True):
        novel = each.shape[1] - 1
        for row, prediction in zip(each.double().softmax(1), predictions, strict=True):
            assert prediction == (row.argmax() if row.max() >= tau else novel)


def test_image_without_a_score_is_novel() -> None:
    logits, nan = torch.tensor([[1.0, 0.0]]), torch.tensor([math.nan])
    decided = decide(logits, logits, nan, nan, tau_super=-INF, tau_sub=-INF, couple_novel=False)
    assert decided == (torch.tensor([1]), torch.tensor([1]))


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(deadline=None)
def test_harmonic_mean_is_scipys(a: int, b: int) -> None:
    ours = float(harmonic_mean(*torch.tensor([[a], [b]], dtype=torch.float64) / 1000))
    assert ours == pytest.approx(hmean([a / 1000, b / 1000]), rel=1e-12)


# --- Calibration -----------------------------------------------------------------------------


def tensors(images: list[Image]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return score, correct and known, as `calibrate` takes them."""
    score, known, right = zip(*images, strict=True)
    return torch.tensor(score, dtype=torch.float64), torch.tensor(right), torch.tensor(known)


def outcome(images: list[Image], tau: float) -> tuple[Fraction, int]:
    """Return the exact harmonic mean at `tau`, and how many images it rejects."""
    num_known = sum(known for _, known, _ in images)
    num_novel = len(images) - num_known
    right = sum(known and right and score >= tau for score, known, right in images)
    caught = sum(not known and score < tau for score, known, _ in images)
    rejected = sum(score < tau for score, _, _ in images)
    if right == 0 or caught == 0:
        return Fraction(0), rejected
    seen, unseen = Fraction(right, num_known), Fraction(caught, num_novel)
    return 2 * seen * unseen / (seen + unseen), rejected


def brute_force(images: list[Image]) -> tuple[Fraction, int]:
    """Return the best harmonic mean of all thresholds, and the fewest rejections that give it."""
    values = sorted({score for score, _, _ in images if score > -INF})
    if not values:
        return outcome(images, 0.0)
    middles = [(low + high) / 2 for low, high in itertools.pairwise(values)]
    outcomes = [outcome(images, tau) for tau in (values[0], *middles, values[-1] + 1)]
    return max(outcomes, key=lambda found: (found[0], -found[1]))


scores_with_ties = st.sampled_from([-INF, *(i / 8 for i in range(9))])
spread_scores = st.floats(-100, 100).map(lambda x: round(x, 2))
images_of = st.one_of(
    st.lists(st.tuples(scores_with_ties, st.booleans(), st.booleans()), min_size=2, max_size=60),
    st.lists(st.tuples(spread_scores, st.booleans(), st.booleans()), min_size=2, max_size=60),
)


@given(images_of)
@example([(0.5, True, False), (0.25, True, False), (0.75, False, False)])  # all wrong
@example([(0.5, True, True), (0.5, False, False)])  # one score
@example([(-INF, True, False), (-INF, False, False)])  # all called novel
@example([(0.5, True, True), (0.25, True, True)])  # only known images
@example([(0.5, False, False), (0.25, False, False)])  # only novel images
# A tie of unlike rates: 3/6 and 1/2 against 2/6 and 1.
@example(
    [(0.0, False, False), (0.25, True, True), (0.375, False, False)]
    + [(0.5, True, True)] * 2
    + [(0.0, True, False)] * 3
)
@settings(deadline=None, max_examples=400)
def test_calibrated_tau_is_the_best_of_all_and_rejects_the_fewest(images: list[Image]) -> None:
    tau = calibrate(*tensors(images))
    assert math.isfinite(tau)
    assert outcome(images, tau) == brute_force(images)


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_tau_is_the_best_of_all_for_many_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = rng.random(500) < 0.6
    score = rng.normal(known.astype(float)).round(2)
    right = rng.random(500) < 0.7
    images = list(zip(score.tolist(), known.tolist(), right.tolist(), strict=True))
    assert outcome(images, calibrate(*tensors(images))) == brute_force(images)


@given(images_of, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_the_images_does_not_change_tau(images: list[Image], rng: Any) -> None:
    shuffled = rng.sample(images, len(images))
    assert calibrate(*tensors(shuffled)) == calibrate(*tensors(images))


def test_tau_lies_halfway_to_the_next_lower_score() -> None:
    images = [(1.0, False, False), (2.0, False, False), (4.0, True, True), (8.0, True, True)]
    assert calibrate(*tensors(images)) == 3.0


@pytest.mark.parametrize("right", [False, True])
def test_nothing_is_rejected_where_no_threshold_helps(right: bool) -> None:
    """A novel image looks more known than the only known one, and -inf is beyond any threshold."""
    images = [(1.0, True, right), (2.0, False, False), (-INF, True, False)]
    assert calibrate(*tensors(images)) <= 1.0  # the lowest score there is


@pytest.mark.parametrize("low", [0.5, 1 - 2**-52, 1 - 2**-53, -3.0, 0.0, 1e300])
def test_tau_separates_neighbouring_floats(low: float) -> None:
    """A saturated softmax gives probabilities one float apart, with no other between them."""
    images = [(low, False, False), (math.nextafter(low, INF), True, True)]
    assert outcome(images, calibrate(*tensors(images))) == (1, 1)
