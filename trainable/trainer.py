"""All branches of a trial, what they see, and how they are trained and asked: the Trainer."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trainable.batch import Batch
from trainable.config import BEST, TASKS, Task, TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import Pools, make_folds, rows_of_branch, true_classes
from trainable.errors import TrialError, WeightsError, chosen
from trainable.model.branch import BranchModel
from trainable.model.inputs import FORWARD_BATCH, FeatureInputs, inputs_for
from trainable.novelty.bank import FeatureBank, all_of_features, formula
from trainable.novelty.scores.sums import of_tasks
from trainable.novelty.thresholds import Fold, Outputs
from trainable.objective import Objective, num_classes
from trainable.rng import generator

BANK_KNOWN_MAX, BANK_BORROWED_MAX = 8192, 4096
"""Training images in a bank of features; of more, as many are drawn."""

Metrics = dict[str, float]


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class Trainer:
    """All branches of a trial, their optimizers and what they see.

    Branches share no parameter, and each has its own images, steps and schedule, so it learns
    exactly as if it were alone; nothing here asks which architecture it is.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: Data,
        pools: Pools,
        *,
        cache: Path | None,
        weights: Path | None,
        is_fast: bool = True,
        shares: Sequence[Pools] = (),
        note: Callable[[str], None],
    ) -> None:
        self.config, self.pools = config, pools
        self.true_class = true_classes(data)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # bf16 is slower than float32 on the CPUs measured, so only GPUs get it.
        self.is_autocast = self.device.type == "cuda" and is_fast
        if not is_fast:
            cache = None
            torch.backends.cudnn.allow_tf32 = False
        self.branches = [
            BranchModel.build(branch, num_classes(pools), config.seed, weights)
            .to(memory_format=torch.channels_last)
            .to(self.device)
            for branch in config.branches()
        ]
        self.configs = [config.for_branch(branch) for branch in config.branches()]
        """What holds for each branch."""
        self.rows = [rows_of_branch(pools, each.novel_images) for each in self.configs]
        """Which images each branch trains on."""
        self.inputs = [
            inputs_for(
                model, data, own, train_rows=rows, val_rows=pools.val, cache=cache, note=note
            )
            for model, own, rows in zip(self.branches, self.configs, self.rows, strict=True)
        ]
        self.folds = dict(enumerate(shares)) or make_folds(pools, config)
        """Pools of the folds in which a superclass is left out, by its number; or the shares."""
        self._judged_folds = {} if shares else self.folds
        self.fold_trainers = {}
        if not shares:
            self.fold_trainers = self._fold_trainers(data, cache, weights, is_fast, note)
        if not self.fold_trainers:
            for model in self.branches:
                for superclass, fold in self.folds.items():
                    if shares:
                        if model.is_frozen:  # a tuned one's features saw every share
                            model.add_share(superclass)
                    else:
                        model.add_fold(superclass, num_classes(fold), config.seed)
                model.folds.to(self.device)
        self.evaluated = [
            model.with_own_weights() if own.ema else model
            for model, own in zip(self.branches, self.configs, strict=True)
        ]
        """The models that are judged and kept: the trained ones, or their moving averages."""
        if config.compile:
            for model in dict.fromkeys([*self.branches, *self.evaluated]):
                model.tuned.compile()  # in place: names in its state stay
        self._num_steps = [0] * len(self.branches)
        self._frozen_banks: dict[tuple[int, int | None], FeatureBank] = {}
        self._frozen_scores: dict[tuple[str, int, int | None], torch.Tensor] = {}
        self.optimizers = [*map(self._optimizer, self.branches, self.configs)]
        """Of each branch, which has no step where it has no images left in an epoch."""
        self.schedules = [*map(self._schedule, self.optimizers, self.configs, self.rows)]
        # A fold that is trained from the start has an objective of its own.
        learnt: dict[int | None, Pools] = self._all_pools()
        if self.fold_trainers:
            learnt = {None: self.pools}
        self._objective = Objective(
            config, learnt, [each.novel_images for each in self.configs], self.device
        )

    def _all_pools(self) -> dict[int | None, Pools]:
        """Return the pools of the trial, and those of its folds by what they leave out."""
        pools: dict[int | None, Pools] = {None: self.pools}
        return pools | dict(self.folds.items())

    def _fold_trainers(
        self,
        data: Data,
        cache: Path | None,
        weights: Path | None,
        is_fast: bool,
        note: Callable[[str], None],
    ) -> dict[int, Trainer]:
        """Return what trains each fold from the start, where that is asked for and not the same as
        further heads.
        """
        if self.config.left_out != "train" or all(model.is_frozen for model in self.branches):
            return {}
        config = replace(self.config, left_out="none")
        return {
            superclass: Trainer(
                config, data, fold,
                cache=cache, weights=weights, is_fast=is_fast, note=note,
            )
            for superclass, fold in self.folds.items()
        }  # fmt: skip

    def _num_steps_of(self, rows: torch.Tensor) -> int:
        """Return how many steps an epoch over `rows` has."""
        # At least two images each: batch norm could not take one.
        return max(1, min(math.ceil(len(rows) / self.config.batch_size), len(rows) // 2))

    def _optimizer(self, model: BranchModel, config: TrialConfig) -> torch.optim.Optimizer:
        stages = [*model.tuned] if config.layer_decay < 1 else [model.tuned]
        groups: list[dict[str, Any]] = [
            {"params": [*stage.parameters()], "lr": model.branch.lr * config.layer_decay**above}
            for above, stage in zip(reversed(range(len(stages))), stages, strict=True)
        ]
        heads = [*model.heads.parameters(), *model.folds.parameters()]
        groups.append({"params": heads, "lr": model.branch.head_lr})
        make = chosen(_OPTIMIZERS, "optimizer", config.optimizer)
        return make(
            [group for group in groups if group["params"]],
            weight_decay=config.weight_decay,
            fused=True,
        )

    def _schedule(
        self, optimizer: torch.optim.Optimizer, config: TrialConfig, rows: torch.Tensor
    ) -> torch.optim.lr_scheduler.LRScheduler:
        total_steps = max(1, self._num_steps_of(rows) * config.epochs)
        peaks = [group["lr"] for group in optimizer.param_groups]
        schedules = torch.optim.lr_scheduler
        makers: dict[str, Callable[[], torch.optim.lr_scheduler.LRScheduler]] = {
            "constant": lambda: schedules.ConstantLR(optimizer, factor=1.0),
            "one_cycle": lambda: schedules.OneCycleLR(
                optimizer, max_lr=peaks, total_steps=total_steps
            ),
            "cosine": lambda: schedules.LambdaLR(
                optimizer, lambda step: (1 + math.cos(math.pi * step / total_steps)) / 2
            ),
        }
        return chosen(makers, "schedule", self.config.schedule)()

    def train_epoch(
        self, epoch: int, within: Callable[[float], None] = lambda share: None
    ) -> Metrics:
        """Pass once over the training images in a new order; return the epoch's training figures.

        Of branches with pools of their own each takes its own steps, as it would alone.

        Args:
            epoch: From 1.
            within: Called after every step with the share of the epoch that is done, 0 to 1.

        Raises:
            TrialError: The mean loss is not finite.
        """
        start_s = time.perf_counter()
        batches = self._epoch_batches(epoch)
        num_steps = max(map(len, batches))
        for model, inputs in zip(self.branches, self.inputs, strict=True):
            model.train()
            inputs.start_epoch(epoch)
        total_loss = torch.zeros((), device=self.device)
        num_passes = 1 + len(self.fold_trainers)
        for step, rows_of in enumerate(itertools.zip_longest(*batches)):
            for number, loss, of_folds in self._losses(rows_of, epoch, step):
                self.optimizers[number].zero_grad(set_to_none=True)
                # At once: two branches' activations would be twice the memory.
                (loss + of_folds).backward()
                weight = len(rows_of[number]) * len(self.pools.train) / len(self.rows[number])
                total_loss += loss.detach() * weight
                self._clip(number)
                self.optimizers[number].step()
                self.schedules[number].step()
                self._average(number)
            within((step + 1) / num_steps / num_passes)
        train_loss = float(total_loss) / len(self.pools.train)
        for number, trainer in enumerate(self.fold_trainers.values(), 1):
            trainer.train_epoch(epoch, part_of(within, number / num_passes, 1 / num_passes))
        if not math.isfinite(train_loss):
            raise TrialError(f"the loss is {train_loss} in epoch {epoch}: lower lr")
        seconds = time.perf_counter() - start_s
        metrics = {
            "epoch": epoch,
            "train_loss": train_loss,
            "epoch_s": seconds,
            "images_per_s": len(self.pools.train) / seconds,
        }
        if self.device.type == "cuda":
            metrics["peak_bytes"] = torch.cuda.max_memory_reserved(self.device)
        return metrics

    def _epoch_batches(self, epoch: int) -> list[Sequence[torch.Tensor]]:
        """Return the batches of each branch: the same ones where the images are the same, and none
        after its last epoch where another branch has more.
        """
        found: dict[int, Sequence[torch.Tensor]] = {}
        for rows in self.rows:
            if len(rows) not in found:
                drawn = generator(self.config.seed, "order", epoch)
                order = torch.randperm(len(rows), generator=drawn)
                # Near-equal batches: no last one of a single image, which batch norm could not
                # take.
                found[len(rows)] = rows[order].tensor_split(self._num_steps_of(rows))
        return [
            found[len(rows)] if epoch <= own.epochs or own.epochs == self.config.epochs else ()
            for rows, own in zip(self.rows, self.configs, strict=True)
        ]

    def _losses(
        self, rows_of: Sequence[torch.Tensor | None], epoch: int, step: int
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Give the number of each branch, its loss, and the sum of those of its folds' heads.

        A fold's heads are trained in step with the others, on the rows that show nothing of what
        the fold leaves out; they pass nothing back to the features.

        Args:
            rows_of: The batch of each branch; null: it has none left.
            epoch: From 1.
            step: From 0.
        """
        made: dict[tuple[int, float], dict[int | None, Batch]] = {}
        for number, (model, inputs) in enumerate(zip(self.branches, self.inputs, strict=True)):
            if (rows := rows_of[number]) is None:
                continue
            which = len(self.rows[number]), self.configs[number].mixup
            if which not in made:
                made[which] = self._objective.targets(rows, which[1], epoch, step)
            batches, mixed = made[which], made[which][None].mixed
            # Layers that draw (dropout) have no generator of their own.
            purpose = (self.config.seed, "layers", epoch, step, *model.branch.tasks)
            _seed_layers(generator(*purpose).initial_seed(), self.device)
            x = inputs.training(rows)
            blends = self._objective.blends(model.branch, rows, epoch, step)
            passed = [x if mixed is None else mixed.of(x)]
            if blends is not None:
                passed.append(blends.of(x))
            # In one pass, so that batch norm sees both.
            whole = self._pooled(model, torch.cat(passed) if blends is not None else passed[0])
            pooled, *blended = whole.split([len(each) for each in passed])
            loss = self._objective.loss(pooled, model.classify(pooled), number, None, batches[None])
            if blends is not None:
                loss = loss + self._objective.of_blends(blended[0], model, None, blends, rows)
            if not loss.requires_grad:
                tasks = " and ".join(model.branch.tasks)
                raise TrialError(
                    f"loss {self.config.loss} teaches the branch of {tasks} nothing, "
                    "as no term depends on what it trains: add cross_entropy"
                )
            of_folds = torch.zeros((), device=self.device)
            pooled = pooled.detach()
            for superclass in self.folds if model.folds else ():
                batch = batches[superclass]
                if batch.place is not None and len(batch.place):
                    seen = pooled.index_select(0, batch.place)  # faster than pooled[...]
                    logits = model.classify(seen, superclass)
                    of_folds = of_folds + self._objective.loss(
                        seen, logits, number, superclass, batch
                    )
                    if blends is not None:
                        of_folds = of_folds + self._objective.of_blends(
                            blended[0].detach(), model, superclass, blends, rows
                        )
            yield number, loss, of_folds

    def _clip(self, number: int) -> None:
        """Scale a branch's gradient down to the norm asked for, and that of each fold's heads."""
        model, most = self.branches[number], self.configs[number].max_norm
        if most:
            own = [*model.tuned.parameters(), *model.heads.parameters()]
            for parameters in (own, *(fold.parameters() for fold in model.folds.values())):
                torch.nn.utils.clip_grad_norm_(parameters, most)

    @torch.no_grad()
    def _average(self, number: int) -> None:
        """Move a branch's averaged weights towards the trained ones; faster in the first steps."""
        averaged, model = self.evaluated[number], self.branches[number]
        if averaged is model:
            return
        self._num_steps[number] += 1
        num_steps = self._num_steps[number]
        decay = min(self.configs[number].ema, (1 + num_steps) / (10 + num_steps))
        state = model.trained_state()
        for name, average in averaged.trained_state().items():
            if average.is_floating_point():
                average.lerp_(state[name], 1 - decay)
            else:
                average.copy_(state[name])

    @torch.inference_mode()
    def outputs(self, *, all_scores: bool = False) -> Outputs:
        """Return what the models say about the validation images, on the CPU.

        Args:
            all_scores: Score by features also where the config does not ask for it, of folds too
                where they have no models of their own.
        """
        pooled = [self._features(number, all_scores) for number in range(len(self.evaluated))]
        folds = []
        for superclass, pools in self._judged_folds.items():
            exact: list[Task] = list(TASKS)
            if self.fold_trainers:
                said = vars(self.fold_trainers[superclass].outputs())
            else:
                said = self._said(pooled, superclass, pools, all_scores)
                exact = [
                    task for model in self.evaluated if model.is_frozen
                    for task in model.branch.tasks
                ]  # fmt: skip
                if self.config.sub_reads_super and "super" not in exact:
                    exact = [task for task in exact if task != "sub"]
            own = {field.name: said[field.name] for field in fields(Outputs) if field.name in said}
            folds.append(Fold(**own, superclass=superclass, exact=tuple(exact)))
        return Outputs(**self._said(pooled, None, self.pools, all_scores), folds=tuple(folds))

    @torch.inference_mode()
    def outputs_of_shares(self) -> tuple[Outputs, ...]:
        """Return what the heads of each share say about its images; a tuned branch says NaN."""
        found = []
        for share, pools in self.folds.items():
            pooled = [
                _Features(self._pooled_all(number, pools.val), None) if model.is_frozen else None
                for number, model in enumerate(self.evaluated)
            ]
            found.append(Outputs(**self._said(pooled, share, pools, all_scores=False)))
            for number in range(len(self.evaluated)):  # each is as large as all features
                self._frozen_banks.pop((number, share), None)
        return tuple(found)

    def _features(self, number: int, all_scores: bool) -> _Features:
        """Return what a branch makes of the images that `outputs` asks about."""
        model, bank_ND = self.evaluated[number], None
        if not model.is_frozen and (all_scores or self._bank_scores(model)):
            bank_ND = self._pooled_of_bank(number, self._bank_rows(number)[0])
        return _Features(self._pooled_all(number, self.pools.val), bank_ND)

    def _said(
        self, pooled: Sequence[_Features | None], fold: int | None, pools: Pools, all_scores: bool
    ) -> dict[str, Any]:
        """Return what the heads of the trial, or of a fold, say of pooled features: `Outputs`.

        Without features a branch says NaN, and reads no score of another one.
        """
        asked = [
            task
            for model, features in zip(self.evaluated, pooled, strict=True)
            if features is not None
            for task in model.branch.tasks
        ]
        logits: dict[Task, torch.Tensor] = {}
        scores: dict[Task, dict[str, torch.Tensor]] = {}
        for number, model in enumerate(self.evaluated):
            found: dict[str, torch.Tensor] = {}
            if (features := pooled[number]) is None:
                sizes = num_classes(pools)
                answers = {
                    task: torch.full((len(pools.val), sizes[task]), math.nan)
                    for task in model.branch.tasks
                }
            else:
                answers = model.classify(features.val_ND, fold)
                names = all_of_features() if all_scores else self._bank_scores(model, asked)
                found = self._scores(number, features, fold, names, pools.val)
            logits |= {task: each.cpu() for task, each in answers.items()}
            scores |= dict.fromkeys(model.branch.tasks, found)
        return {
            "super_logits": logits["super"],
            "sub_logits": logits["sub"],
            "super_feature_scores": scores["super"],
            "sub_feature_scores": scores["sub"],
            "super_of_sub": torch.tensor(pools.super_of_sub),
            "super_target": pools.super_target[pools.val],
            "sub_target": pools.sub_target[pools.val],
            "kind": pools.val_kind,
            "in_part_a": pools.val_in_part_a,
            "rows": pools.val,
            "true_class": self.true_class[pools.val],
        }

    @torch.inference_mode()
    def banks(self) -> list[FeatureBank | None]:
        """Return the bank of each branch whose novelty score is of features."""
        return [
            self._bank(number) if self._bank_scores(model) else None
            for number, model in enumerate(self.evaluated)
        ]

    def _bank_scores(self, model: BranchModel, asked: Sequence[Task] = TASKS) -> list[str]:
        """Return the scores of a branch's features that the config asks for, for these tasks."""
        scores = {task: self.config.of(task, "novelty_score") for task in asked}
        names = {*of_tasks(scores, model.branch.tasks)}
        return [name for name in all_of_features() if not names.isdisjoint((name, BEST))]

    def _scores(
        self,
        number: int,
        pooled: _Features,
        fold: int | None,
        names: Sequence[str],
        rows: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return scores of the images `rows`, whose pooled features are given: (N,) each."""
        if not names:
            return {}
        if not self.evaluated[number].is_frozen:
            found = self._bank(number, fold, pooled.bank_ND).scores(pooled.val_ND, names)
            return {name: score.cpu() for name, score in found.items()}
        inputs = self.inputs[number]
        assert isinstance(inputs, FeatureInputs)

        def compute(name: str) -> torch.Tensor:
            return self._bank(number, fold).scores(pooled.val_ND, [name])[name].cpu()

        for name in names:
            if (name, number, fold) not in self._frozen_scores:
                self._frozen_scores[name, number, fold] = inputs.once(
                    formula(name),
                    (*self._bank_rows(number, fold), rows),
                    functools.partial(compute, name),
                )
        return {name: self._frozen_scores[name, number, fold] for name in names}

    def _bank(
        self, number: int, fold: int | None = None, whole_ND: torch.Tensor | None = None
    ) -> FeatureBank:
        """Return the bank of a branch as its weights are now, or that of a fold.

        Args:
            number: Of the branch.
            fold: By what it leaves out.
            whole_ND: The features of the whole bank, of which a fold's are some; null: they are
                computed.
        """
        if (number, fold) in self._frozen_banks:
            return self._frozen_banks[number, fold]
        rows, target = self._bank_rows(number, fold)
        if whole_ND is None:
            features_ND = self._pooled_of_bank(number, rows)
        else:
            features_ND = whole_ND[torch.isin(self._bank_rows(number)[0], rows).to(self.device)]
        bank = FeatureBank.fit(features_ND, target.to(self.device))
        if self.evaluated[number].is_frozen:
            self._frozen_banks[number, fold] = bank
        return bank

    def _pooled_of_bank(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """Return what `_pooled_all` does, with bits that do not depend on which rows are asked for.

        A pass of fewer images rounds otherwise.
        """
        filling = -len(rows) % FORWARD_BATCH[self.device.type]
        padded = torch.cat([rows, rows[-1:].expand(filling)])
        return self._pooled_all(number, padded)[: len(rows)]

    def _pooled_all(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """Return the whole backbone's output for images as they are, (N, D)."""
        model, inputs = self.evaluated[number].eval(), self.inputs[number]
        if model.is_frozen:
            return inputs.plain(rows)
        batches = rows.split(FORWARD_BATCH[self.device.type])
        return torch.cat([self._pooled(model, inputs.plain(batch)) for batch in batches])

    def _bank_rows(self, number: int, fold: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the training images of a branch's bank, and their subclass output, -1 for borrowed
        ones.

        Those of a fold are the trial's without what it leaves out.
        """
        train, novel = self.rows[number], len(self.pools.subclasses)
        is_known = self.pools.sub_target[train] < novel
        parts = []
        for rows, most in (
            (train[is_known], BANK_KNOWN_MAX),
            (train[~is_known], BANK_BORROWED_MAX),
        ):
            drawn = torch.randperm(len(rows), generator=generator(self.config.seed, "bank"))
            parts.append(rows[drawn[:most].sort().values])
        rows, pools = torch.cat(parts), self._all_pools()[fold]
        if pools.left_out is not None:
            rows = rows[~pools.left_out[rows]]
        target = pools.sub_target[rows]
        return rows, target.masked_fill(target == len(pools.subclasses), -1)

    def _pooled(self, model: BranchModel, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_autocast):
            pooled: torch.Tensor = model.tuned(features)
        return pooled.float()

    def state(self) -> dict[str, Any]:
        """Return all that training changes. Randomness follows from seed and epoch."""
        return {
            "frozen": [model.frozen_fingerprint for model in self.branches],
            "branches": [model.trained_state() for model in self.branches],
            "averaged": [
                {} if averaged is model else averaged.trained_state()
                for averaged, model in zip(self.evaluated, self.branches, strict=True)
            ],
            "num_steps": self._num_steps,
            "optimizers": [each.state_dict() for each in self.optimizers],
            "schedules": [each.state_dict() for each in self.schedules],
            "folds": {each: trainer.state() for each, trainer in self.fold_trainers.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            WeightsError: The frozen part had other weights then.
            TrialError: A version of before wrote it.
        """
        if state["frozen"] != [model.frozen_fingerprint for model in self.branches]:
            raise WeightsError(
                "the checkpoint is of a frozen backbone with other weights: "
                "go on with those of before (--weights), or delete the checkpoint"
            )
        if "optimizers" not in state:
            raise TrialError(
                "the checkpoint is of an earlier version, which had one optimizer for all: delete "
                "the trial's checkpoint_*.pt to train it anew"
            )
        for model, saved in zip(self.branches, state["branches"], strict=True):
            model.load_trained_state(saved)
        for model, saved in zip(self.evaluated, state["averaged"], strict=True):
            if saved:
                model.load_trained_state(saved)
        for superclass, trainer in self.fold_trainers.items():
            trainer.load_state(state["folds"][superclass])
        self._num_steps = state["num_steps"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        # How long the schedule is follows from the config, which may have more epochs by now.
        length = ("total_steps", "_schedule_phases")
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict({key: saved[key] for key in saved if key not in length})


def part_of(within: Callable[[float], None], start: float, size: float) -> Callable[[float], None]:
    """Return what tells `within` of a part of the whole, from the share of that part, 0 to 1."""
    return lambda share: within(start + share * size)


class _Features(NamedTuple):
    """Pooled features of one branch."""

    val_ND: torch.Tensor
    """Of the validation images."""
    bank_ND: torch.Tensor | None
    """Of the whole bank, in the order of its rows; null: nobody asks, or they are cached."""


def _seed_layers(seed: int, device: torch.device) -> None:
    """Do what `torch.manual_seed` does for `device` alone.

    That function formats a stack trace for every kind of accelerator that is not in use: a third
    of a frozen epoch's time.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
