"""Metrics equal independent references, and no image is judged by what it chose."""

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytorch_ood.metrics import functional as pytorch_ood
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.trainable.made_outputs import (
    FEATURE_SCORES,
    NOVELTY_SCORES,
    SUPER_OF_SUB,
    make_outputs,
    mixed,
    with_folds,
    without_bank,
)
from trainable.config import BEST, TASKS, TrialConfig
from trainable.data.splits import LEFT_OUT, NOVEL_SUPER, PSEUDO_NOVEL, SECOND, SEEN
from trainable.novelty.hierarchy import both_right, hierarchy_area, hierarchy_curve
from trainable.novelty.metrics import (
    CONFORMAL_REJECTION,
    MAIN,
    METRICS,
    accuracies,
    curves,
    evaluate,
    judge,
    score_table,
)
from trainable.novelty.rule import Rule, by_image, decide
from trainable.novelty.separation import (
    ECE_BINS,
    auroc,
    average_precision,
    expected_calibration_error,
    fpr_at_tpr,
    oscr,
    separation,
)
from trainable.novelty.thresholds import Answers, Outputs, PartRules, choose_rule

ALL_KINDS = (SEEN, PSEUDO_NOVEL, NOVEL_SUPER, SECOND)


def rule_of(tau_super: float, *tau_sub: float, **changes: Any) -> Rule:
    """Return a rule by msp without options, with `changes`."""
    rule = Rule(
        super_score="msp", sub_score="msp", tau_super=tau_super,
        tau_sub=tau_sub if len(tau_sub) == 2 else (*tau_sub, *tau_sub),
        couple_novel=False, restrict_sub=False,
    )  # fmt: skip
    return replace(rule, **changes)


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


@given(score_lists, score_lists)
@example([1.0, 1.0], [1.0])
@settings(deadline=None, max_examples=50)
def test_average_precision_is_scikit_learns(positive: list[float], negative: list[float]) -> None:
    """Ties included: the few values have many."""
    labels = [1] * len(positive) + [0] * len(negative)
    expected = average_precision_score(labels, positive + negative)
    found = average_precision(doubles(positive), doubles(negative))
    assert found == pytest.approx(expected, abs=1e-12)


@given(score_lists, score_lists)
@settings(deadline=None, max_examples=50)
def test_separation_takes_novel_as_the_positive_class_of_precision_and_of_rejection(
    known: list[float], novel: list[float]
) -> None:
    labels = torch.tensor([0] * len(known) + [-1] * len(novel))  # novel ones are negative there
    outlier = -doubles(known + novel)
    curves = separation(doubles(known), doubles(novel))
    is_novel = (labels < 0).int().numpy()
    expected = {
        "auroc": float(pytorch_ood.auroc(outlier, labels)),
        "aupr": average_precision_score(is_novel, outlier.numpy()),
        "fpr95": min(
            fmean(score >= tau for score in novel)
            for tau in known
            if fmean(score >= tau for score in known) >= 0.95
        ),
        "known_rejected95": float(pytorch_ood.fpr_at_tpr(outlier, labels, tpr=0.95)),
    }
    assert curves == pytest.approx(expected, abs=1e-12)


def ece_by_numpy(logits: np.ndarray, target: np.ndarray) -> float:
    """Return the calibration error, bin by bin: (b / 15, (b + 1) / 15]."""
    exp = np.exp(logits - logits.max(1, keepdims=True))
    probability = exp / exp.sum(1, keepdims=True)
    confidence, right = probability.max(1), probability.argmax(1) == target
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(error)


@pytest.mark.parametrize("num_classes", [2, 5, 30])
@pytest.mark.parametrize("scale", [0.1, 2.0, 50.0])
def test_calibration_error_is_that_of_a_plain_loop(num_classes: int, scale: float) -> None:
    assert ECE_BINS == 15
    rng = np.random.default_rng(num_classes)
    logits = scale * rng.normal(size=(300, num_classes))
    target = np.where(rng.random(300) < 0.5, logits.argmax(1), rng.integers(num_classes, size=300))
    found = expected_calibration_error(torch.from_numpy(logits), torch.from_numpy(target))
    assert found == pytest.approx(ece_by_numpy(logits, target), abs=1e-12)


def test_calibration_error_of_known_confidences() -> None:
    """All 0.75: three of four right is calibrated; none right is off by 0.75."""
    logits = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log().expand(4, 2)
    right, wrong = torch.tensor([0, 0, 0, 1]), torch.ones(4, dtype=torch.int64)
    assert expected_calibration_error(logits, right) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(logits, wrong) == pytest.approx(0.75, abs=1e-12)


def test_full_confidence_is_in_the_bin_of_the_highest() -> None:
    """1.0 and wrong, 0.95 and right: their gaps of 1 and -0.05 come together."""
    logits = torch.tensor([[1000.0, 0.0], [math.log(19), 0.0]], dtype=torch.float64)
    error = expected_calibration_error(logits, torch.tensor([1, 0]))
    assert error == pytest.approx(0.95 / 2, abs=1e-12)


def area_by_sweep(outputs: Outputs, rule: Rule) -> float:
    """Return the area under known against novel accuracy, by trapezoids over all thresholds.

    Image by image. At the lowest threshold of all no novel image is called novel, not even where
    novel is the argmax or coupling says so; known images that are called novel there stay wrong.
    """
    points = []
    scores = outputs.score("sub", rule.sub_score).tolist()
    lowest, images = -1e9, list[tuple[int, int, float]]()
    superclasses = decide(outputs, rule)[0].tolist()
    for i, superclass in enumerate(superclasses):
        of_super, of_sub = outputs.super_logits[i].tolist(), outputs.sub_logits[i].tolist()
        likeliest = max(range(2), key=of_super.__getitem__)
        known = [c for c in range(4) if not rule.restrict_sub or SUPER_OF_SUB[c] == likeliest]
        candidate = max(known, key=of_sub.__getitem__)
        is_novel = of_sub[4] > of_sub[candidate] or (rule.couple_novel and superclass == 2)
        images.append((superclass, candidate, lowest if is_novel else scores[i]))
    for tau in sorted({math.inf, *(score for _, _, score in images)}):
        right: dict[bool, dict[int, list[bool]]] = {True: {}, False: {}}
        for i, (superclass, candidate, score) in enumerate(images):
            subclass = candidate if score >= tau else 4
            is_right = superclass == outputs.super_target[i] and subclass == outputs.sub_target[i]
            is_seen, kind = bool(outputs.kind[i] == SEEN), int(outputs.kind[i])
            is_right = is_right and not (is_seen and score == lowest)
            right[is_seen].setdefault(kind, []).append(bool(is_right))
        points.append((fmean(map(fmean, right[False].values())), fmean(right[True][SEEN])))
    novel, accepted = zip(*points, strict=True)
    return float(np.trapezoid(accepted, novel))


@pytest.mark.parametrize("score", ["msp", "knn"])
@pytest.mark.parametrize(
    "changes", [{}, {"restrict_sub": True}, {"couple_novel": True}], ids=["", "restrict", "couple"]
)
@pytest.mark.parametrize("tau_super", [-1.5, 0.5, 0.7])
def test_hierarchy_area_is_that_of_a_sweep(
    tau_super: float, changes: dict[str, bool], score: str
) -> None:
    outputs = make_outputs(num=80)
    scores = outputs.sub_feature_scores.items()
    features = {name: (2 * each).round() / 2 for name, each in scores}  # with ties
    outputs = replace(outputs, sub_feature_scores=features)
    rule = rule_of(tau_super, 0.1, sub_score=score, **changes)
    assert hierarchy_area(outputs, rule) == pytest.approx(area_by_sweep(outputs, rule), abs=1e-12)


@pytest.mark.parametrize("changes", [{}, {"couple_novel": True}, {"restrict_sub": True}])
def test_a_rule_lies_on_its_own_hierarchical_curve(changes: dict[str, bool]) -> None:
    outputs = make_outputs(num=80)
    rule = rule_of(0.4, 0.35, **changes)
    novel, known = (values.tolist() for values in hierarchy_curve(outputs, rule))
    assert both_right(outputs, rule) in [*zip(novel, known, strict=True)]
    assert 0 < both_right(outputs, rule)[0] < max(novel)


def test_hierarchy_area_does_not_depend_on_the_subclass_tau() -> None:
    outputs = make_outputs(num=80)
    areas = {hierarchy_area(outputs, rule_of(0.5, *taus)) for taus in [(0.1,), (0.9,), (0.2, 0.6)]}
    assert len(areas) == 1


def test_hierarchy_area_is_nothing_where_no_superclass_is_right() -> None:
    outputs = make_outputs(num=80)
    wrong = replace(outputs, super_target=(decide(outputs, rule_of(0.5, 0.5))[0] + 1) % 3)
    assert hierarchy_area(wrong, rule_of(0.5, 0.5)) == 0.0


# --- Accuracies -------------------------------------------------------------------------------


def accuracies_by_loop(outputs: Outputs, rule: Rule) -> dict[str, float]:
    """Every accuracy from DESIGN's table, image by image, for the msp score."""
    right: dict[str, list[bool]] = {}
    for i, kind in enumerate(outputs.kind.tolist()):
        p_super = outputs.super_logits[i].double().softmax(0)
        p_sub = outputs.sub_logits[i].double().softmax(0)
        superclass = int(p_super.argmax()) if p_super.max() >= rule.tau_super else 2
        tau_sub = rule.tau_sub[SUPER_OF_SUB[int(p_sub[:4].argmax())]]
        subclass = int(p_sub.argmax()) if p_sub.max() >= tau_sub else 4
        if rule.couple_novel and superclass == 2:
            subclass = 4
        is_super, is_sub = superclass == outputs.super_target[i], subclass == outputs.sub_target[i]
        if kind == NOVEL_SUPER:
            right.setdefault("unseen_super_borrowed", []).append(bool(is_super))
            right.setdefault("unseen_sub_borrowed", []).append(bool(is_sub))
            continue
        group = "seen" if kind == SEEN else "held_out"
        right.setdefault(f"seen_super_{group}", []).append(bool(is_super))
        right.setdefault(f"known_rejected_super_{group}", []).append(superclass == 2)
        if kind == SEEN:
            right.setdefault("seen_sub", []).append(bool(is_sub))
            right.setdefault("known_rejected_sub", []).append(subclass == 4)
        else:
            right.setdefault("unseen_sub_near", []).append(bool(is_sub))
    result = {name: fmean(values) for name, values in right.items()}
    for name in ("seen_super", "known_rejected_super"):
        result[name] = (result[f"{name}_seen"] + result[f"{name}_held_out"]) / 2
    result["unseen_super"] = result["unseen_super_borrowed"]
    result["unseen_sub_far"] = result["unseen_sub_borrowed"]
    result["unseen_sub"] = (result["unseen_sub_near"] + result["unseen_sub_far"]) / 2
    for task in TASKS:
        result[f"overall_{task}"] = (result[f"seen_{task}"] + result[f"unseen_{task}"]) / 2
        seen, unseen = result[f"seen_{task}"], result[f"unseen_{task}"]
        result[f"hmean_{task}"] = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
    return result | {"score": (result["hmean_super"] + result["hmean_sub"]) / 2}


def answered(outputs: Outputs, rule: Rule) -> dict[str, float]:
    """The accuracies where `rule` answers every image."""
    return accuracies(outputs, Answers(*decide(outputs, rule)))


@pytest.mark.parametrize("couple_novel", [False, True])
@pytest.mark.parametrize("taus", [(0.5, 0.4), (0.0, 0.9), (2.0, 0.3), (0.5, 0.3, 0.6)])
def test_accuracies_are_those_of_a_plain_loop(taus: tuple[float, ...], couple_novel: bool) -> None:
    outputs = make_outputs()
    rule = rule_of(*taus, couple_novel=couple_novel)
    expected = accuracies_by_loop(outputs, rule)
    # To rounding in float64: a search compares these.
    assert answered(outputs, rule) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_group_without_images_is_left_out() -> None:
    outputs = make_outputs()
    result = answered(outputs.where(outputs.kind != PSEUDO_NOVEL), rule_of(0.5, 0.5))
    assert "unseen_sub_near" not in result
    assert result["unseen_sub"] == result["unseen_sub_far"]
    assert result["seen_super"] == result["seen_super_seen"]


def test_how_many_images_were_borrowed_or_held_out_changes_no_rate_of_groups() -> None:
    outputs, rule = make_outputs(), rule_of(0.5, 0.4)
    thrice = torch.cat([torch.arange(200), *[torch.arange(200)[outputs.kind == NOVEL_SUPER]] * 2])
    expected, found = (answered(each, rule) for each in (outputs, outputs.where(thrice)))
    assert found == pytest.approx(expected, rel=1e-12)
    assert expected["unseen_sub_near"] != expected["unseen_sub_borrowed"]


# --- Parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"novelty_score": BEST}, {"couple_novel": True}], ids=str)
def test_each_part_is_judged_by_what_the_other_one_chose(options: dict[str, Any]) -> None:
    outputs, config = make_outputs(), TrialConfig(**options)
    result = evaluate(outputs, config)
    for name, is_a in (("part_a", True), ("part_b", False)):
        rule = choose_rule(outputs.part(a=not is_a), config)
        expected = answered(outputs.part(a=is_a), rule)
        assert {each: result[f"{name}.{each}"] for each in MAIN} == {
            each: expected[each] for each in MAIN
        }
    of_a, of_b = (int((outputs.part(a=is_a).kind == SEEN).sum()) for is_a in (True, False))
    over_both = of_a * result["part_a.seen_sub"] + of_b * result["part_b.seen_sub"]
    assert result["seen_sub"] == pytest.approx(over_both / (of_a + of_b), rel=1e-12)


@pytest.mark.parametrize("name", NOVELTY_SCORES)
def test_what_judges_a_part_does_not_follow_from_its_images(name: str) -> None:
    """Part B with other images: those of A are answered otherwise, those of B by the same rule."""
    ours, other = make_outputs(seed=0), make_outputs(seed=1)
    config = TrialConfig(novelty_score=name)
    result, changed = evaluate(ours, config), evaluate(mixed(ours, other), config)
    expected = answered(other.part(a=False), choose_rule(ours.part(a=True), config))
    assert {each: changed[f"part_b.{each}"] for each in MAIN} == {
        each: expected[each] for each in MAIN
    }
    assert changed["part_a.score"] != result["part_a.score"]


@pytest.mark.parametrize("options", [{}, {"novelty_score": BEST}, {"couple_novel": True}], ids=str)
def test_score_calibration_is_the_score_of_each_part_by_its_own_rule(
    options: dict[str, Any],
) -> None:
    outputs, config = make_outputs(), TrialConfig(**options)
    parts = [outputs.part(a=is_a) for is_a in (True, False)]
    expected = fmean(answered(part, choose_rule(part, config))["score"] for part in parts)
    result = evaluate(outputs, config)
    assert result["score_calibration"] == expected
    assert result["score"] < expected


def test_fixed_taus_are_used_as_given_beside_the_calibrated_score() -> None:
    outputs = make_outputs()
    fixed = TrialConfig(tau_super=0.99, tau_sub=0.85)
    result, calibrated = evaluate(outputs, fixed), evaluate(outputs, TrialConfig())
    assert (result["tau_super"], result["tau_sub"]) == (0.99, 0.85)
    expected = answered(outputs, rule_of(0.99, 0.85))
    assert {name: result[name] for name in expected} == expected
    assert result["score_calibrated"] == calibrated["score"] == calibrated["score_calibrated"]
    assert result["score"] != calibrated["score"]


def test_conformal_taus_are_reported_beside_the_calibrated_score() -> None:
    outputs = make_outputs(num=400)
    config = TrialConfig(known_rejection_super=0.4, known_rejection_sub=0.4)
    result, calibrated = evaluate(outputs, config), evaluate(outputs, TrialConfig())
    rule = choose_rule(outputs, config)
    assert (result["tau_super"], result["tau_sub"]) == (rule.tau_super, rule.tau_sub[0])
    answers = PartRules.choose(outputs, config).answers(outputs)
    assert result["score"] == accuracies(outputs, answers)["score"]
    assert result["score_calibrated"] == calibrated["score"] != result["score"]


def test_tau_sub_is_the_mean_where_each_superclass_has_its_own() -> None:
    outputs, config = make_outputs(), TrialConfig(tau_sub_per_superclass=True)
    taus = choose_rule(outputs, config).tau_sub
    assert evaluate(outputs, config)["tau_sub"] == pytest.approx(fmean(taus), rel=1e-12)


# --- Superclasses that were left out -----------------------------------------------------------


def left_out_by_loop(outputs: Outputs, config: TrialConfig) -> dict[str, float]:
    """The rates of folds, fold by fold and part by part, for the msp score."""
    right: dict[str, list[bool]] = {}
    for fold in outputs.folds:
        for is_a in (True, False):
            other, part = fold.part(a=not is_a), fold.part(a=is_a)
            rule = choose_rule(other.where(other.kind < SECOND), config)
            superclass, subclass = decide(part, rule)
            for i, kind in enumerate(part.kind.tolist()):
                left_out = fold.superclass
                rejected = bool(superclass[i] == 1)
                if kind == LEFT_OUT:
                    right.setdefault(f"unseen_super_left_out.{left_out}", []).append(rejected)
                    novel_sub = bool(subclass[i] == 2)
                    right.setdefault(f"unseen_sub_left_out.{left_out}", []).append(novel_sub)
                elif kind in (SEEN, PSEUDO_NOVEL):
                    right.setdefault(f"known.{left_out}.{kind}", []).append(rejected)
    result = {name: fmean(values) for name, values in right.items()}
    for left_out in (0, 1):
        known = [result.pop(f"known.{left_out}.{kind}") for kind in (SEEN, PSEUDO_NOVEL)]
        result[f"known_rejected_super_left_out.{left_out}"] = fmean(known)
    worst_of: dict[str, Callable[[list[float]], float]] = {
        "unseen_super_left_out": min,
        "unseen_sub_left_out": min,
        "known_rejected_super_left_out": max,
    }
    for name, worst in worst_of.items():
        of_folds = [result[f"{name}.{each}"] for each in (0, 1)]
        result |= {name: fmean(of_folds), f"{name}_worst": worst(of_folds)}
    return result


@pytest.mark.parametrize(
    "options", [{}, {"known_rejection_super": 0.2, "couple_novel": True}, {"tau_sub": 0.5}], ids=str
)
def test_rates_of_left_out_superclasses_are_those_of_a_plain_loop(options: dict[str, Any]) -> None:
    outputs, config = with_folds(make_outputs(kinds=ALL_KINDS)), TrialConfig(**options)
    result, expected = evaluate(outputs, config), left_out_by_loop(outputs, config)
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_novel_superclasses_are_those_left_out_and_borrowed_images_are_reported_apart() -> None:
    outputs, config = make_outputs(), TrialConfig()
    with_them, without = evaluate(with_folds(outputs), config), evaluate(outputs, config)
    for task, far in (("super", "unseen_super"), ("sub", "unseen_sub_far")):
        assert without[far] == without[f"unseen_{task}_borrowed"]
        assert with_them[far] == with_them[f"unseen_{task}_left_out"] != without[far]
        assert with_them[f"unseen_{task}_borrowed"] == without[f"unseen_{task}_borrowed"]
    for name in ("seen_super", "seen_sub", "unseen_sub_near", "known_rejected_super", "tau_super"):
        assert with_them[name] == without[name]
    seen, unseen = with_them["seen_super"], with_them["unseen_super"]
    assert with_them["hmean_super"] == pytest.approx(2 * seen * unseen / (seen + unseen))
    assert with_them["score"] != without["score"]
    assert with_them["score_calibration"] != without["score_calibration"]


def test_curves_of_novel_superclasses_are_the_means_of_folds_and_parts() -> None:
    outputs = with_folds(make_outputs())
    result, expected = evaluate(outputs, TrialConfig()), []
    for fold in outputs.folds:
        for part in (fold.part(a=True), fold.part(a=False)):
            used = (part.kind <= PSEUDO_NOVEL) | (part.kind == LEFT_OUT)
            score = part.super_logits[used].double().softmax(1)[:, 0]
            expected.append(roc_auc_score(part.kind[used] != LEFT_OUT, score))
    assert result["auroc_super"] == pytest.approx(fmean(expected), rel=1e-9)
    assert result["auroc_super_left_out"] == result["auroc_super"]


@pytest.mark.parametrize("options", [{}, {"novelty_score": BEST}, {"couple_novel": True}], ids=str)
def test_images_of_a_left_out_superclass_choose_no_rule_of_the_fold(
    options: dict[str, Any],
) -> None:
    names = ("super_logits", "sub_logits", "super_feature_scores", "sub_feature_scores")

    def swapped_where(is_out: torch.Tensor, ours: Outputs, theirs: Outputs) -> dict[str, Any]:
        def choose(parts: list[torch.Tensor]) -> torch.Tensor:
            return torch.where(is_out.view(-1, *[1] * (parts[0].dim() - 1)), parts[1], parts[0])

        changed = by_image([ours, theirs], choose)
        return {name: changed[name] for name in names}

    outputs, config = with_folds(make_outputs()), TrialConfig(**options)
    noise = with_folds(make_outputs(), seed=77)
    for fold, other in zip(outputs.folds, noise.folds, strict=True):
        is_out = fold.kind == LEFT_OUT
        swapped = replace(fold, **swapped_where(is_out, fold, other))
        assert not torch.equal(swapped.super_logits, fold.super_logits)
        assert PartRules.choose(swapped, config) == PartRules.choose(fold, config)
        assert choose_rule(swapped, config) == choose_rule(fold, config)


def test_subclass_answers_on_features_that_saw_the_superclass_are_not_counted() -> None:
    """Borrowed images are, as before."""
    outputs = with_folds(make_outputs(), exact=("super",))
    result = evaluate(outputs, TrialConfig())
    assert "unseen_sub_left_out" not in result
    assert result["unseen_sub_far"] == result["unseen_sub_borrowed"]
    assert result["auroc_sub"] == evaluate(make_outputs(), TrialConfig())["auroc_sub"]


# --- The second hold-out ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"novelty_score": BEST, "couple_novel": True}, {"tau_sub": 0.6}], ids=str
)
def test_second_hold_out_is_reported_apart_and_enters_nothing_else(options: dict[str, Any]) -> None:
    outputs, config = make_outputs(kinds=ALL_KINDS), TrialConfig(**options)
    is_second = outputs.kind == SECOND
    result = evaluate(outputs, config)
    second = {name: result.pop(name) for name in ("unseen_sub_second", "auroc_sub_second")}
    without = outputs.where(~is_second)
    assert result == evaluate(without, config)
    rules = PartRules.choose(without, config)
    called = rules.answers(outputs).subclass == 4
    assert second["unseen_sub_second"] == fmean(called[is_second].tolist())
    expected = []
    for is_a in (True, False):
        part = outputs.part(a=is_a)
        score = part.score("sub", rules.judging(a=is_a).sub_score)
        used = (part.kind == SEEN) | (part.kind == SECOND)
        expected.append(roc_auc_score(part.kind[used] == SEEN, score[used]))
    assert second["auroc_sub_second"] == pytest.approx(fmean(expected), abs=1e-12)


def test_second_hold_out_is_not_in_the_table() -> None:
    outputs = make_outputs(num=100, kinds=ALL_KINDS)
    without = outputs.where(outputs.kind != SECOND)
    config = TrialConfig()
    assert list(score_table(outputs, config)) == list(score_table(without, config))


# --- Everything a trial reports ---------------------------------------------------------------


@pytest.mark.parametrize("name", [*NOVELTY_SCORES, BEST])
@pytest.mark.parametrize("kinds", [ALL_KINDS, ALL_KINDS[:3]], ids=["second", "no second"])
def test_every_metric_is_reported_and_finite(name: str, kinds: tuple[int, ...]) -> None:
    result = evaluate(make_outputs(kinds=kinds), TrialConfig(novelty_score=name))
    metrics = {name for name in METRICS if SECOND in kinds or not name.endswith("_second")}
    left_out = {name for name in metrics if "left_out" in name}
    metrics -= left_out
    of_parts = {f"{part}.{name}" for part in ("part_a", "part_b") for name in MAIN}
    assert {*metrics, *of_parts, "score_calibration", "tau_super", "tau_sub"} == set(result)
    assert all(math.isfinite(value) for value in result.values())
    fractions = [result[metric] for metric in metrics if not metric.startswith("ce_")]
    assert all(0 <= value <= 1 for value in fractions)
    names = ("unseen_super_left_out", "unseen_sub_left_out", "known_rejected_super_left_out")
    of_folds = {f"{each}.{superclass}" for each in names for superclass in (0, 1)}
    more = evaluate(with_folds(make_outputs(kinds=kinds)), TrialConfig(novelty_score=name))
    assert set(more) == {*result, *left_out, *of_folds}
    assert all(math.isfinite(value) for value in more.values())


def test_threshold_free_metrics_take_known_images_by_task() -> None:
    outputs = make_outputs()
    rule = rule_of(0.5, 0.5, super_score="energy")
    result = curves(outputs, rule)
    energy = outputs.super_logits.double()[:, :-1].logsumexp(1)
    is_novel = outputs.kind == NOVEL_SUPER
    assert result["auroc_super"] == pytest.approx(roc_auc_score(~is_novel, energy))
    assert result["aupr_super"] == pytest.approx(average_precision_score(is_novel, -energy))
    p_sub = outputs.sub_logits.double().softmax(1)
    msp = p_sub[:, :-1].amax(1)
    known = outputs.kind == SEEN
    right = outputs.sub_logits[known, :-1].argmax(1) == outputs.sub_target[known]
    expected: dict[str, list[float]] = {}
    for kind in (PSEUDO_NOVEL, NOVEL_SUPER):  # each group of novel images counts alike
        novel = outputs.kind == kind
        used = known | novel
        for name, value in {
            "auroc": roc_auc_score(known[used], msp[used]),
            "aupr": average_precision_score(novel[used], -msp[used]),
            "fpr95": fpr_at_tpr(msp[known], msp[novel], 0.95),
            "known_rejected95": fpr_at_tpr(-msp[novel], -msp[known], 0.95),
            "oscr": oscr(msp[known], right, msp[novel]),
        }.items():
            expected.setdefault(f"{name}_sub", []).append(float(value))
    for name, values in expected.items():
        assert result[name] == pytest.approx(fmean(values), rel=1e-12), name
    ce = -p_sub[torch.arange(len(p_sub)), outputs.sub_target].log().mean()
    assert result["ce_sub"] == pytest.approx(float(ce), rel=1e-9)
    ece = ece_by_numpy(outputs.sub_logits.double().numpy(), outputs.sub_target.numpy())
    assert result["ece_sub"] == pytest.approx(ece, abs=1e-12)
    assert result["hierarchy_area"] == hierarchy_area(outputs, rule)


@pytest.mark.parametrize("name", ["msp", BEST])
def test_curves_of_a_trial_are_the_mean_of_its_parts_by_the_scores_of_the_other(name: str) -> None:
    outputs, config = make_outputs(), TrialConfig(novelty_score=name)
    result, rules = evaluate(outputs, config), PartRules.choose(make_outputs(), config)
    of_part = [curves(outputs.part(a=a), rules.judging(a=a)) for a in (True, False)]
    for metric in of_part[0]:
        assert result[metric] == pytest.approx(fmean(each[metric] for each in of_part)), metric


def test_perfect_outputs_have_perfect_metrics() -> None:
    outputs = make_outputs(kinds=ALL_KINDS)
    perfect = replace(
        outputs,
        super_logits=20.0 * torch.nn.functional.one_hot(outputs.super_target, 3),
        sub_logits=20.0 * torch.nn.functional.one_hot(outputs.sub_target, 5),
    )
    folds = tuple(
        replace(
            fold,
            super_logits=20.0 * torch.nn.functional.one_hot(fold.super_target, 2),
            sub_logits=20.0 * torch.nn.functional.one_hot(fold.sub_target, 3),
        )
        for fold in with_folds(outputs).folds
    )
    result = evaluate(replace(perfect, folds=folds), TrialConfig())
    for metric, direction in METRICS.items():
        expected = 1.0 if direction == "maximize" else 0.0
        assert result[metric] == pytest.approx(expected, abs=1e-6), metric


# --- The table of what could have been chosen -------------------------------------------------


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        row[name] for name in ("task", "novelty_score", "threshold", "couple_novel", "restrict_sub")
    )


@pytest.mark.parametrize(
    ("options", "rejections", "has_fixed"),
    [
        ({}, (CONFORMAL_REJECTION, CONFORMAL_REJECTION), (False, False)),
        ({"tau_super": 0.6}, (CONFORMAL_REJECTION, CONFORMAL_REJECTION), (True, False)),
        ({"known_rejection_sub": 0.2, "couple_novel": True}, (0.05, 0.2), (False, False)),
        ({"tau_sub": 0.4, "restrict_sub": True}, (0.05, 0.05), (False, True)),
    ],
    ids=str,
)
def test_table_has_a_row_of_every_score_threshold_and_option(
    options: dict[str, Any], rejections: tuple[float, float], has_fixed: tuple[bool, bool]
) -> None:
    config = TrialConfig(**options)
    expected = []
    for task, rejection, is_fixed in zip(TASKS, rejections, has_fixed, strict=True):
        thresholds = ["harmonic_mean", f"reject_{rejection}", *["fixed"] * is_fixed]
        own = [(config.couple_novel, config.restrict_sub)]
        all_options = [(c, r) for c in (False, True) for r in (False, True)]
        expected += [
            (task, name, threshold, *option)
            for name in NOVELTY_SCORES
            for threshold in thresholds
            for option in (own if task == "super" else all_options)
        ]
    rows = [key_of(row) for row in score_table(make_outputs(num=60), config)]
    assert sorted(rows) == sorted(expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"known_rejection_super": 0.3, "couple_novel": True, "sub_novelty_score": "gen"},
        {"tau_sub": 0.4, "tau_super": 0.5},
        {"tau_sub_per_superclass": True, "super_novelty_score": BEST},
    ],
    ids=str,
)
def test_row_equals_the_result_of_a_config_that_had_chosen_it(options: dict[str, Any]) -> None:
    outputs = make_outputs(num=120, kinds=ALL_KINDS)
    config = TrialConfig(**options)
    rows = list(score_table(outputs, config))
    assert len(rows) > 0
    for row in rows[::5]:  # no count of thresholds and options is a multiple: all are met
        task = row["task"]
        changes: dict[str, Any] = {
            f"{task}_novelty_score": row["novelty_score"],
            "couple_novel": row["couple_novel"],
            "restrict_sub": row["restrict_sub"],
        }
        if row["threshold"] != "fixed":
            kind, _, rejection = row["threshold"].partition("reject_")
            changes[f"tau_{task}"] = None
            changes[f"known_rejection_{task}"] = None if kind else float(rejection)
        chosen = replace(config, **changes)
        result = evaluate(outputs, chosen)
        for metric in ("hmean", "seen", "unseen", "known_rejected", "overall"):
            assert row[metric] == result[f"{metric}_{task}"]
        for metric in ("auroc", "aupr", "fpr95", "known_rejected95"):
            assert row[metric] == result[f"{metric}_{task}"]
        assert row["score"] == result["score"]
        taus = [float(each) for each in row["tau"].split()]
        if task == "super" or len(taus) == 1:
            assert taus == [pytest.approx(result[f"tau_{task}"], rel=1e-5)]
        else:
            assert taus == pytest.approx(choose_rule(outputs, chosen).tau_sub, rel=1e-5)


def test_scores_that_were_not_fitted_are_left_out_of_the_table() -> None:
    rows = list(score_table(without_bank(make_outputs(num=60)), TrialConfig()))
    names = {row["novelty_score"] for row in rows}
    assert names == set(NOVELTY_SCORES) - set(FEATURE_SCORES)


def test_table_of_one_branch_with_a_bank_has_its_scores_for_that_task_alone() -> None:
    outputs = make_outputs(num=60)
    rows = list(score_table(replace(outputs, sub_feature_scores={}), TrialConfig()))
    by_features = {row["task"] for row in rows if row["novelty_score"] in FEATURE_SCORES}
    assert by_features == {"super"}


def test_table_without_borrowed_images_leaves_their_score_out() -> None:
    """No configuration without borrowed images may ask for the distance to them."""
    rows = list(score_table(make_outputs(num=60), TrialConfig(novel_images=0)))
    names = {row["novelty_score"] for row in rows}
    assert names == set(NOVELTY_SCORES) - {"knn_difference"}


@pytest.mark.parametrize(
    "kinds", [[SEEN], [SEEN, PSEUDO_NOVEL], [NOVEL_SUPER], [SEEN, NOVEL_SUPER]]
)
def test_labelled_images_without_a_kind_are_judged_by_what_they_have(kinds: list[int]) -> None:
    outputs = make_outputs(3, kinds=kinds)
    rule = choose_rule(make_outputs(3), TrialConfig())
    result = judge(outputs, rule)
    assert ("unseen_super" in result) == (NOVEL_SUPER in kinds)
    assert ("seen_super" in result) == (kinds != [NOVEL_SUPER])
    assert ("score" in result) == (kinds == [SEEN, NOVEL_SUPER])
    assert ("oscr_sub" in result) == (len(kinds) > 1)
    assert all(math.isfinite(value) for value in result.values())
