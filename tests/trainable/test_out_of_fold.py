"""Thresholds of a refit reject as many known images as the trial's, judged on images unseen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.made_outputs import make_outputs
from tests.trainable.tiny import tiny_config
from trainable import out_of_fold
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import SEEN
from trainable.novelty.rule import decide
from trainable.novelty.thresholds import choose_rule
from trainable.out_of_fold import Rejected, carried_over, joined, moved


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("options", [{}, {"couple_novel": True}, {"tau_sub_per_superclass": True}])
def test_share_of_rejected_images_is_that_of_the_answers(options: dict[str, Any]) -> None:
    outputs = make_outputs(num=400)
    rule = choose_rule(outputs, TrialConfig(**options))
    rejected = Rejected.by(rule, outputs)
    seen = outputs.where(outputs.kind == SEEN)
    superclass, subclass = decide(seen, rule)
    assert rejected.super == float((superclass == 2).double().mean())
    likeliest = seen.super_of_sub[seen.sub_logits[:, :-1].argmax(1)]
    for each in range(2):
        group = likeliest == each if len(set(rule.tau_sub)) > 1 else likeliest >= 0
        assert rejected.sub[each] == float((subclass[group] == 4).double().mean())


@pytest.mark.parametrize(
    "options", [{"couple_novel": True}, {"tau_sub_per_superclass": True}, {"novelty_score": "knn"}]
)
def test_moved_thresholds_reject_as_many_of_images_whose_scores_lie_elsewhere(
    options: dict[str, Any],
) -> None:
    outputs = make_outputs(num=800)
    logits = outputs.super_logits.clone(), outputs.sub_logits.clone()
    for each in logits:
        each[:, -1] = -9.0  # so that a threshold alone decides
    outputs = replace(outputs, super_logits=logits[0], sub_logits=logits[1])
    bounds = {"known_rejection_super": 0.1, "known_rejection_sub": 0.3}
    rule = choose_rule(outputs, TrialConfig(**bounds, **options))
    rejected = Rejected.by(rule, outputs)
    features = outputs.super_feature_scores, outputs.sub_feature_scores
    other = replace(
        outputs.where(outputs.kind == SEEN),
        super_logits=logits[0][outputs.kind == SEEN] * 0.5,
        sub_logits=logits[1][outputs.kind == SEEN] * 0.5,
        super_feature_scores=features[0][outputs.kind == SEEN] - 1.0,
        sub_feature_scores=features[1][outputs.kind == SEEN] - 1.0,
    )
    found = Rejected.by(moved(rule, rejected, other, ("super", "sub")), other)
    assert found.super == pytest.approx(rejected.super, abs=0.01)
    assert found.sub == pytest.approx(rejected.sub, abs=0.02)
    assert Rejected.by(rule, other).sub != pytest.approx(rejected.sub, abs=0.02)
    kept = moved(rule, rejected, other, ("super",))
    assert (kept.tau_sub, kept.tau_super != rule.tau_super) == (rule.tau_sub, True)


def test_every_known_image_is_scored_by_heads_that_were_not_trained_on_it(
    tiny_data: Data, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(fine_tune="frozen", novel_images=0, lr=1e-2)
    trained, scored = [], []

    class Noting(out_of_fold.Trainer):
        def outputs(self, *, all_scores: bool = False) -> Any:
            trained.append(set(self.pools.train.tolist()))
            scored.append(super().outputs(all_scores=all_scores))
            return scored[-1]

    monkeypatch.setattr(out_of_fold, "Trainer", Noting)
    rule = choose_rule(make_outputs(), config)
    rejected = Rejected(0.1, (0.1,) * 3)
    rule = replace(rule, tau_sub=(0.3,) * 3)
    found = carried_over(
        rule, rejected, config, tiny_data,
        epochs=1, cache=None, weights=tiny_weights, full_precision=False, note=silent,
    )  # fmt: skip
    known = joined(scored)
    assert sorted(known.rows.tolist()) == list(range(tiny_data.num_known))
    for rows, outputs in zip(trained, scored, strict=True):
        assert not rows & set(outputs.rows.tolist())
    assert 0.0 < Rejected.by(found, known).super <= 0.1
    assert found.tau_super == moved(rule, rejected, known, ("super", "sub")).tau_super
    assert torch.equal(known.sub_target, tiny_data.subclass[known.rows])


@pytest.mark.parametrize("changes", [{}, {"fine_tune": "frozen", "tau_super": 0.9, "tau_sub": 0.8}])
def test_thresholds_of_a_tuned_branch_and_fixed_ones_stay(
    tiny_data: Data, changes: dict[str, Any]
) -> None:
    rule = choose_rule(make_outputs(), TrialConfig())
    found = carried_over(
        rule, Rejected(0.1, (0.1, 0.1)), tiny_config(**changes), tiny_data,
        epochs=1, cache=None, weights=None, full_precision=False, note=silent,
    )  # fmt: skip
    assert found == rule


def test_a_tuned_branch_beside_a_frozen_one_is_not_tuned_for_every_share(
    tiny_data: Data, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        architecture="two_models", super_fine_tune="frozen", sub_fine_tune="full",
        novel_images=0, super_lr=1e-2, couple_novel=True,
    )  # fmt: skip
    alone = replace(config, sub_fine_tune="frozen")
    scored = []

    class Noting(out_of_fold.Trainer):
        def outputs(self, *, all_scores: bool = False) -> Any:
            assert all(model.is_frozen for model in self.branches)
            scored.append(super().outputs(all_scores=all_scores))
            return scored[-1]

    monkeypatch.setattr(out_of_fold, "Trainer", Noting)
    rule = replace(choose_rule(make_outputs(), config), tau_sub=(0.3,) * 3)
    found = [
        carried_over(
            rule, Rejected(0.1, (0.1,) * 3), each, tiny_data,
            epochs=1, cache=None, weights=tiny_weights, full_precision=False, note=silent,
        )
        for each in (config, alone)
    ]  # fmt: skip
    assert found[0].tau_super == found[1].tau_super != rule.tau_super
    assert found[0].tau_sub == rule.tau_sub
    assert torch.equal(scored[0].super_logits, scored[5].super_logits)


@pytest.mark.parametrize("option", ["couple_novel", "restrict_sub"])
def test_a_subclass_that_follows_from_a_tuned_superclass_keeps_its_thresholds(
    tiny_data: Data, option: str
) -> None:
    config = tiny_config(
        architecture="two_models", super_fine_tune="full", sub_fine_tune="frozen", **{option: True}
    )
    rule = choose_rule(make_outputs(), config)
    found = carried_over(
        rule, Rejected(0.1, (0.1, 0.1)), config, tiny_data,
        epochs=1, cache=None, weights=None, full_precision=False, note=silent,
    )  # fmt: skip
    assert found == rule
