"""train(config, data, report) builds any variant and trains it: THE trainable.

Without Ray: ``python -m trainable.train --set epochs=2``.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from upath import UPath

from trainable.checkpoint import load_checkpoint, save_checkpoint
from trainable.classifier import save_classifier, save_outputs
from trainable.config import Task, TrialConfig, parse_settings
from trainable.data import Data, default_cache, folder_for_images, load_data
from trainable.errors import TrialError, UserError, WeightsError
from trainable.features import inputs_for
from trainable.losses import interaction_loss
from trainable.metrics import Outputs, evaluate
from trainable.models import BranchModel
from trainable.rng import generator
from trainable.splits import Pools, make_pools

VAL_BATCH = {"cpu": 64, "cuda": 256}
"""Images at once in validation. On a CPU more would be the trial's peak of memory: with 256, at
64 px, it was 180 MB above that of training steps of 64."""

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a finished trial found out."""

    metrics: Metrics
    """Of the best epoch (`epoch`), on the evaluation half, with the thresholds used
    (`tau_super`, `tau_sub`); only `epoch` and training figures where nothing was held out."""
    branches: tuple[BranchModel, ...]
    """The models as they are after the last epoch."""


def train(
    config: TrialConfig,
    data: Data,
    report: Callable[[Metrics], None],
    *,
    pools: Pools | None = None,
    folder: UPath | None = None,
    cache: Path | None = None,
    weights: Path | None = None,
    full_precision: bool = False,
    stop_after: int | None = None,
    note: Callable[[str], None] = print,
) -> TrialResult:
    """Train one configuration and return the metrics of its best epoch.

    The best epoch is chosen on the calibration half and reported on the evaluation half.

    Args:
        config: The variant.
        data: Its images.
        report: Called after every epoch with its metrics; `epoch` counts from 1. A trial that goes
            on from a checkpoint first repeats the reports of the epochs before it.
        pools: Which images train and judge; null: as `config.seed` fixes them.
        folder: Where checkpoints, the best model and its outputs go, and where an earlier run of
            this trial left them; null: nothing is kept.
        cache: Folder for frozen features, shared by all trials; null: computed every epoch.
        weights: See `backbones.build`.
        full_precision: float32 also on a GPU: neither bf16 autocast nor TF32.
        stop_after: End after this many epochs, on the schedule of `config.epochs`.
        note: Called with lines for a person.

    Raises:
        TrialError: The loss or an output is not finite.
        UserError: The data, the weights and the configuration do not go together.
    """
    pools = pools or make_pools(data, config)
    trainer = Trainer(
        config, data, pools,
        cache=cache, weights=weights, full_precision=full_precision, note=note,
    )  # fmt: skip
    history: list[Metrics] = []
    if folder is not None and (state := load_checkpoint(folder, note)):
        history = state["history"]
        trainer.load_state(state)
        for metrics in history:
            report(metrics)
    last_epoch = config.epochs if stop_after is None else stop_after
    first_epoch = int(history[-1]["epoch"]) + 1 if history else min(1, last_epoch)
    # Zero epochs still evaluate once: the untrained heads, as epoch 0.
    for epoch in range(first_epoch, last_epoch + 1):
        metrics = trainer.train_epoch(epoch) if epoch else {"epoch": 0}
        metrics["novel_images_used"] = pools.novel_images_used
        if len(pools.val):
            outputs = trainer.outputs()
            metrics |= evaluate(outputs, config)
            if not math.isfinite(metrics["ce_super"] + metrics["ce_sub"]):
                raise TrialError(f"the outputs are not finite after epoch {epoch}")
        history.append(metrics)
        if folder is not None:
            if len(pools.val) and best_epoch(history) is metrics:
                save_classifier(folder, config, data, pools, trainer.branches, metrics)
                save_outputs(folder, outputs)
            save_checkpoint(folder, epoch, trainer.state() | {"history": history})
        report(metrics)
    return TrialResult(metrics=best_epoch(history), branches=tuple(trainer.branches))


def best_epoch(history: list[Metrics]) -> Metrics:
    """Return the first epoch with the highest calibration score; without one, the last epoch."""
    return max(history, key=lambda metrics: metrics.get("score_calibration", metrics["epoch"]))


class Trainer:
    """All branches of a trial, their optimizer and what they see.

    The losses of the branches are summed. Branches share no parameter, so each learns exactly as
    if it were alone; nothing here asks which architecture it is.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: Data,
        pools: Pools,
        *,
        cache: Path | None,
        weights: Path | None,
        full_precision: bool = False,
        note: Callable[[str], None],
    ) -> None:
        self.config, self.pools = config, pools
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # bf16 is slower than float32 on the CPUs measured, so only GPUs get it.
        self.is_autocast = self.device.type == "cuda" and not full_precision
        if full_precision:
            torch.backends.cudnn.allow_tf32 = False
        num_classes: dict[Task, int] = {
            "super": len(data.superclasses) + 1,
            "sub": len(pools.subclasses) + 1,
        }
        self.branches = [
            BranchModel.build(branch, num_classes, config.seed, weights)
            .to(memory_format=torch.channels_last)
            .to(self.device)
            for branch in config.branches()
        ]
        self.inputs = [
            inputs_for(
                model, data, config, train_rows=pools.train, val_rows=pools.val,
                cache=cache, note=note,
            )
            for model in self.branches
        ]  # fmt: skip
        # At least two images each: batch norm could not take one.
        self.steps_per_epoch = max(
            1, min(math.ceil(len(pools.train) / config.batch_size), len(pools.train) // 2)
        )
        self.optimizer = self._optimizer()
        self.schedule = self._schedule()
        self.super_of_sub = torch.tensor(pools.super_of_sub, device=self.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for model in self.branches:
            groups.append({"params": [*model.tuned.parameters()], "lr": model.branch.lr})
            groups.append({"params": [*model.heads.parameters()], "lr": model.branch.head_lr})
        kind = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        return kind(
            [group for group in groups if group["params"]],
            weight_decay=self.config.weight_decay,
            fused=self.device.type == "cuda",
        )

    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        if self.config.schedule == "constant" or self.config.epochs == 0:
            return torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)
        return torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=[group["lr"] for group in self.optimizer.param_groups],
            total_steps=self.steps_per_epoch * self.config.epochs,
        )

    def train_epoch(self, epoch: int) -> Metrics:
        """Pass once over the training pool in a new order; return the epoch's training figures.

        Raises:
            TrialError: The mean loss is not finite.
        """
        start_s = time.perf_counter()
        order = torch.randperm(
            len(self.pools.train), generator=generator(self.config.seed, "order", epoch)
        )
        for model, inputs in zip(self.branches, self.inputs, strict=True):
            model.train()
            inputs.start_epoch(epoch)
        total_loss = torch.zeros((), device=self.device)
        # Near-equal batches: no last one of a single image, which batch norm could not take.
        batches = self.pools.train[order].tensor_split(self.steps_per_epoch)
        for step, rows in enumerate(batches):
            self.optimizer.zero_grad(set_to_none=True)
            for loss in self._losses(rows, epoch, step):
                loss.backward()  # at once: two branches' activations would be twice the memory
                total_loss += loss.detach() * len(rows)
            self.optimizer.step()
            self.schedule.step()
        train_loss = float(total_loss) / len(self.pools.train)
        if not math.isfinite(train_loss):
            raise TrialError(f"the loss is {train_loss} in epoch {epoch}: lower lr")
        return {
            "epoch": epoch,
            "train_loss": train_loss,
            "epoch_s": time.perf_counter() - start_s,
        }

    def _losses(self, rows: torch.Tensor, epoch: int, step: int) -> Iterator[torch.Tensor]:
        """Give each branch's loss: cross-entropy of each head, and the interaction."""
        target: dict[Task, torch.Tensor] = {
            "super": self.pools.super_target[rows].to(self.device, non_blocking=True),
            "sub": self.pools.sub_target[rows].to(self.device, non_blocking=True),
        }
        for model, inputs in zip(self.branches, self.inputs, strict=True):
            # Layers that draw (dropout) have no generator of their own.
            purpose = (self.config.seed, "layers", epoch, step, *model.branch.tasks)
            _seed_layers(generator(*purpose).initial_seed(), self.device)
            logits = self._logits(model, inputs.training(rows))
            loss = torch.zeros((), device=self.device)
            for task in model.branch.tasks:
                loss = loss + F.cross_entropy(logits[task], target[task])
            if len(model.branch.tasks) == 2 and self.config.alpha > 0:
                loss = loss + self.config.alpha * interaction_loss(
                    logits["super"], logits["sub"], self.super_of_sub, self.config.temperature
                )
            yield loss

    def _logits(self, model: BranchModel, features: torch.Tensor) -> dict[Task, torch.Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.is_autocast):
            logits = model(features)
        return {task: each.float() for task, each in logits.items()}

    @torch.inference_mode()
    def outputs(self) -> Outputs:
        """Return what the branches say about the validation images, on the CPU."""
        pools = self.pools
        logits: dict[Task, list[torch.Tensor]] = {"super": [], "sub": []}
        for model, inputs in zip(self.branches, self.inputs, strict=True):
            model.eval()
            for rows in pools.val.split(VAL_BATCH[self.device.type]):
                for task, each in self._logits(model, inputs.plain(rows)).items():
                    logits[task].append(each.cpu())
        return Outputs(
            super_logits=torch.cat(logits["super"]),
            sub_logits=torch.cat(logits["sub"]),
            super_target=pools.super_target[pools.val],
            sub_target=pools.sub_target[pools.val],
            kind=pools.val_kind,
            is_calibration=pools.val_is_calibration,
            rows=pools.val,
        )

    def state(self) -> dict[str, Any]:
        """Return all that training changes. Randomness follows from seed and epoch."""
        return {
            "frozen": [model.frozen_fingerprint for model in self.branches],
            "branches": [model.trained_state() for model in self.branches],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            WeightsError: The frozen part had other weights then.
        """
        if state["frozen"] != [model.frozen_fingerprint for model in self.branches]:
            raise WeightsError(
                "the checkpoint is of a frozen backbone with other weights: "
                "resume with the --weights of before"
            )
        for model, saved in zip(self.branches, state["branches"], strict=True):
            model.load_trained_state(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        # How long the schedule is follows from the config, which may have more epochs by now.
        length = ("total_steps", "_schedule_phases")
        self.schedule.load_state_dict(
            {key: value for key, value in state["schedule"].items() if key not in length}
        )


def _seed_layers(seed: int, device: torch.device) -> None:
    """Do what `torch.manual_seed` does for `device` alone.

    That function formats a stack trace for every kind of accelerator that is not in use: a third
    of a frozen epoch's time.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def main(argv: list[str] | None = None) -> int:
    """Train one configuration and print its metrics; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainable.train", description=main.__doc__)
    add = parser.add_argument
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    add("--data", default="synthetic", metavar="PATH|synthetic")
    add("--novel", metavar="PATH|cifar100|synthetic")
    add("--weights", type=Path, metavar="PATH", help="pretrained weights: a file or a folder")
    add("--folder", type=UPath, help="keep checkpoints, the best model and its outputs here")
    where = parser.add_mutually_exclusive_group().add_argument
    where("--cache", type=Path, default=default_cache(), help="decoded images and frozen features")
    where("--no-cache", action="store_true", help="keep neither, and compute in float32")
    args = parser.parse_args(argv)
    try:
        config = TrialConfig.from_dict(parse_settings(args.settings))
        novel = args.novel or default_novel(args.data)
        with folder_for_images(None if args.no_cache else args.cache) as folder:
            data = load_data(args.data, novel, folder)
        if shortage := novel_shortage(config, make_pools(data, config)):
            print(shortage)
        result = train(
            config, data, _print_epoch,
            folder=args.folder, cache=None if args.no_cache else args.cache,
            weights=args.weights, full_precision=args.no_cache,
        )  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrialError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result.metrics, indent=2))
    return 0


def novel_shortage(config: TrialConfig, pools: Pools) -> str:
    """Return a line that says so where the novel pool is smaller than asked, else nothing."""
    if pools.novel_images_used >= config.novel_images:
        return ""
    return (
        f"novel_images: {config.novel_images:,} asked, the pool has {pools.novel_images_used:,} "
        "for training; it is used whole"
    )


def default_novel(data: str) -> str:
    """Return the novel pool that goes with `data` when none is given."""
    return "synthetic" if data == "synthetic" else "cifar100"


def _print_epoch(metrics: Metrics) -> None:
    shown = ("train_loss", "score", "seen_super", "unseen_super", "seen_sub", "unseen_sub")
    print(
        f"epoch {metrics['epoch']:.0f}  "
        + "  ".join(f"{name} {metrics[name]:.3f}" for name in shown if name in metrics)
    )


if __name__ == "__main__":
    sys.exit(main())
