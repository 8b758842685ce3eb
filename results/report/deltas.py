"""What each choice of a search made of its results, by trials that differ in nothing else."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from results.naming import NOT_A_CHOICE, key_in_words
from results.ranking import interval
from results.report.drawing import (
    INK,
    Picture,
    as_difference,
    by_size,
    legend_below,
    number,
    room,
    rows_of,
    rows_panel,
    said,
    short,
)
from results.report.material import Search

FEW = 4
"""Values up to which numbers are choices, to be compared one by one."""
QUESTIONS_MAX = 14
"""Differences that a picture shows; its CSV has all."""


def deltas(search: Search) -> Picture | None:
    """Show what each choice changes: pairs that differ in nothing else, or else group means."""
    rows = delta_frame(search)
    if not len(rows):
        return None
    shown = rows.reindex(rows["difference"].abs().sort_values(ascending=False).index)
    shown = shown.sort_values("is_paired", ascending=False, kind="stable").head(QUESTIONS_MAX)
    shown = shown.sort_values(["is_paired", "difference"], ascending=[False, False])
    metric = search.metric
    figure, axes = rows_panel(
        f"What each choice changes in {said(metric)}, with 95% intervals",
        room([f"{row.change}\u00a0({row.num})" for row in rows_of(shown)], 30, 8), 0.34,
    )  # fmt: skip
    for place, row in enumerate(rows_of(shown)):
        face = INK if row.is_paired else "none"
        if row.low == row.low:
            axes.hlines(place, row.low, row.high, color=INK, lw=1.4)
        axes.plot(row.difference, place, "o", ms=6, mfc=face, mec=INK, mew=1.2)
    axes.axvline(0, color=INK, lw=0.8)
    as_difference(axes.xaxis, metric)
    axes.plot(
        [], [], "o", ms=6, mfc=INK, mec=INK, ls="", label="pairs alike in all else (how many)"
    )
    axes.plot(
        [], [], "o", ms=6, mfc="none", mec=INK, ls="", label="means of all that have it (how many)"
    )
    legend_below(axes, 2)
    left_out = len(rows) - len(shown)
    return Picture(
        name="questions",
        title=f"What each choice changes in {said(metric)}",
        caption=_delta_caption(rows, metric)
        + (f" {left_out} smaller differences are in the CSV alone." if left_out else ""),
        table=rows,
        figures=(figure,),
    )


def delta_frame(search: Search) -> pd.DataFrame:
    """Return for each value of each choice what it changes against the choice's first value.

    Columns: key, change, difference (mean), low and high (95% bootstrap; over seeds and pairs, or
    over trials), num (pairs, or trials with the value), is_paired: between trials with the same
    seed that differ in this alone; otherwise means of all complete trials, in which other choices
    may differ too.
    """
    complete = search.everything[search.everything["state"] == "COMPLETE"]
    values = complete[search.metric].astype(float).to_numpy()
    acts = [search.naming.values(config) | {"seed": config.seed} for config in complete["config"]]
    rows = []
    for key in search.naming.keys:
        choices = sorted({each[key] for each in acts if key in each}, key=by_size)
        if len(choices) > FEW and isinstance(choices[0], float):
            continue  # drawn from a range: its values are no choices
        for choice in choices[1:]:
            first = _first_paired(acts, key, choices, choice)
            pairs = _pairs(acts, key, first, choice)
            if pairs:
                differences = np.array([values[b] - values[a] for a, b in pairs])
                low, high = interval(differences)
                row = {"difference": differences.mean(), "low": low, "high": high}
                row |= {"num": len(pairs), "is_paired": True}
            else:
                with_it = values[[each.get(key) == choice for each in acts]]
                row = _group_difference(values[[each.get(key) == first for each in acts]], with_it)
            change = f"{key_in_words(key)}: {short(first)} → {short(choice)}"
            rows.append({"key": key, "change": change, **row})
    columns = ["key", "change", "difference", "low", "high", "num", "is_paired"]
    return pd.DataFrame(rows, columns=columns).dropna(subset=["difference"])


def _first_paired(acts: Sequence[dict[str, Any]], key: str, choices: Sequence[Any], to: Any) -> Any:
    """Return the first value that pairs with `to`, or else the first of all."""
    others = (each for each in choices if each != to)
    before = itertools.takewhile(lambda each: each != to, choices)
    return next((each for each in before if _pairs(acts, key, each, to)), next(others))


def _pairs(acts: Sequence[dict[str, Any]], key: str, a: Any, b: Any) -> list[tuple[int, int]]:
    """Return places of trials that are alike in all but `key`, and what follows from it."""

    # An architecture brings keys that the other one does not have: they follow from it.
    def rest(each: dict[str, Any]) -> frozenset[tuple[str, str]]:
        hidden = {key, *NOT_A_CHOICE[1:]}
        if key == "architecture":
            hidden |= {"alpha", "temperature"}
        return frozenset((k, repr(v)) for k, v in each.items() if k not in hidden)

    first: dict[frozenset[tuple[str, str]], int] = {}
    for place, each in enumerate(acts):
        if each.get(key) == a:
            first.setdefault(rest(each), place)
    second = {rest(each): place for place, each in enumerate(acts) if each.get(key) == b}
    return [(first[each], place) for each, place in second.items() if each in first]


def _group_difference(without: Any, with_it: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    difference, low, high = np.nan, np.nan, np.nan
    if min(len(with_it), len(without)) > 1:
        difference = with_it.mean() - without.mean()
        means = [
            each[rng.integers(0, len(each), (999, len(each)))].mean(1)
            for each in (with_it, without)
        ]
        low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    counts = {"num": len(with_it), "is_paired": False}
    return {"difference": difference, "low": low, "high": high, **counts}


def _delta_caption(rows: pd.DataFrame, metric: str) -> str:
    sure = rows[(rows["low"] > 0) | (rows["high"] < 0)]
    sure = sure.reindex(sure["difference"].abs().sort_values(ascending=False).index)
    text = "No interval excludes zero: no choice is shown to matter."
    if rows["low"].isna().all():
        text = "One pair each says nothing about luck: there are no intervals yet."
    if len(sure):
        told = [f"{row.change} ({number(metric, row.difference, signed=True)})"
                for row in rows_of(sure.head(3))]  # fmt: skip
        rest = f" and {len(sure) - 3} more" if len(sure) > 3 else ""
        text = f"Intervals exclude zero for {'; '.join(told)}{rest}."
    if not rows["is_paired"].all():
        text += (
            " Hollow points compare all complete trials with a value, in which other choices "
            "differ too and from which pruning took the worst: a hint, no proof."
        )
    if (rows["low"].notna() & rows["is_paired"] & (rows["num"] < 5)).any():
        text += " An interval of fewer than five pairs is little more than their range."
    return text
