"""How a search went: its trials one after another, their epochs, what ran when."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection

from results.ranking import running_best
from results.report import drawing
from results.report.drawing import (
    BEST,
    FAINT,
    INK,
    MANY,
    PRUNED,
    TRIAL,
    Picture,
    as_count,
    as_metric,
    legend_below,
    panel,
    said,
)
from results.report.material import Search


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
        if not lines:
            continue
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
