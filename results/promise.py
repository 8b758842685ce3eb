"""What a search promises for a trial: its rates with intervals, and what choosing adds to them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from results.history import INTERVALS, searched
from results.ranking import completed, sign
from trainable.novelty.intervals import Interval, interval_of
from trainable.novelty.metrics import MAIN, METRICS, combined

_RATES_OF_GROUP = {
    "seen": (
        "seen_super_seen", "known_rejected_super_seen", "seen_sub", "known_rejected_sub",
    ),
    "novel_subclass": (
        "seen_super_held_out", "known_rejected_super_held_out", "unseen_sub_near",
    ),
    "novel_superclass": (
        "unseen_super_left_out", "unseen_super_borrowed", "unseen_sub_left_out",
        "unseen_sub_borrowed",
    ),
}  # fmt: skip
"""Rates over one group of images, by the name under which an evaluation counts it."""


def promise_of_trials(rows: pd.DataFrame) -> dict[str, float]:
    """Return the metrics and interval ends of one configuration: means over its trials, by name.

    Args:
        rows: Of `results.history.trials_frame`, one for each seed.
    """
    names = [name for name in (*METRICS, *INTERVALS) if name in rows]
    means = rows[names].astype(float).mean()
    return {str(name): float(value) for name, value in means.items() if value == value}


def comparable(
    promise: Mapping[str, float], counts: Mapping[str, int]
) -> tuple[dict[str, float], str]:
    """Return what was promised for labelled images of such groups, and a line that says what of the
    promise is not that, or nothing.

    A promise is over images of seen subclasses, of novel ones and of novel superclasses. Where the
    labels have none of a group, rates that are means over groups are those over the others, without
    an interval; what else it was part of, curves and cross-entropies, is left out. Where subclasses
    are not labelled, nobody knows which group a known superclass's image is of.

    Args:
        promise: Metrics and ends of intervals, as of a trial.
        counts: Images by group, see `results.evaluation.Evaluation`.
    """
    lacking = [group for group in _RATES_OF_GROUP if not counts[group]]
    is_mixed = counts["without_subclass"] > 0
    if not promise or not (lacking or is_mixed):
        return dict(promise), ""
    whole, there = (
        _combined(promise, [group for group in _RATES_OF_GROUP if group not in without])
        for without in ((), lacking)
    )
    result = dict(promise)
    changed, dropped = [], []
    for name in (each for each in METRICS if each in promise):
        is_of_mixed = is_mixed and "super" in name and not name.startswith("unseen_super")
        is_as_it_was = whole[name] == there.get(name) if name in whole else not lacking
        if is_as_it_was and not is_of_mixed:
            continue
        for end in ("low", "high"):
            result.pop(f"interval.{name}.{end}", None)
        if name in there and not is_of_mixed:
            result[name] = there[name]
            changed.append(name)
        else:
            del result[name]
            dropped.append(name)
    return result, _told(lacking, is_mixed, changed, dropped)


def _combined(promise: Mapping[str, float], groups: Sequence[str]) -> dict[str, float]:
    """Return the promised rates over some groups, and what follows from them."""
    rates = {
        name: torch.tensor(promise[name], dtype=torch.float64)
        for group in groups
        for name in _RATES_OF_GROUP[group]
        if name in promise
    }
    return {name: float(value) for name, value in combined(rates).items()}


def _told(
    lacking: Sequence[str], is_mixed: bool, changed: Sequence[str], dropped: Sequence[str]
) -> str:
    why = [f"no image of a {each.replace('_', ' ')}" for each in lacking]
    reason = " and ".join(why + ["images without a subclass"] * is_mixed)
    line = f"the labels have {reason}"
    if shown := [name for name in changed if name in MAIN]:
        line += f"; the promise is that over the groups they have, for {', '.join(shown)}"
    if shown := [name for name in dropped if name in MAIN]:
        line += f"; nothing comparable was promised for {', '.join(shown)}"
    return line


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
    complete = searched(completed(trials))
    parts = complete[columns].astype(float).dropna().to_numpy()
    if len(parts) < 2:
        return None
    place_a, place_b = (parts * sign(metric)).argmax(0)
    return float((parts[place_a, 1] + parts[place_b, 0]) / 2)
