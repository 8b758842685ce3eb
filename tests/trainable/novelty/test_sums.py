"""A sum of scores counts each in deviations over the known images that choose, and says so."""

import json
from dataclasses import asdict, replace
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainable.made_outputs import make_outputs, with_folds, without_bank
from trainable.config import TASKS, Task, TrialConfig
from trainable.data.splits import LEFT_OUT, NOVEL_SUPER, PSEUDO_NOVEL, SECOND, SEEN
from trainable.errors import ConfigError
from trainable.novelty.metrics import score_table
from trainable.novelty.rule import for_num_classes
from trainable.novelty.scores.sums import of_tasks, parts_of, plain, standardised, total
from trainable.novelty.thresholds import Outputs, PartRules, choose_rule

AnyOutputs = TypeVar("AnyOutputs", bound=Outputs)
SUM = "max_logit+rmds"


def score_name(rule: Any, task: Task) -> str:
    name: str = rule.super_score if task == "super" else rule.sub_score
    return name


@pytest.mark.parametrize("task", TASKS)
def test_sum_is_of_parts_standardised_on_the_known_images_that_choose(task: Task) -> None:
    outputs = make_outputs(kinds=(SEEN, PSEUDO_NOVEL, NOVEL_SUPER, SECOND))
    name = score_name(choose_rule(outputs, TrialConfig(novelty_score=SUM)), task)
    expected = torch.zeros(len(outputs.rows), dtype=torch.float64)
    known = outputs.is_known(task) & (outputs.kind != SECOND)
    for part in ("max_logit", "rmds"):
        score = outputs.score(task, part)
        expected += (score - score[known].mean()) / score[known].std(correction=0)
    torch.testing.assert_close(outputs.score(task, name), expected)
    assert plain(name) == SUM != name


def test_parts_are_standardised_by_what_judges_them_not_at_all() -> None:
    """Neither by images of the other part, nor in a fold by those of what it leaves out."""
    config = TrialConfig(novelty_score=SUM)
    outputs = with_folds(make_outputs(num=300))

    def shifted(each: AnyOutputs, where: torch.Tensor) -> AnyOutputs:
        moved = {name: s + 50.0 * where for name, s in each.super_feature_scores.items()}
        return replace(each, super_feature_scores=moved)

    in_b = shifted(outputs, ~outputs.in_part_a)
    assert choose_rule(in_b.part(a=True), config) == choose_rule(outputs.part(a=True), config)
    assert choose_rule(in_b.part(a=False), config) != choose_rule(outputs.part(a=False), config)
    folds = tuple(shifted(fold, fold.kind == LEFT_OUT) for fold in outputs.folds)
    rules = [
        PartRules.choose(replace(outputs, folds=each), config) for each in (outputs.folds, folds)
    ]
    assert rules[0] == rules[1]
    units = {fold.a.super_score for fold in rules[0].folds} | {rules[0].a.super_score}
    assert len(units) == 3, "each fold by its own images"


def test_rule_with_a_sum_is_the_same_from_json() -> None:
    outputs = make_outputs()
    rule = choose_rule(outputs, TrialConfig(novelty_score="gen+knn+energy"))
    read = json.loads(json.dumps(asdict(rule)))
    assert read["super_score"] == rule.super_score
    assert torch.equal(
        outputs.score("sub", read["sub_score"]), outputs.score("sub", rule.sub_score)
    )
    assert parts_of(rule.sub_score) == ("gen", "knn", "energy")


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=9))
def test_any_size_of_a_part_is_read_from_the_name_exactly(values: list[float]) -> None:
    score = torch.tensor(values, dtype=torch.float64)
    name = standardised("msp+knn", lambda part: score if part == "msp" else -score)
    std = float(score.std(correction=0)) or 1.0
    expected = (score - float(score.mean())) / std
    negative = (-score - float((-score).mean())) / std
    found = total(name, lambda part: score if part == "msp" else -score)
    assert torch.equal(found, torch.stack([expected, negative]).sum(0))
    assert plain(name) == "msp+knn"


def test_sum_without_a_bank_of_features_is_not_a_number() -> None:
    outputs = without_bank(make_outputs())
    name = "max_logit[0.0,1.0]+rmds[0.0,1.0]"
    assert outputs.score("super", name).isnan().all()


def test_gen_in_a_sum_is_counted_in_what_it_becomes_with_more_classes() -> None:
    rule = choose_rule(make_outputs(), TrialConfig(novelty_score="gen+max_logit"))
    grown = for_num_classes(rule, 40, 60)
    scale = 1.5**0.9
    values = {"gen": torch.tensor([-3.0, -1.0]).double(), "max_logit": torch.zeros(2).double()}
    bigger = values | {"gen": values["gen"] * scale}
    before, after = (
        total(rule.sub_score, values.__getitem__),
        total(grown.sub_score, bigger.__getitem__),
    )
    torch.testing.assert_close(after, before)
    assert grown.tau_sub == rule.tau_sub


def test_table_has_the_sum_that_the_config_asks_for() -> None:
    outputs = with_folds(make_outputs(num=120))
    config = TrialConfig(architecture="two_models", sub_novelty_score=SUM)
    rows = [row for row in score_table(outputs, config) if row["novelty_score"] == SUM]
    assert {row["task"] for row in rows} == {"sub"}
    assert all(0 <= row["auroc"] <= 1 for row in rows)
    alone = {row["novelty_score"]: row["auroc"] for row in score_table(outputs, config)}
    assert alone[SUM] not in (alone["max_logit"], alone["rmds"])


@pytest.mark.parametrize(
    "changes",
    [
        {"sub_novelty_score": "super_rmds"},
        {"sub_novelty_score": "max_logit+super_knn_difference", "sub_novel_images": 0},
    ],
)
def test_table_has_the_score_of_the_superclass_that_the_config_asks_for(
    changes: dict[str, Any],
) -> None:
    config = TrialConfig(architecture="two_models", **changes)
    rows = [*score_table(make_outputs(num=120), config)]
    own = [row for row in rows if row["novelty_score"] == changes["sub_novelty_score"]]
    assert {row["task"] for row in own} == {"sub"}
    of_sub = [row for row in rows if (row["task"], row["novelty_score"]) == ("sub", "rmds")]
    assert own[0]["auroc"] != of_sub[0]["auroc"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_logit+rmd", r"`novelty_score` must be one of .* but got 'rmd' \(did you mean 'rmds'"),
        ("max_logit+max_logit", "sum of different scores.*'max_logit.max_logit': drop max_logit"),
        ("rmds+best", "or best alone, but got 'rmds.best': drop best"),
        ("max_logit+", "`novelty_score` must be one of"),
        ("super_rmds", r"`novelty_score` must be one of .*, best, but got 'super_rmds'"),
    ],
)
def test_sum_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrialConfig(novelty_score=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sub_novelty_score": "super_best"}, "`sub_novelty_score` super_best: best is no score"),
        (
            {"super_novelty_score": "super_msp"},
            "`super_novelty_score` must be one of .*'super_msp'",
        ),
        (
            {"sub_novelty_score": "msp+super_rmd"},
            r"one of .*, best, or super_ and one of them, but got 'super_rmd' .*mean 'rmds'",
        ),
        ({"sub_novelty_score": "super_super_rmds"}, "must be one of .* got 'super_super_rmds'"),
        (
            {"architecture": "two_heads", "sub_novelty_score": "msp+super_rmds"},
            "`sub_novelty_score` super_rmds is rmds in two_heads, whose heads share their features",
        ),
        (
            {"super_novel_images": 0, "sub_novelty_score": "super_knn_difference"},
            "`sub_novelty_score` super_knn_difference needs borrowed images, but "
            "super_novel_images is 0",
        ),
    ],
)
def test_score_of_the_superclass_is_refused_where_it_is_none(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TrialConfig(**{"architecture": "two_models", "super_novelty_score": "msp", **changes})


def test_subclass_has_the_scores_of_the_superclass_under_their_names() -> None:
    outputs = make_outputs(num=120)
    for name in ("max_logit", "rmds"):
        ours, theirs = (outputs.score("sub", each) for each in (name, f"super_{name}"))
        assert torch.equal(theirs, outputs.score("super", name))
        assert not torch.equal(ours, theirs)
    config = TrialConfig(architecture="two_models", sub_novelty_score="super_rmds+max_logit")
    name = choose_rule(outputs, config).sub_score
    assert plain(name) == "super_rmds+max_logit"
    expected = sum(
        (each - each[outputs.is_known("sub")].mean())
        / each[outputs.is_known("sub")].std(correction=0)
        for each in (outputs.score("super", "rmds"), outputs.score("sub", "max_logit"))
    )
    torch.testing.assert_close(outputs.score("sub", name), expected)


def test_each_branch_is_asked_for_what_is_its_own() -> None:
    scores: dict[Task, str] = {
        "super": "knn+msp", "sub": "super_rmds[1.0,2.0]+super_knn[0.0,1.0]+gen[1e+20,1.0]"
    }  # fmt: skip
    assert of_tasks(scores, ["super"]) == ["knn", "msp", "rmds"]
    assert of_tasks(scores, ["sub"]) == ["gen"]
    assert of_tasks(scores, TASKS) == ["knn", "msp", "rmds", "gen"]


def test_sum_with_a_part_that_needs_borrowed_images_needs_them() -> None:
    with pytest.raises(ConfigError, match=r"`sub_novelty_score` knn_difference needs borrowed"):
        TrialConfig(sub_novelty_score="rmds+knn_difference", novel_images=0)
    TrialConfig(sub_novelty_score="rmds+knn_difference", novel_images=1)
