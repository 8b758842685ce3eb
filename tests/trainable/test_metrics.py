"""Metrics equal independent references, and each half of the images has one use."""

import math
from dataclasses import fields, replace
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytorch_ood.metrics import functional as pytorch_ood
from sklearn.metrics import roc_auc_score

from trainable.config import TASKS, TrialConfig
from trainable.metrics import (
    METRICS,
    Outputs,
    Thresholds,
    accuracies,
    auroc,
    calibrated_thresholds,
    evaluate,
    fpr_at_tpr,
    oscr,
    thresholds,
)
from trainable.novelty import acceptance, decide
from trainable.splits import NOVEL, PSEUDO_NOVEL, SEEN

SUPER_OF_SUB = (0, 0, 1, 1, 2)  # novel subclass 4 belongs to novel superclass 2
ALL_SCORES = ("msp", "max_logit", "energy", "gen")


def make_outputs(seed: int = 0, num: int = 200) -> Outputs:
    """Logits that are right more often than not, for images of all three kinds."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (num,), generator=rng)
    subclass = torch.randint(4, (num,), generator=rng)
    sub_target = subclass.masked_fill(kind != SEEN, 4)
    super_target = torch.tensor(SUPER_OF_SUB)[subclass].masked_fill(kind == NOVEL, 2)

    def logits(target: torch.Tensor, num_classes: int) -> torch.Tensor:
        noise = torch.randn(num, num_classes, generator=rng)
        return noise + torch.nn.functional.one_hot(target, num_classes)

    return Outputs(
        super_logits=logits(super_target, 3),
        sub_logits=logits(sub_target, 5),
        super_target=super_target,
        sub_target=sub_target,
        kind=kind,
        is_calibration=torch.arange(num) % 2 == 0,
        rows=torch.arange(num),
    )


def mixed(calibration: Outputs, evaluation: Outputs) -> Outputs:
    """Return outputs with the calibration half of one and the evaluation half of the other."""
    assert torch.equal(calibration.is_calibration, evaluation.is_calibration)

    def choose(name: str) -> torch.Tensor:
        ours, theirs = getattr(calibration, name), getattr(evaluation, name)
        keep = calibration.is_calibration.view(-1, *[1] * (ours.dim() - 1))
        return torch.where(keep, ours, theirs)

    return replace(calibration, **{field.name: choose(field.name) for field in fields(Outputs)})


# --- Threshold-free curves --------------------------------------------------------------------

few_values = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=40)
many_values = st.lists(st.floats(-50, 50), min_size=1, max_size=40)
score_lists = st.one_of(few_values, many_values)


def doubles(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(score_lists, score_lists)
@example([1.0, 1.0], [1.0])
@settings(deadline=None, max_examples=50)
def test_auroc_is_scikit_learns(known: list[float], novel: list[float]) -> None:
    expected = roc_auc_score([1] * len(known) + [0] * len(novel), known + novel)
    assert auroc(doubles(known), doubles(novel)) == pytest.approx(expected, abs=1e-12)


@given(score_lists, score_lists, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
@settings(deadline=None, max_examples=50)
def test_fpr_is_the_lowest_of_all_thresholds_that_accept_enough_known_images(
    known: list[float], novel: list[float], tpr: float
) -> None:
    enough = [tau for tau in known if fmean(score >= tau for score in known) >= tpr]
    expected = min(fmean(score >= tau for score in novel) for tau in enough)
    assert fpr_at_tpr(doubles(known), doubles(novel), tpr) == pytest.approx(expected, abs=1e-12)


@given(score_lists, score_lists)
@settings(deadline=None, max_examples=50)
def test_fpr_is_pytorch_oods_with_known_as_the_positive_class(
    known: list[float], novel: list[float]
) -> None:
    """Their positives, with label -1, are the novel images: 95% of those detected. Ours are the
    known ones: 95% of those accepted. With the two exchanged the figures agree, ties included."""
    labels = torch.tensor([-1] * len(known) + [0] * len(novel))
    expected = float(pytorch_ood.fpr_at_tpr(doubles(known + novel), labels, tpr=0.95))
    assert fpr_at_tpr(doubles(known), doubles(novel), 0.95) == pytest.approx(expected, abs=1e-12)


known_images = st.one_of(
    st.lists(st.tuples(st.integers(0, 6).map(float), st.booleans()), min_size=1, max_size=40),
    st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=40),
)


@given(known_images, score_lists)
@example([(1.0, False)], [0.0])  # none right
@settings(deadline=None, max_examples=50)
def test_oscr_is_the_area_under_accepted_and_right_against_accepted_novel(
    images: list[tuple[float, bool]], novel: list[float]
) -> None:
    known, right = (list(column) for column in zip(*images, strict=True))
    taus = sorted({math.inf, *known, *novel}, reverse=True)
    accepted_right = [fmean(ok and score >= tau for score, ok in images) for tau in taus]
    accepted_novel = [fmean(score >= tau for score in novel) for tau in taus]
    area = oscr(doubles(known), torch.tensor(right), doubles(novel))
    assert area == pytest.approx(np.trapezoid(accepted_right, accepted_novel), abs=1e-12)
    labels = torch.tensor([0] * len(known) + [-1] * len(novel))
    predictions = torch.tensor([0 if ok else 1 for ok in right] + [0] * len(novel))
    theirs = pytorch_ood.oscr_score(-doubles(known + novel), predictions, labels)
    assert area == pytest.approx(theirs, abs=1e-12)


@given(score_lists, score_lists)
@settings(deadline=None, max_examples=30)
def test_oscr_of_a_perfect_classifier_is_its_auroc(known: list[float], novel: list[float]) -> None:
    right = torch.ones(len(known), dtype=torch.bool)
    expected = auroc(doubles(known), doubles(novel))
    assert oscr(doubles(known), right, doubles(novel)) == pytest.approx(expected, abs=1e-12)


# --- Accuracies -------------------------------------------------------------------------------


def accuracies_by_loop(outputs: Outputs, tau: Thresholds, couple_novel: bool) -> dict[str, float]:
    """Every accuracy from DESIGN's table, image by image, for the msp score."""
    right: dict[str, list[bool]] = {}
    for i, kind in enumerate(outputs.kind.tolist()):
        p_super = outputs.super_logits[i].double().softmax(0)
        p_sub = outputs.sub_logits[i].double().softmax(0)
        superclass = int(p_super.argmax()) if p_super.max() >= tau.super else 2
        subclass = int(p_sub.argmax()) if p_sub.max() >= tau.sub else 4
        if couple_novel and superclass == 2:
            subclass = 4
        is_super, is_sub = superclass == outputs.super_target[i], subclass == outputs.sub_target[i]
        right.setdefault("overall_super", []).append(bool(is_super))
        right.setdefault("overall_sub", []).append(bool(is_sub))
        group = "unseen_super" if kind == NOVEL else "seen_super"
        right.setdefault(group, []).append(bool(is_super))
        if kind == SEEN:
            right.setdefault("seen_sub", []).append(bool(is_sub))
        else:
            right.setdefault("unseen_sub", []).append(bool(is_sub))
            near = "unseen_sub_near" if kind == PSEUDO_NOVEL else "unseen_sub_far"
            right.setdefault(near, []).append(bool(is_sub))
    result = {name: fmean(values) for name, values in right.items()}
    for task in TASKS:
        seen, unseen = result[f"seen_{task}"], result[f"unseen_{task}"]
        result[f"hmean_{task}"] = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
    return result | {"score": (result["hmean_super"] + result["hmean_sub"]) / 2}


@pytest.mark.parametrize("couple_novel", [False, True])
@pytest.mark.parametrize("tau", [Thresholds(0.5, 0.4), Thresholds(0.0, 0.9), Thresholds(2.0, 0.3)])
def test_accuracies_are_those_of_a_plain_loop(tau: Thresholds, couple_novel: bool) -> None:
    outputs = make_outputs()
    config = TrialConfig(couple_novel=couple_novel)
    expected = accuracies_by_loop(outputs, tau, couple_novel)
    # To rounding in float64: a search compares these.
    assert accuracies(outputs, config, tau) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_group_without_images_is_left_out() -> None:
    outputs = make_outputs()
    keep = outputs.kind != PSEUDO_NOVEL
    some = replace(outputs, **{f.name: getattr(outputs, f.name)[keep] for f in fields(Outputs)})
    result = accuracies(some, TrialConfig(), Thresholds(0.5, 0.5))
    assert "unseen_sub_near" not in result
    assert result["unseen_sub"] == result["unseen_sub_far"]


# --- Thresholds and halves --------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_SCORES)
def test_thresholds_depend_on_the_calibration_half_alone(name: str) -> None:
    config = TrialConfig(novelty_score=name)
    ours, other = make_outputs(seed=0), make_outputs(seed=1)
    chosen = calibrated_thresholds(ours, config)
    assert calibrated_thresholds(mixed(ours, other), config) == chosen
    assert calibrated_thresholds(mixed(other, ours), config) != chosen


@pytest.mark.parametrize("name", ALL_SCORES)
def test_metrics_at_fixed_thresholds_depend_on_the_evaluation_half_alone(name: str) -> None:
    ours, other = make_outputs(seed=0), make_outputs(seed=1)
    tau = calibrated_thresholds(ours, TrialConfig(novelty_score=name))
    config = TrialConfig(novelty_score=name, tau_super=tau.super, tau_sub=tau.sub)
    result, swapped = evaluate(ours, config), evaluate(mixed(other, ours), config)
    chooses = {"score_calibrated", "score_calibration"}
    assert {k: v for k, v in swapped.items() if k not in chooses} == {
        k: v for k, v in result.items() if k not in chooses
    }
    changed = evaluate(mixed(ours, other), config)
    assert changed["score"] != result["score"]
    assert changed["score_calibration"] == result["score_calibration"]


def test_score_calibration_is_the_score_of_the_calibration_half() -> None:
    outputs = make_outputs()
    result = evaluate(outputs, TrialConfig())
    half = outputs.half(calibration=True)
    tau = Thresholds(result["tau_super"], result["tau_sub"])
    expected = accuracies(half, TrialConfig(), tau)["score"]
    assert result["score_calibration"] == expected


def test_halves_share_no_image_and_leave_none_out() -> None:
    outputs = make_outputs()
    rows = [outputs.half(calibration=each).rows.tolist() for each in (True, False)]
    assert rows == [list(range(0, 200, 2)), list(range(1, 200, 2))]


def test_fixed_taus_are_used_as_given_beside_the_calibrated_score() -> None:
    outputs = make_outputs()
    fixed = TrialConfig(tau_super=0.99, tau_sub=0.85)
    result, calibrated = evaluate(outputs, fixed), evaluate(outputs, TrialConfig())
    assert (result["tau_super"], result["tau_sub"]) == (0.99, 0.85)
    evaluation = outputs.half(calibration=False)
    expected = accuracies(evaluation, fixed, Thresholds(0.99, 0.85))
    assert {name: result[name] for name in expected} == expected
    assert result["score_calibrated"] == calibrated["score"] == calibrated["score_calibrated"]
    assert result["score"] != calibrated["score"]


@pytest.mark.parametrize("fixed", ["super", "sub"])
def test_one_fixed_tau_leaves_the_other_calibrated(fixed: str) -> None:
    outputs = make_outputs()
    calibrated = calibrated_thresholds(outputs, TrialConfig())
    tau = thresholds(outputs, TrialConfig(**{f"tau_{fixed}": 0.77}))
    assert getattr(tau, fixed) == 0.77
    other = "sub" if fixed == "super" else "super"
    assert getattr(tau, other) == getattr(calibrated, other)


def hmean_sub(half: Outputs, config: TrialConfig, tau: Thresholds) -> float:
    """The harmonic mean of seen and unseen subclass accuracy at these thresholds."""
    _, subclass = decide(
        half.super_logits, half.sub_logits,
        acceptance(half.super_logits, "msp"), acceptance(half.sub_logits, "msp"),
        tau_super=tau.super, tau_sub=tau.sub, couple_novel=config.couple_novel,
    )  # fmt: skip
    right, seen = subclass == half.sub_target, half.kind == SEEN
    a, b = fmean(right[seen].tolist()), fmean(right[~seen].tolist())
    return 2 * a * b / (a + b) if a + b else 0.0


@pytest.mark.parametrize("tau_super", [None, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(4))
def test_coupled_subclass_tau_is_the_best_given_the_superclass_decision(
    seed: int, tau_super: float | None
) -> None:
    """Whatever made that decision: a calibrated superclass threshold or a fixed one."""
    outputs = make_outputs(seed)
    config = TrialConfig(couple_novel=True, tau_super=tau_super)
    tau = thresholds(outputs, config)
    if tau_super is None:
        assert tau.super == calibrated_thresholds(outputs, TrialConfig()).super
    half = outputs.half(calibration=True)
    candidates = [0.0, *half.sub_logits.double().softmax(1)[:, :-1].amax(1).tolist()]
    best = max(hmean_sub(half, config, Thresholds(tau.super, each)) for each in candidates)
    assert hmean_sub(half, config, tau) == pytest.approx(best, rel=1e-12)


def test_coupling_changes_the_subclass_tau() -> None:
    """Else the test above would pass with thresholds chosen one by one."""
    plain, coupled = (
        [calibrated_thresholds(make_outputs(seed), TrialConfig(couple_novel=couple)).sub
         for seed in range(4)]
        for couple in (False, True)
    )  # fmt: skip
    assert plain != coupled


# --- Everything a trial reports ---------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_SCORES)
def test_every_metric_is_reported_and_finite(name: str) -> None:
    result = evaluate(make_outputs(), TrialConfig(novelty_score=name))
    assert {*METRICS, "score_calibration", "tau_super", "tau_sub"} == set(result)
    assert all(math.isfinite(value) for value in result.values())
    fractions = [result[metric] for metric in METRICS if not metric.startswith("ce_")]
    assert all(0 <= value <= 1 for value in fractions)


def test_threshold_free_metrics_take_known_images_by_task() -> None:
    outputs = make_outputs()
    result = evaluate(outputs, TrialConfig(super_novelty_score="energy", sub_novelty_score="msp"))
    half = outputs.half(calibration=False)
    energy = half.super_logits.double()[:, :-1].logsumexp(1)
    assert result["auroc_super"] == pytest.approx(roc_auc_score(half.kind != NOVEL, energy))
    p_sub = half.sub_logits.double().softmax(1)
    msp = p_sub[:, :-1].amax(1)
    assert result["auroc_sub"] == pytest.approx(roc_auc_score(half.kind == SEEN, msp))
    known = half.kind == SEEN
    assert result["fpr95_sub"] == fpr_at_tpr(msp[known], msp[~known], 0.95)
    right = half.sub_logits[known, :-1].argmax(1) == half.sub_target[known]
    assert result["oscr_sub"] == oscr(msp[known], right, msp[~known])
    ce = -p_sub[torch.arange(len(p_sub)), half.sub_target].log().mean()
    assert result["ce_sub"] == pytest.approx(float(ce), rel=1e-9)


def test_perfect_outputs_have_perfect_metrics() -> None:
    outputs = make_outputs()
    perfect = replace(
        outputs,
        super_logits=20.0 * torch.nn.functional.one_hot(outputs.super_target, 3),
        sub_logits=20.0 * torch.nn.functional.one_hot(outputs.sub_target, 5),
    )
    result = evaluate(perfect, TrialConfig())
    for metric, direction in METRICS.items():
        expected = 1.0 if direction == "maximize" else 0.0
        assert result[metric] == pytest.approx(expected, abs=1e-6), metric
