"""Every variant trains what it says, as if alone, and ends the same however often it is stopped."""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
from scipy.stats import kstest
from torch import nn
from upath import UPath

import trainable.train as module
from tests.made_data import make_data
from tests.trainable.tiny import BACKBONE, silent, tiny_config
from trainable import config as config_module
from trainable.batch import Blends, Mixup
from trainable.classifier import INFO_FILE, MODEL_FILE, OUTPUTS_FILE, TABLE_FILE, load_outputs
from trainable.config import Branch, Task, TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import LEFT_OUT, Pools, make_pools, make_refit_pools
from trainable.epoch import Epoch
from trainable.errors import ConfigError, TrialError
from trainable.model import backbones, losses
from trainable.model.backbones import Backbone
from trainable.model.branch import BranchModel
from trainable.novelty.bank import all_of_features
from trainable.novelty.intervals import interval_of
from trainable.novelty.metrics import MAIN
from trainable.novelty.metrics import evaluate as metrics_of
from trainable.novelty.scores import neighbours
from trainable.novelty.thresholds import PartRules
from trainable.parts import LOSSES
from trainable.train import (
    Metrics,
    TrialResult,
    default_novel,
    left_out_lines,
    main,
    novel_shortage,
    train,
)
from trainable.trainer import Trainer

Make = Callable[..., Trainer]

EVERY_OPTION = {
    "label_smoothing": 0.1,
    "mixup": 0.4,
    "outlier_exposure": 0.5,
    "ema": 0.6,
    "augment": "strong",
    "match_resolution": 0.5,
    "schedule": "cosine",
    "epochs": 3,
}


class StoppedEarlyError(Exception):
    """What a scheduler raises to end a trial early."""


@pytest.fixture
def trainer(tiny_data: Data, tiny_weights: Path) -> Make:
    """Makes a Trainer for a configuration."""

    def make(config: TrialConfig, pools: Pools | None = None, cache: Path | None = None) -> Trainer:
        return Trainer(
            config,
            tiny_data,
            pools or make_pools(tiny_data, config),
            cache=cache,
            weights=tiny_weights,
            note=silent,
        )

    return make


@pytest.fixture
def run(tiny_data: Data, tiny_weights: Path) -> Callable[..., tuple[TrialResult, list[Metrics]]]:
    """Trains a configuration; returns its result and its reports."""

    def train_it(config: TrialConfig, **kwargs: Any) -> tuple[TrialResult, list[Metrics]]:
        reports: list[Metrics] = []
        options: dict[str, Any] = {"weights": tiny_weights, "note": silent}
        return train(config, tiny_data, **options | {"report": reports.append} | kwargs), reports

    return train_it


Run = Callable[..., tuple[TrialResult, list[Metrics]]]


def state_of(model: BranchModel) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def num_steps(trainer: Trainer) -> int:
    """Return how many steps the first epoch has."""
    return max(map(len, trainer._epoch_batches(1)))


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors that are not the same to the last bit."""
    assert a.keys() == b.keys()
    return {key for key in a if not torch.equal(a[key], b[key])}


def timeless(history: list[Metrics]) -> list[Metrics]:
    return [dict(Epoch.of(metrics).metrics, epoch=metrics["epoch"]) for metrics in history]


@torch.inference_mode()
def plain_logits(trainer: Trainer, number: int) -> dict[Any, torch.Tensor]:
    model, inputs = trainer.branches[number].eval(), trainer.inputs[number]
    logits: dict[Any, torch.Tensor] = model(inputs.plain(trainer.pools.val))
    return logits


# --- Branches ----------------------------------------------------------------------------


class OnlySuper(TrialConfig):
    """Trains one of the branches of `two_models`."""

    number: ClassVar[int] = 0

    def branches(self) -> tuple[Branch, ...]:
        return (super().branches()[self.number],)


class OnlySub(OnlySuper):
    number = 1


def assert_trained_together_as_alone(config: TrialConfig, trainer: Make) -> None:
    together = trainer(config)
    for epoch in (1, 2):
        together.train_epoch(epoch)
    for number, kind in enumerate((OnlySuper, OnlySub)):
        alone = trainer(kind(**config.to_dict()))
        assert len(alone.branches) == 1
        before = state_of(alone.branches[0])
        for epoch in (1, 2):
            alone.train_epoch(epoch)
        after = state_of(alone.branches[0])
        assert differing(before, after)
        assert differing(state_of(together.branches[number]), after) == set()
        expected = plain_logits(alone, 0)
        found = plain_logits(together, number)
        assert found.keys() == expected.keys() == {("super", "sub")[number]}
        assert all(torch.equal(found[task], expected[task]) for task in found)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"super_fine_tune": "last_1", "sub_lr": 1e-2, "sub_head": "cosine"},
        {"super_fine_tune": "frozen", "schedule": "one_cycle", "epochs": 2},
        {"sub_image_size": 48, "augment": "none", "head_lr": 1e-2},
        {"super_fine_tune": "frozen", **EVERY_OPTION},
    ],
)
def test_two_models_train_as_each_does_alone(trainer: Make, changes: dict[str, Any]) -> None:
    assert_trained_together_as_alone(tiny_config(architecture="two_models", **changes), trainer)


def test_two_models_with_dropout_train_as_each_does_alone(
    trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = backbones.build

    def with_dropout(*args: Any, **kwargs: Any) -> Backbone:
        backbone = build(*args, **kwargs)
        return replace(backbone, stages=(*backbone.stages, nn.Dropout(0.5)))

    monkeypatch.setattr(backbones, "build", with_dropout)
    assert_trained_together_as_alone(tiny_config(architecture="two_models"), trainer)


OWN_OPTIONS: tuple[dict[str, Any], dict[str, Any]] = (
    {"novel_images": 5, "weight_decay": 0.1, "mixup": 0.4, "label_smoothing": 0.2, "ema": 0.6,
     "max_norm": 0.1},
    {
        "novel_images": 40, "weight_decay": 0.0, "mixup": 0.0, "label_smoothing": 0.0, "ema": 0.0,
        "augment": "strong", "match_resolution": 0.5, "feature_views": 3, "max_norm": 0.0,
    },
)  # fmt: skip


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_branch_with_own_options_is_what_it_is_where_both_have_them(
    trainer: Make, schedule: str
) -> None:
    """Its images, order, steps and draws are none of the other branch's business."""
    shared = {
        "architecture": "two_models", "sub_fine_tune": "frozen", "super_fine_tune": "last_1",
        "schedule": schedule, "batch_size": 16, "epochs": 2, "novelty_score": "knn_difference",
    }  # fmt: skip
    own = {
        f"{task}_{key}": value
        for task, options in zip(("super", "sub"), OWN_OPTIONS, strict=True)
        for key, value in options.items()
    }
    each = trainer(tiny_config(**shared, **own))
    assert [len(rows) for rows in each.rows] == [len(each.pools.train) - 27, len(each.pools.train)]
    for epoch in (1, 2):
        each.train_epoch(epoch)
    said = each.outputs()
    for number, (task, options) in enumerate(zip(("super", "sub"), OWN_OPTIONS, strict=True)):
        alike = trainer(tiny_config(**shared, **options))
        for epoch in (1, 2):
            alike.train_epoch(epoch)
        state = state_of(alike.evaluated[number])
        assert differing(state_of(each.evaluated[number]), state) == set()
        expected = alike.outputs()
        logits, scores = f"{task}_logits", f"{task}_feature_scores"
        assert torch.equal(getattr(said, logits), getattr(expected, logits))
        found, wanted = getattr(said, scores), getattr(expected, scores)
        assert [*found] == [*wanted] == ["knn_difference"]
        assert torch.equal(found["knn_difference"], wanted["knn_difference"])


@pytest.mark.parametrize("short", ["super", "sub"])
def test_branch_with_fewer_epochs_ends_as_it_would_alone(trainer: Make, short: str) -> None:
    shared = {"architecture": "two_models", "schedule": "one_cycle", "sub_novel_images": 20}
    each = trainer(tiny_config(**shared, epochs=3, **{f"{short}_epochs": 1}))
    shares: list[float] = []
    for epoch in (1, 2, 3):
        each.train_epoch(epoch, shares.append)
        assert shares[-1] == 1
    for number, task in enumerate(("super", "sub")):
        epochs = 1 if task == short else 3
        alike = trainer(tiny_config(**shared, epochs=epochs))
        for epoch in range(1, epochs + 1):
            alike.train_epoch(epoch)
        assert not differing(state_of(alike.branches[number]), state_of(each.branches[number]))


@pytest.mark.parametrize("task", ["super", "sub"])
def test_every_own_option_of_a_branch_acts(trainer: Make, task: str) -> None:
    """Alone, on what that branch learns."""
    number = ("super", "sub").index(task)
    shared = {"architecture": "two_models", "batch_size": 16, "fine_tune": "last_1"}
    plain = trainer(tiny_config(**shared, novel_images=20))
    plain.train_epoch(1)
    before = [state_of(model) for model in plain.evaluated]
    for key, value in (OWN_OPTIONS[1] | OWN_OPTIONS[0]).items():
        each = trainer(tiny_config(**shared, novel_images=20, **{f"{task}_{key}": value}))
        each.train_epoch(1)
        after = [state_of(model) for model in each.evaluated]
        assert differing(before[number], after[number]), key
        assert not differing(before[1 - number], after[1 - number]), key


def test_both_heads_of_one_model_learn_from_the_interaction(trainer: Make) -> None:
    states = []
    for alpha in (0.0, 1.0):
        each = trainer(tiny_config(alpha=alpha))
        each.train_epoch(1)
        states.append(state_of(each.branches[0]))
    changed = differing(*states)
    assert {"heads.super.weight", "heads.sub.weight", "tuned.0.0.0.weight"} <= changed


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_interaction_leaves_out_what_outlier_exposure_softens(
    trainer: Make, monkeypatch: pytest.MonkeyPatch, mixup: float
) -> None:
    """For those the subclass head learns to say "known", and the superclass head "novel"."""
    kept: list[torch.Tensor] = []
    compute = losses.interaction_loss

    def noting(*args: Any, keep_N: torch.Tensor) -> torch.Tensor:
        kept.append(keep_N)
        return compute(*args, keep_N=keep_N)

    monkeypatch.setattr(losses, "interaction_loss", noting)
    each = trainer(tiny_config(outlier_exposure=0.5, mixup=mixup, fine_tune="frozen"))
    each.inputs[0].start_epoch(1)
    is_borrowed = each.pools.sub_target[each.pools.train] == len(each.pools.subclasses)
    known, borrowed = each.pools.train[~is_borrowed], each.pools.train[is_borrowed]
    rows = torch.cat([known[:6], borrowed[:3]])
    list(each._losses([rows], 1, 0))
    expected = torch.arange(9) < 6
    if mixup:
        partner = Mixup.draw(9, mixup, each.config.seed, 1, 0).partner_N
        expected &= expected[partner]
    assert torch.equal(kept[0], expected)
    ((_, loss, _),) = each._losses([borrowed[:4]], 1, 1)
    loss.backward()  # a batch without any other image
    assert loss.isfinite()
    gradients = [p.grad for p in each.branches[0].heads.parameters() if p.grad is not None]
    assert gradients
    assert all(grad.isfinite().all() for grad in gradients)


def test_scores_are_as_fine_under_autocast(trainer: Make) -> None:
    """In bf16 most of them would be equal, and equal ones cannot be ranked."""
    each = trainer(tiny_config(fine_tune="last_1"))
    each.is_autocast = True
    features = torch.randn(512, each.branches[0].heads["sub"].in_features)
    logits = each.branches[0].classify(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(each.branches[0].classify(features)["sub"], logits["sub"])
        assert each.branches[0].classify(features.bfloat16())["sub"].dtype == torch.float32
    outputs = each.outputs()
    assert outputs.sub_logits.dtype == torch.float32
    assert not torch.equal(outputs.sub_logits, outputs.sub_logits.bfloat16().float())


@pytest.mark.parametrize(("key", "names"), [("optimizer", "OPTIMIZERS"), ("schedule", "SCHEDULES")])
def test_choice_that_is_listed_but_not_built_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, key: str, names: str
) -> None:
    monkeypatch.setattr(config_module, names, (*getattr(config_module, names), "new"))
    with pytest.raises(ConfigError, match=rf"`{key}` must be .*, but got 'new'"):
        run(tiny_config(**{key: "new"}))


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("fine_tune", ["frozen", "last_1", "last_2", "full"])
def test_training_changes_what_it_should_and_nothing_else(
    tiny_weights: Path, tmp_path: Path, run: Run, fine_tune: str, use_cache: bool
) -> None:
    """Compared with the weights file, so that building and extraction count as well."""
    config = tiny_config(fine_tune=fine_tune)
    result, _ = run(config, cache=tmp_path if use_cache else None)
    (model,) = result.branches
    pretrained = backbones.build(BACKBONE, 32, tiny_weights)
    cut = len(model.frozen)
    assert cut == {"frozen": 5, "last_1": 4, "last_2": 3, "full": 0}[fine_tune]
    for stages, expected in (
        (model.frozen, pretrained.stages[:cut]),
        (model.tuned, pretrained.stages[cut:]),
    ):
        found, before = stages.state_dict(), nn.Sequential(*expected).state_dict()
        changed = differing(found, before)
        assert changed == (set() if stages is model.frozen else set(found))
    fresh = BranchModel.build(
        config.branches()[0], {"super": 4, "sub": 21}, config.seed, tiny_weights
    )
    heads = model.heads.state_dict()
    assert differing(heads, fresh.heads.state_dict()) == set(heads)


@pytest.mark.parametrize("slow", ["super", "sub"])
def test_learning_rate_of_a_branch_is_its_own(trainer: Make, slow: str) -> None:
    fast = "sub" if slow == "super" else "super"
    rates = {f"{slow}_lr": 1e-8, f"{fast}_lr": 1e-2}
    both = trainer(tiny_config(architecture="two_models", weight_decay=0.0, **rates))
    before = [state_of(model) for model in both.branches]
    both.train_epoch(1)
    moved = {
        model.branch.tasks[0]: max(
            float((p.detach() - old[name]).abs().max()) for name, p in model.named_parameters()
        )
        for model, old in zip(both.branches, before, strict=True)
    }
    steps = num_steps(both)
    assert moved[slow] <= 1.1e-8 * steps + 1e-6  # float32 near 10 has steps of 1e-6
    assert moved[fast] > 5e-3


def test_learning_rate_of_the_heads_is_their_own(trainer: Make) -> None:
    each = trainer(tiny_config(lr=1e-2, head_lr=1e-8, weight_decay=0.0))
    before = state_of(each.branches[0])
    each.train_epoch(1)
    after = state_of(each.branches[0])
    moved = {key: float((after[key] - before[key]).abs().max()) for key in after}
    assert moved["heads.sub.weight"] < 1e-6
    assert moved["tuned.0.0.0.weight"] > 5e-3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("changes", [{"fine_tune": "last_1"}, {"fine_tune": "frozen"}])
def test_compiled_trial_trains_as_one_that_is_not(run: Run, changes: dict[str, Any]) -> None:
    plain, _ = run(tiny_config(**changes))
    compiled, _ = run(tiny_config(compile=True, **changes))
    for name in ("train_loss", "ce_super", "ce_sub"):
        assert compiled.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-3)
    assert state_of(compiled.branches[0]).keys() == state_of(plain.branches[0]).keys()


# --- Steps and schedules -----------------------------------------------------------------


def learning_rates(trainer: Trainer, num_epochs: int) -> list[list[float]]:
    """Return what each step used: one list for every parameter group."""
    used: list[list[float]] = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        used.append([group["lr"] for group in optimizer.param_groups])

    hook = trainer.optimizers[0].register_step_pre_hook(note)
    for epoch in range(1, num_epochs + 1):
        trainer.train_epoch(epoch)
    hook.remove()
    return [list(rates) for rates in zip(*used, strict=True)]


def test_one_cycle_rises_to_lr_and_ends_near_zero(trainer: Make) -> None:
    each = trainer(tiny_config(fine_tune="last_1", head_lr=1e-2, schedule="one_cycle", epochs=4))
    for rates, peak in zip(learning_rates(each, 4), (1e-3, 1e-2), strict=True):
        assert len(rates) == 4 * num_steps(each) == 12
        top = rates.index(max(rates))
        assert 0 < top < 6
        # PyTorch's defaults: from a 25th of the peak, to a 10,000th of that.
        assert rates[0] == pytest.approx(peak / 25)
        assert peak / 2 < rates[top] <= peak
        assert rates[-1] == pytest.approx(peak / 25e4)
        assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


def test_learning_rate_falls_from_stage_to_stage(trainer: Make) -> None:
    each = trainer(tiny_config(fine_tune="last_3", layer_decay=0.5, head_lr=1e-2))
    rates = [group["lr"] for group in each.optimizers[0].param_groups]
    assert rates == [2.5e-4, 5e-4, 1e-3, 1e-2]
    for group, stage in zip(each.optimizers[0].param_groups, each.branches[0].tuned, strict=False):
        assert [*map(id, group["params"])] == [*map(id, stage.parameters())]


def test_gradient_is_scaled_down_to_its_largest_norm(trainer: Make) -> None:
    norms: dict[float, list[float]] = {0.0: [], 0.01: []}
    for most, found in norms.items():
        each = trainer(tiny_config(fine_tune="last_1", max_norm=most))

        def note(*_: Any, each: Trainer = each, found: list[float] = found) -> None:
            model = each.branches[0]
            own = [*model.tuned.parameters(), *model.heads.parameters()]
            grads = [p.grad.norm() for p in own if p.grad is not None]
            found.append(float(torch.stack(grads).norm()))

        each.optimizers[0].register_step_pre_hook(note)
        each.train_epoch(1)
    assert min(norms[0.0]) > 0.1
    assert norms[0.01] == pytest.approx([0.01] * len(norms[0.01]), rel=1e-3)


def test_constant_learning_rate_stays(trainer: Make) -> None:
    each = trainer(tiny_config(fine_tune="last_1", head_lr=1e-2, epochs=2))
    steps = 2 * num_steps(each)
    assert learning_rates(each, 2) == [[1e-3] * steps, [1e-2] * steps]


@pytest.mark.parametrize(
    ("num_images", "batch_size", "sizes"),
    [
        (33, 32, [17, 16]),
        (65, 32, [22, 22, 21]),
        (64, 32, [32, 32]),
        (3, 32, [3]),
        (7, 3, [3, 2, 2]),
    ],
)
def test_every_image_trains_once_in_nearly_equal_batches(
    tiny_data: Data, trainer: Make, num_images: int, batch_size: int, sizes: list[int]
) -> None:
    config = tiny_config(batch_size=batch_size)
    pools = make_pools(tiny_data, config)
    pools = replace(pools, train=pools.train[:num_images])
    each = trainer(config, pools)
    seen: list[list[int]] = []
    inputs = each.inputs[0]
    training = inputs.training

    def noted(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.tolist())
        return training(rows)

    inputs.training = noted  # type: ignore[method-assign]
    each.train_epoch(1)
    assert [len(rows) for rows in seen] == sizes
    assert sorted(row for rows in seen for row in rows) == sorted(pools.train.tolist())
    first = [*seen]
    seen.clear()
    each.train_epoch(2)
    assert seen != first


def test_no_batch_is_a_single_image_even_with_batches_of_two(
    tiny_data: Data, trainer: Make
) -> None:
    """Batch norm refuses a single value per channel, which a small image comes down to."""
    config = tiny_config(batch_size=2, backbone="efficientnet_lite0")
    pools = make_pools(tiny_data, config)
    pools = replace(pools, train=pools.train[:5])
    each = Trainer(config, tiny_data, pools, cache=None, weights=None, note=silent)
    assert each.train_epoch(1)["train_loss"] > 0


def test_cosine_falls_from_lr_to_zero(trainer: Make) -> None:
    each = trainer(tiny_config(fine_tune="last_1", head_lr=1e-2, schedule="cosine", epochs=2))
    total = 2 * num_steps(each)
    for rates, peak in zip(learning_rates(each, 2), (1e-3, 1e-2), strict=True):
        expected = [peak * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total)]
        assert rates == pytest.approx(expected, rel=1e-12)


# --- Blends near what is known -------------------------------------------------------------------


def test_blends_are_of_two_subclasses_of_one_superclass() -> None:
    superclass = torch.tensor([0, 1, 2]).repeat(100)
    subclass = torch.arange(300) % 12
    subclass[250:] = 12  # novel
    drawn = Blends.draw({"super": superclass, "sub": subclass}, 12, 0, 1)
    row, partner = drawn.row_M, drawn.partner_M
    assert torch.equal(superclass[row], superclass[partner])
    assert (subclass[row] != subclass[partner]).all()
    assert (torch.cat([row, partner]) < 250).all()
    assert 30 < len(row) == len(row.unique()) < 90
    assert 0.3 <= drawn.share_M.min() < 0.4
    assert 0.6 < drawn.share_M.max() <= 0.7
    again, other = (
        Blends.draw({"super": superclass, "sub": subclass}, 12, 0, epoch) for epoch in (1, 2)
    )
    assert torch.equal(again.row_M, row)
    assert not torch.equal(other.row_M, row)


def test_blend_is_a_share_of_each_and_a_fold_sees_those_of_two_images_it_may_see() -> None:
    blends = Blends(
        row_M=torch.tensor([0, 2]),
        partner_M=torch.tensor([1, 0]),
        share_M=torch.tensor([0.75, 0.5]),
    )
    images = torch.tensor([[4.0, 0.0], [0.0, 8.0], [2.0, 2.0]])
    assert blends.of(images).tolist() == [[3.0, 2.0], [3.0, 1.0]]
    assert blends.of(images[:, None, :, None]).shape == (2, 1, 2, 1)
    assert blends.seen(None).tolist() == [0, 1]
    assert blends.seen(torch.tensor([False, False, True])).tolist() == [0]
    assert blends.seen(torch.tensor([True, False, False])).tolist() == []


@pytest.mark.parametrize("exposure", [0.0, 0.5])
def test_loss_of_blends_says_novel_or_what_outlier_exposure_says(
    trainer: Make, exposure: float
) -> None:
    each = trainer(tiny_config(near_novel=2.0, outlier_exposure=exposure))
    (model,) = each.branches
    order = torch.randperm(len(each.rows[0]), generator=torch.Generator().manual_seed(0))
    rows = each.rows[0][order[:16]]
    blends = Blends(
        row_M=torch.arange(15), partner_M=torch.arange(1, 16), share_M=torch.full((15,), 0.5)
    )
    pooled = torch.randn(15, model.heads["sub"].in_features)
    log_p = model.classify(pooled)["sub"].log_softmax(1)
    wanted = log_p[:, :-1].mean(1) * exposure if exposure else log_p[:, -1]
    expected = -2.0 * wanted.sum() / 16
    found = each._objective.of_blends(pooled, model, None, blends, rows).detach()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for superclass in each.folds:
        is_seen = ~each._all_pools()[superclass].left_out[rows]
        seen = [bool(is_seen[n] and is_seen[n + 1]) for n in range(15)]
        assert 0 < sum(seen) < 15
        log_p = model.classify(pooled, superclass)["sub"].log_softmax(1)[seen]
        wanted = log_p[:, :-1].mean(1) * exposure if exposure else log_p[:, -1]
        of_fold = each._objective.of_blends(pooled, model, superclass, blends, rows).detach()
        expected = -2.0 * wanted.sum() / is_seen.sum()
        assert float(of_fold) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("fine_tune", ["frozen", "last_1", "full"])
def test_near_novel_acts_on_the_subclass_alone(trainer: Make, fine_tune: str) -> None:
    shared = {"architecture": "two_models", "fine_tune": fine_tune, "mixup": 0.4}
    states = []
    for near_novel in (0.0, 1.0):
        each = trainer(tiny_config(**shared, near_novel=near_novel))
        each.train_epoch(1)
        states.append([state_of(model) for model in each.branches])
    assert not differing(states[0][0], states[1][0])
    changed = differing(states[0][1], states[1][1])
    assert any(name.startswith("heads") for name in changed)
    assert any(name.startswith("folds") for name in changed)


# --- Mixup and averages ------------------------------------------------------------------


def test_mixup_blends_each_row_with_its_partner() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 8.0]])
    mixed = Mixup(share=0.75, partner_N=torch.tensor([1, 2, 0])).of(rows)
    assert mixed.tolist() == [[0.75, 0.25], [1.0, 2.75], [3.25, 6.0]]


def test_mixup_is_drawn_from_beta_anew_for_every_step_and_alike_for_the_same() -> None:
    draws = [Mixup.draw(8, 0.4, 0, 1, step) for step in range(2000)]
    shares = [each.share for each in draws]
    assert 0 <= min(shares) <= max(shares) <= 1
    assert kstest(shares, "beta", args=(0.4, 0.4)).pvalue > 0.001
    assert all(sorted(each.partner_N.tolist()) == [*range(8)] for each in draws[:20])
    again = Mixup.draw(8, 0.4, 0, 1, 3)
    assert again.share == draws[3].share
    assert torch.equal(again.partner_N, draws[3].partner_N)
    for other in ((1, 1, 3), (0, 2, 3)):
        assert Mixup.draw(8, 0.4, *other).share != again.share


def test_average_follows_the_weights_that_it_leaves_alone(trainer: Make) -> None:
    config = tiny_config(fine_tune="last_1")
    alone, averaging = trainer(config), trainer(replace(config, ema=0.3))
    (model,), (average,) = averaging.branches, averaging.evaluated
    expected = {k: t.double().numpy().copy() for k, t in model.trained_state().items()}
    num_steps = 0

    def follow(*args: Any) -> None:
        nonlocal num_steps
        num_steps += 1
        decay = min(0.3, (1 + num_steps) / (10 + num_steps))
        for key, tensor in model.trained_state().items():
            new = tensor.double().numpy()
            is_count = key.endswith("num_batches_tracked")
            expected[key] = new.copy() if is_count else decay * expected[key] + (1 - decay) * new

    averaging.optimizers[0].register_step_post_hook(follow)
    for epoch in (1, 2):
        alone.train_epoch(epoch)
        averaging.train_epoch(epoch)
    assert num_steps > 3
    assert differing(state_of(model), state_of(alone.branches[0])) == set()
    assert average.frozen is model.frozen
    for key, tensor in average.trained_state().items():
        torch.testing.assert_close(
            tensor.double(), torch.from_numpy(expected[key]).double(), rtol=1e-4, atol=1e-5
        )
    assert differing(state_of(model), state_of(average)) >= {"heads.sub.weight"}


def test_average_is_what_is_kept(tmp_path: Path, run: Run, trainer: Make) -> None:
    config = tiny_config(fine_tune="last_1", ema=0.5)
    result, _ = run(config, folder=tmp_path)
    each = trainer(config)
    each.train_epoch(1)
    assert differing(state_of(result.branches[0]), state_of(each.evaluated[0])) == set()
    stored = safetensors.torch.load_file(tmp_path / MODEL_FILE)
    for key, tensor in each.evaluated[0].trained_state().items():
        assert torch.equal(stored[f"0.{key}"], tensor)


# --- Superclasses left out ----------------------------------------------------------------

FOLD_OPTIONS: list[dict[str, Any]] = [
    {"novelty_score": "best"},
    {**EVERY_OPTION, "head": "cosine", "novelty_score": "knn_difference", "couple_novel": True},
    {"architecture": "two_models", "known_rejection_super": 0.1, "alpha": 0.0},
]


def with_noise(data: Data, superclass: int) -> Data:
    """Return the data with other pictures in place of every image of a superclass."""
    noise = torch.randint(256, data.images.shape, dtype=torch.uint8, generator=torch.manual_seed(3))
    is_out = (data.superclass == superclass)[:, None, None, None]
    return replace(data, images=torch.where(is_out, noise, data.images), fingerprint="noise")


def fold_state(model: BranchModel, superclass: int) -> dict[str, torch.Tensor]:
    prefix = f"folds.{superclass}."
    return {key: each for key, each in state_of(model).items() if key.startswith(prefix)}


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("changes", FOLD_OPTIONS, ids=["best", "every option", "two models"])
def test_a_left_out_superclass_reaches_nothing_of_its_fold(
    tiny_data: Data, tiny_weights: Path, tmp_path: Path, changes: dict[str, Any], is_cached: bool
) -> None:
    """With other pictures of it heads, bank, scores and rules of the fold are the same bits."""
    config = tiny_config(fine_tune="frozen", **{"epochs": 2} | changes)
    pools = make_pools(tiny_data, config)
    cache = tmp_path if is_cached else None
    ours, others = (
        Trainer(config, data, pools, cache=cache, weights=tiny_weights, note=silent)
        for data in (tiny_data, with_noise(tiny_data, 1))
    )
    assert [*ours.folds] == [0, 1, 2]
    before = fold_state(ours.branches[0], 1)
    for epoch in (1, 2):
        ours.train_epoch(epoch)
        others.train_epoch(epoch)
    for number in range(len(ours.branches)):
        of_fold = [fold_state(each.evaluated[number], 1) for each in (ours, others)]
        assert differing(*of_fold) == set()
        assert differing(state_of(ours.branches[number]), state_of(others.branches[number]))
        banks = [each._bank(number, 1).tensors(all_of_features()) for each in (ours, others)]
        assert differing(*banks) == set()
    assert differing(before, fold_state(ours.branches[0], 1))
    said = [each.outputs().folds[1] for each in (ours, others)]
    assert said[0].exact == ("super", "sub")
    is_out = said[0].kind == LEFT_OUT
    assert torch.equal(is_out, tiny_data.superclass[pools.val] == 1)
    assert not torch.equal(said[0].super_logits[is_out], said[1].super_logits[is_out])
    assert torch.equal(said[0].super_logits[~is_out], said[1].super_logits[~is_out])
    for name in ("super_feature_scores", "sub_feature_scores"):
        ours_kept, others_kept = (getattr(each, name) for each in said)
        assert ours_kept.keys() == others_kept.keys()
        for score, values in ours_kept.items():
            assert torch.equal(values[~is_out], others_kept[score][~is_out])
    assert PartRules.choose(said[0], config) == PartRules.choose(said[1], config)


@pytest.mark.parametrize("architecture", ["two_heads", "two_models"])
def test_a_tuned_branch_passes_each_image_once_for_all_folds(
    trainer: Make, architecture: str
) -> None:
    """Scores of folds are the same bits as by banks whose images pass for each of them."""
    ours = trainer(tiny_config(architecture=architecture, novelty_score="knn"))
    ours.train_epoch(1)
    passed: list[int] = []
    for model in dict.fromkeys(ours.evaluated):
        model.tuned.register_forward_hook(lambda _, given, __: passed.append(len(given[0])))
    outputs = ours.outputs(all_scores=True)
    num_of_bank = 32 * math.ceil(len(ours._bank_rows(0)[0]) / 32)
    assert sum(passed) == (len(ours.pools.val) + num_of_bank) * len(ours.evaluated)
    assert len(outputs.folds) == 3
    last = len(ours.evaluated) - 1
    for fold in outputs.folds:
        with torch.inference_mode():
            bank = ours._bank(last, fold.superclass)
            scores = bank.scores(ours._pooled_all(last, ours.pools.val), all_of_features())
        assert fold.sub_feature_scores.keys() == scores.keys()
        for name, score in scores.items():
            assert torch.equal(fold.sub_feature_scores[name], score)


@pytest.mark.parametrize("fine_tune", ["full", "last_1", "frozen"])
@pytest.mark.parametrize("changes", [{}, EVERY_OPTION], ids=["plain", "every option"])
def test_folds_leave_what_is_trained_as_it_is_without_them(
    trainer: Make, fine_tune: str, changes: dict[str, Any]
) -> None:
    config = tiny_config(fine_tune=fine_tune, **{"epochs": 2} | changes)
    ours, alone = trainer(config), trainer(replace(config, left_out="none"))
    losses = [[each.train_epoch(epoch)["train_loss"] for epoch in (1, 2)] for each in (ours, alone)]
    assert losses[0] == losses[1]
    state = {k: v for k, v in state_of(ours.evaluated[0]).items() if not k.startswith("folds.")}
    assert differing(state, state_of(alone.evaluated[0])) == set()
    outputs, expected = ours.outputs(), alone.outputs()
    assert torch.equal(outputs.sub_logits, expected.sub_logits)
    assert (len(outputs.folds), len(expected.folds)) == (3, 0)


def test_a_fold_whose_branch_is_tuned_says_that_its_features_saw_the_superclass(
    trainer: Make,
) -> None:
    config = tiny_config(architecture="two_models", super_fine_tune="frozen")
    assert {fold.exact for fold in trainer(config).outputs().folds} == {("super",)}
    assert {fold.exact for fold in trainer(tiny_config()).outputs().folds} == {()}
    config = tiny_config(architecture="two_models", super_fine_tune="full", sub_fine_tune="frozen")
    assert {fold.exact for fold in trainer(config).outputs().folds} == {("sub",)}
    reads: dict[str, Any] = {"sub_novelty_score": "super_rmds"}  # its features saw what is left out
    config = replace(config, **reads)
    assert {fold.exact for fold in trainer(config).outputs().folds} == {()}


def test_a_fold_that_is_trained_from_the_start_never_saw_the_superclass(
    tiny_data: Data, tiny_weights: Path
) -> None:
    config = tiny_config(left_out="train", novelty_score="best")
    pools = make_pools(tiny_data, config)
    ours, others = (
        Trainer(config, data, pools, cache=None, weights=tiny_weights, note=silent)
        for data in (tiny_data, with_noise(tiny_data, 1))
    )
    ours.train_epoch(1)
    others.train_epoch(1)
    states = [state_of(each.fold_trainers[1].branches[0]) for each in (ours, others)]
    assert differing(*states) == set()
    assert differing(states[0], state_of(ours.branches[0]))
    said = [each.outputs().folds[1] for each in (ours, others)]
    assert said[0].exact == ("super", "sub")
    is_out = said[0].kind == LEFT_OUT
    assert is_out.any()
    assert torch.equal(said[0].sub_logits[~is_out], said[1].sub_logits[~is_out])
    assert not torch.equal(said[0].sub_logits[is_out], said[1].sub_logits[is_out])
    assert PartRules.choose(said[0], config) == PartRules.choose(said[1], config)


def test_how_far_an_epoch_is_counts_the_folds_that_are_trained_from_the_start(
    tiny_data: Data, tiny_weights: Path
) -> None:
    config = tiny_config(left_out="train", epochs=2, batch_size=16)
    said: list[float] = []
    train(config, tiny_data, silent, weights=tiny_weights, note=silent, within=said.append)
    assert said == sorted(said)
    assert said[len(said) // 2 - 1] == pytest.approx(1), "as many steps in each epoch"
    assert said[-1] == pytest.approx(2)


def test_a_branch_without_a_trained_part_needs_no_training_from_the_start(trainer: Make) -> None:
    each = trainer(tiny_config(fine_tune="frozen", left_out="train"))
    assert not each.fold_trainers
    assert {fold.exact for fold in each.outputs().folds} == {("super", "sub")}


def test_what_left_out_superclasses_are_worth_and_cost_is_said() -> None:
    many, config = make_data(subclasses=(4, 3), images=20), tiny_config(fine_tune="frozen")
    assert left_out_lines([config], many) == []
    (line,) = left_out_lines([config], make_data(subclasses=(7,), images=20))
    assert line.startswith("one superclass, so none can be left out: ")
    (line,) = left_out_lines([replace(config, left_out="none")], many)
    assert line.startswith("left_out none: unseen_super is measured on borrowed images")
    tuned = replace(config, fine_tune="full")
    dear = replace(tuned, left_out="train")
    cost = "left_out train: where something is tuned, a trial trains 3 times"
    worth = (
        "left_out features: a fine-tuned superclass branch has seen the superclass left "
        "out, so unseen_super promises too much; left_out=train does not, and trains 3 times "
        "a trial"
    )
    assert left_out_lines([config, dear], many) == [cost]
    assert left_out_lines([tuned, dear], many) == [cost, worth]
    assert left_out_lines([replace(dear, fine_tune="frozen")], many) == []
    own = tiny_config(architecture="two_models", super_fine_tune="frozen", sub_fine_tune="full")
    assert left_out_lines([own], many) == []
    (line,) = left_out_lines([config], make_data(subclasses=[2] * 12, images=20))
    assert line == "10 of 12 superclasses are left out in turn, those that can be judged"


# --- Results -----------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["ce_sub", "auroc_sub", "score_calibrated"])
def test_trial_keeps_the_epoch_that_is_best_by_the_metric(
    run: Run, tmp_path: Path, metric: str
) -> None:
    config = tiny_config(epochs=3, fine_tune="frozen", schedule="constant")
    result, reports = run(config, metric=metric, folder=tmp_path)
    key = "score_calibration" if metric == "score_calibrated" else f"{metric}_calibration"
    values = [metrics[key] for metrics in reports]
    best = min(values) if metric == "ce_sub" else max(values)
    assert result.metrics["epoch"] == 1 + values.index(best)
    assert json.loads((tmp_path / INFO_FILE).read_text())["metrics"][key] == best


def test_trial_keeps_and_returns_its_best_epoch(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 2 of 4; its score on the evaluation half is the lowest, and has no say."""
    scores = iter([0.2, 0.9, 0.2, 0.9, 0.9, 0.5])

    def with_score(*args: Any) -> Metrics:
        score = next(scores)
        return metrics_of(*args) | {"score_calibration": score, "score": 1 - score}

    monkeypatch.setattr(module, "evaluate", with_score)
    config = tiny_config(epochs=4)
    run(config, folder=tmp_path / "two", stop_after=2)
    result, reports = run(config, folder=tmp_path / "four")
    assert [metrics["epoch"] for metrics in reports] == [1, 2, 3, 4]
    assert result.metrics["epoch"] == 2
    assert result.metrics["score"] == pytest.approx(0.1)
    assert json.loads((tmp_path / "four" / INFO_FILE).read_text())["metrics"] == reports[1]
    for name in (MODEL_FILE, OUTPUTS_FILE):  # as they were after epoch 2
        expected = (tmp_path / "two" / name).read_bytes()
        assert (tmp_path / "four" / name).read_bytes() == expected


def test_zero_epochs_evaluate_the_untrained_heads_once(tmp_path: Path, run: Run) -> None:
    result, reports = run(tiny_config(epochs=0), folder=tmp_path)
    assert [metrics["epoch"] for metrics in reports] == [0]
    assert result.metrics["epoch"] == 0
    assert 0 <= result.metrics["score"] <= 1
    assert "train_loss" not in result.metrics
    untrained = BranchModel.build(
        tiny_config().branches()[0], {"super": 4, "sub": 21}, 0, pretrained=False
    )
    heads = result.branches[0].heads.state_dict()
    assert differing(heads, untrained.heads.state_dict()) == set()
    assert (tmp_path / MODEL_FILE).exists()


def test_trial_of_zero_epochs_is_not_evaluated_again(tmp_path: Path, run: Run) -> None:
    config = tiny_config(epochs=0)
    _, first = run(config, folder=tmp_path)
    result, second = run(config, folder=tmp_path)
    assert second == first
    assert result.metrics["epoch"] == 0


def test_trial_of_zero_epochs_can_be_given_more(tmp_path: Path, run: Run) -> None:
    run(tiny_config(epochs=0), folder=tmp_path)
    _, reports = run(tiny_config(epochs=2), folder=tmp_path)
    _, expected = run(tiny_config(epochs=2))
    assert [metrics["epoch"] for metrics in reports] == [0, 1, 2]
    assert timeless(reports[1:]) == timeless(expected)


@pytest.mark.parametrize(("asked", "used"), [(5000, 32), (33, 32), (32, 32), (30, 30), (0, 0)])
def test_smaller_novel_pool_is_used_whole_and_said(
    tiny_data: Data, run: Run, asked: int, used: int
) -> None:
    config = tiny_config(novel_images=asked, epochs=0)
    result, _ = run(config)
    assert result.metrics["novel_images_used"] == used
    line = novel_shortage(config, make_pools(tiny_data, config))
    expected = f"novel_images: {asked:,} asked, the pool has 32 for training; it is used whole"
    assert line == (expected if asked > used else "")


@pytest.mark.parametrize("fine_tune", ["full", "frozen"])
def test_refit_without_validation_reports_training_figures(
    tiny_data: Data, tmp_path: Path, run: Run, fine_tune: str
) -> None:
    config = tiny_config(fine_tune=fine_tune, epochs=2)
    pools = make_refit_pools(tiny_data, config)
    result, reports = run(config, pools=pools, folder=tmp_path / "trial", cache=tmp_path)
    assert [set(metrics) for metrics in reports] == [
        {"epoch", "train_loss", "epoch_s", "images_per_s", "novel_images_used"}
    ] * 2
    assert result.metrics["epoch"] == 2
    assert not (tmp_path / "trial" / MODEL_FILE).exists()  # the caller decides on thresholds


def test_nothing_is_kept_without_a_folder(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tiny_config())
    assert list(tmp_path.iterdir()) == []


def test_more_stages_than_the_backbone_has_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="last_5 must leave a stage frozen"):
        run(tiny_config(fine_tune="last_5"))


# --- Failures ----------------------------------------------------------------------------


@pytest.fixture
def broken_weights(tiny_weights: Path, tmp_path: Path) -> Path:
    """Weights with a NaN in the last batch norm, which no ReLU hides."""
    state = torch.load(tiny_weights)
    key = [key for key in state if key.startswith("layer4") and key.endswith("running_mean")][-1]
    state[key][0] = torch.nan
    torch.save(state, tmp_path / "broken.pth")
    return tmp_path / "broken.pth"


def test_loss_that_is_not_a_number_fails_the_trial(
    tmp_path: Path, run: Run, broken_weights: Path
) -> None:
    reports: list[Metrics] = []
    config = tiny_config(fine_tune="frozen")
    with pytest.raises(TrialError, match="the loss is nan in epoch 1: lower lr"):
        run(config, weights=broken_weights, folder=tmp_path / "trial", report=reports.append)
    assert reports == []
    assert not (tmp_path / "trial").exists()


def test_loss_without_a_gradient_fails_the_trial(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose only term means nothing to a branch."""
    monkeypatch.setitem(LOSSES._parts, "interaction", lambda _: torch.zeros(()))
    with pytest.raises(TrialError, match="loss interaction teaches the branch of super and sub no"):
        run(tiny_config(loss="interaction"))


def test_loss_terms_know_how_many_images_train_each_output(
    run: Run, tiny_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each branch with borrowed images of its own, and of each fold without its superclass."""
    steps: dict[tuple[Task, int], losses.Step] = {}

    def term(step: losses.Step) -> torch.Tensor:
        steps.update({(task, each.shape[1]): step for task, each in step.logits.items()})
        return losses.cross_entropy(step)

    monkeypatch.setitem(LOSSES._parts, "class_balanced", term)
    config = tiny_config(
        architecture="two_models", novel_images=7, sub_novel_images=3, loss="class_balanced",
        epochs=1, fine_tune="frozen",
    )  # fmt: skip
    run(config)
    pools = make_pools(tiny_data, config)
    known = pools.train[pools.sub_target[pools.train] < len(pools.subclasses)]
    whole: dict[Task, torch.Tensor] = {"super": pools.super_target, "sub": pools.sub_target}
    borrowed: dict[Task, int] = {"super": 7, "sub": 3}
    for task, target in whole.items():
        counts = [*target[known].bincount().tolist(), borrowed[task]]
        assert steps[task, len(counts)].num_images[task].tolist() == counts
        of_folds = [
            step for (name, num), step in steps.items() if (name, num < len(counts)) == (task, True)
        ]
        assert of_folds
        for step in of_folds:
            found = step.num_images[task].tolist()
            assert found[-1] == borrowed[task]
            assert sum(found) < sum(counts)
            assert all(num in counts for num in found)


def test_loss_that_overflows_fails_the_trial(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "interaction_loss", lambda *args, **_: torch.tensor(torch.inf))
    with pytest.raises(TrialError, match="the loss is inf in epoch 1: lower lr"):
        run(tiny_config())


def test_outputs_that_are_not_numbers_fail_the_trial(
    tmp_path: Path, run: Run, broken_weights: Path
) -> None:
    """As after a last step that was too long: the loss before it was still finite."""
    reports: list[Metrics] = []
    with pytest.raises(TrialError, match="outputs are not finite after epoch 0"):
        run(
            tiny_config(epochs=0),
            weights=broken_weights,
            folder=tmp_path / "trial",
            report=reports.append,
        )
    assert reports == []
    assert not (tmp_path / "trial").exists()


# --- Interrupted and resumed -------------------------------------------------------------


def interrupted_run(
    run: Run, config: TrialConfig, folder: Path, cache: Path | None
) -> tuple[TrialResult, list[list[Metrics]]]:
    """Run into an interruption at the report of epochs 1 and 2, then to the end."""
    reports: list[list[Metrics]] = []
    for last in (1, 2):
        reports.append([])

        def report(metrics: Metrics, last: int = last) -> None:
            reports[-1].append(metrics)
            if metrics["epoch"] == last:
                raise StoppedEarlyError

        with pytest.raises(StoppedEarlyError):
            run(config, folder=folder, cache=cache, report=report)
    result, last_reports = run(config, folder=folder, cache=cache)
    return result, [*reports, last_reports]


@pytest.mark.parametrize(
    "changes",
    [
        {"fine_tune": "full", "schedule": "one_cycle"},
        {"fine_tune": "frozen", "head": "cosine", "schedule": "constant"},
        {"fine_tune": "last_1", "optimizer": "adamw", "schedule": "constant"},
        {"architecture": "two_models", "super_fine_tune": "frozen", "schedule": "one_cycle"},
    ],
    ids=["full", "frozen", "last_1", "two_models"],
)
def test_interrupted_trial_ends_as_an_uninterrupted_one(
    tmp_path: Path, run: Run, changes: dict[str, str]
) -> None:
    config = tiny_config(epochs=3, **changes)
    expected, expected_history = run(config, folder=tmp_path / "a", cache=tmp_path / "cache")
    result, reports = interrupted_run(run, config, tmp_path / "b", tmp_path / "cache")
    assert [len(each) for each in reports] == [1, 2, 3]
    assert reports[1][:1] == reports[0]  # told again as they were, their times included
    assert reports[2][:2] == reports[1]
    assert timeless(reports[-1]) == timeless(expected_history)
    assert timeless([result.metrics]) == timeless([expected.metrics])
    for model, same in zip(result.branches, expected.branches, strict=True):
        assert differing(state_of(model), state_of(same)) == set()
    for name in (MODEL_FILE, OUTPUTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("fine_tune", ["full", "frozen"])
def test_interrupted_trial_with_every_option_ends_as_an_uninterrupted_one(
    tmp_path: Path, run: Run, fine_tune: str, request: pytest.FixtureRequest
) -> None:
    if fine_tune == "frozen":
        request.getfixturevalue("whole_tables")
    own = {"architecture": "two_models", "super_novel_images": 5, "super_ema": 0.0}
    config = tiny_config(fine_tune=fine_tune, **EVERY_OPTION, **own)
    expected, expected_history = run(config, folder=tmp_path / "a", cache=tmp_path / "cache")
    run(config, folder=tmp_path / "b", cache=tmp_path / "cache", stop_after=1)
    result, reports = run(config, folder=tmp_path / "b", cache=tmp_path / "cache")
    assert timeless(reports) == timeless(expected_history)
    assert differing(state_of(result.branches[0]), state_of(expected.branches[0])) == set()
    for name in (MODEL_FILE, OUTPUTS_FILE, TABLE_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_trial_is_kept_and_resumed_on_any_filesystem(tmp_path: Path, run: Run) -> None:
    config = tiny_config(epochs=3)
    _, expected_history = run(config, folder=tmp_path)
    remote = UPath(f"memory://{tmp_path}")
    run(config, folder=remote, stop_after=2)
    _, reports = run(config, folder=remote)
    assert timeless(reports) == timeless(expected_history)
    assert (remote / MODEL_FILE).read_bytes() == (tmp_path / MODEL_FILE).read_bytes()
    assert load_outputs(remote).rows.equal(load_outputs(UPath(tmp_path)).rows)


def test_finished_trial_is_reported_again_and_not_trained(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(epochs=2)
    expected, first = run(config, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", None)
        result, second = run(config, folder=tmp_path)
    assert second == first
    assert result.metrics == expected.metrics
    assert differing(state_of(result.branches[0]), state_of(expected.branches[0])) == set()


def test_trial_goes_on_from_the_checkpoint_before_a_torn_one(tmp_path: Path, run: Run) -> None:
    config = tiny_config(epochs=3)
    expected, expected_history = run(config, folder=tmp_path / "a")
    run(config, folder=tmp_path / "b", stop_after=2)
    (newest,) = (tmp_path / "b").glob("checkpoint_00002_*.pt")
    newest.write_bytes(newest.read_bytes()[:1000])
    notes: list[str] = []
    result, reports = run(config, folder=tmp_path / "b", note=notes.append)
    assert notes == [f"{newest.name} is damaged; using the checkpoint before it"]
    assert timeless(reports) == timeless(expected_history)
    assert differing(state_of(result.branches[0]), state_of(expected.branches[0])) == set()


def test_checkpoint_of_a_frozen_trial_holds_only_the_heads(tmp_path: Path, run: Run) -> None:
    run(tiny_config(fine_tune="frozen"), folder=tmp_path / "frozen", cache=tmp_path)
    (file,) = (tmp_path / "frozen").glob("checkpoint_*.pt")
    state = torch.load(file, weights_only=True)
    of_folds = [f"folds.{superclass}" for superclass in range(3)]
    assert set(state["branches"][0]) == {
        f"{heads}.{task}.{name}"
        for heads in ("heads", *of_folds)
        for task in ("super", "sub")
        for name in ("weight", "bias")
    }


def test_stopping_early_keeps_the_schedule(tmp_path: Path, run: Run) -> None:
    config = tiny_config(epochs=3, schedule="one_cycle")
    expected, expected_history = run(config, folder=tmp_path / "whole")
    _, reports = run(config, folder=tmp_path / "parts", stop_after=1)
    assert timeless(reports) == timeless(expected_history[:1])
    _, shorter = run(replace(config, epochs=1))
    assert timeless(shorter) != timeless(reports)
    result, reports = run(config, folder=tmp_path / "parts")
    assert timeless(reports) == timeless(expected_history)
    assert differing(state_of(result.branches[0]), state_of(expected.branches[0])) == set()


@pytest.mark.parametrize("schedule", ["constant", "one_cycle", "cosine"])
def test_trial_can_be_given_more_epochs(tmp_path: Path, run: Run, schedule: str) -> None:
    config = tiny_config(epochs=1, schedule=schedule)
    _, first = run(config, folder=tmp_path)
    _, second = run(replace(config, epochs=2), folder=tmp_path)
    assert [metrics["epoch"] for metrics in second] == [1, 2]
    assert second[:1] == first


# --- The command -------------------------------------------------------------------------


@pytest.fixture
def command(data: Path, tiny_weights: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the command with the tiny data and the given settings."""

    def call(*settings: str, weights: Path = tiny_weights, use_cache: bool = True) -> int:
        argv = ["--data", str(data), "--novel", str(data / "novel_images")]
        argv += ["--cache", str(tmp_path / "cache")] if use_cache else ["--no-cache"]
        argv += ["--weights", str(weights)]
        argv += ["--folder", str(tmp_path / "trial")]
        small = (f"backbone={BACKBONE}", "image_size=32", "batch_size=32", "novel_images=32")
        by_key = {setting.partition("=")[0]: setting for setting in (*small, *settings)}
        for setting in by_key.values():
            argv += ["--set", setting]
        return main(argv)

    return call


def test_command_trains_and_prints_metrics(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command("epochs=1", "fine_tune=frozen", "tau_super=0.5", "novel_images=99") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("the pool has 32 for training; it is used whole") == 1
    assert re.search(r"^epoch 1  train_loss \d+\.\d{3}  score 0\.\d{3}  seen_super ", out, re.M)
    metrics = json.loads(out[out.index("{") :])
    assert metrics["epoch"] == 1
    assert metrics["tau_super"] == 0.5
    assert (tmp_path / "trial" / MODEL_FILE).exists()


@pytest.mark.parametrize("fine_tune", ["frozen", "last_1", "full"])
def test_command_without_cache_gives_the_same_metrics_and_stores_nothing(
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fine_tune: str,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    found = []
    for use_cache in (False, True):
        assert command("epochs=2", f"fine_tune={fine_tune}", use_cache=use_cache) == 0
        out = capsys.readouterr().out
        found.append(json.loads(out[out.index("{") :]) | {"epoch_s": 0, "images_per_s": 0})
        shutil.rmtree(tmp_path / "trial")
        assert (tmp_path / "cache").exists() == use_cache
        assert [*(tmp_path / "temporary").iterdir()] == []
    assert found[0] == found[1]


def test_command_refuses_an_unknown_key_with_the_nearest_one(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("epoch=1") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: --set epoch=1: unknown key 'epoch' (did you mean 'epochs'?)\n"


def test_command_refuses_a_value_out_of_range(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("epochs=-1") == 2
    assert "error: `0 <= epochs <= 99999` must hold, but got -1" in capsys.readouterr().err


def test_command_reports_a_failed_trial(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], broken_weights: Path
) -> None:
    assert command("epochs=1", "fine_tune=frozen", weights=broken_weights) == 1
    assert "failed: the loss is nan in epoch 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "novel"), [("synthetic", "synthetic"), ("some/folder", "cifar100")]
)
def test_novel_pool_goes_with_the_data(data: str, novel: str) -> None:
    assert default_novel(data) == novel


def test_stored_scores_of_another_formula_are_not_taken(
    tiny_data: Data, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(fine_tune="frozen", novelty_score="knn")
    pools = make_pools(tiny_data, config)

    def scores(cache: Path | None) -> torch.Tensor:
        trainer = Trainer(
            config, tiny_data, pools, cache=cache, weights=tiny_weights, note=lambda line: None
        )
        return trainer.outputs().sub_feature_scores["knn"]

    before = scores(tmp_path)
    assert torch.equal(scores(tmp_path), before)
    monkeypatch.setattr(neighbours, "NEIGHBOURS", 1)
    assert not torch.equal(scores(tmp_path), before)
    torch.testing.assert_close(scores(tmp_path), scores(None), rtol=1e-4, atol=1e-4)


def test_kept_trial_says_how_sure_its_main_rates_are(tmp_path: Path, run: Run) -> None:
    result, reports = run(tiny_config(epochs=2, fine_tune="frozen"), folder=tmp_path)
    for name in MAIN:
        low, high = interval_of(result.metrics, name) or (math.nan, math.nan)
        assert low <= result.metrics[name] <= high
    again, _ = run(tiny_config(epochs=2, fine_tune="frozen"), folder=tmp_path)
    assert timeless([again.metrics]) == timeless([result.metrics])
    assert not any("interval" in name for metrics in reports for name in metrics)


def test_bound_that_too_few_images_can_keep_is_said(run: Run, tmp_path: Path) -> None:
    lines: list[str] = []
    config = tiny_config(known_rejection_sub=0.001, epochs=3, lr=1e-3)
    result, _ = run(config, folder=tmp_path, note=lines.append, metric="ce_sub")
    assert result.metrics["epoch"] > 1
    assert result.metrics["tau_sub"] < -1e299
    # Once, of the epoch that is kept.
    (line,) = [line for line in lines if "out of reach" in line]
    assert f"in epoch {result.metrics['epoch']:.0f}: " in line
    assert re.search(r"known_rejection_sub 0.001 .* needs 999 known validation images", line)
