"""What a search promises for a trial: its rates with intervals, and what choosing adds to them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from results.history import INTERVALS, searched
from trainable.novelty.intervals import Interval, interval_of
from trainable.novelty.metrics import MAIN, METRICS


def promise_of_trials(rows: pd.DataFrame) -> dict[str, float]:
    """Return the metrics and interval ends of one configuration: means over its trials, by name.

    Args:
        rows: Of `results.history.trials_frame`, one for each seed.
    """
    names = [name for name in (*METRICS, *INTERVALS) if name in rows]
    means = rows[names].astype(float).mean()
    return {str(name): float(value) for name, value in means.items() if value == value}


def intervals_of(metrics: "Mapping[str, Any] | pd.Series[Any]") -> dict[str, Interval]:
    """Return the intervals among the metrics of a trial or the columns of its row, by name."""
    metrics = dict(metrics)
    found = {name: interval_of(metrics, name) for name in MAIN}
    return {name: ends for name, ends in found.items() if ends and not pd.isna(ends[0])}


def rates_text(values: "Mapping[str, Any] | pd.Series[Any]", ends: Mapping[str, Interval]) -> str:
    """Return the main rates in one line, each with its interval where there is one."""
    return ", ".join(
        f"{name} {values[name]:.3f}" + (f" ({range_text(ends[name])})" if name in ends else "")
        for name in MAIN
        if name in values and not pd.isna(values[name])
    )


def range_text(ends: Interval) -> str:
    """Return an interval as tables show it."""
    return f"{ends[0]:.3f}-{ends[1]:.3f}"


def nested_choice(trials: pd.DataFrame, metric: str) -> float | None:
    """Return what the best of all trials is worth without the advantage of having been chosen.

    The trial that is best on part A of the validation images is judged on part B, and the reverse;
    the mean of both. None with fewer than two trials, of a metric that parts do not have, and of
    searches under protocol 1, which had no parts.

    Args:
        trials: As `results.history.trials_frame` gives them.
        metric: That the search maximises, or minimises.
    """
    columns = [f"part_a.{metric}", f"part_b.{metric}"]
    if not {*columns} <= {*trials.columns}:
        return None
    complete = searched(trials[trials["state"] == "COMPLETE"])
    parts = complete[columns].astype(float).dropna().to_numpy()
    if len(parts) < 2:
        return None
    place = parts.argmax(0) if METRICS[metric] == "maximize" else parts.argmin(0)
    return float((parts[place[0], 1] + parts[place[1], 0]) / 2)
