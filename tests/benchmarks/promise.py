"""Does what a search promises come true on classes that it never saw?

`python -m tests.benchmarks.promise --data ZIP --novel ZIP --splits 6 --configs 20` takes in each
split one superclass and 15% of the other subclasses away from the search altogether, and keeps
back a share of the images of every subclass that is left: these stand for the test. Then it trains
as many frozen configurations as a search would, from cached features, picks the best by `score`,
and compares what its validation promised, with its interval, with what is found. So it also does
for a refit of the picked one on all classes that the search has. The rank correlation between
promised and found score is over all configurations of a split.

Splits and configurations are the same for whatever protocol the product follows; `--rejection` lets
configurations bound how many known images are rejected. The last line is one JSON object.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pandas as pd
import torch
from scipy.stats import spearmanr
from upath import UPath

from results.naming import described
from tests.benchmarks.common import finish, parser, say, sources
from trainable.classifier import load_outputs, load_rule
from trainable.config import Task, TrialConfig
from trainable.data.dataset import Data, load_data
from trainable.data.splits import (
    NOVEL_SUPER,
    PSEUDO_NOVEL,
    SEEN,
    Pools,
    make_pools,
)
from trainable.model.inputs import inputs_for
from trainable.novelty.bank import all_of_features
from trainable.novelty.intervals import interval_of
from trainable.novelty.metrics import judge
from trainable.novelty.rule import Rule
from trainable.novelty.thresholds import Outputs, choose_rule
from trainable.out_of_fold import Rejected, carried_over, pools_of_refit
from trainable.rng import generator
from trainable.train import TrialResult, train

SUBCLASSES_TAKEN = 0.15
IMAGES_KEPT_BACK = 0.15
RATES = ("seen_super", "unseen_super", "seen_sub", "unseen_sub")
SHOWN = (*RATES, "known_rejected_super", "known_rejected_sub", "score")


@dataclass(frozen=True, kw_only=True)
class Split:
    """What the search gets, and what is kept from it."""

    data: Data
    """Every image, so that splits share their features, with the labels of this split."""
    searched: Data
    """What the search has: without one superclass, 15% of the other subclasses, and a share of
    every other one. Labels only: its images are black."""
    rows: torch.Tensor
    """int64: rows of `data` that the search has, in its order."""
    test: torch.Tensor
    """int64 (N,): rows of the whole data."""
    superclass: torch.Tensor
    """int64 (N,): as `data` counts them; novel is the number of its superclasses."""
    subclass: torch.Tensor
    """int64 (N,): as `data` counts them; novel is the number of its subclasses."""
    true_class: torch.Tensor
    """int64 (N,): subclass in the whole data."""


def make_split(whole: Data, number: int) -> Split:
    """Return split `number`: the superclasses take turns, the rest is drawn by the number."""
    taken = number % len(whole.superclasses)
    others = [i for i, s in enumerate(whole.super_of_sub) if s != taken]
    order = torch.randperm(len(others), generator=generator("promise", "subclasses", number))
    away = {others[i] for i in order[: round(SUBCLASSES_TAKEN * len(others))].tolist()}
    kept = [i for i in others if i not in away]
    known = torch.arange(whole.num_known)
    subclass = whole.subclass[: whole.num_known]
    to_search, to_test = [], [known[~torch.isin(subclass, torch.tensor(kept))]]
    for each in kept:
        rows = known[subclass == each]
        rows = rows[torch.randperm(len(rows), generator=generator("promise", number, each))]
        count = max(1, round(IMAGES_KEPT_BACK * len(rows)))
        to_test.append(rows[:count])
        to_search.append(rows[count:])
    borrowed = torch.arange(whole.num_known, len(whole.images))
    rows, test = torch.cat([torch.cat(to_search).sort().values, borrowed]), torch.cat(to_test)
    # The novel class is the last entry of each table, before and after.
    supers = [i for i in range(len(whole.superclasses)) if i != taken]
    of_super = torch.full((len(whole.superclasses) + 1,), len(supers))
    of_super[supers] = torch.arange(len(supers))
    of_sub = torch.full((len(whole.subclasses) + 1,), len(kept))
    of_sub[kept] = torch.arange(len(kept))
    data = replace(
        whole,
        superclass=of_super[whole.superclass],
        subclass=of_sub[whole.subclass],
        superclasses=tuple(whole.superclasses[i] for i in supers),
        subclasses=tuple(whole.subclasses[i] for i in kept),
        super_of_sub=tuple(int(of_super[whole.super_of_sub[i]]) for i in kept),
    )
    picked: dict[str, Any] = {
        field.name: getattr(data, field.name)[rows]
        for field in fields(data)
        if field.name != "images" and isinstance(getattr(data, field.name), torch.Tensor)
    }
    searched = replace(data, images=torch.zeros(len(rows), 1, 1, 3, dtype=torch.uint8), **picked)
    return Split(
        data=data,
        searched=searched,
        rows=rows,
        test=test,
        superclass=data.superclass[test],
        subclass=data.subclass[test],
        true_class=whole.subclass[test],
    )


def in_whole(pools: Pools, split: Split) -> Pools:
    """Return pools of `split.searched` as rows of `split.data`."""

    def spread(target: torch.Tensor) -> torch.Tensor:
        everywhere = torch.full((len(split.data.images),), -1)
        everywhere[split.rows] = target
        return everywhere

    left_out = pools.left_out
    if left_out is not None:
        of_all = torch.zeros(len(split.data.images), dtype=torch.bool)
        of_all[split.rows] = left_out
        left_out = of_all
    return replace(
        pools,
        left_out=left_out,
        train=split.rows[pools.train],
        val=split.rows[pools.val],
        super_target=spread(pools.super_target),
        sub_target=spread(pools.sub_target),
    )


def configuration(number: int, **fixed: Any) -> TrialConfig:
    """Return a frozen configuration, drawn by its number alone."""
    sampler = optuna.samplers.RandomSampler(seed=number)
    trial = optuna.create_study(sampler=sampler).ask()
    choose = trial.suggest_categorical
    scores = ["msp", "max_logit", "energy", "rmds"]
    architecture = choose("architecture", ["two_heads", "two_models"])
    borrowed = choose("novel_images", [0, 1000, 5000])
    config: dict[str, Any] = {
        "architecture": architecture,
        "fine_tune": "frozen",
        "novel_images": borrowed,
        "super_head": choose("super_head", ["linear", "cosine"]),
        "sub_head": choose("sub_head", ["linear", "cosine"]),
        "super_novelty_score": choose("super_score", [*scores, "near"]),
        "sub_novelty_score": choose("sub_score", scores),
        "couple_novel": choose("couple_novel", [False, True]),
        "label_smoothing": choose("label_smoothing", [0.0, 0.1]),
        "lr": trial.suggest_float("lr", 3e-4, 3e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True),
    }
    if config["super_novelty_score"] == "near":
        config["super_novelty_score"] = "knn_difference" if borrowed else "knn"
    if borrowed:
        config["outlier_exposure"] = choose("outlier_exposure", [0.0, 0.5])
    if architecture == "two_heads":
        config["alpha"] = trial.suggest_float("alpha", 0.01, 1.0, log=True)
        config["temperature"] = trial.suggest_float("temperature", 0.5, 4.0, log=True)
    # Last, so that all else is the same with it and without.
    rejection = {
        "known_rejection_super": choose("rejection_super", [None, 0.03, 0.06]),
        "known_rejection_sub": choose("rejection_sub", [None, 0.05, 0.1, 0.15]),
    }
    return TrialConfig(**config | (rejection if fixed.pop("rejection") else {}) | fixed)


@torch.inference_mode()
def answered(
    split: Split, pools: Pools, result: TrialResult, pooled_ND: torch.Tensor, *, judged: bool
) -> Outputs:
    """Return what a frozen model says about the test images, whose pooled features are given.

    Args:
        split: The test.
        pools: Of the training: images of subclasses that it held out for its own validation are
            left out where it was `judged` on them.
        result: The model.
        pooled_ND: float, in the order of the test images.
        judged: Whether the pools held subclasses out.
    """
    logits: dict[Task, torch.Tensor] = {}
    scores: dict[Task, dict[str, torch.Tensor]] = {}
    for model, bank in zip(result.branches, result.banks, strict=True):
        score = {} if bank is None else bank.scores(pooled_ND, all_of_features())
        for task, each in model.eval().classify(pooled_ND).items():
            logits[task], scores[task] = each.float(), score
    num_super, num_sub = len(split.data.superclasses), len(split.data.subclasses)
    output = torch.full((num_sub + 1,), len(pools.subclasses))
    output[list(pools.subclasses)] = torch.arange(len(pools.subclasses))
    kind = torch.full_like(split.subclass, SEEN)
    kind[split.subclass == num_sub] = PSEUDO_NOVEL
    kind[split.superclass == num_super] = NOVEL_SUPER
    outputs = Outputs(
        super_logits=logits["super"],
        sub_logits=logits["sub"],
        super_feature_scores=scores["super"],
        sub_feature_scores=scores["sub"],
        super_of_sub=torch.tensor(pools.super_of_sub),
        super_target=split.superclass,
        sub_target=output[split.subclass],
        kind=kind,
        in_part_a=torch.zeros_like(kind, dtype=torch.bool),
        rows=split.test,
        true_class=split.true_class,
    )
    was_held_out = (split.subclass < num_sub) & (outputs.sub_target == len(pools.subclasses))
    return outputs.where(~was_held_out) if judged else outputs


def rule_of(folder: UPath, config: TrialConfig) -> tuple[Rule, Rejected]:
    """Return a trial's rule and what it rejects, which `search.refit` carries over to its model."""
    outputs = load_outputs(folder)
    rule = choose_rule(outputs, config)
    return rule, Rejected.by(rule, outputs)


def run_split(
    whole: Data, number: int, configs: list[TrialConfig], cache: Path
) -> Iterator[dict[str, Any]]:
    """Train every configuration and the refit of the best; yield a row for each and metric."""
    split = make_split(whole, number)
    pooled: torch.Tensor | None = None
    best: tuple[float, TrialConfig, dict[str, float], tuple[Rule, Rejected]] | None = None
    for place, config in enumerate(configs):
        pools = in_whole(make_pools(split.searched, config), split)
        with tempfile.TemporaryDirectory() as scratch:
            folder = UPath(scratch)
            result = train(
                config, split.data, _nothing, pools=pools, folder=folder, cache=cache, note=_nothing
            )
            rule, carried = load_rule(folder), rule_of(folder, config)
        if pooled is None:
            inputs = inputs_for(
                result.branches[0], whole, replace(config, augment="none"),
                train_rows=split.test[:0], val_rows=split.test, cache=cache, note=_nothing,
            )  # fmt: skip
            pooled = inputs.plain(split.test)
        found = judge(answered(split, pools, result, pooled, judged=True), rule)
        yield from rows_of(number, place, "trial", result.metrics, found)
        say(
            f"split {number} configuration {place:2}: promised {result.metrics['score']:.3f}, "
            f"found {found['score']:.3f}, {described(config)}"
        )
        if best is None or result.metrics["score"] > best[0]:
            best = result.metrics["score"], config, result.metrics, carried
    assert best is not None
    assert pooled is not None
    _, config, promised, (rule, rejected) = best
    scores: dict[str, Any] = {
        "super_novelty_score": rule.super_score, "sub_novelty_score": rule.sub_score,
    }  # fmt: skip
    config = replace(config, **scores)
    # By the images that the search has: the shares of all of them would train on the test.
    asked = pools_of_refit(split.searched, config)
    pools = in_whole(asked.whole, split)
    shares = [in_whole(each, split) for each in asked.shares]
    result = train(
        config, split.data, _nothing, pools=pools, cache=cache,
        stop_after=int(promised["epoch"]), shares=shares, judge=False, note=_nothing,
    )  # fmt: skip
    rule = carried_over(rule, rejected, asked, result)
    found = judge(answered(split, pools, result, pooled, judged=False), rule)
    yield from rows_of(number, configs.index(best[1]), "refit", promised, found)


def rows_of(
    split: int, place: int, what: str, promised: dict[str, float], found: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric: promised with its interval, and found."""
    for name in SHOWN:
        low, high = interval_of(promised, name) or (float("nan"), float("nan"))
        yield {
            "split": split, "configuration": place, "model": what, "metric": name,
            "promised": promised[name], "low": low, "high": high, "found": found[name],
        }  # fmt: skip


def summary(rows: pd.DataFrame, model: str) -> dict[str, Any]:
    """Return for the best configuration of each split and each metric how it compares."""
    trials = rows[rows["model"] == "trial"]
    by_score = trials[trials["metric"] == "score"]
    best = by_score.loc[by_score.groupby("split")["promised"].idxmax()]
    picked = rows.merge(best[["split", "configuration"]], on=["split", "configuration"])
    picked = picked[picked["model"] == model]
    is_covered = (picked["low"] <= picked["found"]) & (picked["found"] <= picked["high"])
    picked = picked.assign(covered=is_covered, difference=picked["promised"] - picked["found"])
    say(f"\n{'split':5} {'metric':21} {'promised':>8} {'interval':>13} {'found':>6}  covered")
    for row in picked.itertuples():
        say(
            f"{row.split:5} {row.metric:21} {row.promised:8.3f}  {row.low:.3f}-{row.high:.3f}"
            f" {row.found:6.3f}  {'yes' if row.covered else 'no'}"
        )
    result: dict[str, Any] = {}
    say(f"\nmean of the {model}s: promised minus found, its mean size, and how many are covered")
    for name, group in picked.groupby("metric", sort=False):
        difference, size = group["difference"].mean(), group["difference"].abs().mean()
        result[str(name)] = {
            "promised": group["promised"].mean(), "found": group["found"].mean(),
            "difference": difference, "absolute_difference": size,
            "covered": int(group["covered"].sum()), "of": len(group),
            "width": (group["high"] - group["low"]).mean(),
        }  # fmt: skip
        say(
            f"{name:21} {group['promised'].mean():.3f} - {group['found'].mean():.3f} = "
            f"{difference:+.3f}  ({size:.3f})  {group['covered'].sum()} of {len(group)}"
        )
    return result


def rank_correlations(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Return Spearman's correlation of promised and found over the trials of each split."""
    trials = rows[rows["model"] == "trial"]
    return {
        str(name): [
            float(spearmanr(each["promised"], each["found"]).statistic)
            for _, each in group.groupby("split")
        ]
        for name, group in trials.groupby("metric", sort=False)
    }


def main(argv: list[str] | None = None) -> None:
    """Print promised and found of every split."""
    add = (options := parser("promise", __doc__)).add_argument
    add("--splits", type=int, default=6)
    add("--configs", type=int, default=20)
    add("--epochs", type=int, default=10)
    add("--image-size", type=int, default=64)
    add("--protocol", choices=("old", "new"), default="new", help="old: no superclass is left out")
    add("--rejection", action=argparse.BooleanOptionalAction, help="(default: with the new one)")
    add("--cache", type=Path, help="keep features here (default: nowhere)")
    add("--rows", type=Path, metavar="FILE.csv", help="write what each configuration gave")
    args = options.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rejection = args.protocol == "new" if args.rejection is None else args.rejection
    left_out = "none" if args.protocol == "old" else "features"
    configs = [
        configuration(
            n,
            rejection=rejection,
            epochs=args.epochs,
            image_size=args.image_size,
            left_out=left_out,
        )
        for n in range(args.configs)
    ]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        given, cache = sources(args, Path(folder)), args.cache or Path(folder) / "cache"
        whole = load_data(str(given.data), str(given.novel), cache, note=say)
        rows = pd.DataFrame(
            [row for n in range(args.splits) for row in run_split(whole, n, configs, cache)]
        )
    if args.rows:
        rows.to_csv(args.rows, index=False)
    of_trial, of_refit = summary(rows, "trial"), summary(rows, "refit")
    ranks = rank_correlations(rows)
    say("\nrank correlation of promised and found over the configurations, mean (of each split)")
    for name, each in ranks.items():
        say(f"{name:21} {fmean(each):.2f} ({', '.join(f'{value:.2f}' for value in each)})")
    finish(
        {
            "benchmark": "promise", "protocol": args.protocol, "rejection": rejection,
            "splits": args.splits, "configs": args.configs, "epochs": args.epochs,
            "trial": of_trial, "refit": of_refit,
            "rank_correlation": {name: fmean(each) for name, each in ranks.items()},
        }
    )  # fmt: skip


def _nothing(*_: Any) -> None:
    """Take a report and say nothing."""


if __name__ == "__main__":
    main()
