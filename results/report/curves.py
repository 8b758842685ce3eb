"""The best trial without a threshold: how well its scores separate, and whether they are right."""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from results.record import trial_folder
from results.report.drawing import (
    BEST,
    FAINT,
    LEVELS,
    NOVEL,
    TRIAL,
    Floats,
    Picture,
    as_percent,
    label_points,
    legend_below,
    panel,
)
from results.report.material import Judged, Search
from results.report.thresholds import groups_of
from results.terminal import counted
from trainable.classifier import OUTPUTS_FILE, load_outputs, load_rule
from trainable.config import TASKS
from trainable.data.splits import SECOND
from trainable.errors import UserError
from trainable.novelty.hierarchy import both_right, hierarchy_curve
from trainable.novelty.separation import ECE_BINS

_OTHER_PART = ", judged by the part of the images that did not choose the score"
_GRID = np.linspace(0, 1, 201)


def roc(judged: Judged, remark: str = _OTHER_PART) -> Picture | None:
    """Show novel images found against known ones rejected, over all thresholds."""

    def curve(known: Floats, novel: Floats) -> tuple[Floats, Floats]:
        taus = np.unique(np.concatenate([known, novel]))
        taus = np.append(taus, np.inf)
        known, novel = np.sort(known), np.sort(novel)
        return np.searchsorted(known, taus) / len(known), np.searchsorted(novel, taus) / len(novel)

    return _curves(
        judged, remark, "roc", curve, "ROC of telling novel images", "auroc",
        ("known images called novel", "novel images called novel"), "area under the ROC curve",
    )  # fmt: skip


def precision(judged: Judged, remark: str = _OTHER_PART) -> Picture | None:
    """Show how many of those called novel are, against how many of the novel are found."""

    def curve(known: Floats, novel: Floats) -> tuple[Floats, Floats]:
        taus = np.append(np.unique(np.concatenate([known, novel])), np.inf)[1:]
        found = np.searchsorted(np.sort(novel), taus)
        wrong = np.searchsorted(np.sort(known), taus)
        return found / len(novel), found / np.maximum(found + wrong, 1)

    return _curves(
        judged, remark, "precision", curve, "precision and recall of novel", "aupr",
        ("novel images called novel (recall)", "of those called novel, novel (precision)"),
        "average precision",
    )  # fmt: skip


def _curves(
    judged: Judged, remark: str, name: str, curve: Any, what: str, metric: str,
    labels: tuple[str, str], metric_said: str,
) -> Picture | None:  # fmt: skip
    figures, tables, told = [], [], []
    for task in TASKS:
        score = judged.rule.super_score if task == "super" else judged.rule.sub_score
        known_by_outputs: dict[int, Floats] = {}
        of_label: dict[str, list[tuple[Floats, Floats]]] = {}
        for each in groups_of(judged.of(task), task, judged.near, judged.far):
            if each.is_known:
                continue
            scores = each.outputs.score(task, score).numpy()
            known = each.outputs.is_known(task) & (each.outputs.kind != SECOND)
            ranked = known_by_outputs.setdefault(id(each.outputs), scores[known.numpy()])
            if len(ranked):
                of_label.setdefault(each.label, []).append(
                    curve(ranked, scores[each.among.numpy()])
                )
        if not of_label:
            continue
        figure, axes = panel(f"{LEVELS[task].capitalize()}: {what}, {judged.who}", 4.3)
        for (label, found), dash in zip(of_label.items(), ("-", "--", ":"), strict=False):
            for x, y in found if len(found) > 1 else ():
                axes.plot(x, y, color=NOVEL, lw=0.5, alpha=0.5)
            mean = np.mean([_on_grid(x, y) for x, y in found], 0)
            several = f", mean of {len(found)} (thin: each)" if len(found) > 1 else ""
            axes.plot(_GRID, mean, color=NOVEL, lw=1.8, ls=dash, label=f"{label}{several}")
            tables.append(
                pd.DataFrame(
                    {"level": LEVELS[task], "novel": label, labels[0]: _GRID, labels[1]: mean}
                )
            )
        if name == "roc":
            axes.plot([0, 1], [0, 1], color=FAINT, lw=1, label="no skill")
        axes.set(xlim=(0, 1), ylim=(0, 1.005))
        as_percent(axes.xaxis, labels[0])
        as_percent(axes.yaxis, labels[1])
        legend_below(axes)
        figures.append(figure)
        value = judged.metrics.get(f"{metric}_{task}", math.nan)
        if not math.isnan(value):
            told.append(f"{100 * value:.1f}% for the {LEVELS[task]}")
    if not figures:
        return None
    hard = ""
    if name == "roc" and len(told) == 2:
        gap = judged.metrics["auroc_super"] - judged.metrics["auroc_sub"]
        harder = "subclasses" if gap > 0 else "superclasses"
        hard = f" Novel {harder} are the harder ones to tell, by {abs(100 * gap):.1f} points."
    return Picture(
        name=name,
        title=f"{what[0].upper()}{what[1:]}, {judged.who}",
        caption=f"The {metric_said} is {' and '.join(told) or 'not known'}{remark}.{hard}",
        table=pd.concat(tables),
        figures=tuple(figures),
    )


def _on_grid(x: Floats, y: Floats) -> Floats:
    order = np.lexsort((y, x))
    return np.interp(_GRID, x[order], y[order])


def hierarchy_of(judged: Judged) -> Picture | None:
    """Show known against novel accuracy, both levels right, of a model that was evaluated.

    None where there was nothing known or nothing novel to judge.
    """
    if "hierarchy_area" not in judged.metrics:
        return None
    outputs, rule = judged.of("sub"), judged.rule
    figure, axes = panel(f"Both levels right: known against novel, over all τ, {judged.who}", 4.3)
    novel, known = hierarchy_curve(outputs, rule)
    at = both_right(outputs, rule)
    axes.plot(novel, known, color=BEST, lw=2.0, label="over all τ")
    axes.plot(*at, marker="o", color=BEST, ms=6, ls="", label="at its τ")
    _label_hierarchy(axes)
    return Picture(
        name="hierarchy",
        title=f"Known against novel images with both levels right, {judged.who}",
        caption=f"At its threshold {100 * at[1]:.0f}% of known images have both classes right, and "
        f"{100 * at[0]:.0f}% of novel ones the right superclass and a subclass called novel. The "
        f"area under the curve is {100 * judged.metrics['hierarchy_area']:.1f}%.",
        table=pd.DataFrame({"novel": novel, "known": known}),
        figures=(figure,),
    )


def _label_hierarchy(axes: Axes) -> None:
    as_percent(axes.xaxis, "novel images: superclass right, subclass called novel")
    as_percent(axes.yaxis, "known images: both classes right")
    legend_below(axes)


def hierarchy(search: Search) -> Picture | None:
    """Show known against novel accuracy, both levels right, of the baselines and the best trial.

    Each curve sweeps the subclass's tau; its dot is the tau that the trial uses. Trials whose
    outputs are not there (nothing was held out, or the folder was not copied) are left out.
    """
    assert search.best is not None
    best = int(search.best["number"])
    baselines = search.complete[search.complete["baseline"]]["number"]
    numbers = [*dict.fromkeys([*(int(each) for each in baselines if each != best)])][:6]
    figure, axes = panel("Both levels right: known against novel, over all τ", 4.3)
    ends, labels, tables, areas = [], [], [], {}
    for each in (*numbers, best):
        folder = trial_folder(search.folder, each)
        if not (folder / OUTPUTS_FILE).exists():
            continue
        try:
            # The rule that it is kept with: its dot is no promise, all images chose it.
            outputs, rule = load_outputs(folder).choosing(), load_rule(folder)
        except UserError:
            continue
        novel, known = hierarchy_curve(outputs, rule)
        areas[each] = float(torch.trapezoid(known, novel))
        colour, width = (BEST, 2.0) if each == best else (TRIAL, 1.1)
        axes.plot(novel, known, color=colour, lw=width)
        ends.append(both_right(outputs, rule))
        labels.append(f"{each}")
        axes.plot(*ends[-1], marker="o", color=colour, ms=5)
        tables.append(pd.DataFrame({"trial": each, "novel": novel, "known": known}))
    if not tables:
        return None
    if len(tables) > (best in areas):
        axes.plot([], [], color=TRIAL, label="baselines")
    axes.plot([], [], color=BEST, lw=2, label="best")
    _label_hierarchy(axes)
    left_out = label_points(axes, ends, labels)
    top = max(areas, key=lambda each: areas[each])
    return Picture(
        name="hierarchy",
        title="Known against novel images with both levels right, over all subclass thresholds",
        caption=f"Trial {top} has the largest area, {100 * areas[top]:.1f}%"
        + (f", the best trial {100 * areas[best]:.1f}%." if best in areas and top != best else ".")
        + " Dots are the thresholds that the trials use, numbers the trials."
        + (f" There was no room for {counted(left_out, 'number')}." if left_out else ""),
        table=pd.concat(tables),
        figures=(figure,),
    )


def reliability(judged: Judged) -> Picture | None:
    """Show how often an answer of each confidence is right."""
    figures, tables, told = [], [], []
    for task in TASKS:
        outputs = judged.of(task).choosing()
        if not len(outputs.kind):
            continue
        logits = outputs.logits(task).double()
        confidence, answer = (each.numpy() for each in logits.softmax(1).max(1))
        right = answer == outputs.target(task).numpy()
        bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int), 1, ECE_BINS) - 1
        counts = np.bincount(bins, minlength=ECE_BINS)
        held = counts > 0
        sums = (np.bincount(bins, each, ECE_BINS)[held] for each in (confidence, right))
        x, y = (each / counts[held] for each in sums)
        figure, axes = panel(f"{LEVELS[task].capitalize()}: how often right, by confidence, "
                             f"{judged.who}", 4.3)  # fmt: skip
        axes.plot([0, 1], [0, 1], color=FAINT, lw=1.2, label="calibrated")
        axes.plot(x, y, color=BEST, lw=1.2, zorder=2)
        sizes = 12 + 150 * counts[held] / counts.max()
        axes.scatter(
            x, y, s=sizes, color=BEST, alpha=0.75, linewidths=0, label="larger: more images",
            clip_on=False,
        )  # fmt: skip
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        as_percent(axes.xaxis, "confidence")
        as_percent(axes.yaxis, "right")
        legend_below(axes)
        figures.append(figure)
        tables.append(
            pd.DataFrame(
                {"level": LEVELS[task], "confidence": x, "right": y, "images": counts[held]}
            )
        )
        gap = 100 * float(confidence.mean() - right.mean())
        ece = judged.metrics.get(f"ece_{task}", math.nan)
        error = "" if math.isnan(ece) else f", calibration error {100 * ece:.1f} points"
        too = "too sure" if gap > 0 else "not sure enough"
        told.append(
            f"For the {LEVELS[task]} it is {too} by {abs(gap):.1f} points on average{error}."
        )
    return Picture(
        name="reliability",
        title=f"How often an answer is right, by its confidence, {judged.who}",
        caption=" ".join(told) + " Confidence is the largest softmax probability, novel included.",
        table=pd.concat(tables),
        figures=tuple(figures),
    )
