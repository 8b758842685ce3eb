"""Which trial is best: alone, on a Pareto front, and by the mean over several seeds.

Trials that differ in nothing but the seed are one configuration, however they came to be run:
by `--repeat`, or by a space file that lists its baselines with several seeds. The seed draws the
held-out subclasses, the validation images, the initial heads and the order, so two configurations
are compared by their differences at the same seeds, which cancels what the seed does to both.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd

from results.history import searched
from results.naming import Names
from results.trial import TrialState
from trainable.config import TrialConfig
from trainable.novelty.metrics import METRICS

RESAMPLES = 9999
CONFIDENCE = 0.95
SEEDS_TO_PROVE = 6
"""With fewer, differences that all point one way are luck in over 5% of cases: 2 of 2**5."""


def ranking_metric(metrics: list[str], trials: pd.DataFrame) -> str:
    """Return what orders the trials of a search: its one metric, or `score` for a Pareto front.

    Where no complete trial has a `score`, which not all of them need to have, it is the first one.
    """
    if len(metrics) == 1 or not completed(trials)["score"].notna().any():
        return metrics[0]
    return "score"


def sign(metric: str) -> float:
    """Return 1 where more of the metric is better, else -1: times it, the largest is the best."""
    return 1.0 if METRICS[metric] == "maximize" else -1.0


def best_place(values: npt.ArrayLike, metric: str) -> int | None:
    """Return the place of the first best value of a metric; NaN never is, and None if all are."""
    signed_N = np.asarray(values, dtype=float) * sign(metric)
    return None if np.isnan(signed_N).all() else int(np.nanargmax(signed_N))


def running_best(values: "pd.Series[float]", metric: str) -> "pd.Series[float]":
    """Return for each value of a metric the best one up to there."""
    return (values * sign(metric)).cummax() * sign(metric)


def completed(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that ran to their end, whose results may be ranked."""
    return trials[trials["state"] == TrialState.COMPLETE] if len(trials) else trials


def best_row(trials: pd.DataFrame, metrics: list[str]) -> "pd.Series[Any] | None":
    """Return the best complete trial by `ranking_metric`; None where none has a value of it."""
    complete = completed(trials)
    metric = ranking_metric(metrics, trials)
    place = best_place(complete[metric], metric) if len(complete) else None
    return None if place is None else complete.iloc[place]


def pareto_rows(trials: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Return the complete trials that no other one beats in every metric."""
    complete = completed(trials).dropna(subset=metrics)
    with quiet_optuna():
        study = optuna.create_study(directions=[METRICS[name] for name in metrics])
    values = complete[metrics].astype(float).to_numpy().tolist()
    study.add_trials([optuna.trial.create_trial(values=each) for each in values])
    return complete.iloc[sorted(trial.number for trial in study.best_trials)]


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Have Optuna not tell of every new study, which it does by default."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def by_configuration(configs: Iterable[TrialConfig | None]) -> list[list[int]]:
    """Return the places of each configuration, whatever its seed, in the order of the first."""
    groups: dict[TrialConfig, list[int]] = {}
    for place, config in enumerate(configs):
        if config is not None:
            groups.setdefault(replace(config, seed=0), []).append(place)
    return [*groups.values()]


def ranked_originals(complete: pd.DataFrame, metric: str) -> list[int]:
    """Return the first trial of each configuration, best first, by the mean of its own trials.

    Those without a value come last.
    """
    values_N = np.nan_to_num(complete[metric].to_numpy(float) * sign(metric), nan=-np.inf)
    groups = by_configuration(complete["config"])
    groups.sort(key=lambda places: -values_N[places].mean())
    return [int(complete["number"].iloc[places[0]]) for places in groups]


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """One configuration and its trials."""

    original: "pd.Series[Any]"
    """Row of its first complete trial, whose number names the configuration."""
    seeds: frozenset[int]
    """It was asked to run with, whatever came of it."""
    by_seed: pd.DataFrame
    """Its complete trials, seeds ascending as the index."""

    @property
    def number(self) -> int:
        """Of its original trial."""
        return int(self.original["number"])

    def values(self, metric: str) -> "pd.Series[float]":
        """Return a metric by seed."""
        return self.by_seed[metric].astype(float)

    def signed_mean(self, metric: str) -> float:
        """Return the mean of a metric, the larger the better; minus infinity without a value."""
        mean = sign(metric) * float(self.values(metric).mean())
        return -np.inf if np.isnan(mean) else mean


def repeated(trials: pd.DataFrame) -> list[Repeated]:
    """Return the configurations that were asked to run with two seeds or more, by number."""
    found = []
    # Most configurations ran once, and tables of one row each are seconds in a long search.
    for places in (each for each in by_configuration(trials["config"]) if len(each) > 1):
        rows = trials.iloc[places]
        complete = completed(rows)
        seeds = frozenset(config.seed for config in rows["config"])
        if len(seeds) > 1 and len(complete):
            by_seed = complete.assign(seed=[config.seed for config in complete["config"]])
            by_seed = by_seed.drop_duplicates("seed").set_index("seed").sort_index()
            found.append(Repeated(original=complete.iloc[0], seeds=seeds, by_seed=by_seed))
    return sorted(found, key=lambda each: each.number)


def whole(configurations: Sequence[Repeated]) -> list[Repeated]:
    """Return those that are complete with every seed that any of them was asked to run with.

    Only their means are over the same seeds, and so may be ranked.
    """
    seeds = frozenset[int]().union(*(each.seeds for each in configurations))
    return [each for each in configurations if seeds <= {*each.by_seed.index}]


def best_repeated(configurations: Sequence[Repeated], metric: str) -> Repeated | None:
    """Return the whole configuration with the best mean, the first of equals; None without any."""
    return max(whole(configurations), key=lambda each: each.signed_mean(metric), default=None)


def best_trial(trials: pd.DataFrame, metrics: list[str]) -> "pd.Series[Any] | None":
    """Return the trial to use: the best mean's original where there are repeats, else the best."""
    best = best_repeated(repeated(trials), ranking_metric(metrics, trials))
    return best_row(searched(trials), metrics) if best is None else best.original


def interval(differences: npt.ArrayLike) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of paired differences, at 95%.

    Resampled with a fixed seed, so the same differences give the same interval; NaN for fewer
    than two. With two or three seeds it is exactly the range of the differences, because even at
    three 1 resample in 27 is the smallest thrice; such a range holds the median difference of all
    seeds in only 1 case of 2 (two seeds) or 3 of 4 (three). So few seeds cannot prove that a
    difference is not luck (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

    Args:
        differences: (N,), one for each seed.
    """
    values_N = np.asarray(differences, dtype=float)
    if len(values_N) < 2:
        return float("nan"), float("nan")
    picks = np.random.default_rng(0).integers(0, len(values_N), (RESAMPLES, len(values_N)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values_N[picks].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def repeats_frame(trials: pd.DataFrame, metrics: list[str], shown: Sequence[str]) -> pd.DataFrame:
    """Return one row for each repeated configuration and metric, the best configuration first.

    Columns: trial (the original's number), seeds (how many are complete), is_whole, metric, mean,
    min and max over the seeds; difference to the best configuration (this one minus the best,
    mean over the seeds that both have) with low and high, its `interval`; configuration.
    """
    configurations = repeated(trials)
    metric = ranking_metric(metrics, trials)
    best = best_repeated(configurations, metric)
    are_whole = {each.number for each in whole(configurations)}
    configurations.sort(key=lambda each: (each.number not in are_whole, -each.signed_mean(metric)))
    names, rows = Names(trials["config"]), []
    for each in configurations:
        for name in dict.fromkeys((metric, *shown)):
            values = each.values(name)
            rows.append(
                {
                    "trial": each.number,
                    "seeds": len(values),
                    "is_whole": each.number in are_whole,
                    "metric": name,
                    "mean": values.mean(),
                    "min": values.min(),
                    "max": values.max(),
                    **_difference(each, best, name),
                    "configuration": names.name(each.original["config"]),
                }
            )
    return pd.DataFrame(rows)


def _difference(each: Repeated, best: Repeated | None, metric: str) -> dict[str, float]:
    if best is None or each.number == best.number:
        return dict.fromkeys(("difference", "low", "high"), float("nan"))
    differences = (each.values(metric) - best.values(metric)).dropna()
    low, high = interval(differences)
    return {"difference": differences.mean(), "low": low, "high": high}
