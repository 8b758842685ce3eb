"""python -m results.report: a search as tables on the terminal, and as pictures in its folder."""

import argparse
import io
import sys
import textwrap
import warnings
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import optuna
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from upath import UPath

from results.load import (
    SearchRecord,
    best_row,
    load_record,
    pareto_rows,
    ranking_metric,
    run_folder,
    searched,
    study_url,
    trial_folder,
    trials_frame,
)
from results.repeats import best_repeated, repeated, repeats_frame
from trainable.checkpoint import write_atomically
from trainable.classifier import OUTPUTS_FILE, load_outputs, load_rule
from trainable.errors import UserError
from trainable.metrics import METRICS, both_right, hierarchy_curve
from trainable.splits import SECOND

SHOWN = (
    "score", "seen_super", "unseen_super", "seen_sub", "unseen_sub", "auroc_super", "auroc_sub",
)  # fmt: skip
_MARKERS = {"two_heads": "o", "two_models": "s"}


def main(argv: list[str] | None = None) -> int:
    """Print a search's tables and write its pictures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m results.report", description=main.__doc__)
    parser.add_argument("--name", required=True, help="of the search")
    parser.add_argument("--storage", type=UPath, metavar="DIR|URI", help="(default: runs)")
    args = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        folder = run_folder(args.name, args.storage)
        record = load_record(folder)
        trials = trials_frame(folder, record)
        print_tables(console, trials, record)
        for file in write_report(folder, trials, record):
            console.print(f"wrote {file}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def print_tables(console: Console, trials: pd.DataFrame, record: SearchRecord) -> None:
    """Print the baselines, the best trial of each architecture, repeats, and the best of all."""
    counts = trials["state"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"\n[bold]{record.name}[/bold]: {len(trials)} trials ({states or 'none yet'})")
    everything, trials = trials, searched(trials)
    best = best_row(trials, record.metrics)
    if best is None:
        console.print("No trial has finished, so there is no result.")
        for reason, count in trials["reason"].value_counts().items():
            if reason:
                console.print(f"{count} failed: {reason}", style="red")
        return
    metric = record.metrics[0]
    if trials["baseline"].any():
        _print_rows(console, "Baselines", trials[trials["baseline"]], metric, best)
    complete = trials[trials["state"] == "COMPLETE"]
    groups = [best_row(group, record.metrics) for _, group in complete.groupby("architecture")]
    _print_rows(console, "Best by architecture", pd.DataFrame(groups), metric, best)
    if len(record.metrics) > 1:
        front = pareto_rows(trials, record.metrics)
        _print_rows(console, f"Pareto front of {', '.join(record.metrics)}", front, metric, best)
    console.print(
        f"Best: trial {best['number']:05d}, {metric} {best[metric]:.3f}, "
        f"{best['config'].describe()}",
    )
    if repeated(everything):
        _print_repeats(console, everything, record)


def _print_repeats(console: Console, trials: pd.DataFrame, record: SearchRecord) -> None:
    """Print each repeated configuration's mean and range, and its difference to the best."""
    metric = ranking_metric(record.metrics)
    frame = repeats_frame(trials, record.metrics, ())
    table = Table(
        title=f"Repeats: means over seeds; difference of {metric} to the best mean, with its "
        "95% bootstrap interval",
        title_justify="left", box=None, padding=(0, 1),
    )  # fmt: skip
    table.add_column("trial", no_wrap=True)
    for column in ("seeds", metric, "range", "difference", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
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
            row["configuration"],
            style="bold" if best is not None and row["trial"] == best.number else None,
        )
    console.print(table, soft_wrap=False)
    if not frame["is_whole"].all():
        console.print("* not complete with every seed, so not ranked")
    if best is not None:
        console.print(
            f"Best by mean over {len(best.seeds)} seeds: trial {best.number:05d}, {metric} "
            f"{best.values(metric).mean():.3f}, {best.original['config'].describe()}"
        )


def _print_rows(
    console: Console, title: str, rows: pd.DataFrame, metric: str, best: "pd.Series[Any]"
) -> None:
    shown = list(dict.fromkeys((metric, *SHOWN)))
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    table.add_column("trial", no_wrap=True)
    for column in shown:
        table.add_column(column.replace("_", "\n"), justify="right", no_wrap=True)
    table.add_column("configuration", overflow="fold")
    for _, row in rows.iterrows():
        values = ["" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in shown]
        if row["state"] != "COMPLETE":
            values[0] = str(row["state"])
        style = "bold" if row["number"] == best["number"] else None
        table.add_row(f"{row['number']:05d}", *values, row["config"].describe(), style=style)
    console.print(table, soft_wrap=False)


def write_report(folder: UPath, trials: pd.DataFrame, record: SearchRecord) -> list[UPath]:
    """Write the tables and the pictures of a search; return the files."""
    files = write_tables(folder, trials, record)
    has_repeats = bool(repeated(trials))
    everything, trials = trials, searched(trials)
    complete = trials[trials["state"] == "COMPLETE"]
    if len(complete):
        pictures = folder / "report"
        files.append(_plot_history(pictures / "history.png", trials, record.metrics[0]))
        files.append(_plot_tradeoff(pictures / "tradeoff.png", complete))
        files += _plot_hierarchy(pictures / "hierarchy.png", folder, complete, record)
        if has_repeats:
            files.append(_plot_repeats(pictures / "repeats.png", everything, record.metrics))
        files += _plot_study(folder, pictures, record)
    return files


def write_tables(folder: UPath, trials: pd.DataFrame, record: SearchRecord) -> list[UPath]:
    """Write one row per trial as `trials.csv` and, where there are repeats, `repeats.csv`."""
    tables = {"trials.csv": trials.drop(columns="config")}
    if repeated(trials):
        tables["repeats.csv"] = repeats_frame(trials, record.metrics, list(METRICS))
    for name, table in tables.items():
        write_atomically(folder / name, table.to_csv(index=False).encode())
    return [folder / name for name in tables]


def _plot_history(file: UPath, trials: pd.DataFrame, metric: str) -> UPath:
    """Plot every trial's result by number, and the best so far."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for state, colour in (("COMPLETE", "C0"), ("PRUNED", "0.7")):
        rows = trials[trials["state"] == state]
        axes.scatter(
            rows["number"], rows[metric].astype(float), c=colour, label=state.lower(), s=24
        )
    complete = trials[trials["state"] == "COMPLETE"]
    values = complete[metric].astype(float)
    best = values.cummax() if METRICS[metric] == "maximize" else values.cummin()
    axes.step(complete["number"], best, where="post", c="C1", label="best so far")
    axes.set(xlabel="trial", ylabel=metric)
    axes.legend(frameon=False)
    return _save(figure, file)


def _plot_tradeoff(file: UPath, complete: pd.DataFrame) -> UPath:
    """Plot seen against unseen accuracy of both tasks: raising a threshold moves up and left."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for axes, task in zip(panels, ("super", "sub"), strict=True):
        for architecture, rows in complete.groupby("architecture"):
            axes.scatter(
                rows[f"seen_{task}"], rows[f"unseen_{task}"],
                marker=_MARKERS[str(architecture)], label=architecture, s=36, alpha=0.8,
            )  # fmt: skip
        for _, row in complete[complete["baseline"]].iterrows():
            axes.annotate(
                f"{row['number']}", (row[f"seen_{task}"], row[f"unseen_{task}"]),
                xytext=(4, 4), textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.set(
            xlabel=f"seen_{task}", ylabel=f"unseen_{task}", xlim=(0, 1.02), ylim=(0, 1.02),
            aspect="equal", title={"super": "superclass", "sub": "subclass"}[task],
        )  # fmt: skip
    panels[0].legend(frameon=False, loc="lower left")
    return _save(figure, file)


def _plot_repeats(file: UPath, trials: pd.DataFrame, metrics: list[str]) -> UPath:
    """Plot a metric: a row for each repeated configuration, a point for each seed, their mean."""
    metric = ranking_metric(metrics)
    frame = repeats_frame(trials, metrics, ())
    by_number = {each.number: each for each in repeated(trials)}
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.5 * len(frame)), layout="constrained")
    ordered = [by_number[number] for number in frame["trial"]]
    seeds = sorted({seed for each in ordered for seed in each.by_seed.index})
    for seed in seeds:
        places = [n for n, each in enumerate(ordered) if seed in each.by_seed.index]
        values = [ordered[place].values(metric)[seed] for place in places]
        axes.scatter(values, places, s=28, alpha=0.9, label=f"seed {seed}", zorder=3)
    axes.hlines(range(len(frame)), frame["min"], frame["max"], color="0.8", lw=2, zorder=1)
    axes.scatter(
        frame["mean"], range(len(frame)), marker="|", s=260, c="black", label="mean", zorder=2
    )
    labels = [
        textwrap.fill(f"{row.trial:05d} {row.configuration}", 48) for row in frame.itertuples()
    ]
    axes.set_yticks(range(len(frame)), labels, fontsize=7)
    axes.set(xlabel=metric, ylim=(len(frame) - 0.5, -0.5))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return _save(figure, file)


def _plot_hierarchy(
    file: UPath, folder: UPath, complete: pd.DataFrame, record: SearchRecord
) -> list[UPath]:
    """Plot known against novel accuracy, both levels right, of the baselines and the best trial.

    Each curve sweeps the subclass's tau; its dot is the tau that the trial uses. Trials whose
    outputs are not there (nothing was held out, or the folder was not copied) are left out.
    """
    best = best_row(complete, record.metrics)
    assert best is not None
    numbers = dict.fromkeys([*complete[complete["baseline"]]["number"], best["number"]])
    figure, axes = plt.subplots(figsize=(6, 5.5), layout="constrained")
    for number in numbers:
        trial = trial_folder(folder, int(number))
        if not (trial / OUTPUTS_FILE).exists():
            continue
        outputs, rule = load_outputs(trial), load_rule(trial)
        half = outputs.where(~outputs.is_calibration & (outputs.kind != SECOND))
        novel, known = hierarchy_curve(half, rule)
        style = {"color": "C1", "linewidth": 2.0} if number == best["number"] else {"alpha": 0.6}
        area = float(torch.trapezoid(known, novel))
        (line,) = axes.plot(novel, known, label=f"{number:05d}, area {area:.3f}", **style)
        axes.plot(*both_right(half, rule), marker="o", color=line.get_color())
    if not axes.lines:
        plt.close(figure)
        return []
    axes.set(
        xlabel="novel images with superclass right and subclass called novel",
        ylabel="known images with superclass and subclass right",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize=8, title="trial")
    return [_save(figure, file)]


def _plot_study(folder: UPath, pictures: UPath, record: SearchRecord) -> list[UPath]:
    """Write Optuna's interactive views; they need a few sampled trials."""
    study = optuna.load_study(study_name=record.study_name, storage=study_url(folder, record))
    sampled = [t for t in study.trials if t.state.name == "COMPLETE" and t.params]
    if len(sampled) < 4 or len(record.metrics) > 1:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        figures = {
            "parameters.html": optuna.visualization.plot_slice(study),
            "importance.html": optuna.visualization.plot_param_importances(
                study, evaluator=evaluator
            ),
        }
    for name, figure in figures.items():
        write_atomically(pictures / name, figure.to_html(include_plotlyjs=True).encode())
    return [pictures / name for name in figures]


def _save(figure: Figure, file: UPath) -> UPath:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    plt.close(figure)
    write_atomically(file, buffer.getvalue())
    return file


if __name__ == "__main__":
    sys.exit(main())
