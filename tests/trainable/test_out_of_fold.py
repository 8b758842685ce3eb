"""Thresholds of a refit reject as many known images as the trial's, judged on images unseen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.made_outputs import make_outputs
from tests.trainable.tiny import silent, tiny_config
from trainable.config import TASKS as BOTH
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import PSEUDO_NOVEL, SEEN, Pools, make_refit_pools
from trainable.novelty.rule import by_image, decide, joined
from trainable.novelty.thresholds import Outputs, choose_rule
from trainable.out_of_fold import (
    TENTHS,
    Rejected,
    carried_over,
    extrapolated,
    moved,
    pools_of_refit,
)  # fmt: skip
from trainable.train import train
from trainable.trainer import Trainer


@pytest.mark.parametrize("options", [{}, {"couple_novel": True}, {"tau_sub_per_superclass": True}])
def test_share_of_rejected_images_is_that_of_the_answers(options: dict[str, Any]) -> None:
    outputs = make_outputs(num=400)
    rule = choose_rule(outputs, TrialConfig(**options))
    rejected = Rejected.by(rule, outputs)
    seen = outputs.where(outputs.kind == SEEN)
    superclass, subclass = decide(seen, rule)
    assert rejected.super == float((superclass == 2).double().mean())
    held_out = outputs.where(outputs.kind == PSEUDO_NOVEL)
    of_held_out = float((decide(held_out, rule)[0] == 2).double().mean())
    assert rejected.super_of_both == (rejected.super + of_held_out) / 2 != rejected.super
    assert Rejected.by(rule, seen).super_of_both == rejected.super
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
        super_feature_scores={k: v[outputs.kind == SEEN] - 1.0 for k, v in features[0].items()},
        sub_feature_scores={k: v[outputs.kind == SEEN] - 1.0 for k, v in features[1].items()},
    )
    found = Rejected.by(moved(rule, rejected, other, ("super", "sub")), other)
    assert found.super == pytest.approx(rejected.super, abs=0.01)
    assert found.sub == pytest.approx(rejected.sub, abs=0.02)
    assert Rejected.by(rule, other).sub != pytest.approx(rejected.sub, abs=0.02)
    kept = moved(rule, rejected, other, ("super",))
    assert (kept.tau_sub, kept.tau_super != rule.tau_super) == (rule.tau_sub, True)


def test_thresholds_count_in_what_heads_lose_with_each_share() -> None:
    """Heads that miss a tenth lose twice what those lose that miss a twentieth."""
    config = TrialConfig(
        fine_tune="frozen", novelty_score="knn", known_rejection_super=0.1, known_rejection_sub=0.2
    )
    outputs = make_outputs(num=800)
    rule = choose_rule(outputs, config)
    rejected = Rejected.by(rule, outputs)
    whole = outputs.where(outputs.kind == SEEN)

    def losing(loss: float) -> Outputs:
        scores = [
            {"knn": each["knn"] - loss * each["knn"].std()}
            for each in (whole.super_feature_scores, whole.sub_feature_scores)
        ]
        return replace(whole, super_feature_scores=scores[0], sub_feature_scores=scores[1])

    found = extrapolated(rule, rejected, BOTH, [losing(0.6)], [losing(0.3)])
    plain = moved(rule, rejected, losing(0.3), BOTH)
    assert Rejected.by(plain, whole).sub[0] < 0.85 * rejected.sub[0]
    assert Rejected.by(found, whole).super == pytest.approx(rejected.super, rel=0.1)
    assert Rejected.by(found, whole).sub[0] == pytest.approx(rejected.sub[0], rel=0.1)


def all_shares(data: Data, config: TrialConfig) -> list[Pools]:
    return [*pools_of_refit(data, config).shares]


def refitted(data: Data, weights: Path, config: TrialConfig, cache: Path | None = None) -> Any:
    return train(
        config, data, silent, pools=pools_of_refit(data, config).whole, weights=weights,
        cache=cache, shares=all_shares(data, config), judge=False, note=silent,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["two_heads", "two_models"])
def test_images_are_scored_by_heads_that_were_not_trained_on_them(
    tiny_data: Data, tiny_weights: Path, architecture: str
) -> None:
    config = tiny_config(
        fine_tune="frozen", novel_images=0, lr=1e-2, architecture=architecture,
        novelty_score="knn", couple_novel=True,
    )  # fmt: skip
    pools = pools_of_refit(tiny_data, config)
    halves = zip(pools.tenths, pools.twentieths[::2], pools.twentieths[1::2], strict=True)
    for tenth, first, second in halves:
        assert sorted([*first.val.tolist(), *second.val.tolist()]) == tenth.val.tolist()
    asked = torch.cat([each.val for each in pools.tenths])
    assert len(asked) == len(asked.unique()) == tiny_data.num_known / 2
    num = len(pools.tenths)
    result = refitted(tiny_data, tiny_weights, config)
    parts = result.shares[:num], result.shares[num : 3 * num], result.shares[3 * num :]
    rows = [sorted(joined(part).rows.tolist()) for part in parts]
    assert rows == [sorted(asked.tolist())] * 2 + [[*range(tiny_data.num_known)]]
    for known in map(joined, parts):
        assert torch.equal(known.sub_target, tiny_data.subclass[known.rows])
        # What it was not trained on is not in its bank either: no image is its own neighbour.
        assert (known.score("sub", "knn") < -1e-3).all()
    rule = choose_rule(replace(make_outputs(), super_of_sub=known.super_of_sub), config)
    rule, rejected = replace(rule, tau_sub=(0.3,) * 3), Rejected(0.1, (0.1,) * 3, 0.2)
    found = carried_over(rule, rejected, pools, result)
    by_tenths, known = joined([*parts[0], *parts[2]]), joined([*parts[1], *parts[2]])
    more = Rejected.by(moved(rule, rejected, known, BOTH), by_tenths)
    more = Rejected(
        max(0.1, more.super),
        tuple(max(0.1, each) for each in more.sub),
        max(0.2, more.super_of_both),
    )
    assert found == moved(rule, more, known, BOTH)
    assert 0.0 < Rejected.by(found, known).super_of_both <= more.super_of_both


def test_copies_of_an_image_are_in_one_share(tiny_data: Data) -> None:
    """Else what scores one was trained on it, and it looks more known than an image would."""
    rows = [(tiny_data.subclass[:96] == each).nonzero()[:, 0].tolist() for each in (0, 1)]
    data = replace(tiny_data, copies=(tuple(rows[0][:2]), tuple(rows[1])))
    asked = 0  # every other tenth is, so that not each seed asks about the copies
    for seed in range(8):
        pools = pools_of_refit(data, tiny_config(fine_tune="frozen", seed=seed))
        for shares in (pools.tenths, pools.twentieths):
            of_row = {row: place for place, each in enumerate(shares) for row in each.val.tolist()}
            assert of_row.get(rows[0][0]) == of_row.get(rows[0][1])
            asked += rows[0][0] in of_row
            assert not of_row.keys() & {*rows[1]}  # without them nothing of the class would train
    assert 0 < asked < 16


def with_noise(data: Data, rows: torch.Tensor) -> Data:
    images = data.images.clone()
    noise = torch.randint(256, images.shape, dtype=torch.uint8, generator=torch.manual_seed(3))
    images[rows] = noise[rows]
    return replace(data, images=images, fingerprint="noise")


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.4, "ema": 0.9, "label_smoothing": 0.1}])
def test_images_of_a_share_reach_nothing_that_scores_it(
    tiny_data: Data, tiny_weights: Path, changes: dict[str, Any]
) -> None:
    """With other pictures in their place, its heads say the same bits of any image."""
    config = tiny_config(fine_tune="frozen", novelty_score="knn", lr=1e-2, **changes)
    shares = all_shares(tiny_data, config)
    asked = torch.cat([each.val for each in shares[1 : len(TENTHS)]])
    shares[0] = replace(shares[0], val=asked, val_kind=torch.full_like(asked, SEEN))
    said = [
        train(
            config, data, silent, pools=make_refit_pools(data, config), weights=tiny_weights,
            shares=shares, note=silent,
        ).shares[0]
        for data in (tiny_data, with_noise(tiny_data, shares[0].left_out.nonzero()[:, 0]))
    ]  # fmt: skip
    first, second = (by_image([each], lambda parts: parts[0]) for each in said)
    for name in ("super_logits", "sub_logits"):
        assert torch.equal(first[name], second[name])
    for name in ("super_feature_scores", "sub_feature_scores"):
        assert [*first[name]] == ["knn"]
        assert torch.equal(first[name]["knn"], second[name]["knn"])


def test_heads_of_shares_start_as_those_of_the_refit(tiny_data: Data, tiny_weights: Path) -> None:
    """Drawn anew, their thresholds rejected half as many known images in the refit as promised."""
    config = tiny_config(fine_tune="frozen")
    pools, shares = make_refit_pools(tiny_data, config), all_shares(tiny_data, config)
    trainer = Trainer(
        config, tiny_data, pools, cache=None, weights=tiny_weights, shares=shares, note=silent
    )
    (model,) = trainer.branches
    for share in range(len(shares)):
        for name, each in model.heads.state_dict().items():
            assert torch.equal(model.folds[str(share)].state_dict()[name], each)
    trainer.train_epoch(1)
    heads = [model.heads, *model.folds.values()]
    assert len({float(next(each.parameters()).detach().sum()) for each in heads}) == len(heads)


def test_heads_of_shares_leave_the_refit_as_it_is(tiny_data: Data, tiny_weights: Path) -> None:
    config = tiny_config(fine_tune="frozen", epochs=2, mixup=0.4)
    alone = train(
        config, tiny_data, silent, pools=make_refit_pools(tiny_data, config), weights=tiny_weights,
        note=silent,
    )  # fmt: skip
    heads = [
        each.branches[0].heads.state_dict()
        for each in (alone, refitted(tiny_data, tiny_weights, config))
    ]
    assert all(torch.equal(each, heads[1][name]) for name, each in heads[0].items())
    assert alone.shares == ()


def test_fixed_thresholds_stay_and_no_image_is_kept_for_them(
    tiny_data: Data, tiny_weights: Path
) -> None:
    config = tiny_config(tau_super=0.9, tau_sub=0.8)
    assert all_shares(tiny_data, config) == []
    assert not len(pools_of_refit(tiny_data, config).whole.val)
    rule = choose_rule(make_outputs(), TrialConfig())
    pools, result = pools_of_refit(tiny_data, config), refitted(tiny_data, tiny_weights, config)
    assert carried_over(rule, Rejected(0.1, (0.1, 0.1), 0.1), pools, result) == rule


def many(data: Data, times: int) -> Data:
    """Return the same known images so many times, each as another image, without borrowed ones."""
    rows = torch.arange(data.num_known).repeat(times)
    names = ("images", "superclass", "subclass", "borrowed_class")
    tensors = {name: getattr(data, name)[rows] for name in names}
    return replace(data, **tensors, copies=(), fingerprint=f"{times} times")


TUNED: list[dict[str, Any]] = [
    {"fine_tune": "full"},
    {"fine_tune": "last_1"},
    {"architecture": "two_models", "super_fine_tune": "frozen", "sub_fine_tune": "full",
     "tau_super": -9.0},
    {"architecture": "two_models", "super_fine_tune": "full", "sub_fine_tune": "frozen",
     "couple_novel": True, "tau_super": -9.0},
]  # fmt: skip


@pytest.mark.parametrize("changes", TUNED)
def test_a_tuned_refit_is_asked_about_images_that_it_did_not_train_on(
    tiny_data: Data,
    tiny_weights: Path,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainable.out_of_fold.KEPT_MIN", 24)
    monkeypatch.setattr("trainable.out_of_fold.TAIL_MIN", 1)
    data = many(tiny_data, 5)
    config = tiny_config(novel_images=0, novelty_score="knn", **changes)
    pools = pools_of_refit(data, config)
    assert pools.shares == ()
    assert len(pools.whole.val) == len(data.images) / 20
    assert {*data.subclass[pools.whole.val].tolist()} == {*range(len(data.subclasses))}
    together = torch.cat([pools.whole.train, pools.whole.val])
    assert sorted(together.tolist()) == [*range(len(data.images))]
    result = refitted(data, tiny_weights, config)
    known = result.outputs
    assert torch.equal(known.rows, pools.whole.val)
    assert torch.equal(known.sub_target, data.subclass[known.rows])
    rule = choose_rule(replace(make_outputs(), super_of_sub=known.super_of_sub), config)
    rule, rejected = replace(rule, tau_sub=(9.0,) * 3), Rejected(0.1, (0.1,) * 3, 0.2)
    found = carried_over(rule, rejected, pools, result)
    free = BOTH if config.tau_super is None else ("sub",)
    assert found == moved(rule, rejected, known, free) != rule
    rare = Rejected(1 / len(known.rows) - 1e-6, (0.1,) * 3, 0.2)
    found = carried_over(rule, rare, pools, result)
    assert found == moved(rule, rare, known, ("sub",))  # the other hangs on too few images


def test_beside_a_tuned_branch_a_frozen_one_has_a_threshold_of_its_heads(
    tiny_data: Data, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superclass's is found as where all is frozen, and the subclass's by kept images, given
    it.
    """
    monkeypatch.setattr("trainable.out_of_fold.KEPT_MIN", 24)
    monkeypatch.setattr("trainable.out_of_fold.TAIL_MIN", 1)
    data = many(tiny_data, 5)
    config = tiny_config(
        architecture="two_models", super_fine_tune="frozen", sub_fine_tune="full",
        novel_images=0, novelty_score="knn", couple_novel=True,
    )  # fmt: skip
    pools = pools_of_refit(data, config)
    kept = {*pools.whole.val.tolist()}
    assert len(kept) == len(data.images) / 20
    assert [len(each) for each in (pools.tenths, pools.twentieths)] == [4, 8]
    halves = {row for each in pools.twentieths for row in each.val.tolist()}
    assert len(halves) == len(data.images) * 8 / 20
    assert not halves & kept
    result = refitted(data, tiny_weights, config)
    rule = choose_rule(replace(make_outputs(), super_of_sub=result.outputs.super_of_sub), config)
    rule = replace(rule, tau_super=0.3, tau_sub=(0.3,) * 3)
    rejected = Rejected(0.0, (0.3,) * 3, 0.2)
    found = carried_over(rule, rejected, pools, result)
    tenths, twentieths, subclasses = (
        result.shares[:4], result.shares[4:12], result.shares[12:]
    )  # fmt: skip
    by_heads = extrapolated(rule, rejected, ["super"], tenths, twentieths, subclasses)
    assert by_heads.tau_super != rule.tau_super
    assert found == moved(by_heads, rejected, result.outputs, ["sub"])
    assert found.tau_sub != moved(rule, rejected, result.outputs, ["sub"]).tau_sub


def test_beside_a_tuned_superclass_an_uncoupled_frozen_subclass_has_a_threshold_of_its_heads(
    tiny_data: Data, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.out_of_fold.KEPT_MIN", 24)
    monkeypatch.setattr("trainable.out_of_fold.TAIL_MIN", 1)
    config = tiny_config(
        architecture="two_models", super_fine_tune="full", sub_fine_tune="frozen",
        novel_images=0, novelty_score="knn",
    )  # fmt: skip
    data = many(tiny_data, 5)
    pools = pools_of_refit(data, config)
    assert (pools.by_heads, pools.by_kept, pools.subclasses) == (("sub",), ("super",), ())
    result = refitted(data, tiny_weights, config)
    rule = choose_rule(replace(make_outputs(), super_of_sub=result.outputs.super_of_sub), config)
    rule, rejected = replace(rule, tau_sub=(9.0,) * 3), Rejected(0.2, (0.2,) * 3, 0.2)
    found = carried_over(rule, rejected, pools, result)
    num = len(pools.tenths)
    by_heads = extrapolated(rule, rejected, ["sub"], result.shares[:num], result.shares[num:])
    assert found == moved(by_heads, rejected, result.outputs, ["super"])
    assert found.tau_sub != rule.tau_sub
    assert found.tau_super != rule.tau_super


def test_where_few_images_could_be_kept_heads_still_find_the_superclass_threshold(
    tiny_data: Data, tiny_weights: Path
) -> None:
    config = tiny_config(
        architecture="two_models", super_fine_tune="frozen", sub_fine_tune="full",
        novel_images=0, novelty_score="knn", couple_novel=True, lr=1e-2,
    )  # fmt: skip
    pools = pools_of_refit(tiny_data, config)
    assert (pools.by_heads, pools.by_kept, len(pools.whole.val)) == (("super",), (), 0)
    result = refitted(tiny_data, tiny_weights, config)
    rule = choose_rule(make_outputs(), config)
    found = carried_over(rule, Rejected(0.2, (0.2, 0.2), 0.2), pools, result)
    assert found.tau_super != rule.tau_super
    assert found == replace(rule, tau_super=found.tau_super)


def test_banks_of_shares_are_not_kept(
    tiny_data: Data, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is as large as all features, and there are two dozen."""
    config = tiny_config(fine_tune="frozen", novelty_score="knn")
    pools = pools_of_refit(tiny_data, config)
    trainer = Trainer(
        config, tiny_data, pools.whole, cache=None, weights=tiny_weights, shares=pools.shares,
        note=silent,
    )  # fmt: skip
    kept: set[tuple[int, int | None]] = set()
    fit = trainer._bank

    def watched(*given: Any) -> Any:
        bank = fit(*given)
        kept.update(trainer._frozen_banks)
        return bank

    monkeypatch.setattr(trainer, "_bank", watched)
    trainer.outputs_of_shares()
    assert kept == {(0, share) for share in range(len(pools.shares))}
    assert not trainer._frozen_banks


def test_heads_of_a_tuned_branch_do_without_no_share(tiny_data: Data, tiny_weights: Path) -> None:
    config = tiny_config(
        architecture="two_models", super_fine_tune="frozen", sub_fine_tune="full", novel_images=0,
        super_novelty_score="knn", sub_novelty_score="max_logit+super_rmds",
    )  # fmt: skip
    pools = pools_of_refit(tiny_data, config)
    trainer = Trainer(
        config, tiny_data, pools.whole, cache=None, weights=tiny_weights, shares=pools.shares,
        note=silent,
    )  # fmt: skip
    assert [len(model.folds) for model in trainer.branches] == [len(pools.shares), 0]
    said = trainer.outputs_of_shares()[-1]
    assert said.super_logits.isfinite().all()
    assert said.sub_logits.isnan().all()
    assert [*said.super_feature_scores] == ["knn"]  # nobody asks for rmds, which takes seconds


def test_every_subclass_is_left_out_once_but_an_only_one(tiny_data: Data) -> None:
    """Without an only one nothing would train its superclass; and none where a trial holds none
    out, as its bound is on seen subclasses alone.
    """
    config = tiny_config(fine_tune="frozen")
    num = len(tiny_data.subclasses)
    pools = pools_of_refit(tiny_data, config).subclasses
    out = [{*tiny_data.subclass[each.val].tolist()} for each in pools]
    assert sorted(subclass for each in out for subclass in each) == [*range(num)]
    for each, left_out in zip(pools, out, strict=True):
        known = each.train[each.train < tiny_data.num_known]
        assert {*tiny_data.subclass[known].tolist()} == {*range(num)} - left_out
        assert {*each.val_kind.tolist()} == {PSEUDO_NOVEL}
        trained = {tiny_data.super_of_sub[subclass] for subclass in {*range(num)} - left_out}
        assert trained == {*range(len(tiny_data.superclasses))}
    alone = replace(tiny_data, super_of_sub=(0, *(1 for _ in range(num - 1))))
    pools = pools_of_refit(alone, config).subclasses
    assert 0 not in torch.cat([alone.subclass[each.val] for each in pools])
    assert pools_of_refit(tiny_data, replace(config, pseudo_novel_fraction=0.0)).subclasses == ()


def test_images_of_left_out_subclasses_count_as_much_as_all_others() -> None:
    """A bound holds for the mean of both kinds, however many images each has."""
    outputs = make_outputs(num=800)
    outputs.super_logits[:, -1] = -9.0  # so that a threshold alone decides
    known = outputs.where((outputs.kind == SEEN) | (outputs.kind == PSEUDO_NOVEL))
    rule = choose_rule(outputs, TrialConfig(known_rejection_super=0.1))
    found = Rejected.by(moved(rule, Rejected(0.0, (), 0.25), known, ["super"]), known)
    assert found.super_of_both == pytest.approx(0.25, abs=0.01)
    seen = known.where(known.kind == SEEN)
    found = Rejected.by(moved(rule, Rejected(0.4, (), 0.25), seen, ["super"]), known)
    assert found.super == pytest.approx(0.4, abs=0.01)


def test_few_images_are_all_trained_on_and_thresholds_stay(
    tiny_data: Data, tiny_weights: Path
) -> None:
    """So few say less of a threshold than it moves."""
    config = tiny_config(novel_images=0)
    pools = pools_of_refit(tiny_data, config)
    assert not len(pools.whole.val)
    rule = choose_rule(make_outputs(), config)
    result = refitted(tiny_data, tiny_weights, config)
    assert carried_over(rule, Rejected(0.5, (0.5, 0.5), 0.5), pools, result) == rule


def test_a_superclass_of_few_images_keeps_its_own_threshold() -> None:
    outputs = make_outputs(num=800)
    rule = choose_rule(outputs, TrialConfig(tau_sub_per_superclass=True, known_rejection_sub=0.2))
    rule = replace(rule, tau_sub=(0.3, 0.4))
    superclass = outputs.super_of_sub[outputs.answer("sub", restrict_sub=False)[1]]
    is_few = (superclass == 0) & (torch.cumsum(superclass == 0, 0) > 5)
    found = moved(rule, Rejected(0.1, (0.2, 0.2), 0.1), outputs.where(~is_few), ("sub",))
    assert found.tau_sub[0] == 0.3
    assert found.tau_sub[1] != 0.4


def test_subclass_that_reads_a_tuned_superclass_has_no_threshold_of_its_heads(
    tiny_data: Data,
) -> None:
    """Whoever says how known it looks has to be asked about images that it has not seen."""
    config = tiny_config(
        architecture="two_models", super_fine_tune="full", sub_fine_tune="frozen",
        tau_super=-9.0, sub_novelty_score="max_logit",
    )  # fmt: skip
    assert pools_of_refit(tiny_data, config).shares
    reads: dict[str, Any] = {"sub_novelty_score": "max_logit+super_rmds"}
    assert not pools_of_refit(tiny_data, replace(config, **reads)).shares
