"""train(config, data, report) builds any variant and trains it: THE trainable.

Without Ray: ``python -m trainable.train --set epochs=2``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainable.checkpoint import load_checkpoint, save_checkpoint
from trainable.classifier import (
    add_promise,
    load_outputs,
    load_rule,
    load_weights,
    save_classifier,
    save_outputs,
    save_table,
)
from trainable.config import Task, TrialConfig, parse_settings
from trainable.data.dataset import Data, default_cache, folder_for_images, load_data
from trainable.data.splits import Pools, make_folds, make_pools
from trainable.epoch import Epoch, best_epoch
from trainable.errors import Parser, TrialError, UserError, typed
from trainable.memory import keep_freed_memory
from trainable.model.branch import BranchModel
from trainable.novelty.bank import FeatureBank
from trainable.novelty.intervals import flat, outputs_intervals
from trainable.novelty.metrics import METRICS, evaluate
from trainable.novelty.rule import Rule, accepting_all, averaged
from trainable.novelty.thresholds import Outputs, PartRules, choose_rule
from trainable.parts import REGISTRIES
from trainable.trainer import Metrics as Metrics
from trainable.trainer import Trainer, part_of
from trainable.user_parts import read_beside

if TYPE_CHECKING:
    from upath import UPath


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a finished trial found out."""

    metrics: Metrics
    """Of the best epoch (`epoch`), see `metrics.evaluate`, with the thresholds it is kept with
    (`tau_super`, `tau_sub`); only `epoch` and training figures where nothing was held out. Where
    it was kept in a folder, with the intervals of the main rates (`interval.NAME.low`, `.high`)."""
    branches: tuple[BranchModel, ...]
    """The models: of the best epoch where it was kept in a folder, else of the last one."""
    banks: tuple[FeatureBank | None, ...]
    """Of each branch whose novelty score is of features."""
    shares: tuple[Outputs, ...] = ()
    """What heads that did not train on a share of the images say about it, see `train`."""
    outputs: Outputs | None = None
    """What the last models say of `pools.val`, where that judges no epoch, see `train`."""


def together(members: Sequence[TrialResult]) -> TrialResult:
    """Return what an ensemble found out whose members trained on the same pools: all their models,
    and the means of what they say.
    """
    said = [each.outputs for each in members if each.outputs is not None]
    return TrialResult(
        metrics=members[0].metrics,
        branches=tuple(branch for each in members for branch in each.branches),
        banks=tuple(bank for each in members for bank in each.banks),
        shares=tuple(map(averaged, zip(*(each.shares for each in members), strict=True))),
        outputs=averaged(said) if said else None,
    )


def train(
    config: TrialConfig,
    data: Data,
    report: Callable[[Metrics], None],
    *,
    pools: Pools | None = None,
    folder: UPath | None = None,
    cache: Path | None = None,
    weights: Path | None = None,
    is_fast: bool = True,
    stop_after: int | None = None,
    metric: str = "score",
    shares: Sequence[Pools] = (),
    judge: bool = True,
    note: Callable[[str], None] = print,
    within: Callable[[float], None] = lambda epochs: None,
) -> TrialResult:
    """Train one configuration and return the metrics of its best epoch.

    The best epoch is the one that is best by `metric`, see `epoch.best_epoch`.

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
        is_fast: False: no speed path that could change a result, which `--no-cache` asks for: no
            features are stored, whatever `cache` says, and a GPU too computes in float32, with
            neither bf16 autocast nor TF32.
        stop_after: End after this many epochs, on the schedule of `config.epochs`.
        metric: What the best epoch is best by, see `epoch.best_epoch`.
        shares: Pools like `pools` that leave images out: further heads on the same features train
            in step without those, and say at the end what they make of them, see
            `TrialResult.shares`.
        judge: False: no epoch is judged, and the last one's models say at the end what they make
            of `pools.val`, see `TrialResult.outputs`.
        note: Called with lines for a person.
        within: Called after every step with the epochs done so far: 2.25 is a quarter of the third.

    Raises:
        TrialError: The loss or an output is not finite.
        UserError: The data, the weights and the configuration do not go together.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # a process trains one trial after another
    pools = pools or make_pools(data, config)
    trainer = Trainer(
        config, data, pools,
        cache=cache, weights=weights, is_fast=is_fast, shares=shares, note=note,
    )  # fmt: skip
    history: list[Metrics] = []
    if folder is not None and (state := load_checkpoint(folder, note)):
        history = state["history"]
        trainer.load_state(state)
        for before in history:
            report(before)
    is_judged = judge and len(pools.val) > 0
    last_epoch = config.epochs if stop_after is None else stop_after
    first_epoch = int(history[-1]["epoch"]) + 1 if history else min(1, last_epoch)
    # Zero epochs still evaluate once: the untrained heads, as epoch 0.
    for epoch in range(first_epoch, last_epoch + 1):
        metrics: Metrics = {"epoch": 0}
        if epoch:
            metrics = trainer.train_epoch(epoch, part_of(within, epoch - 1, 1.0))
        metrics["novel_images_used"] = pools.novel_images_used
        if is_judged:
            outputs = trainer.outputs()
            if not all(each.is_finite() for each in (outputs, *outputs.folds)):
                raise TrialError(f"the outputs are not finite after epoch {epoch}")
            metrics |= evaluate(outputs, config, metric)
        history.append(metrics)
        if folder is not None:
            if is_judged and _best(history, metric) is metrics:
                rule = choose_rule(outputs, config)
                save_classifier(
                    folder, config, data, pools, trainer.evaluated, metrics, rule, trainer.banks()
                )
                save_outputs(folder, outputs)
            save_checkpoint(folder, epoch, trainer.state() | {"history": history})
        report(metrics)
    result = _best(history, metric)
    if folder is not None and is_judged and config.epochs:
        # The best model once more, with every score that could be chosen after the fact.
        load_weights(folder, trainer.evaluated)
        outputs = trainer.outputs(all_scores=True)
        if trainer.fold_trainers:  # their models of that epoch were not kept, what they said was
            outputs = replace(outputs, folds=load_outputs(folder).folds)
        save_outputs(folder, outputs)
        save_table(folder, outputs, config)
        _note_out_of_reach(load_rule(folder), outputs, config, int(result["epoch"]), note)
        answers = PartRules.choose(outputs, config).answers(outputs)
        result = result | flat(outputs_intervals(outputs, answers))
        add_promise(folder, result)
    said = trainer.outputs() if not judge and len(pools.val) else None
    if said is not None and not said.is_finite():
        raise TrialError(f"the outputs are not finite after epoch {last_epoch}")
    return TrialResult(
        metrics=result,
        branches=tuple(trainer.evaluated),
        banks=tuple(trainer.banks()),
        shares=trainer.outputs_of_shares() if shares else (),
        outputs=said,
    )


def _note_out_of_reach(
    rule: Rule, outputs: Outputs, config: TrialConfig, epoch: int, note: Callable[[str], None]
) -> None:
    """Say which bound on rejected known images no threshold can keep, and why."""
    for task in accepting_all(rule):
        rejection = getattr(config, f"known_rejection_{task}")
        if rejection is None:
            continue
        num_known = int(outputs.is_known(task).sum())
        needed = math.ceil(1 / rejection - 1 - 1e-9)
        reason = f"it needs {needed:,} known validation images, there are {num_known:,}"
        if num_known >= needed:
            reason = "the head itself calls as many of them novel, or a group is too small"
        note(
            f"known_rejection_{task} {rejection:g} is out of reach in epoch {epoch}: {reason}; "
            f"tau_{task} accepts all that the head does not call novel"
        )


def _best(history: list[Metrics], metric: str) -> Metrics:
    """Return what was reported of the best epoch."""
    number = best_epoch([Epoch.of(metrics) for metrics in history], metric).number
    return next(metrics for metrics in history if metrics["epoch"] == number)


def main(argv: list[str] | None = None) -> int:
    """Train one configuration and print its metrics."""
    from upath import UPath  # nothing else here needs it, and the GPU benchmark goes without

    parts = "; ".join(f"{each.key}: {', '.join(each)}" for each in REGISTRIES)
    parser = Parser(
        prog=typed("trainable.train"),
        description=main.__doc__,
        epilog=f"Names that keys may have as values: {parts}.",
    )
    add = parser.add_argument
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="a key of the configuration, see docs/config.md")  # fmt: skip
    add("--data", default="synthetic", metavar="PATH|synthetic",
        help="folder or .zip (default: built-in synthetic)")  # fmt: skip
    add("--novel", metavar="PATH|cifar100|synthetic",
        help="borrowed images: folder or .zip (default with --data: cifar100)")  # fmt: skip
    add("--weights", type=Path, metavar="PATH", help="pretrained weights: a file or a folder")
    add("--folder", type=UPath, metavar="DIR",
        help="keep checkpoints, the best model and its outputs here")  # fmt: skip
    add("--metric", default="score", choices=METRICS, metavar="NAME", help="chooses the best epoch")
    add("--parts", action="append", default=[], type=UPath, metavar="FILE",
        help="a file of own parts, see docs/extending.md")  # fmt: skip
    where = parser.add_mutually_exclusive_group().add_argument
    where("--cache", type=Path, metavar="DIR", default=default_cache(),
          help="decoded images and frozen features")  # fmt: skip
    where("--no-cache", action="store_true", help="keep neither, and compute in float32")
    args = parser.parse_args(argv)
    keep_freed_memory()
    try:
        read_beside(args.parts).use()
        config = TrialConfig.from_dict(parse_settings(args.settings))
        novel = default_novel(args.data) if args.novel is None else args.novel
        with folder_for_images(None if args.no_cache else args.cache) as folder:
            data = load_data(args.data, novel, folder)
        if shortage := novel_shortage(config, make_pools(data, config)):
            print(shortage)
        for line in left_out_lines([config], data):
            print(line)
        result = train(
            config, data, _print_epoch,
            folder=args.folder, cache=args.cache, weights=args.weights,
            is_fast=not args.no_cache, metric=args.metric,
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
    asked = config.most_novel_images()
    if pools.novel_images_used >= asked:
        return ""
    return (
        f"novel_images: {asked:,} asked, the pool has {pools.novel_images_used:,} "
        "for training; it is used whole"
    )


def left_out_lines(configs: Sequence[TrialConfig], data: Data) -> list[str]:
    """Return lines that say what `unseen_super` is worth, and what it costs, where that is not
    plain: for configurations of one search.
    """
    num = len(data.superclasses)
    if num < 2:
        return [
            "one superclass, so none can be left out: unseen_super is measured on borrowed images, "
            "which promise too much where they look less like yours than what comes later"
        ]
    found = {config.left_out: config for config in configs}
    if {*found} == {"none"}:
        return [
            "left_out none: unseen_super is measured on borrowed images, which promise too much "
            "where they look less like yours than what comes later"
        ]
    lines = []
    some = next(config for config in configs if config.left_out != "none")
    folds = len(make_folds(make_pools(data, some), some))
    if folds < num:
        lines.append(
            f"{folds} of {num} superclasses are left out in turn, those that can be judged"
        )
    if any(each.left_out == "train" and tuned_tasks(each) for each in configs):
        lines.append(f"left_out train: where something is tuned, a trial trains {1 + folds} times")
    if any(each.left_out == "features" and "super" in tuned_tasks(each) for each in configs):
        lines.append(
            "left_out features: a fine-tuned superclass branch has seen the superclass left "
            "out, so unseen_super promises too much; left_out=train does not, and trains "
            f"{1 + folds} times a trial"
        )
    return lines


def tuned_tasks(config: TrialConfig) -> set[Task]:
    """Return the tasks of the branches that train more than heads."""
    tuned = (branch for branch in config.branches() if branch.fine_tune != "frozen")
    return {task for branch in tuned for task in branch.tasks}


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
