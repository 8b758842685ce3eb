"""The best trial as pictures: its scores and thresholds, its answers, its mistakes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from results.record import trial_folder
from results.report.drawing import (
    BEST,
    FAINT,
    INK,
    KNOWN,
    NOVEL,
    TRIAL,
    WIDTH,
    Picture,
    as_percent,
    label_points,
    legend_below,
    panel,
    room,
    rows_of,
)
from results.report.material import Best, Search
from trainable.classifier import OUTPUTS_FILE, load_outputs, load_rule
from trainable.config import TASKS, Task
from trainable.data.splits import LEFT_OUT, PSEUDO_NOVEL, SECOND, SEEN
from trainable.data.splits import NOVEL as BORROWED
from trainable.errors import UserError
from trainable.novelty.metrics import ECE_BINS, both_right, hierarchy_curve
from trainable.novelty.rule import Rule, acceptance
from trainable.novelty.thresholds import Answers, Outputs

LEVELS: dict[Task, str] = {"super": "superclass", "sub": "subclass"}
TAUS = 121
"""Places of a slider."""
BINS = 36
SHEET = (4, 3)
"""Rows and columns of images."""
LABELLED_MAX = 40
"""Classes of a confusion that are named beside it."""
_Floats = npt.NDArray[np.float64]


def pictures(search: Search) -> list[Picture]:
    """Return the pictures of the best trial that there is something to show in."""
    best = search.anatomy
    if best is None or search.best is None:
        return []
    found = [
        thresholds(best), roc(best, search), precision(best, search), reliability(best, search),
        hierarchy(search), confusion(best), *sheets(best, search),
    ]  # fmt: skip
    return [picture for picture in found if picture is not None]


def remarks(search: Search) -> list[str]:
    """Return why something of the best trial is not shown, a line each."""
    if search.best is None:
        return []
    folder = trial_folder(search.folder, int(search.best["number"]))
    if search.anatomy is None:
        return [f"{folder} holds no validation outputs, so nothing of the best trial is shown."]
    if search.data is None:
        return [
            f"Images are not shown: the cache {search.record.cache or 'that was switched off'} of "
            "this machine does not hold them. The tables beside this page name their rows."
        ]
    return []


# --- Thresholds ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Scores of images that count alike, and which of them the argmax answers right."""

    label: str
    is_known: bool
    outputs: Outputs
    among: torch.Tensor
    """bool (N,)."""


def groups_of(outputs: Outputs, task: Task) -> list[Group]:
    """Return the known and the novel groups of `task`, those of the folds after the others."""
    kind = outputs.kind
    if task == "super":
        found = [
            Group("seen subclasses", True, outputs, kind == SEEN),
            Group("held-out subclasses", True, outputs, kind == PSEUDO_NOVEL),
        ]
        far = [Group("left out", False, fold, fold.kind == LEFT_OUT) for fold in outputs.folds]
    else:
        found = [
            Group("seen subclasses", True, outputs, kind == SEEN),
            Group("held-out subclasses", False, outputs, kind == PSEUDO_NOVEL),
        ]
        far = [
            Group("left out", False, fold, fold.kind == LEFT_OUT)
            for fold in outputs.folds
            if "sub" in fold.exact
        ]
    far = far or [Group("borrowed", False, outputs, kind == BORROWED)]
    return [each for each in (*found, *far) if each.among.any()]


def accepted(outputs: Outputs, task: Task, rule: Rule, tau_super: float) -> torch.Tensor:
    """Return what a threshold of `task` decides by: -inf where an image is novel at any."""
    if task == "super":
        return acceptance(outputs, "super", rule.super_score)
    score = acceptance(outputs, "sub", rule.sub_score, restrict_sub=rule.restrict_sub)
    if rule.couple_novel:
        superclass = acceptance(outputs, "super", rule.super_score)
        score = score.masked_fill(~(superclass >= tau_super), -torch.inf)
    return score


def sweep(outputs: Outputs, task: Task, rule: Rule) -> tuple[_Floats, dict[str, _Floats]]:
    """Return thresholds and what each would give: rates (T,) by name.

    A model that left out a superclass has scores of its own, so its threshold is the one that
    rejects the same share of the images it knows.
    """
    groups = groups_of(outputs, task)
    scores = accepted(outputs, task, rule, rule.tau_super)
    known = torch.stack([each.among for each in groups if each.is_known]).any(0)
    finite = scores[(scores.isfinite()) & (outputs.kind != SECOND)].sort().values
    own = rule.tau_super if task == "super" else float(np.mean(rule.tau_sub))
    if not len(finite):
        return np.array([own]), {}
    places = torch.linspace(0, len(finite) - 1, min(TAUS, len(finite))).long()
    inside = min(max(own, float(finite[0])), float(finite[-1]))
    taus = np.unique(np.append(finite[places].numpy(), inside))
    share = _below(scores[known], taus)
    seen, rejected, unseen = [], [], dict[str, list[_Floats]]()
    for each in groups:
        at = taus
        of = scores
        if each.outputs is not outputs:
            tau_super = _matching(outputs, each.outputs, rule)
            of = accepted(each.outputs, task, rule, tau_super)
            its_known = each.outputs.is_known(task) & (each.outputs.kind != SECOND)
            at = _quantiles(of[its_known], share)
        if each.is_known:
            argmax, _ = outputs.answer(task, restrict_sub=task == "sub" and rule.restrict_sub)
            right = argmax == outputs.target(task)
            total = int(each.among.sum())
            seen.append(
                (1 - _below(of[each.among & right], at)) * int((each.among & right).sum()) / total
            )
            rejected.append(_below(of[each.among], at))
        else:
            unseen.setdefault(each.label, []).append(_below(of[each.among], at))
    rates = {
        "seen right": np.mean(seen, 0),
        "known called novel": np.mean(rejected, 0),
    }
    if unseen:
        found = np.mean([np.mean(each, 0) for each in unseen.values()], 0)
        total = rates["seen right"] + found
        rates["unseen called novel"] = found
        rates["harmonic mean of seen and unseen"] = np.divide(
            2 * rates["seen right"] * found, total, out=np.zeros_like(total), where=total > 0
        )
    return taus, rates


def _below(scores: torch.Tensor, taus: _Floats) -> _Floats:
    """Return the share of scores below each threshold."""
    ranked = scores.sort().values.numpy()
    return np.searchsorted(ranked, taus) / max(len(ranked), 1)


def _quantiles(scores: torch.Tensor, shares: _Floats) -> _Floats:
    """Return thresholds below which there are these shares of the scores."""
    ranked = np.append(scores.sort().values.numpy(), np.inf)
    found: _Floats = ranked[np.round(shares * (len(ranked) - 1)).astype(int)]
    return found


def _matching(outputs: Outputs, fold: Outputs, rule: Rule) -> float:
    """Return the fold's superclass threshold that rejects as many as the rule's."""
    ours = acceptance(outputs, "super", rule.super_score)
    ours = ours[outputs.is_known("super") & (outputs.kind != SECOND)]
    theirs = acceptance(fold, "super", rule.super_score)
    theirs = theirs[fold.is_known("super") & (fold.kind != SECOND)]
    return float(_quantiles(theirs, _below(ours, np.array([rule.tau_super])))[0])


def thresholds(best: Best) -> Picture | None:
    """Show the scores of known and of novel images, the threshold, and what others would give."""
    figures: list[Figure] = []
    tables, told = [], []
    sliders: dict[int, dict[str, Any]] = {}
    for task in TASKS:
        taus, rates = sweep(best.outputs, task, best.rule)
        if "unseen called novel" not in rates:
            continue
        figure, box = _histogram(best, task, taus)
        own = best.rule.tau_super if task == "super" else float(np.mean(best.rule.tau_sub))
        start = int(np.abs(taus - own).argmin())
        sliders[len(figures)] = {
            **box, "label": f"τ of the {LEVELS[task]}", "start": start,
            "taus": [float(f"{each:.6g}") for each in taus],
            "rates": [[name, np.round(each, 4).tolist()] for name, each in rates.items()],
        }  # fmt: skip
        figures.append(figure)
        tables.append(pd.DataFrame({"level": LEVELS[task], "tau": taus, **rates}))
        told.append(_tau_caption(rates, start, task))
    if not figures:
        return None
    several = len(set(best.rule.tau_sub)) > 1
    return Picture(
        name="thresholds",
        title=f"Scores of known and novel images by trial {best.number}, with its thresholds",
        caption=" ".join(told)
        + " Thresholds cost no training. These rates are of the images that chose the threshold, "
        "so they flatter; a left-out superclass is judged by a model that never saw it, at the "
        "threshold that rejects as many known images."
        + (" Each superclass has its own threshold here; the slider sets one for all." if several
           else ""),
        table=pd.concat(tables),
        figures=tuple(figures),
        slider=sliders,
    )  # fmt: skip


def _histogram(best: Best, task: Task, taus: _Floats) -> tuple[Figure, dict[str, float]]:
    name = best.rule.super_score if task == "super" else best.rule.sub_score
    figure, axes = panel(
        f"{LEVELS[task].capitalize()}: scores of known and novel images, trial {best.number}"
    )
    pooled: dict[tuple[bool, str], list[torch.Tensor]] = {}
    for each in groups_of(best.outputs, task):
        label = "known" if each.is_known else f"novel: {each.label}"
        scores = each.outputs.score(task, name)[each.among]
        pooled.setdefault((each.is_known, label), []).append(scores)
    every = torch.cat([each for parts in pooled.values() for each in parts]).numpy()
    low, high = np.quantile(every, [0.002, 0.998])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    dashes = iter(("-", "--", ":"))
    for (is_known, label), parts in pooled.items():
        values = np.clip(torch.cat(parts).numpy(), edges[0], edges[-1])
        shares = np.histogram(values, edges)[0] / len(values)
        colour = KNOWN if is_known else NOVEL
        dash = "-" if is_known else next(dashes)
        axes.stairs(shares, edges, color=colour, lw=1.3, ls=dash, label=label)
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.18, lw=0)
    own = (best.rule.tau_super,) if task == "super" else best.rule.tau_sub
    for place, tau in enumerate(dict.fromkeys(own)):
        shown = min(max(tau, edges[0]), edges[-1])
        axes.axvline(shown, color=INK, ls="--", lw=1.1, label="its τ" if place == 0 else None)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(f"{name.replace('_', ' ')}: left is novel, right is known")
    as_percent(axes.yaxis, "share of the images")
    legend_below(axes)
    figure.draw_without_rendering()
    at, size = axes.get_position(), 72 * figure.get_size_inches()
    box = {
        "left": at.x0 * size[0], "right": at.x1 * size[0], "top": (1 - at.y1) * size[1],
        "bottom": (1 - at.y0) * size[1], "low": float(edges[0]), "high": float(edges[-1]),
    }  # fmt: skip
    return figure, {key: round(float(value), 4) for key, value in box.items()}


def _tau_caption(rates: dict[str, _Floats], start: int, task: Task) -> str:
    mean = rates["harmonic mean of seen and unseen"]
    top = int(mean.argmax())
    text = (
        f"For the {LEVELS[task]} the trial's threshold finds "
        f"{100 * rates['unseen called novel'][start]:.0f}% of unseen images and answers "
        f"{100 * rates['seen right'][start]:.0f}% of seen ones right"
    )
    if mean[top] - mean[start] > 0.01:
        return (
            f"{text}; another one would find {100 * rates['unseen called novel'][top]:.0f}% and "
            f"answer {100 * rates['seen right'][top]:.0f}% right."
        )
    return f"{text}; none would balance them better by over a point."


# --- Without a threshold -------------------------------------------------------------------------

_GRID = np.linspace(0, 1, 201)


def roc(best: Best, search: Search) -> Picture | None:
    """Show novel images found against known ones rejected, over all thresholds."""

    def curve(known: _Floats, novel: _Floats) -> tuple[_Floats, _Floats]:
        taus = np.unique(np.concatenate([known, novel]))
        taus = np.append(taus, np.inf)
        known, novel = np.sort(known), np.sort(novel)
        return np.searchsorted(known, taus) / len(known), np.searchsorted(novel, taus) / len(novel)

    return _curves(
        best, search, "roc", curve, "ROC of telling novel images", "auroc",
        ("known images called novel", "novel images called novel"), "area under the ROC curve",
    )  # fmt: skip


def precision(best: Best, search: Search) -> Picture | None:
    """Show how many of those called novel are, against how many of the novel are found."""

    def curve(known: _Floats, novel: _Floats) -> tuple[_Floats, _Floats]:
        taus = np.append(np.unique(np.concatenate([known, novel])), np.inf)[1:]
        found = np.searchsorted(np.sort(novel), taus)
        wrong = np.searchsorted(np.sort(known), taus)
        return found / len(novel), found / np.maximum(found + wrong, 1)

    return _curves(
        best, search, "precision", curve, "precision and recall of novel", "aupr",
        ("novel images called novel (recall)", "of those called novel, novel (precision)"),
        "average precision",
    )  # fmt: skip


def _curves(
    best: Best, search: Search, name: str, curve: Any, what: str, metric: str,
    labels: tuple[str, str], metric_said: str,
) -> Picture | None:  # fmt: skip
    figures, tables, told = [], [], []
    for task in TASKS:
        score = best.rule.super_score if task == "super" else best.rule.sub_score
        known_by_outputs: dict[int, _Floats] = {}
        of_label: dict[str, list[tuple[_Floats, _Floats]]] = {}
        for each in groups_of(best.outputs, task):
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
        figure, axes = panel(f"{LEVELS[task].capitalize()}: {what}, trial {best.number}", 4.3)
        for (label, found), dash in zip(of_label.items(), ("-", "--", ":"), strict=False):
            for x, y in found if len(found) > 1 else ():
                axes.plot(x, y, color=NOVEL, lw=0.5, alpha=0.5)
            mean = np.mean([_on_grid(x, y) for x, y in found], 0)
            several = f", mean of {len(found)}" if len(found) > 1 else ""
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
        assert search.best is not None
        value = search.best[f"{metric}_{task}"]
        if not pd.isna(value):
            told.append(f"{100 * float(value):.1f}% for the {LEVELS[task]}")
    if not figures:
        return None
    hard = ""
    if name == "roc" and len(told) == 2 and search.best is not None:
        gap = float(search.best["auroc_super"]) - float(search.best["auroc_sub"])
        harder = "subclasses" if gap > 0 else "superclasses"
        hard = f" Novel {harder} are the harder ones to tell, by {abs(100 * gap):.1f} points."
    return Picture(
        name=name,
        title=f"{what[0].upper()}{what[1:]}, trial {best.number}",
        caption=f"The {metric_said} is {' and '.join(told) or 'not known'}, judged by the part of "
        f"the images that did not choose the score.{hard}",
        table=pd.concat(tables),
        figures=tuple(figures),
    )


def _on_grid(x: _Floats, y: _Floats) -> _Floats:
    order = np.lexsort((y, x))
    return np.interp(_GRID, x[order], y[order])


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
    as_percent(axes.xaxis, "novel images: superclass right, subclass called novel")
    as_percent(axes.yaxis, "known images: both classes right")
    legend_below(axes)
    left_out = label_points(axes, ends, labels)
    top = max(areas, key=lambda each: areas[each])
    return Picture(
        name="hierarchy",
        title="Known against novel images with both levels right, over all subclass thresholds",
        caption=f"Trial {top} has the largest area, {100 * areas[top]:.1f}%"
        + (f", the best trial {100 * areas[best]:.1f}%." if best in areas and top != best else ".")
        + " Dots are the thresholds that the trials use, numbers the trials."
        + (f" There was no room for {left_out} numbers." if left_out else ""),
        table=pd.concat(tables),
        figures=(figure,),
    )


def reliability(best: Best, search: Search) -> Picture | None:
    """Show how often an answer of each confidence is right."""
    outputs = best.outputs.choosing()
    figures, tables, told = [], [], []
    for task in TASKS:
        logits = outputs.logits(task).double()
        confidence, answer = (each.numpy() for each in logits.softmax(1).max(1))
        right = answer == outputs.target(task).numpy()
        bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int), 1, ECE_BINS) - 1
        counts = np.bincount(bins, minlength=ECE_BINS)
        held = counts > 0
        sums = (np.bincount(bins, each, ECE_BINS)[held] for each in (confidence, right))
        x, y = (each / counts[held] for each in sums)
        figure, axes = panel(f"{LEVELS[task].capitalize()}: how often right, by confidence, "
                             f"trial {best.number}", 4.3)  # fmt: skip
        axes.plot([0, 1], [0, 1], color=FAINT, lw=1.2, label="calibrated")
        axes.plot(x, y, color=BEST, lw=1.2, zorder=2)
        sizes = 12 + 150 * counts[held] / counts.max()
        axes.scatter(
            x, y, s=sizes, color=BEST, alpha=0.75, linewidths=0, label="larger: more images"
        )
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
        assert search.best is not None
        ece = search.best[f"ece_{task}"]
        error = "" if pd.isna(ece) else f", calibration error {100 * float(ece):.1f} points"
        too = "too sure" if gap > 0 else "not sure enough"
        told.append(
            f"For the {LEVELS[task]} it is {too} by {abs(gap):.1f} points on average{error}."
        )
    return Picture(
        name="reliability",
        title=f"How often an answer is right, by its confidence, trial {best.number}",
        caption=" ".join(told) + " Confidence is the largest softmax probability, novel included.",
        table=pd.concat(tables),
        figures=tuple(figures),
    )


# --- Answers -------------------------------------------------------------------------------------


def confusion_frames(best: Best) -> dict[Task, pd.DataFrame]:
    """Return how many images of each class (rows) were answered each class (columns), by level.

    The superclasses' has a row for each that was left out, as judged by the model without it.
    """
    outputs, answers = best.outputs, best.answers
    num_super, num_sub = len(best.superclasses) - 1, len(best.subclasses) - 1
    counted = outputs.kind != SECOND
    rows = [
        (name, counted & (outputs.super_target == each), answers.superclass)
        for each, name in enumerate(best.superclasses[:-1])
    ]
    rows.append(("borrowed", outputs.kind == BORROWED, answers.superclass))
    for fold, of_fold in zip(outputs.folds, answers.folds, strict=True):
        kept = [each for each in range(num_super) if each != fold.superclass]
        back = torch.tensor([*kept, num_super])
        name = f"{best.superclasses[fold.superclass]}, left out"
        rows.append((name, fold.kind == LEFT_OUT, back[of_fold.superclass]))
    of_super = _counts(rows, best.superclasses)
    known = [
        (name, (outputs.kind == SEEN) & (outputs.sub_target == each), answers.subclass)
        for each, name in enumerate(best.outputs_names[:-1])
    ]
    held_out = outputs.kind == PSEUDO_NOVEL
    for each in outputs.true_class[held_out].unique().tolist():
        name = best.subclasses[each] if 0 <= each < num_sub else "subclasses"
        known.append(
            (f"{name}, held out", held_out & (outputs.true_class == each), answers.subclass)
        )
    known.append(("borrowed", outputs.kind == BORROWED, answers.subclass))
    return {"super": of_super, "sub": _counts(known, best.outputs_names)}


def _counts(
    rows: list[tuple[str, torch.Tensor, torch.Tensor]], names: tuple[str, ...]
) -> pd.DataFrame:
    shown = [each for each in rows if each[1].any()]
    counts = [
        torch.bincount(answer[among], minlength=len(names)).tolist() for _, among, answer in shown
    ]
    index = pd.Index([name for name, _, _ in shown], name="shows")
    return pd.DataFrame(counts, index=index, columns=[*names])


def confusion(best: Best) -> Picture:
    """Show at both levels what was taken for what."""
    frames = confusion_frames(best)
    figures = tuple(_matrix(frame, LEVELS[task], best.number) for task, frame in frames.items())
    told = []
    for frame in frames.values():
        top = _most_confused(frame)
        if top is not None:
            truth, answer, share, count = top
            told.append(f"{truth} for {answer} ({100 * share:.0f}% of {count} images)")
    table = pd.concat(
        [frame.reset_index().melt("shows", var_name="answer", value_name="images")
         .assign(level=LEVELS[task]) for task, frame in frames.items()]
    )  # fmt: skip
    return Picture(
        name="confusion",
        title=f"What was taken for what at both levels, trial {best.number}",
        caption="Most often taken for one wrong class: " + "; ".join(told) + "."
        if told else "No image was taken for another class.",
        table=table[table["images"] > 0],
        figures=figures,
    )  # fmt: skip


def _is_right(truth: str, answer: str) -> bool:
    return answer == truth or (
        answer == "novel" and (truth == "borrowed" or truth.endswith((", held out", ", left out")))
    )


def _most_confused(frame: pd.DataFrame) -> tuple[str, str, float, int] | None:
    shares = frame.div(frame.sum(axis=1), axis=0).stack()
    wrong = shares[[not _is_right(truth, answer) and answer != "novel"
                    for truth, answer in shares.index]]  # fmt: skip
    if not len(wrong) or wrong.max() == 0:
        return None
    top: Any = wrong.idxmax()
    share: Any = wrong.max()
    return str(top[0]), str(top[1]), float(share), int(frame.loc[[top[0]]].to_numpy().sum())


def _matrix(frame: pd.DataFrame, level: str, trial: int) -> Figure:
    num_rows, num_columns = frame.shape
    shares = frame.div(frame.sum(axis=1), axis=0).to_numpy()
    is_small = max(frame.shape) <= 12
    cell = 0.42 if is_small else max(0.085, min(0.2, 8.0 / max(frame.shape)))
    margin = 1.5 if max(frame.shape) <= LABELLED_MAX else 0.8
    figure, axes = panel(
        f"{level.capitalize()}: what each class (row) was answered, trial {trial}",
        cell * num_rows + margin + 0.9, max(WIDTH, cell * num_columns + margin + 0.8),
    )  # fmt: skip
    axes.grid(visible=False)
    _cells(axes, frame, shares)
    if is_small:
        for row in range(num_rows):
            for column in range(num_columns):
                if frame.iat[row, column]:
                    text = f"{100 * shares[row, column]:.0f}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7.5)
    if max(frame.shape) <= LABELLED_MAX:
        size = 7.5 if is_small else 6
        axes.set_xticks(range(num_columns), [each[:24] for each in frame.columns], rotation=90,
                        fontsize=size)  # fmt: skip
        axes.set_yticks(range(num_rows), [each[:34] for each in frame.index], fontsize=size)
    else:
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel("classes in the order of the CSV")
    axes.tick_params(length=0)
    axes.set_xlabel(
        "answered, percent of the row" if is_small else "answered; darker: more of the row"
    )
    return figure


def _cells(axes: Axes, frame: pd.DataFrame, shares: _Floats) -> None:
    """Fill each cell by its share: right, called novel, or wrong. As shapes, so that the page can
    give them its colours."""
    of_colour: dict[str, list[tuple[int, int]]] = {}
    for row, column in np.argwhere(shares > 0).tolist():
        truth, answer = str(frame.index[row]), str(frame.columns[column])
        colour = NOVEL if answer == "novel" else KNOWN if _is_right(truth, answer) else INK
        of_colour.setdefault(colour, []).append((row, column))
    for colour, cells in of_colour.items():
        corners = [
            [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
            for y, x in cells
        ]
        opacity = [0.75 * shares[cell] for cell in cells]
        axes.add_collection(PolyCollection(corners, facecolors=colour, alpha=opacity, linewidths=0))
    axes.set(xlim=(-0.5, frame.shape[1] - 0.5), ylim=(frame.shape[0] - 0.5, -0.5))


def subclass_frame(best: Best) -> pd.DataFrame:
    """Return one row for each subclass, the worst first: images, right, rejected, confused with.

    Columns: subclass, superclass, kind (seen, held out), images, right and rejected (fractions;
    a held-out one is right where it is called novel), confused_with (the most frequent wrong known
    subclass) and its share.
    """
    frame = confusion_frames(best)["sub"]
    of_output = best.outputs.super_of_sub.tolist()
    superclass = {
        name: best.superclasses[of_output[i]] for i, name in enumerate(best.outputs_names)
    }
    outputs = best.outputs
    held_out = outputs.kind == PSEUDO_NOVEL
    for each, target in {
        (int(a), int(b))
        for a, b in zip(outputs.true_class[held_out], outputs.super_target[held_out], strict=True)
    }:
        if 0 <= each < len(best.subclasses) - 1:
            superclass[f"{best.subclasses[each]}, held out"] = best.superclasses[target]
    rows = []
    for name, counts in frame.iterrows():
        images, name = int(counts.sum()), str(name)
        if name == "borrowed":
            continue
        is_held_out = name.endswith(", held out")
        wrong = counts.drop([each for each in (name, "novel") if each in counts.index])
        rejected = counts["novel"] / images
        rows.append(
            {
                "subclass": name.removesuffix(", held out"),
                "superclass": superclass.get(name, ""),
                "kind": "held out" if is_held_out else "seen",
                "images": images,
                "right": rejected if is_held_out else counts[name] / images,
                "rejected": rejected,
                "confused_with": str(wrong.idxmax()) if wrong.max() > 0 else "",
                "share": float(wrong.max()) / images,
            }
        )
    return pd.DataFrame(rows).sort_values(["right", "subclass"], kind="stable")


# --- Images --------------------------------------------------------------------------------------


def sheets(best: Best, search: Search) -> list[Picture | None]:
    """Show the surest wrong answers to known images, and the surest known answers to novel ones."""
    frame = wrong_frame(best, search)
    mistakes = frame[~frame["is_novel"]]
    missed = frame[frame["is_novel"]]
    return [
        _sheet(mistakes, "mistakes", "Known images answered most surely wrong", search),
        _sheet(missed, "missed", "Novel images called known most surely", search),
    ]


def wrong_frame(best: Best, search: Search) -> pd.DataFrame:
    """Return a row for each wrong answer, the surest first.

    Columns: row (of the data), level, shows, answer, margin (of the score above the threshold, in
    standard deviations of the score over all images; below it, where novel is the wrong answer),
    is_novel (the image, to that level).
    """
    rows: list[dict[str, Any]] = []
    for outputs, answers in ((best.outputs, best.answers), *_folds(best)):
        left_out = getattr(outputs, "superclass", None)
        for task in TASKS:
            if left_out is not None and task not in outputs.exact:  # type: ignore[attr-defined]
                continue
            rows += _wrong(best, search, outputs, answers, task, left_out)
    columns = ["row", "level", "shows", "answer", "margin", "is_novel"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("margin", ascending=False, kind="stable")


def _folds(best: Best) -> list[tuple[Outputs, Answers]]:
    return [*zip(best.outputs.folds, best.answers.folds, strict=True)]


def _wrong(
    best: Best, search: Search, outputs: Outputs, answers: Answers, task: Task, left_out: int | None
) -> list[dict[str, Any]]:
    rule = best.rule
    score = outputs.score(task, rule.super_score if task == "super" else rule.sub_score)
    tau = rule.tau_super if task == "super" else float(np.mean(rule.tau_sub))
    answer = answers.superclass if task == "super" else answers.subclass
    novel = outputs.logits(task).shape[1] - 1
    names = best.superclasses if task == "super" else best.outputs_names
    wrong = (answer != outputs.target(task)) & (outputs.kind != SECOND)
    if left_out is not None:  # all others were judged by the whole model
        wrong = (outputs.kind == LEFT_OUT) & (answer != novel)
        names = _names_without(best, left_out, task)
    above = (score - tau) / score.std().clamp_min(1e-12)
    return [
        {
            "row": int(outputs.rows[place]),
            "level": LEVELS[task],
            "shows": best.shows(place, search.data),
            "answer": names[int(answer[place])],
            "margin": float(-above[place] if answer[place] == novel else above[place]),
            "is_novel": not bool(outputs.is_known(task)[place]),
        }
        for place in wrong.nonzero()[:, 0].tolist()
    ]


def _names_without(best: Best, left_out: int, task: Task) -> tuple[str, ...]:
    """Return the names of a fold's outputs: it counts without a superclass and its subclasses."""
    if task == "super":
        return tuple(name for i, name in enumerate(best.superclasses) if i != left_out)
    supers = best.outputs.super_of_sub.tolist()
    return tuple(name for i, name in enumerate(best.outputs_names) if supers[i] != left_out)


def _sheet(frame: pd.DataFrame, name: str, title: str, search: Search) -> Picture | None:
    if search.data is None or not len(frame):
        return None
    num_rows, num_columns = SHEET
    shown = frame.drop_duplicates("row").head(num_rows * num_columns)
    used = -(-len(shown) // num_columns)
    figure, axes = panel(title, 0.5 + 1.75 * used)
    axes.remove()
    for place, row in enumerate(rows_of(shown)):
        image = search.data.images[row.row].numpy()
        cell = figure.add_subplot(used, num_columns, place + 1)
        cell.imshow(image)
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
        lines = room([f"{row.shows.replace('_', ' ')}"], 20)[0]
        answer = room([f"→ {row.answer.replace('_', ' ')}"], 20)[0]
        cell.set_xlabel(f"{lines}\n{answer}", fontsize=7, labelpad=3)
    top = frame.groupby(["shows", "answer"]).size().sort_values(ascending=False, kind="stable")
    (shows, answer), count = top.index[0], int(top.iloc[0])
    return Picture(
        name=name,
        title=title,
        caption=f"What each shows, and what it was called, the surest first; {len(frame)} wrong "
        f"answers in all, at either level. The most frequent: {shows} called {answer}, "
        f"{count} times.",
        table=frame,
        figures=(figure,),
    )
