"""A search as tables: on the terminal, and as CSV in its folder."""

from typing import Any

import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from upath import UPath

from results.history import ran_again, searched
from results.naming import Names
from results.promise import intervals_of, nested_choice, rates_text
from results.ranking import (
    best_repeated,
    best_row,
    completed,
    pareto_rows,
    ranking_metric,
    repeated,
    repeats_frame,
)
from results.record import SearchRecord
from results.terminal import counted
from results.trial import TrialState
from trainable.checkpoint import write_atomically
from trainable.novelty.metrics import METRICS

WIDE = 110
"""Columns from which a repeat's configuration stands beside its figures, not below them."""
SHOWN = (
    "score", "seen_super", "unseen_super", "seen_sub", "unseen_sub", "auroc_super", "auroc_sub",
)  # fmt: skip


def print_tables(
    console: Console, trials: pd.DataFrame, record: SearchRecord, *, running: str = "RUNNING"
) -> None:
    """Print the baselines, the best trial of each architecture, repeats, and the best of all.

    Args:
        console: Where to.
        trials: All of the search, repeats included.
        record: Of the search.
        running: What trials in state RUNNING are called: another driver may run them.
    """
    is_past = ran_again(trials)
    history = f"; {is_past.sum()} more failed and ran again" if is_past.any() else ""
    everything, trials = trials, trials[~is_past]
    counts = trials["state"].replace(TrialState.RUNNING.value, running).value_counts()
    num = counted(len(trials), "trial")
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(
        Text.assemble("\n", (record.name, "bold"), f": {num} ({states or 'none yet'}){history}")
    )
    names = Names(trials["config"])
    trials = searched(trials)
    best = best_row(trials, record.metrics)
    if best is None:
        console.print("No trial has finished, so there is no result.")
    failed = trials[(trials["state"] == TrialState.FAIL) & (trials["reason"] != "")]
    for reason, count in failed["reason"].value_counts().items():
        console.print(f"{count} failed: {reason}", style="red")
    if best is None:
        return
    metric = record.metrics[0]
    if trials["baseline"].any():
        _print_rows(console, "Baselines", trials[trials["baseline"]], metric, best, names)
    complete = completed(trials)
    groups = [best_row(group, record.metrics) for _, group in complete.groupby("architecture")]
    _print_rows(console, "Best by architecture", pd.DataFrame(groups), metric, best, names)
    if len(record.metrics) > 1:
        front = pareto_rows(trials, record.metrics)
        title = f"Pareto front of {', '.join(record.metrics)}"
        _print_rows(console, title, front, metric, best, names)
    console.print(
        f"Best: trial {best['number']:05d}, {metric} {best[metric]:.3f}, "
        f"{names.name(best['config'])}",
        soft_wrap=False,
    )
    print_promise(console, trials, best, metric)
    if repeated(everything):
        _print_repeats(console, everything, record, names)


def print_promise(
    console: Console, trials: pd.DataFrame, best: "pd.Series[Any]", metric: str
) -> None:
    """Print how sure the best trial's rates are, and what having been chosen adds to them."""
    if ends := intervals_of(best):
        _print_indented(console, f"with 95% intervals for other classes: {rates_text(best, ends)}")
    nested = nested_choice(trials, metric)
    if nested is not None:
        num = counted(len(completed(trials)), "trial")
        _print_indented(
            console,
            f"best of {num}: promised {metric} {best[metric]:.3f}; by nested choice (one "
            f"half of the validation images chooses, the other judges) {nested:.3f}",
        )


def _print_indented(console: Console, text: str) -> None:
    """Print a long line in whole words within the terminal's width, as tables are."""
    console.print(Padding(Text(text), (0, 0, 0, 2), expand=False), soft_wrap=False)


def _print_repeats(
    console: Console, trials: pd.DataFrame, record: SearchRecord, names: Names
) -> None:
    """Print each repeated configuration's mean and range, and its difference to the best."""
    metric = ranking_metric(record.metrics, trials)
    frame = repeats_frame(trials, record.metrics, ())
    table = Table(
        title=f"Repeats: means over seeds; difference of {metric} to the best mean, with its "
        "95% bootstrap interval",
        title_justify="left", box=None, padding=(0, 1),
    )  # fmt: skip
    table.add_column("trial", no_wrap=True)
    for column in ("seeds", metric, "range", "difference", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
    is_wide = console.width >= WIDE or not console.is_terminal
    if is_wide:
        table.add_column("configuration", overflow="fold")
    best = best_repeated(repeated(trials), metric)
    for _, row in frame.iterrows():
        is_known = not pd.isna(row["difference"])
        table.add_row(
            f"{row['trial']:05d}",
            f"{row['seeds']}" + ("" if row["is_whole"] else "*"),
            f"{row['mean']:.3f}",
            f"{row['min']:.3f} to {row['max']:.3f}",
            f"{row['difference']:+.3f}" if is_known else "",
            f"{row['low']:+.3f} to {row['high']:+.3f}" if is_known else "",
            *[row["configuration"]] * is_wide,
            style="bold" if best is not None and row["trial"] == best.number else None,
        )
    console.print(table, soft_wrap=False)
    if not is_wide:
        for _, row in frame.iterrows():
            _print_indented(console, f"{row['trial']:05d}: {row['configuration']}")
    if not frame["is_whole"].all():
        console.print("* not complete with every seed, so not ranked")
    if best is not None:
        console.print(
            f"Best by mean over {len(best.seeds)} seeds: trial {best.number:05d}, {metric} "
            f"{best.values(metric).mean():.3f}, {names.name(best.original['config'])}",
            soft_wrap=False,
        )


def _print_rows(
    console: Console, title: str, rows: pd.DataFrame, metric: str, best: "pd.Series[Any]",
    names: Names,
) -> None:  # fmt: skip
    shown = list(dict.fromkeys((metric, *SHOWN)))
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    table.add_column("trial", no_wrap=True)
    for column in shown:
        table.add_column(column.replace("_", "\n"), justify="right", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for _, row in rows.iterrows():
        values = ["" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in shown]
        if row["state"] != TrialState.COMPLETE:
            values[0] = str(row["state"])
        style = "bold" if row["number"] == best["number"] else None
        table.add_row(f"{row['number']:05d}", *values, names.name(row["config"]), style=style)
    console.print(table, soft_wrap=False)


def write_tables(folder: UPath, trials: pd.DataFrame, record: SearchRecord) -> list[UPath]:
    """Write one row per trial as `trials.csv` and, where there are repeats, `repeats.csv`."""
    tables = {"trials.csv": trials.drop(columns="config")}
    if repeated(trials):
        tables["repeats.csv"] = repeats_frame(trials, record.metrics, list(METRICS))
    for name, table in tables.items():
        write_atomically(folder / name, table.to_csv(index=False).encode())
    return [folder / name for name in tables]
