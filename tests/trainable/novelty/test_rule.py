"""Scores equal the published detectors', and thresholds are the best there are."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytorch_ood.detector import GEN, EnergyBased, MaxLogit, MaxSoftmax
from scipy.stats import hmean

from tests.trainable.made_outputs import FEATURE_SCORES, LOGIT_SCORES, NOVELTY_SCORES, SUPER_OF_SUB
from trainable.novelty.rule import (
    Response,
    Rule,
    acceptance,
    calibrate,
    conformal_threshold,
    decide,
    for_num_classes,
    harmonic_mean,
    novelty_score,
)
from trainable.novelty.scores.logits import GEN_GAMMA, GEN_TOP

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


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_certain_image_looks_more_known_than_an_uncertain_one(name: str) -> None:
    certain, uncertain = novelty_score(torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), name)
    assert certain > uncertain


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_extreme_logits_have_finite_scores(name: str) -> None:
    corners = torch.tensor(list(itertools.product([-1e4, 0.0, 1e4], repeat=3)))
    score = novelty_score(corners, name)
    assert score.dtype == torch.float64
    assert score.isfinite().all()


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_acceptance_is_never_where_novel_is_the_argmax(name: str) -> None:
    logits = random_logits(3)
    is_novel = torch.tensor([max(row) == row[-1] for row in logits.tolist()])
    assert 0 < is_novel.sum() < len(logits)
    score = novelty_score(logits, name)
    accepted = acceptance(response_of(logits, random_logits(4)), "super", name)
    assert (accepted[is_novel] == -INF).all()
    assert torch.equal(accepted[~is_novel], score[~is_novel])


# --- The decision rule -----------------------------------------------------------------------


def values_with_ties(num_columns: int) -> st.SearchStrategy[Any]:
    return arrays(np.float32, (6, num_columns), elements=st.integers(-2, 2).map(float))


def response_of(
    super_logits: Any, sub_logits: Any, super_features: Any = None, sub_features: Any = None
) -> Response:
    """Return a response with K + 1 and C + 1 logits and three feature scores each, or none."""

    def named(features: Any) -> dict[str, torch.Tensor]:
        if features is None:
            return {}
        return dict(zip(FEATURE_SCORES, torch.as_tensor(features).double().T, strict=True))

    return Response(
        super_logits=torch.as_tensor(super_logits),
        sub_logits=torch.as_tensor(sub_logits),
        super_feature_scores=named(super_features),
        sub_feature_scores=named(sub_features),
        super_of_sub=torch.tensor(SUPER_OF_SUB),
    )


def answers(response: Response, rule: Rule) -> list[tuple[int, int]]:
    """Return superclass and subclass, image by image, in plain Python; 2 and 4 are novel."""
    score_super = response.score("super", rule.super_score).tolist()
    score_sub = response.score("sub", rule.sub_score).tolist()
    result = []
    for i, of_super in enumerate(response.super_logits.tolist()):
        of_sub = response.sub_logits[i].tolist()
        superclass = (
            max(range(3), key=of_super.__getitem__) if score_super[i] >= rule.tau_super else 2
        )
        likeliest = max(range(2), key=of_super.__getitem__)
        known = [c for c in range(4) if not rule.restrict_sub or SUPER_OF_SUB[c] == likeliest]
        tau = rule.tau_sub[SUPER_OF_SUB[max(known, key=of_sub.__getitem__)]]
        subclass = max([*known, 4], key=of_sub.__getitem__) if score_sub[i] >= tau else 4
        if rule.couple_novel and superclass == 2:
            subclass = 4
        result.append((superclass, subclass))
    return result


taus = st.sampled_from([-INF, -1.0, 0.0, 0.3, 0.5, 1.0, 2.0, INF])
rules = st.builds(
    Rule,
    super_score=st.sampled_from(NOVELTY_SCORES),
    sub_score=st.sampled_from(NOVELTY_SCORES),
    tau_super=taus,
    tau_sub=st.tuples(taus, taus),
    couple_novel=st.booleans(),
    restrict_sub=st.booleans(),
)


@given(values_with_ties(3), values_with_ties(5), values_with_ties(3), values_with_ties(3), rules)
@settings(deadline=None, max_examples=100)
def test_decision_is_that_of_a_plain_loop(
    super_logits: Any, sub_logits: Any, super_features: Any, sub_features: Any, rule: Rule
) -> None:
    """The argmax where the score reaches tau, else novel: with either option, every kind of score
    and a tau for each superclass."""
    response = response_of(super_logits, sub_logits, super_features, sub_features)
    superclass, subclass = decide(response, rule)
    decided = zip(superclass.tolist(), subclass.tolist(), strict=True)
    assert list(decided) == answers(response, rule)


def plain_rule(score: str, tau_super: float, tau_sub: float) -> Rule:
    return Rule(
        super_score=score, sub_score=score, tau_super=tau_super, tau_sub=(tau_sub, tau_sub),
        couple_novel=False, restrict_sub=False,
    )  # fmt: skip


@given(values_with_ties(3), values_with_ties(5), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_fixed_tau_on_msp_is_the_papers_rule(
    super_logits: Any, sub_logits: Any, tau_super: float, tau_sub: float
) -> None:
    """The argmax over all classes if its softmax probability is at least tau, else novel."""
    response = response_of(super_logits, sub_logits)
    decided = decide(response, plain_rule("msp", tau_super, tau_sub))
    logits = response.super_logits, response.sub_logits
    for each, tau, predictions in zip(logits, (tau_super, tau_sub), decided, strict=True):
        novel = each.shape[1] - 1
        for row, prediction in zip(each.double().softmax(1), predictions, strict=True):
            assert prediction == (row.argmax() if row.max() >= tau else novel)


def test_subclass_of_another_superclass_is_only_possible_without_the_restriction() -> None:
    response = response_of([[3.0, 0.0, 0.0]], [[1.0, 0.0, 9.0, 0.0, -9.0]])
    free = plain_rule("max_logit", -INF, -INF)
    restricted = replace(free, restrict_sub=True)
    assert [int(decide(response, rule)[1]) for rule in (free, restricted)] == [2, 0]


@pytest.mark.parametrize("name", FEATURE_SCORES)
def test_image_without_a_score_is_novel(name: str) -> None:
    response = response_of([[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0, 0.0]])
    decided = decide(response, plain_rule(name, -INF, -INF))
    assert decided == (torch.tensor([2]), torch.tensor([4]))


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


def doubles(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


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


# --- Conformal thresholds --------------------------------------------------------------------


def draws(num_draws: int, num: int, is_tied: bool, seed: int = 0) -> torch.Tensor:
    """Return uniform scores of 0 to 1, or of the seven values 0, 1/6, ..., 1 with ties."""
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_draws, num, generator=rng, dtype=torch.float64)
    return (uniform * 7).floor() / 6 if is_tied else uniform


def mean_rejection(num: int, rejection: float, is_tied: bool) -> tuple[float, float]:
    """Return the probability that a new score is rejected, over calibration sets of `num`, and
    four standard errors of this mean."""
    taus = [conformal_threshold(scores, rejection) for scores in draws(400, num, is_tied)]
    below = [math.ceil(6 * tau) / 7 if is_tied else tau for tau in taus]
    probability = torch.tensor(below, dtype=torch.float64).clamp(0, 1)
    return float(probability.mean()), 4 * float(probability.std()) / math.sqrt(len(taus))


@pytest.mark.parametrize("is_tied", [False, True], ids=["spread", "tied"])
@pytest.mark.parametrize("rejection", [0.01, 0.05, 0.25, 0.5])
@pytest.mark.parametrize("num", [1, 2, 10, 19, 99, 200])
def test_new_known_images_are_rejected_as_rarely_as_asked_and_hardly_more_rarely(
    num: int, rejection: float, is_tied: bool
) -> None:
    """Whole ranks lose up to 1 / (n + 1), and half of one more, as tau lies halfway to the next
    lower score."""
    mean, error = mean_rejection(num, rejection, is_tied)
    assert mean <= rejection + error
    assert is_tied or mean >= rejection - 1.5 / (num + 1) - error


conformal_scores = st.lists(st.one_of(scores_with_ties, spread_scores), min_size=1, max_size=40)


@given(conformal_scores, st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.25, 0.5, 1.0]))
@example([0.5], 0.0)
@example([0.5], 0.5)
@example([0.5], 1.0)
@example([0.5, 0.25], 0.5)
@example([-INF, -INF, 0.5], 0.25)
@example([-INF, -INF, -INF], 0.5)
@settings(deadline=None, max_examples=200)
def test_conformal_tau_rejects_fewer_calibration_images_than_its_rank_and_lies_on_none(
    scores: list[float], rejection: float
) -> None:
    tau = conformal_threshold(doubles(scores), rejection)
    rank = math.floor(Fraction(str(rejection)) * (len(scores) + 1))
    finite = [score for score in scores if score > -INF]
    rejected = sum(score < tau for score in scores)
    assert math.isfinite(tau)
    assert tau not in scores
    if rank > len(scores):
        assert rejected == len(scores)
    elif finite and (rank == 0 or sorted(scores)[rank - 1] == -INF):
        assert tau < min(finite) - 1e6  # nor is any new image
    elif finite:
        cut = sorted(scores)[rank - 1]
        assert tau < cut
        assert rejected == sum(score < cut for score in scores) < rank


@pytest.mark.parametrize("num", [1, 2, 3])
@pytest.mark.parametrize("rejection", [0.0, 0.05, 0.2])
def test_no_known_image_is_rejected_where_the_bound_is_below_one_of_n_plus_1(
    num: int, rejection: float
) -> None:
    scores = torch.arange(num).double()
    assert conformal_threshold(scores, rejection) < -1e6


@pytest.mark.parametrize(
    ("scores", "rejection", "tau"),
    [
        ([1.0, 2.0, 4.0], 0.25, 1 - 3e-3),  # rank 1 of 3: below the lowest
        ([1.0, 2.0, 4.0], 0.5, 1.5),  # rank 2
        ([1.0, 2.0, 4.0], 0.75, 3.0),  # rank 3
        ([2.0, 2.0, 4.0], 0.5, 2 - 2e-3),  # rank 2 is tied with rank 1
        ([-INF, 2.0, 4.0], 0.5, 2 - 2e-3),  # rank 2 is the lowest finite one
        ([5.0], 0.5, 5 - 1e-3),
    ],
)
def test_conformal_tau_lies_just_below_the_score_of_its_rank(
    scores: list[float], rejection: float, tau: float
) -> None:
    assert conformal_threshold(doubles(scores), rejection) == pytest.approx(tau, rel=1e-12)


# --- Groups of images count alike -------------------------------------------------------------

grouped = st.lists(
    st.tuples(st.integers(0, 8).map(float), st.booleans(), st.integers(0, 3)),
    min_size=4, max_size=40,
).filter(lambda images: {g < 2 for _, _, g in images} == {True, False})  # fmt: skip


@given(grouped)
@settings(deadline=None, max_examples=60)
def test_calibration_is_the_best_mean_over_groups_of_all_thresholds(
    images: list[tuple[float, bool, int]],
) -> None:
    """Groups 0 and 1 are known, 2 and 3 novel."""
    score, correct, group = (list(column) for column in zip(*images, strict=True))

    def of_groups(tau: float) -> float:
        rates = []
        for known in ((0, 1), (2, 3)):
            right = [
                fmean((s >= tau and c) if known == (0, 1) else s < tau for s, c in each)
                for g in known
                if (each := [(s, c) for s, c, other in images if other == g])
            ]
            rates.append(fmean(right))
        return 2 * rates[0] * rates[1] / sum(rates) if sum(rates) else 0.0

    group_N = torch.tensor(group)
    tau = calibrate(
        torch.tensor(score).double(), torch.tensor(correct), group_N < 2, group_N=group_N
    )
    assert of_groups(tau) == pytest.approx(max(of_groups(each) for each in score), abs=1e-12)


def test_conformal_threshold_bounds_the_mean_rejection_of_groups_whatever_their_sizes() -> None:
    few, many = torch.arange(20).double(), torch.arange(400).double() / 20 + 5
    score, group = torch.cat([few, many]), torch.tensor([0] * 20 + [1] * 400)
    tau = conformal_threshold(score, 0.2, group)
    rejected = [(scores < tau).double().mean() for scores in (few, many)]
    assert 0.15 < sum(rejected) / 2 <= 0.2
    assert conformal_threshold(score, 0.2) > tau  # by image the many would decide


def test_gen_threshold_holds_for_a_head_of_more_classes() -> None:
    """The same images, with the probability of the other classes spread over more of them."""
    rng = torch.Generator().manual_seed(0)
    rejected = {}
    for num, used in ((40, 40), (60, 40), (60, 60)):
        confident = torch.randn(4000, generator=rng) * 1.5 + 6
        logits = torch.randn(4000, num + 1, generator=rng)
        logits[:, 0] = confident + torch.tensor(float(num)).log() - torch.tensor(40.0).log()
        score = novelty_score(logits, "gen")
        if num == 40:
            rule = Rule(
                super_score="gen", sub_score="gen", tau_super=-1.0,
                tau_sub=(float(score.quantile(0.05)),), couple_novel=False, restrict_sub=False,
            )  # fmt: skip
        held = for_num_classes(rule, 40, used)
        assert held.tau_super == -1.0, "as many superclasses as before"
        rejected[num, used] = float((score < held.tau_sub[0]).double().mean())
    assert rejected[60, 60] == pytest.approx(0.05, abs=0.015)
    assert rejected[60, 40] > 0.1, "unscaled it rejects far more"
    assert for_num_classes(replace(rule, sub_score="msp"), 40, 60).tau_sub == rule.tau_sub
