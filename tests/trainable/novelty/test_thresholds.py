"""A rule is the best of those allowed, and what is chosen on one part is judged on the other."""

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch

from tests.trainable.made_outputs import (
    LOGIT_SCORES,
    NOVELTY_SCORES,
    SUPER_OF_SUB,
    make_outputs,
    mixed,
    without_bank,
)
from trainable.config import BEST, TASKS, TrialConfig
from trainable.data.splits import NOVEL_SUPER, PSEUDO_NOVEL, SECOND, SEEN
from trainable.novelty import rule as rule_module
from trainable.novelty.metrics import accuracies
from trainable.novelty.rule import (
    acceptance,
    by_image,
    calibrate,
    conformal_threshold,
    decide,
    novelty_score,
)
from trainable.novelty.thresholds import (
    Answers,
    Outputs,
    PartRules,
    Threshold,
    available_scores,
    choose_rule,
    scores_of,
)

ALL_KINDS = (SEEN, PSEUDO_NOVEL, NOVEL_SUPER, SECOND)
OPTIONS: list[dict[str, Any]] = [
    *({"novelty_score": name} for name in (*NOVELTY_SCORES, BEST)),
    {"known_rejection_super": 0.1, "known_rejection_sub": 0.2},
    {"tau_sub_per_superclass": True},
    {"couple_novel": True, "restrict_sub": True},
    {"novelty_score": BEST, "known_rejection_sub": 0.1, "tau_sub_per_superclass": True},
    {"novelty_score": "max_logit+rmds", "couple_novel": True},
]


def accepted_by(response: Outputs, rule_score: str, task: Any, restrict: bool) -> torch.Tensor:
    """Return the acceptance that a tau of `task` is compared with."""
    return acceptance(response, task, rule_score, restrict_sub=restrict)


@pytest.mark.parametrize(
    "threshold", [Threshold(), Threshold(known_rejection=0.1), Threshold(tau=0.5)], ids=str
)
def test_rule_does_not_depend_on_what_was_asked_of_the_same_images_before(
    threshold: Threshold,
) -> None:
    """What rules have in common is found once; nothing else may be."""
    asked = make_outputs()
    configs = [
        TrialConfig(**{**options, **more})
        for options in OPTIONS
        for more in ({}, {"couple_novel": True}, {"restrict_sub": True})
    ]
    seen = set()
    for config in configs:
        for task in TASKS:
            given = {f"{task}_threshold": threshold}
            rule = choose_rule(asked, config, **given)
            assert rule == choose_rule(make_outputs(), config, **given)
            seen.add(rule)
    assert len(seen) > len(OPTIONS)


# --- Which images choose ----------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rule_of_a_part_depends_on_its_images_alone(options: dict[str, Any]) -> None:
    config = TrialConfig(**options)
    ours, other = make_outputs(seed=0), make_outputs(seed=1)
    chosen, changed = (PartRules.choose(each, config) for each in (ours, mixed(ours, other)))
    assert changed.a == chosen.a == choose_rule(ours.part(a=True), config)
    assert changed.b != chosen.b == choose_rule(ours.part(a=False), config)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_image_is_judged_by_a_rule_that_it_chose(options: dict[str, Any]) -> None:
    """The answers to a part stay as they are when its images would choose another rule."""
    config = TrialConfig(**options)
    ours, other = make_outputs(seed=0), make_outputs(seed=1)
    rules = PartRules.choose(ours, config)
    answers = rules.answers(ours)
    for is_a, rule in ((True, rules.b), (False, rules.a)):
        assert rules.judging(a=is_a) == rule
        of_part = ours.in_part_a == is_a
        superclass, subclass = decide(ours.part(a=is_a), rule)
        assert torch.equal(answers.where(of_part).superclass, superclass)
        assert torch.equal(answers.where(of_part).subclass, subclass)
    # Part B chooses otherwise, and nothing about part B's own answers' rule changes.
    assert PartRules.choose(mixed(ours, other), config).judging(a=False) == rules.judging(a=False)


def test_in_sample_answers_are_by_the_rule_that_the_part_itself_chose() -> None:
    outputs, config = make_outputs(), TrialConfig()
    rules = PartRules.choose(outputs, config)
    answers = rules.answers(outputs, in_sample=True)
    for is_a, rule in ((True, rules.a), (False, rules.b)):
        part = outputs.part(a=is_a)
        assert torch.equal(answers.subclass[outputs.in_part_a == is_a], decide(part, rule)[1])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_second_hold_out_chooses_nothing(options: dict[str, Any]) -> None:
    config = TrialConfig(**options)
    outputs = make_outputs(kinds=ALL_KINDS)
    is_second = outputs.kind == SECOND
    assert is_second.any()
    assert choose_rule(outputs, config) == choose_rule(outputs.where(~is_second), config)


def test_parts_share_no_image_and_leave_none_out() -> None:
    outputs = make_outputs()
    rows = [outputs.part(a=each).rows.tolist() for each in (True, False)]
    assert rows == [list(range(0, 200, 2)), list(range(1, 200, 2))]


def test_all_images_but_the_second_hold_out_choose_the_rule_that_is_kept() -> None:
    outputs = make_outputs(kinds=ALL_KINDS)
    assert outputs.choosing().rows.tolist() == outputs.rows[outputs.kind != SECOND].tolist()
    known = outputs.where(outputs.kind == SEEN)
    config = TrialConfig(known_rejection_sub=0.1)
    expected = conformal_threshold(acceptance(known, "sub", "msp"), 0.1)
    assert choose_rule(outputs, config).tau_sub[0] == expected


def test_what_outputs_keep_stays_theirs() -> None:
    outputs = make_outputs()
    whole = {each: outputs.answer("sub", restrict_sub=each) for each in (False, True)}
    score, half = outputs.score("sub", "gen"), outputs.part(a=True)
    assert not torch.equal(whole[False][0], whole[True][0])
    is_ours = outputs.in_part_a
    assert torch.equal(half.score("sub", "gen"), score[is_ours])
    assert not torch.equal(half.score("sub", "msp"), score[is_ours])
    assert not torch.equal(half.score("super", "gen"), score[is_ours])
    for restrict, both in whole.items():
        for of_half, of_all in zip(half.answer("sub", restrict_sub=restrict), both, strict=True):
            assert torch.equal(of_half, of_all[is_ours])
    turned = replace(outputs, sub_logits=-outputs.sub_logits)
    assert not torch.equal(turned.score("sub", "gen"), score)


def test_rules_of_the_same_outputs_compute_a_score_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(logits: torch.Tensor, name: str) -> torch.Tensor:
        asked.append(name)
        return novelty_score(logits, name)

    monkeypatch.setattr(rule_module, "novelty_score", noted)
    outputs = make_outputs()
    for couple in (False, True):
        config = TrialConfig(novelty_score="gen", couple_novel=couple)
        choose_rule(outputs.part(a=False), config)
        choose_rule(outputs.part(a=True), config)
    assert asked == ["gen"] * 4  # of two tasks and two parts


def test_where_selects_every_figure_of_an_image() -> None:
    outputs = make_outputs()
    some = outputs.where(outputs.kind == SEEN)
    assert torch.equal(some.super_of_sub, outputs.super_of_sub)
    expected = by_image([outputs], lambda parts: parts[0][some.rows])
    for name, value in by_image([some], lambda parts: parts[0]).items():
        if isinstance(value, dict):
            assert value.keys() == expected[name].keys()
            assert all(torch.equal(each, expected[name][key]) for key, each in value.items())
        else:
            assert torch.equal(value, expected[name]), name
    for fold, whole in zip(some.folds, outputs.folds, strict=True):
        assert torch.equal(fold.sub_logits, whole.sub_logits[some.rows])


# --- Thresholds -------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", ["super", "sub"])
def test_one_fixed_tau_leaves_the_other_calibrated(fixed: str) -> None:
    outputs = make_outputs()
    calibrated = choose_rule(outputs, TrialConfig())
    rule = choose_rule(outputs, TrialConfig(**{f"tau_{fixed}": 0.77}))
    if fixed == "super":
        assert (rule.tau_super, rule.tau_sub) == (0.77, calibrated.tau_sub)
    else:
        assert (rule.tau_super, rule.tau_sub) == (calibrated.tau_super, (0.77, 0.77))


def test_fixed_tau_holds_for_every_superclass() -> None:
    config = TrialConfig(tau_sub=0.6, tau_sub_per_superclass=True)
    assert choose_rule(make_outputs(), config).tau_sub == (0.6, 0.6)


@pytest.mark.parametrize("name", ["msp", "rmds"])
@pytest.mark.parametrize("restrict", [False, True])
def test_taus_are_those_of_the_calibration_images_that_each_task_knows(
    name: str, restrict: bool
) -> None:
    outputs = make_outputs()
    half = outputs.part(a=True)
    free = TrialConfig(novelty_score=name, restrict_sub=restrict)
    bound = replace(free, known_rejection_super=0.4, known_rejection_sub=0.5)
    rules = choose_rule(half, free), choose_rule(half, bound)
    for task, rejection in (("super", 0.4), ("sub", 0.5)):
        score = accepted_by(half, name, task, restrict)
        known = half.kind != NOVEL_SUPER if task == "super" else half.kind == SEEN
        logits = half.super_logits if task == "super" else half.sub_logits
        if task == "sub" and restrict:
            outside = torch.tensor(SUPER_OF_SUB[:4]) != half.super_logits[:, :2].argmax(1)[:, None]
            logits = logits.clone()
            logits[:, :4][outside] = -math.inf
        target = half.super_target if task == "super" else half.sub_target
        expected = (
            calibrate(score, logits.argmax(1) == target, known, half.kind),
            conformal_threshold(score[known], rejection, half.kind[known]),
        )
        found = [r.tau_super if task == "super" else r.tau_sub[0] for r in rules]
        assert found == list(expected)


@pytest.mark.parametrize("rejection", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("name", ["max_logit", "knn"])
def test_conformal_rule_rejects_few_known_images_of_another_half(
    name: str, rejection: float
) -> None:
    """In the mean over many halves, where novel is never the argmax of a known image."""
    config = TrialConfig(
        novelty_score=name, known_rejection_super=rejection, known_rejection_sub=rejection
    )
    rates = []
    for seed in range(60):
        outputs = make_outputs(seed, num=160)
        known_logits = outputs.super_logits.clone(), outputs.sub_logits.clone()
        for logits in known_logits:
            logits[:, -1] = -9.0
        outputs = replace(outputs, super_logits=known_logits[0], sub_logits=known_logits[1])
        rule, judged = choose_rule(outputs.part(a=True), config), outputs.part(a=False)
        result = accuracies(judged, Answers(*decide(judged, rule)))
        rates.append([result["known_rejected_super"], result["known_rejected_sub"]])
    rate = torch.tensor(rates, dtype=torch.float64)
    error = 4 * rate.std(0) / math.sqrt(len(rate))
    assert (rate.mean(0) <= rejection + error).all()
    assert (rate.mean(0) >= rejection - 1.5 / 20 - error).all()


def test_thresholds_say_their_names() -> None:
    config = TrialConfig(tau_super=0.9, known_rejection_sub=0.05)
    assert Threshold.of(config, "super") == Threshold(tau=0.9)
    assert Threshold.of(config, "sub") == Threshold(known_rejection=0.05)
    thresholds = (Threshold.of(config, "super"), Threshold.of(config, "sub"), Threshold())
    assert [each.describe() for each in thresholds] == ["fixed", "reject_0.05", "harmonic_mean"]


# --- A tau for each superclass ----------------------------------------------------------------


def group_of(half: Outputs) -> torch.Tensor:
    return torch.tensor(SUPER_OF_SUB)[half.sub_logits[:, :-1].argmax(1)]


@pytest.mark.parametrize("rejection", [None, 0.4])
@pytest.mark.parametrize("name", ["msp", "knn"])
def test_tau_of_a_superclass_is_the_calibration_of_its_images_on_their_own(
    name: str, rejection: float | None
) -> None:
    outputs = make_outputs(num=300)
    config = TrialConfig(
        novelty_score=name, known_rejection_sub=rejection, tau_sub_per_superclass=True
    )
    half = outputs
    group = group_of(half)
    expected = tuple(
        choose_rule(
            half.where(group == each), replace(config, tau_sub_per_superclass=False)
        ).tau_sub[0]
        for each in range(2)
    )
    assert choose_rule(outputs, config).tau_sub == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("lacks", ["known", "novel", "all"])
def test_superclass_without_known_or_novel_images_takes_the_common_tau(lacks: str) -> None:
    outputs = make_outputs()
    is_known = outputs.kind == SEEN
    missing = {"known": is_known, "novel": ~is_known, "all": is_known | ~is_known}[lacks]
    some = outputs.where(~((group_of(outputs) == 1) & missing))
    config = TrialConfig(tau_sub_per_superclass=True)
    common = choose_rule(some, TrialConfig()).tau_sub[0]
    tau = choose_rule(some, config).tau_sub
    assert tau[1] == common
    assert tau[0] == choose_rule(some.where(group_of(some) == 0), TrialConfig()).tau_sub[0]


# --- The best score ---------------------------------------------------------------------------


def rates_of(half: Outputs, options: dict[str, Any], task: str) -> dict[str, float]:
    """Return the harmonic mean of `task` on `half` by each score, if it were the only one."""
    result = {}
    for name in NOVELTY_SCORES:
        config = TrialConfig(**(options | {f"{task}_novelty_score": name}))
        answers = Answers(*decide(half, choose_rule(half, config)))
        result[name] = accuracies(half, answers)[f"hmean_{task}"]
    return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"known_rejection_super": 0.3, "known_rejection_sub": 0.4},
        {"tau_sub_per_superclass": True},
        {"couple_novel": True, "super_novelty_score": "energy"},
        {"couple_novel": True, "restrict_sub": True, "known_rejection_super": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("task", TASKS)
def test_best_takes_the_score_with_the_highest_harmonic_mean(
    task: str, options: dict[str, Any]
) -> None:
    for seed in range(4):
        outputs = make_outputs(seed, num=120)
        rates = rates_of(outputs, options, task)
        config = TrialConfig(**(options | {f"{task}_novelty_score": BEST}))
        rule = choose_rule(outputs, config)
        name = rule.super_score if task == "super" else rule.sub_score
        assert min(rates.values()) < rates[name] == max(rates.values())
        result = accuracies(outputs, Answers(*decide(outputs, rule)))
        assert result[f"hmean_{task}"] == rates[name]


def test_of_equally_good_scores_the_first_is_taken() -> None:
    """So that without borrowed images, where knn_difference is knn, a config may name it."""
    outputs = make_outputs()
    certain = torch.where(outputs.kind == SEEN, 1.0, -1.0)
    features = {**outputs.sub_feature_scores, "knn": certain, "knn_difference": certain}
    logits = outputs.sub_logits.clone()
    logits[:, :4] += 100.0
    outputs = replace(outputs, sub_logits=logits, sub_feature_scores=features)
    assert choose_rule(outputs, TrialConfig(novelty_score=BEST)).sub_score == "knn"


def test_only_fitted_scores_are_available() -> None:
    outputs, config = without_bank(make_outputs()), TrialConfig(novelty_score=BEST)
    for task in TASKS:
        assert available_scores(outputs, task) == LOGIT_SCORES
        assert scores_of(outputs, task, config) == LOGIT_SCORES
        assert scores_of(make_outputs(), task, config) == NOVELTY_SCORES
        assert scores_of(outputs, task, TrialConfig(novelty_score="gen")) == ("gen",)
    rule = choose_rule(outputs, config)
    assert {rule.super_score, rule.sub_score} <= set(LOGIT_SCORES)


# --- Coupling ---------------------------------------------------------------------------------


def hmean_sub(half: Outputs, rule: Any) -> float:
    """The harmonic mean of seen and unseen subclass accuracy by this rule."""
    subclass = decide(half, rule)[1]
    right, seen = subclass == half.sub_target, half.kind == SEEN
    a = fmean(right[seen].tolist())
    b = fmean(fmean(right[half.kind == kind].tolist()) for kind in (PSEUDO_NOVEL, NOVEL_SUPER))
    return 2 * a * b / (a + b) if a + b else 0.0


@pytest.mark.parametrize("restrict", [False, True])
@pytest.mark.parametrize("tau_super", [None, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(3))
def test_coupled_subclass_tau_is_the_best_given_the_superclass_decision(
    seed: int, tau_super: float | None, restrict: bool
) -> None:
    """Whatever made that decision: a calibrated superclass threshold or a fixed one."""
    outputs = make_outputs(seed, num=120)
    rule = choose_rule(
        outputs, TrialConfig(couple_novel=True, restrict_sub=restrict, tau_super=tau_super)
    )
    if tau_super is None:
        assert rule.tau_super == choose_rule(outputs, TrialConfig()).tau_super
    half = outputs
    scores = [0.0, *half.sub_logits.double().softmax(1)[:, :-1].amax(1).tolist()]
    best = max(hmean_sub(half, replace(rule, tau_sub=(each, each))) for each in scores)
    assert hmean_sub(half, rule) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("option", ["couple_novel", "restrict_sub"])
def test_options_change_the_subclass_tau(option: str) -> None:
    """Else the test above would pass with thresholds chosen without regard to them."""
    plain, changed = (
        [choose_rule(make_outputs(seed), TrialConfig(**{option: value})).tau_sub
         for seed in range(4)]
        for value in (False, True)
    )  # fmt: skip
    assert plain != changed


def test_rule_keeps_the_options_of_the_config() -> None:
    for couple in (False, True):
        for restrict in (False, True):
            rule = choose_rule(
                make_outputs(), TrialConfig(couple_novel=couple, restrict_sub=restrict)
            )
            assert (rule.couple_novel, rule.restrict_sub) == (couple, restrict)
