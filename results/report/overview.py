"""A search as pictures: what was traded, how it went, what mattered, what was luck."""

import itertools
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.ranking import SEEDS_TO_PROVE, pareto_rows, repeats_frame
from results.report.course import best_so_far, history, learning, timeline
from results.report.deltas import deltas
from results.report.drawing import (
    BEST,
    FAINT,
    INK,
    LEVELS,
    MANY,
    PRUNED,
    SEARCHES,
    TRIAL,
    Picture,
    as_difference,
    as_metric,
    as_percent,
    label_points,
    legend_below,
    number,
    panel,
    room,
    rows_of,
    rows_panel,
    said,
)
from results.report.importance import importance, parallel
from results.report.material import Search
from results.terminal import counted
from trainable.config import TASKS

MARKERS = {"two_heads": "o", "two_models": "s"}
"""A shape for each architecture, as colours mean other things."""


def pictures(search: Search) -> list[Picture]:
    """Return the pictures of a search's trials that there is something to show in."""
    found = [
        deltas(search), tradeoff(search), history(search), learning(search), importance(search),
        parallel(search), timeline(search), repeats(search),
    ]  # fmt: skip
    return [picture for picture in found if picture is not None]


# --- Seen against unseen -------------------------------------------------------------------------


def tradeoff(search: Search) -> Picture | None:
    """Show seen against unseen of every trial, and those that no other one beats in both."""
    finished = search.trials[search.trials["state"].isin(["COMPLETE", "PRUNED"])]
    if not len(search.complete) or search.best is None:
        return None
    figures, told, left_out = [], [], 0
    for task in TASKS:
        pair = [f"seen_{task}", f"unseen_{task}"]
        rows = finished.dropna(subset=pair)
        if not len(rows):
            continue  # there was nothing novel to that level
        front = pareto_rows(rows, pair).sort_values(pair[0])
        figure, axes = panel(f"{LEVELS[task].capitalize()}: seen against unseen, every trial", 4.3)
        _scatter(axes, rows, pair, search)
        axes.step(front[pair[0]], front[pair[1]], where="pre", color=INK, lw=1, ls=":", zorder=1,
                  label="front")  # fmt: skip
        as_percent(axes.xaxis, f"seen {LEVELS[task]}, answered right")
        as_percent(axes.yaxis, f"unseen {LEVELS[task]}, called novel")
        legend_below(axes)
        places = [(float(row[pair[0]]), float(row[pair[1]])) for _, row in front.iterrows()]
        left_out += label_points(axes, places, [str(each) for each in front["number"]])
        figures.append(figure)
        told.append(_front_caption(front, pair, LEVELS[task], int(search.best["number"])))
    if not figures:
        return None
    columns = ["number", "state", "architecture", *(f"{k}_{t}" for t in TASKS for k in
                                                    ("seen", "unseen"))]  # fmt: skip
    return Picture(
        name="tradeoff",
        title="Seen against unseen of every trial, with the Pareto front",
        caption=" ".join(told) + " Raising a threshold moves a trial up and to the left. Numbers "
        "are trials."
        + (f" There was no room for {counted(left_out, 'number')}." if left_out else ""),
        table=finished[columns].assign(configuration=finished["number"].map(search.names)),
        figures=tuple(figures),
    )


def _scatter(axes: Axes, rows: pd.DataFrame, pair: list[str], search: Search) -> None:
    assert search.best is not None
    pixels = len(rows) > MANY
    for state, colour in (("PRUNED", PRUNED), ("COMPLETE", TRIAL)):
        for architecture, marker in MARKERS.items():
            of = rows[(rows["state"] == state) & (rows["architecture"] == architecture)]
            if len(of):
                axes.scatter(
                    of[pair[0]].astype(float), of[pair[1]].astype(float), s=22, marker=marker,
                    color=colour, alpha=0.85, linewidths=0, rasterized=pixels, zorder=2,
                    label=f"{architecture}, {state.lower()}",
                )  # fmt: skip
    best = search.best
    if best[pair].isna().any():
        return
    axes.scatter(
        [float(best[pair[0]])], [float(best[pair[1]])], s=60, color=BEST, zorder=4,
        marker=MARKERS[str(best["architecture"])], edgecolors=INK, linewidths=0.8, label="best",
    )  # fmt: skip


def _front_caption(front: pd.DataFrame, pair: list[str], level: str, best: int) -> str:
    place = "is on it" if best in set(front["number"]) else "is not on it"
    if len(front) == 1:
        return (
            f"For the {level} one trial, {front['number'].iloc[0]}, is beaten by none in both; "
            f"the best trial {place}."
        )
    left, right = front.iloc[0], front.iloc[-1]
    if (front[pair].astype(float).nunique() == 1).all():
        return f"For the {level} {len(front)} trials are alike in both, and beaten by none."
    cost = 100 * float(right[pair[0]] - left[pair[0]])
    gain = 100 * float(left[pair[1]] - right[pair[1]])
    return (
        f"For the {level} {len(front)} trials are beaten by none in both; the best trial {place}. "
        f"From one end of that front to the other, {gain:.1f} points of unseen cost {cost:.1f} "
        "of seen."
    )


# --- What was luck -------------------------------------------------------------------------------


def repeats(search: Search) -> Picture | None:
    """Show each repeated configuration's seeds, and paired differences to the best mean."""
    if not search.repeated:
        return None
    metric = search.metric
    frame = repeats_frame(search.everything, search.record.metrics, ())
    frame = frame.assign(configuration=frame["trial"].map(search.names))
    shown = frame.head(12)
    configs = {each.number: each.original["config"] for each in search.repeated}
    told = search.naming.telling(configs[each] for each in shown["trial"])
    names = [f"{each}: {search.naming.name(configs[each], told)}" for each in shown["trial"]]
    labels = room(names, 30, 5)
    figures = [_seeds_panel(search, shown, labels), _paired_panel(shown, labels, metric)]
    return Picture(
        name="repeats",
        title=f"{said(metric).capitalize()} over seeds, and paired differences to the best mean",
        caption=_luck(frame, metric)
        + (f" {len(frame) - 12} configurations are in the CSV alone." if len(frame) > 12 else ""),
        table=frame,
        figures=tuple(figures),
    )


def _seeds_panel(search: Search, frame: pd.DataFrame, labels: list[str]) -> Figure:
    by_number = {each.number: each for each in search.repeated}
    title = f"{said(search.metric).capitalize()} by seed, mean and range"
    figure, axes = rows_panel(title, labels, 0.42)
    for place, row in enumerate(rows_of(frame)):
        colour = BEST if place == 0 else TRIAL
        values = by_number[row.trial].values(search.metric)
        axes.hlines(place, row.min, row.max, color=FAINT, lw=3, zorder=1)
        axes.scatter(values, [place] * len(values), s=20, color=colour, linewidths=0, zorder=2)
        axes.scatter([row.mean], [place], marker="|", s=160, color=INK, zorder=3)
    axes.scatter([], [], s=20, color=TRIAL, label="a seed")
    axes.scatter([], [], marker="|", s=110, color=INK, label="mean")
    as_metric(axes.xaxis, search.metric)
    legend_below(axes)
    return figure


def _paired_panel(frame: pd.DataFrame, labels: list[str], metric: str) -> Figure:
    figure, axes = rows_panel("Paired difference to the best mean, 95% interval", labels, 0.42)
    for place, row in enumerate(rows_of(frame)):
        if row.difference == row.difference:
            axes.hlines(place, row.low, row.high, color=INK, lw=1.4)
            axes.plot(row.difference, place, "o", ms=6, color=INK)
        elif row.is_whole:
            axes.plot(0, place, "o", ms=7, color=BEST)
    axes.axvline(0, color=INK, lw=0.8)
    as_difference(axes.xaxis, metric)
    return figure


def _luck(frame: pd.DataFrame, metric: str) -> str:
    others = frame[frame["difference"].notna()]
    if not len(others):
        return "Only one configuration is complete with every seed: there is none to compare with."
    within = others[(others["low"] <= 0) & (others["high"] >= 0)]
    seeds = int(frame["seeds"].max())
    text = (
        f"Intervals of {len(others) - len(within)} of {len(others)} differences to the best mean "
        f"exclude zero over {seeds} seeds"
    )
    if len(within):
        text += f"; within luck {'is' if len(within) == 1 else 'are'} " + ", ".join(
            f"trial {row.trial} ({number(metric, row.difference, signed=True)})"
            for row in rows_of(within.head(4))
        )
    return f"{text}." + (
        f" {seeds} seeds are too few to prove that a difference is not luck"
        + ("; the interval is their range." if seeds < 4 else ".")
        if seeds < SEEDS_TO_PROVE
        else ""
    )


# --- Side by side --------------------------------------------------------------------------------


def side_by_side(searches: Sequence[Search]) -> Picture | None:
    """Show the best so far of several searches against trials and against wall clock.

    Of those that the first one's metric orders: others are on another axis.
    """
    metric = searches[0].metric
    shown = [each for each in searches if each.metric == metric and len(best_so_far(each))]
    if len(shown) < 2:
        return None
    frames = [best_so_far(each).assign(search=each.record.name) for each in shown]
    figures = []
    for column, label in (("place", "complete trials"), ("minutes", "wall clock, minutes")):
        figure, axes = panel(f"Best {said(metric)} so far by {label.split(',')[0]}, each search")
        dashes = itertools.cycle(("-", "--", "-.", ":", (0, (1, 4))))
        for frame, colour, dash in zip(frames, itertools.cycle(SEARCHES), dashes, strict=False):
            axes.step(frame[column], frame["best"], where="post", color=colour, ls=dash, lw=2,
                      marker="o", ms=3, label=frame["search"].iloc[0])  # fmt: skip
        as_metric(axes.yaxis, metric)
        axes.set_xlabel(label)
        legend_below(axes, 2)
        figures.append(figure)
    ends = sorted(
        (
            (shown[0].sign * float(frame["best"].iloc[-1]), frame["search"].iloc[0])
            for frame in frames
        ),
        reverse=True,
    )
    gap = number(metric, shown[0].sign * (ends[0][0] - ends[1][0]), signed=True)
    end = "highest" if shown[0].sign > 0 else "lowest"
    caption = f"{ends[0][1]} ends {end}, {gap} against {ends[1][1]}."
    if number(metric, ends[0][0] - ends[1][0]) == number(metric, 0.0):
        caption = f"{ends[0][1]} and {ends[1][1]} end alike."
    return Picture(
        name="side_by_side",
        title=f"Best {said(metric)} so far of each search",
        caption=caption,
        table=pd.concat(frames).drop(columns="place"),
        figures=tuple(figures),
    )  # fmt: skip
