"""The best trial's novelty scores, and what it would answer at every other threshold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from results.report.drawing import (
    INK,
    KNOWN,
    LEVELS,
    NOVEL,
    Floats,
    Picture,
    as_percent,
    legend_below,
    panel,
)
from results.report.material import Judged
from trainable.config import TASKS, Task
from trainable.data.splits import LEFT_OUT, NOVEL_SUPER, PSEUDO_NOVEL, SECOND, SEEN
from trainable.novelty.rule import Rule, acceptance
from trainable.novelty.scores.sums import plain
from trainable.novelty.thresholds import Outputs

TAUS = 121
"""Places of a slider."""
BINS = 36
_CHOSEN_BY = (
    "These rates are of the images that chose the threshold, so they flatter; a left-out "
    "superclass is judged by a model that never saw it, at the threshold that rejects as many "
    "known images."
)


@dataclass(frozen=True)
class Group:
    """Scores of images that count alike, and which of them the argmax answers right."""

    label: str
    is_known: bool
    outputs: Outputs
    among: torch.Tensor
    """bool (N,)."""


def groups_of(
    outputs: Outputs, task: Task, near: str = "held-out subclasses", far: str = "borrowed"
) -> list[Group]:
    """Return the known and the novel groups of `task`, those of the folds after the others.

    Args:
        outputs: To images of them.
        task: The level.
        near: What images of novel subclasses are called.
        far: What those of novel superclasses are.
    """
    kind = outputs.kind
    if task == "super":
        found = [
            Group("seen subclasses", True, outputs, kind == SEEN),
            Group(near, True, outputs, kind == PSEUDO_NOVEL),
        ]
        of_folds = [Group("left out", False, fold, fold.kind == LEFT_OUT) for fold in outputs.folds]
    else:
        found = [
            Group("seen subclasses", True, outputs, kind == SEEN),
            Group(near, False, outputs, kind == PSEUDO_NOVEL),
        ]
        of_folds = [
            Group("left out", False, fold, fold.kind == LEFT_OUT)
            for fold in outputs.folds
            if "sub" in fold.exact
        ]
    of_folds = of_folds or [Group(far, False, outputs, kind == NOVEL_SUPER)]
    return [each for each in (*found, *of_folds) if each.among.any()]


def accepted(outputs: Outputs, task: Task, rule: Rule, tau_super: float) -> torch.Tensor:
    """Return what a threshold of `task` decides by: -inf where an image is novel at any."""
    if task == "super":
        return acceptance(outputs, "super", rule.super_score)
    score = acceptance(outputs, "sub", rule.sub_score, restrict_sub=rule.restrict_sub)
    if rule.couple_novel:
        superclass = acceptance(outputs, "super", rule.super_score)
        score = score.masked_fill(~(superclass >= tau_super), -torch.inf)
    return score


def sweep(outputs: Outputs, task: Task, rule: Rule) -> tuple[Floats, dict[str, Floats]]:
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
    seen, rejected, unseen = [], [], dict[str, list[Floats]]()
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


def _below(scores: torch.Tensor, taus: Floats) -> Floats:
    """Return the share of scores below each threshold."""
    ranked = scores.sort().values.numpy()
    return np.searchsorted(ranked, taus) / max(len(ranked), 1)


def _quantiles(scores: torch.Tensor, shares: Floats) -> Floats:
    """Return thresholds below which there are these shares of the scores."""
    ranked = np.append(scores.sort().values.numpy(), np.inf)
    found: Floats = ranked[np.round(shares * (len(ranked) - 1)).astype(int)]
    return found


def _matching(outputs: Outputs, fold: Outputs, rule: Rule) -> float:
    """Return the fold's superclass threshold that rejects as many as the rule's."""
    ours = acceptance(outputs, "super", rule.super_score)
    ours = ours[outputs.is_known("super") & (outputs.kind != SECOND)]
    theirs = acceptance(fold, "super", rule.super_score)
    theirs = theirs[fold.is_known("super") & (fold.kind != SECOND)]
    return float(_quantiles(theirs, _below(ours, np.array([rule.tau_super])))[0])


def thresholds(judged: Judged, remark: str = _CHOSEN_BY) -> Picture | None:
    """Show the scores of known and of novel images, the threshold, and what others would give.

    Args:
        judged: Whose.
        remark: What the images are to the threshold, as a sentence of the caption.
    """
    figures: list[Figure] = []
    tables, told = [], []
    sliders: dict[int, dict[str, Any]] = {}
    for task in TASKS:
        taus, rates = sweep(judged.of(task), task, judged.rule)
        if "unseen called novel" not in rates:
            continue
        figure, box = _histogram(judged, task, taus)
        own = judged.rule.tau_super if task == "super" else float(np.mean(judged.rule.tau_sub))
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
    several = len(set(judged.rule.tau_sub)) > 1
    return Picture(
        name="thresholds",
        title=f"Scores of known and novel images by {judged.who}, with its thresholds",
        caption=" ".join(told)
        + f" Thresholds cost no training. {remark}"
        + (" Each superclass has its own threshold here; the slider sets one for all." if several
           else ""),
        table=pd.concat(tables),
        figures=tuple(figures),
        slider=sliders,
    )  # fmt: skip


def _histogram(judged: Judged, task: Task, taus: Floats) -> tuple[Figure, dict[str, float]]:
    name = judged.rule.super_score if task == "super" else judged.rule.sub_score
    figure, axes = panel(
        f"{LEVELS[task].capitalize()}: scores of known and novel images, {judged.who}"
    )
    pooled: dict[tuple[bool, str], list[torch.Tensor]] = {}
    for each in groups_of(judged.of(task), task, judged.near, judged.far):
        label = "known" if each.is_known else f"novel: {each.label.removeprefix('novel ')}"
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
    own = (judged.rule.tau_super,) if task == "super" else judged.rule.tau_sub
    for place, tau in enumerate(dict.fromkeys(own)):
        shown = min(max(tau, edges[0]), edges[-1])
        axes.axvline(shown, color=INK, ls="--", lw=1.1, label="its τ" if place == 0 else None)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel(f"{plain(name).replace('_', ' ')}: left is novel, right is known")
    as_percent(axes.yaxis, "share of the images")
    legend_below(axes)
    figure.draw_without_rendering()
    at, size = axes.get_position(), 72 * figure.get_size_inches()
    box = {
        "left": at.x0 * size[0], "right": at.x1 * size[0], "top": (1 - at.y1) * size[1],
        "bottom": (1 - at.y0) * size[1], "low": float(edges[0]), "high": float(edges[-1]),
    }  # fmt: skip
    return figure, {key: round(float(value), 4) for key, value in box.items()}


def _tau_caption(rates: dict[str, Floats], start: int, task: Task) -> str:
    mean = rates["harmonic mean of seen and unseen"]
    top = int(mean.argmax())
    text = (
        f"For the {LEVELS[task]} its threshold finds "
        f"{100 * rates['unseen called novel'][start]:.0f}% of unseen images and answers "
        f"{100 * rates['seen right'][start]:.0f}% of seen ones right"
    )
    if mean[top] - mean[start] > 0.01:
        return (
            f"{text}; another one would find {100 * rates['unseen called novel'][top]:.0f}% and "
            f"answer {100 * rates['seen right'][top]:.0f}% right."
        )
    return f"{text}; none would balance them better by over a point."
