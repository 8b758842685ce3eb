"""A search as pictures: its history, what thresholds trade, its hierarchy, repeats, parameters."""

import io
import textwrap
import warnings

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import optuna
import pandas as pd
import torch
from matplotlib.figure import Figure
from upath import UPath

from results.history import searched
from results.ranking import best_row, ranking_metric, repeated, repeats_frame
from results.record import SearchRecord, study_url, trial_folder
from trainable.checkpoint import write_atomically
from trainable.classifier import OUTPUTS_FILE, load_outputs, load_rule
from trainable.novelty.metrics import METRICS, both_right, hierarchy_curve

_MARKERS = {"two_heads": "o", "two_models": "s"}


def write_pictures(folder: UPath, trials: pd.DataFrame, record: SearchRecord) -> list[UPath]:
    """Write the pictures of a search, if one of its trials is complete; return the files."""
    has_repeats = bool(repeated(trials))
    everything, trials = trials, searched(trials)
    complete = trials[trials["state"] == "COMPLETE"]
    if not len(complete):
        return []
    pictures = folder / "report"
    files = [
        _plot_history(pictures / "history.png", trials, record.metrics[0]),
        _plot_tradeoff(pictures / "tradeoff.png", complete),
        *_plot_hierarchy(pictures / "hierarchy.png", folder, complete, record),
    ]
    if has_repeats:
        files.append(_plot_repeats(pictures / "repeats.png", everything, record.metrics))
    return files + _plot_study(folder, pictures, record)


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
        # The rule that the trial is kept with: its dot is no promise, all images chose it.
        outputs, rule = load_outputs(trial).choosing(), load_rule(trial)
        novel, known = hierarchy_curve(outputs, rule)
        style = {"color": "C1", "linewidth": 2.0} if number == best["number"] else {"alpha": 0.6}
        area = float(torch.trapezoid(known, novel))
        (line,) = axes.plot(novel, known, label=f"{number:05d}, area {area:.3f}", **style)
        axes.plot(*both_right(outputs, rule), marker="o", color=line.get_color())
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
    """Write Optuna's interactive views; they need a few sampled trials.

    Only of trials with parameters. A baseline outside the space has none: among the best trials,
    which Optuna compares with all, it would hide what those have in common.
    """
    study = optuna.load_study(study_name=record.study_name, storage=study_url(folder, record))
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    sampled = [trial for trial in trials if trial.params]
    if len(sampled) < 4 or len(record.metrics) > 1:
        return []
    shown = optuna.create_study(direction=study.direction)  # in memory
    shown.add_trials(sampled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        figures = {
            "parameters.html": optuna.visualization.plot_slice(shown),
            "importance.html": optuna.visualization.plot_param_importances(
                shown, evaluator=evaluator
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
