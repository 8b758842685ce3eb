"""A search as pictures: what was traded, how it went, what mattered, what was luck."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from results.naming import NOT_A_CHOICE
from results.ranking import interval, pareto_rows, repeats_frame, running_best
from results.report import drawing
from results.report.drawing import (
    BEST,
    FAINT,
    HALO,
    INK,
    MANY,
    PRUNED,
    SEARCHES,
    TRIAL,
    WIDTH,
    Picture,
    as_count,
    as_difference,
    as_metric,
    as_percent,
    label_points,
    legend_below,
    number,
    panel,
    room,
    rows_of,
    said,
)
from results.report.material import Search
from trainable.config import TASKS

LEVELS = {"super": "superclass", "sub": "subclass"}
MARKERS = {"two_heads": "o", "two_models": "s"}
"""A shape for each architecture, as colours mean other things."""
AXES_MAX = 9
"""Of parallel coordinates: more cannot be told apart."""
FEW = 4
"""Values up to which numbers are choices, to be compared one by one."""
QUESTIONS_MAX = 14
"""Differences that a picture shows; its CSV has all."""


def pictures(search: Search) -> list[Picture]:
    """Return the pictures of a search's trials that there is something to show in."""
    found = [
        deltas(search), tradeoff(search), history(search), learning(search), importance(search),
        parallel(search), timeline(search), repeats(search),
    ]  # fmt: skip
    return [picture for picture in found if picture is not None]


# --- The questions -------------------------------------------------------------------------------


def deltas(search: Search) -> Picture | None:
    """Show what each choice changes: pairs that differ in nothing else, or else group means."""
    rows = delta_frame(search)
    if not len(rows):
        return None
    shown = rows.reindex(rows["difference"].abs().sort_values(ascending=False).index)
    shown = shown.sort_values("is_paired", ascending=False, kind="stable").head(QUESTIONS_MAX)
    shown = shown.sort_values(["is_paired", "difference"], ascending=[False, False])
    metric = search.metric
    figure, axes = panel(
        f"What each choice changes in {said(metric)}, with 95% intervals", 1.3 + 0.34 * len(shown)
    )
    for place, row in enumerate(rows_of(shown)):
        face = INK if row.is_paired else "none"
        if row.low == row.low:
            axes.hlines(place, row.low, row.high, color=INK, lw=1.4)
        axes.plot(row.difference, place, "o", ms=6, mfc=face, mec=INK, mew=1.2)
    axes.axvline(0, color=INK, lw=0.8)
    labels = room([f"{row.change} ({row.num})" for row in rows_of(shown)], 30)
    axes.set_yticks(range(len(shown)), labels, fontsize=7.5)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    as_difference(axes.xaxis, metric)
    axes.plot([], [], "o", ms=6, mfc=INK, mec=INK, ls="", label="pairs alike in all else")
    axes.plot([], [], "o", ms=6, mfc="none", mec=INK, ls="", label="means of all that have it")
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
        choices = sorted({each[key] for each in acts if key in each}, key=_by_size)
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
            change = f"{key.replace('_', ' ')}: {_short(first)} → {_short(choice)}"
            rows.append({"key": key, "change": change, **row})
    columns = ["key", "change", "difference", "low", "high", "num", "is_paired"]
    return pd.DataFrame(rows, columns=columns).dropna(subset=["difference"])


def _by_size(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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


# --- Seen against unseen -------------------------------------------------------------------------


def tradeoff(search: Search) -> Picture | None:
    """Show seen against unseen of every trial, and those that no other one beats in both."""
    finished = search.trials[search.trials["state"].isin(["COMPLETE", "PRUNED"])]
    if not len(search.complete) or search.best is None:
        return None
    figures, told = [], []
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
        label_points(axes, places, [str(each) for each in front["number"]])
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
        "are trials.",
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
    cost = 100 * float(right[pair[0]] - left[pair[0]])
    gain = 100 * float(left[pair[1]] - right[pair[1]])
    return (
        f"For the {level} {len(front)} trials are beaten by none in both; the best trial {place}. "
        f"From one end of that front to the other, {gain:.1f} points of unseen cost {cost:.1f} "
        "of seen."
    )


# --- How it went ---------------------------------------------------------------------------------


def history(search: Search) -> Picture | None:
    """Show the best so far against trials and against wall clock."""
    frame = best_so_far(search)
    if not len(frame):
        return None
    figures = []
    for column, label in (("number", "trial"), ("minutes", "wall clock, minutes")):
        figure, axes = panel(f"Best {said(search.metric)} so far, by {label.split(',')[0]}")
        pruned = search.trials[search.trials["state"] == "PRUNED"]
        for rows, colour, name in (
            (pruned, PRUNED, "pruned"), (search.complete, TRIAL, "complete")
        ):  # fmt: skip
            rows = rows[["number", search.metric]].merge(search.times, on="number", how="left")
            rows = rows.assign(minutes=rows["end_s"] / 60)
            axes.scatter(rows[column], rows[search.metric].astype(float), s=18, color=colour,
                         linewidths=0, label=name, rasterized=len(rows) > MANY)  # fmt: skip
        line = frame.sort_values(column, kind="stable")
        best = running_best(line[search.metric], search.metric)
        axes.step(line[column], best, where="post", color=BEST, label="best so far")
        as_metric(axes.yaxis, search.metric)
        if column == "number":
            as_count(axes.xaxis, label)
        else:
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
        legend_below(axes)
        figures.append(figure)
    final = float(frame["best"].iloc[-1])
    reached = frame[frame["best"] == final].iloc[0]
    close = frame[(frame["best"] - final).abs() <= 0.01].iloc[0]
    ended = search.times[search.times["number"].isin(search.trials["number"])]["end_s"] / 60
    is_late = (ended <= reached["minutes"]).mean() > 0.9
    unit = "within a point of it" if drawing.is_fraction(search.metric) else "within 0.01 of it"
    return Picture(
        name="history",
        title=f"Best {said(search.metric)} so far, against trials and against wall clock",
        caption=f"The best was found by trial {int(reached['number'])}, after "
        f"{reached['minutes']:.1f} of {ended.max():.1f} minutes"
        + ("." if close["number"] == reached["number"] else f"; {unit} was trial "
           f"{int(close['number'])}, after {close['minutes']:.1f}.")
        + (" That was among the last tenth of the trials: more may find better ones." if is_late
           else ""),
        table=frame.drop(columns="place"),
        figures=tuple(figures),
    )  # fmt: skip


def best_so_far(search: Search) -> pd.DataFrame:
    """Return each complete trial by end: number, minutes, `metric`, best so far, place."""
    rows = search.complete[["number", search.metric]].dropna(subset=search.metric)
    rows = rows.merge(search.times, on="number", how="left")
    rows = rows.sort_values("end_s", kind="stable").reset_index(drop=True)
    values = rows[search.metric].astype(float)
    return pd.DataFrame(
        {
            "number": rows["number"], "minutes": rows["end_s"] / 60, search.metric: values,
            "best": running_best(values, search.metric), "place": rows.index + 1,
        }
    )  # fmt: skip


def learning(search: Search) -> Picture | None:
    """Show every trial's result by epoch, pruned ones too."""
    epochs = search.epochs.dropna(subset=["epoch", search.metric])
    epochs = epochs[epochs["number"].isin(search.trials["number"])]
    if search.best is None or not len(epochs):
        return None
    best, metric = int(search.best["number"]), search.metric
    states = dict(zip(search.everything["number"], search.everything["state"], strict=True))
    figure, axes = panel(f"{said(metric).capitalize()} by epoch, every trial")
    of_trial: dict[int, pd.DataFrame] = dict([*epochs.groupby("number")])
    pixels = len(of_trial) > MANY / 4
    for state, colour in (("PRUNED", PRUNED), ("COMPLETE", TRIAL)):
        lines = [rows[["epoch", metric]].to_numpy() for number, rows in of_trial.items()
                 if states[number] == state and number != best]  # fmt: skip
        axes.add_collection(
            LineCollection(lines, colors=colour, lw=0.9, alpha=0.8, rasterized=pixels,
                           label=f"{state.lower()} ({len(lines)})")
        )  # fmt: skip
        ends = np.array([line[-1] for line in lines]).reshape(-1, 2)
        marker = "x" if state == "PRUNED" else "o"
        axes.scatter(
            ends[:, 0], ends[:, 1], s=12, marker=marker, color=colour, lw=1, rasterized=pixels
        )
    if best in of_trial:
        rows = of_trial[best]
        axes.plot(rows["epoch"], rows[metric], color=BEST, lw=2, marker="o", ms=3.5,
                  label=f"best, trial {best}")  # fmt: skip
    axes.autoscale_view()
    as_metric(axes.yaxis, metric)
    as_count(axes.xaxis, "epoch")
    legend_below(axes)
    pruned = search.trials[search.trials["state"] == "PRUNED"]
    spent = epochs["epoch_s"].sum()
    on_pruned = epochs[epochs["number"].isin(pruned["number"])]["epoch_s"].sum()
    caption = "No trial was pruned."
    if len(pruned):
        caption = (
            f"{len(pruned)} of {len(search.trials)} trials were pruned (crosses), after "
            f"{pruned['epochs_trained'].mean():.1f} epochs on average"
            + (f"; they took {100 * on_pruned / spent:.0f}% of the time." if spent else ".")
        )
    if best in of_trial and search.best["best_epoch"] == of_trial[best]["epoch"].max():
        caption += " The best trial was best in its last epoch: more epochs may still help."
    return Picture(
        name="learning",
        title=f"{said(metric).capitalize()} by epoch, of complete and pruned trials",
        caption=caption,
        table=epochs.assign(state=epochs["number"].map(states)),
        figures=(figure,),
    )


def timeline(search: Search) -> Picture | None:
    """Show which slot ran which trial when."""
    times = search.times
    if not len(times) or not times["end_s"].max():
        return None
    colours = {"COMPLETE": TRIAL, "PRUNED": PRUNED, "FAIL": INK}
    num_slots, end = int(times["slot"].max()) + 1, float(times["end_s"].max())
    figure, axes = panel("When each slot ran which trial", 1.7 + 0.22 * min(num_slots, 24))
    best = None if search.best is None else int(search.best["number"])
    for state, colour in colours.items():
        rows = times[(times["state"] == state) & (times["number"] != best)]
        if len(rows):
            _bars(axes, rows, colour, state.lower(), len(times) > MANY)
    _bars(axes, times[times["number"] == best], BEST, "best", False)
    axes.set_xlim(0, end / 60 * 1.01)
    axes.set_ylim(num_slots - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    as_count(axes.yaxis, "slot")
    axes.set_xlabel("wall clock, minutes")
    legend_below(axes, 4)
    busy = float((times["end_s"] - times["start_s"]).sum())
    share = 100 * busy / (num_slots * end)
    hosts = set(times["host"]) - {""}
    where = f" on {len(hosts)} machines" if len(hosts) > 1 else ""
    return Picture(
        name="timeline",
        title="When each slot ran which trial",
        caption=f"{num_slots} slots{where} were busy {share:.0f}% of {end / 60:.1f} minutes; "
        f"{len(times)} trials took {busy / len(times):.0f} s each on average. Pauses "
        "between an interruption and its resume are left out.",
        table=times,
        figures=(figure,),
    )


def _bars(axes: Axes, rows: pd.DataFrame, colour: str, label: str, pixels: bool) -> None:
    corners = [
        [(a, slot - 0.36), (a, slot + 0.36), (b, slot + 0.36), (b, slot - 0.36)]
        for a, b, slot in zip(rows["start_s"] / 60, rows["end_s"] / 60, rows["slot"], strict=True)
    ]
    bars = PolyCollection(
        corners, facecolors=colour, edgecolors=FAINT, linewidths=0.4, label=label, rasterized=pixels
    )
    axes.add_collection(bars)


# --- What mattered -------------------------------------------------------------------------------


def importance(search: Search) -> Picture | None:
    """Show how much each parameter mattered, by PED-ANOVA (Watanabe, Bansal and Hutter, 2023).

    Only of trials with parameters. A baseline outside the space has none: among the best trials,
    which are compared with all, it would hide what those have in common.
    """
    shares = importances(search)
    if not shares:
        return None
    frame = pd.DataFrame({"parameter": [*shares], "share": [*shares.values()]}).head(15)
    figure, axes = panel(f"Which parameters mattered for {said(search.metric)}",
                         1.1 + 0.26 * len(frame))  # fmt: skip
    axes.barh(range(len(frame)), frame["share"], color=TRIAL, height=0.62)
    labels = [name.replace("_", " ") for name in frame["parameter"]]
    axes.set_yticks(range(len(frame)), room(labels, 24))
    axes.set_ylim(len(frame) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    as_percent(axes.xaxis, "share of what tells the best tenth of trials from all")
    num = len(_sampled(search))
    top = frame.iloc[0]
    return Picture(
        name="importance",
        title=f"Which parameters mattered for {said(search.metric)}",
        caption=f"Most by {top['parameter'].replace('_', ' ')} ({100 * top['share']:.0f}%). By "
        f"PED-ANOVA over {num} complete trials that the space gave"
        + ("; so few trials make it a rough guess." if num < 30 else "."),
        table=pd.DataFrame({"parameter": [*shares], "share": [*shares.values()]}),
        figures=(figure,),
    )


def importances(search: Search) -> dict[str, float]:
    """Return each parameter's share, the largest first; nothing for fewer than four trials."""
    sampled = _sampled(search)
    if len(sampled) < 4:
        return {}
    values = dict(zip(search.trials["number"], search.trials[search.metric], strict=True))
    shown = optuna.create_study(direction="maximize" if search.sign > 0 else "minimize")
    shown.add_trials(
        [
            optuna.trial.create_trial(
                value=float(values[each.number]),
                params=each.params,
                distributions=each.distributions,
            )
            for each in sampled
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental; and where all trials are equal
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(shown, evaluator=evaluator)
    return {name: share for name, share in found.items() if share == share}


def _sampled(search: Search) -> list[optuna.trial.FrozenTrial]:
    numbers = set(search.complete.dropna(subset=search.metric)["number"])
    return [each for each in search.frozen if each.number in numbers and each.params]


def parallel(search: Search) -> Picture | None:
    """Show every complete trial as a line through its choices."""
    ranked = [key for key in importances(search) if key in search.naming.keys]
    keys = [*ranked, *(key for key in search.naming.keys if key not in ranked)][:AXES_MAX]
    complete = search.complete.dropna(subset=search.metric)
    if len(complete) < 3 or len(keys) < 2:
        return None
    acts = [search.naming.values(config) for config in complete["config"]]
    values = complete[search.metric].to_numpy(float)
    scales = [_scale([each.get(key) for each in acts]) for key in keys]
    low, high = values.min(), values.max()
    heights = (values - low) / ((high - low) or 1.0)
    lines = np.array(
        [[*(place[i] for place, _ in scales), heights[i]] for i in range(len(values))], dtype=float
    )
    figure, axes = panel(
        f"Every complete trial as a line through its choices to its {said(search.metric)}",
        3.8, max(WIDTH, 0.85 * len(keys) + 1.6),
    )  # fmt: skip
    _draw_parallel(axes, search, lines, values, complete["number"].to_numpy())
    for column, (_, ticks) in enumerate(scales):
        axes.axvline(column, color=FAINT, lw=0.8, zorder=0)
        for place, text in ticks:
            _on_line(axes, column, place, text)
    last = len(keys)
    axes.axvline(last, color=FAINT, lw=0.8, zorder=0)
    for value, place in ((low, 0.0), (high, 1.0)):
        _on_line(axes, last, place, number(search.metric, float(value)))
    labels = room([*(key.replace("_", " ") for key in keys), said(search.metric)], 12)
    axes.set_xticks(range(last + 1), labels, fontsize=7.5)
    axes.set(xlim=(-0.15, last + 0.55), ylim=(-0.06, 1.06), yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    legend_below(axes)
    left_out = len(search.naming.keys) - len(keys)
    skips = any(key not in each for each in acts for key in keys)
    table = pd.DataFrame([{key: each.get(key) for key in search.naming.keys} for each in acts])
    table.insert(0, "number", complete["number"].to_numpy())
    return Picture(
        name="parallel",
        title="Every complete trial as a line through its choices",
        caption=_common(acts, values * search.sign, search.naming.keys)
        + (" A line skips what its configuration does not have." if skips else "")
        + (f" {left_out} keys are in the CSV alone." if left_out else ""),
        table=table.assign(**{search.metric: values}),
        figures=(figure,),
    )


def _on_line(axes: Axes, x: float, y: float, text: str) -> None:
    """Write beside an axis, readable over the lines that cross it."""
    axes.text(x + 0.05, y, text, fontsize=7, va="center", zorder=5, path_effects=HALO)


def _draw_parallel(axes: Axes, search: Search, lines: Any, values: Any, numbers: Any) -> None:
    assert search.best is not None
    order = np.argsort(values * search.sign)
    top = set(order[-max(1, len(order) // 10) :].tolist())
    steps = np.arange(lines.shape[1])
    pixels = len(lines) > MANY / 4
    groups = (
        (PRUNED, "complete", [i for i in range(len(lines)) if i not in top], 0.8),
        (TRIAL, "best tenth", [i for i in top if numbers[i] != search.best["number"]], 1.2),
        (BEST, "best", [i for i in range(len(lines)) if numbers[i] == search.best["number"]], 2.2),
    )
    for colour, label, places, width in groups:
        if places:
            paths = [np.column_stack([steps, lines[i]]) for i in places]
            paths = [path[np.isfinite(path[:, 1])] for path in paths]
            alpha = 1.0 if colour == BEST else max(0.12, min(1.0, 40 / len(paths)))
            axes.plot([], [], color=colour, lw=width, label=label)
            axes.add_collection(
                LineCollection(paths, colors=colour, lw=width, alpha=alpha,
                               rasterized=pixels and colour != BEST)
            )  # fmt: skip


def _scale(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return each value's place between 0 and 1, NaN where there is none, and the ticks."""
    present = [each for each in values if each is not None]
    if all(isinstance(each, float) for each in present) and len(set(present)) > 5:
        low, high = min(present), max(present)
        is_log = low > 0 and high / low > 20
        change = np.log if is_log else float
        span = change(high) - change(low)
        places = [np.nan if v is None else (change(v) - change(low)) / span for v in values]
        return places, [(0.0, _short(low)), (1.0, _short(high))]
    choices = sorted(set(present), key=_by_size)
    at = {each: (n + 0.5) / len(choices) for n, each in enumerate(choices)}
    shown = choices if len(choices) <= 8 else [choices[0], choices[-1]]
    places = [np.nan if each is None else at[each] for each in values]
    return places, [(at[each], _short(each)[:18]) for each in shown]


def _common(acts: list[dict[str, Any]], values: Any, keys: Sequence[str]) -> str:
    """Say what the best tenth of the trials, three at least, have in common."""
    top = np.argsort(values)[-max(3, len(values) // 10) :]
    shared = []
    for key in keys:
        found = {repr(acts[i].get(key)) for i in top}
        everywhere = {repr(each.get(key)) for each in acts}
        value = acts[top[-1]].get(key)
        if len(found) == 1 and len(everywhere) > 1 and value is not None:
            shared.append(f"{key.replace('_', ' ')} {_short(value)}")
    if not shared:
        return _favoured(acts, top, keys)
    return f"The best {len(top)} trials share {', '.join(shared)}."


def _favoured(acts: list[dict[str, Any]], top: Any, keys: Sequence[str]) -> str:
    """Say which choice is more frequent among the best trials than among all."""
    found = []
    for key in keys:
        of_all = [each.get(key) for each in acts]
        for value in {value for value in of_all if value is not None}:
            share = sum(of_all[i] == value for i in top) / len(top)
            found.append((share - of_all.count(value) / len(acts), share, key, value))
    gain, share, key, value = max(found, key=lambda each: each[:2])
    return (
        f"The best {len(top)} trials share no choice; most favoured is {key.replace('_', ' ')} "
        f"{_short(value)}, in {100 * share:.0f}% of them against {100 * (share - gain):.0f}% of "
        f"all {len(acts)}."
    )


# --- What was luck -------------------------------------------------------------------------------


def repeats(search: Search) -> Picture | None:
    """Show each repeated configuration's seeds, and paired differences to the best mean."""
    if not search.repeated:
        return None
    metric = search.metric
    frame = repeats_frame(search.everything, search.record.metrics, ())
    frame = frame.assign(configuration=frame["trial"].map(search.names))
    labels = room([f"{row.trial}: {row.configuration}" for row in rows_of(frame)], 30)
    shown = frame.head(12)
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
    figure, axes = panel(f"{said(search.metric).capitalize()} by seed, mean and range",
                         1.2 + 0.42 * len(frame))  # fmt: skip
    for place, row in enumerate(rows_of(frame)):
        colour = BEST if place == 0 else TRIAL
        values = by_number[row.trial].values(search.metric)
        axes.hlines(place, row.min, row.max, color=FAINT, lw=3, zorder=1)
        axes.scatter(values, [place] * len(values), s=20, color=colour, linewidths=0, zorder=2)
        axes.scatter([row.mean], [place], marker="|", s=160, color=INK, zorder=3)
    axes.scatter([], [], s=20, color=TRIAL, label="a seed")
    axes.scatter([], [], marker="|", s=110, color=INK, label="mean")
    axes.set_yticks(range(len(frame)), labels[: len(frame)], fontsize=7.5)
    axes.set_ylim(len(frame) - 0.5, -0.5)
    as_metric(axes.xaxis, search.metric)
    legend_below(axes)
    return figure


def _paired_panel(frame: pd.DataFrame, labels: list[str], metric: str) -> Figure:
    figure, axes = panel("Paired difference to the best mean, 95% interval",
                         1.2 + 0.42 * len(frame))  # fmt: skip
    for place, row in enumerate(rows_of(frame)):
        if row.difference == row.difference:
            axes.hlines(place, row.low, row.high, color=INK, lw=1.4)
            axes.plot(row.difference, place, "o", ms=6, color=INK)
        elif row.is_whole:
            axes.plot(0, place, "o", ms=7, color=BEST)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(frame)), labels[: len(frame)], fontsize=7.5)
    axes.set_ylim(len(frame) - 0.5, -0.5)
    as_difference(axes.xaxis, metric)
    return figure


def _luck(frame: pd.DataFrame, metric: str) -> str:
    others = frame[frame["difference"].notna()]
    if not len(others):
        return "Only one configuration is complete with every seed: there is none to compare with."
    within = others[(others["low"] <= 0) & (others["high"] >= 0)]
    seeds = int(frame["seeds"].max())
    text = (
        f"{len(others) - len(within)} of {len(others)} configurations differ from the best mean "
        f"by more than luck over {seeds} seeds"
    )
    if len(within):
        text += f"; within luck {'is' if len(within) == 1 else 'are'} " + ", ".join(
            f"trial {row.trial} ({number(metric, row.difference, signed=True)})"
            for row in rows_of(within.head(4))
        )
    return f"{text}." + (
        " At so few seeds the interval is the range of the differences." if seeds < 4 else ""
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
    return Picture(
        name="side_by_side",
        title=f"Best {said(metric)} so far of each search",
        caption=f"{ends[0][1]} ends highest, {gap} against {ends[1][1]}." if shown[0].sign > 0
        else f"{ends[0][1]} ends lowest, {gap} against {ends[1][1]}.",
        table=pd.concat(frames).drop(columns="place"),
        figures=tuple(figures),
    )  # fmt: skip
