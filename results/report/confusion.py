"""What the best trial answers to each class."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from results.report.drawing import (
    FAINT,
    INK,
    KNOWN,
    LEVELS,
    NOVEL,
    WIDTH,
    Floats,
    Picture,
    panel,
    room,
)
from results.report.material import Best, Judged
from results.terminal import counted
from trainable.config import Task
from trainable.data.splits import LEFT_OUT, NOVEL_SUPER, PSEUDO_NOVEL, SECOND, SEEN

_HELD_OUT = ", held out"
LABELLED_MAX = 40
"""Classes of a confusion that are named beside it."""


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
    rows.append(("borrowed", outputs.kind == NOVEL_SUPER, answers.superclass))
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
    known.append(("borrowed", outputs.kind == NOVEL_SUPER, answers.subclass))
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
    return confusion_of(confusion_frames(best), best.who, superclass_of(best))


def confusion_of(
    frames: Mapping[Task, pd.DataFrame], who: str, superclass: Mapping[str, str]
) -> Picture:
    """Show counts of what each class (rows) was answered (columns), by level.

    Args:
        frames: Of both levels, or of one.
        who: Answered.
        superclass: Of each subclass; more of them than can be named are shown in its groups.
    """
    figures = tuple(_matrix(frame, LEVELS[task], who, superclass) for task, frame in frames.items())
    told = []
    for frame in frames.values():
        top = _most_confused(frame)
        if top is not None:
            truth, answer, share, count = top
            images = counted(count, "image")
            told.append(f"{truth} → {answer} ({_percent(share)}% of {images})")
    table = pd.concat(
        [frame.reset_index().melt("shows", var_name="answer", value_name="images")
         .assign(level=LEVELS[task]) for task, frame in frames.items()]
    )  # fmt: skip
    return Picture(
        name="confusion",
        title=f"What was taken for what at both levels, {who}",
        caption="Most often taken for one wrong class: " + "; ".join(told) + "."
        if told else "No image was taken for another class.",
        table=table[table["images"] > 0],
        figures=figures,
    )  # fmt: skip


def _percent(share: float) -> str:
    """Return a share above zero, which no rounding makes none."""
    return "<1" if share < 0.005 else f"{100 * share:.0f}"


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


def _in_groups(frame: pd.DataFrame, superclass: Mapping[str, str]) -> pd.DataFrame:
    """Return the frame with what is of one superclass beside each other, held-out ones apart."""
    rank = {each: place for place, each in enumerate(dict.fromkeys(superclass.values()))}

    def place(name: str) -> tuple[bool, bool, int]:
        group = superclass.get(name, "")
        return not group, name.endswith(_HELD_OUT), rank.get(group, 0)

    rows, columns = (
        sorted(range(len(names)), key=lambda at: place(str(names[at])))
        for names in (frame.index, frame.columns)
    )
    return frame.iloc[rows, columns]


def _name_groups(axis: Axis, names: Sequence[str], superclass: Mapping[str, str]) -> None:
    """Name each group once, where there is room, with a line between it and the next."""
    groups = [
        superclass[name] + _HELD_OUT * name.endswith(_HELD_OUT) if name in superclass else name
        for name in names
    ]
    places, labels, start = list[float](), list[str](), 0
    for group, members in groupby(groups):
        end = start + len([*members])
        middle = (start + end - 1) / 2
        if not places or middle - places[-1] >= 1.4:
            places.append(middle)
            labels.append(room([group], 24, 2)[0])
        line = axis.axes.axhline if axis is axis.axes.yaxis else axis.axes.axvline
        if end < len(groups):
            line(end - 0.5, color=FAINT, lw=0.6, zorder=0)
        start = end
    axis.set_ticks(places, labels, fontsize=7)


def _matrix(frame: pd.DataFrame, level: str, who: str, superclass: Mapping[str, str]) -> Figure:
    if max(frame.shape) > LABELLED_MAX:
        frame = _in_groups(frame, superclass)
    num_rows, num_columns = frame.shape
    shares = frame.div(frame.sum(axis=1), axis=0).to_numpy()
    is_small = max(frame.shape) <= 12
    cell = 0.42 if is_small else max(0.085, min(0.2, 8.0 / max(frame.shape)))
    margin = 1.5 if max(frame.shape) <= LABELLED_MAX else 0.8
    figure, axes = panel(
        f"{level.capitalize()}: what each class (row) was answered, {who}",
        cell * num_rows + margin + 0.9, max(WIDTH, cell * num_columns + margin + 0.8),
    )  # fmt: skip
    axes.grid(visible=False)
    _cells(axes, frame, shares)
    if is_small:
        for row in range(num_rows):
            for column in range(num_columns):
                if frame.iat[row, column]:
                    text = _percent(shares[row, column])
                    axes.text(column, row, text, ha="center", va="center", fontsize=7.5)
    if max(frame.shape) <= LABELLED_MAX:
        size = 7.5 if is_small else 6
        axes.set_xticks(
            range(num_columns), room([*frame.columns], 24, 1), rotation=90, fontsize=size
        )
        axes.set_yticks(range(num_rows), room([*frame.index], 34, 1), fontsize=size)
    else:
        _name_groups(axes.yaxis, [*map(str, frame.index)], superclass)
        _name_groups(axes.xaxis, [*map(str, frame.columns)], superclass)
        axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0)
    share = "percent of the row" if is_small else "the fuller, the more of the row"
    axes.set_xlabel(f"answered, {share}\n(blue right, orange novel, grey wrong)")
    return figure


def _cells(axes: Axes, frame: pd.DataFrame, shares: Floats) -> None:
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
    return subclass_rows(frame.drop("borrowed", errors="ignore"), superclass_of(best))


def superclass_of(judged: Judged) -> dict[str, str]:
    """Return the superclass of each known subclass, and of those held out, by name."""
    outputs = judged.outputs
    of_output = outputs.super_of_sub.tolist()
    found = {
        name: judged.superclasses[of_output[place]]
        for place, name in enumerate(judged.outputs_names[:-1])
    }
    held_out = outputs.kind == PSEUDO_NOVEL
    pairs = zip(outputs.true_class[held_out], outputs.super_target[held_out], strict=True)
    for each, target in sorted({(int(a), int(b)) for a, b in pairs}):
        if 0 <= each < len(judged.subclasses) - 1:
            found[f"{judged.subclasses[each]}{_HELD_OUT}"] = judged.superclasses[target]
    return found


def subclass_rows(frame: pd.DataFrame, superclass: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of `subclass_frame`.

    Args:
        frame: Images of each subclass (rows) by answer (columns). A name that ends in ", held out"
            and "novel" are right where they are called novel.
        superclass: Of each row's name, where it is known.
    """
    rows = []
    for name, counts in frame.iterrows():
        images, name = int(counts.sum()), str(name)
        is_held_out = name.endswith(", held out") or name == "novel"
        wrong = counts.drop([each for each in (name, "novel") if each in counts.index])
        rejected = counts["novel"] / images
        rows.append(
            {
                "subclass": name.removesuffix(", held out"),
                "superclass": superclass.get(name, ""),
                "kind": "seen" if not is_held_out else "" if name == "novel" else "held out",
                "images": images,
                "right": rejected if is_held_out else counts[name] / images,
                "rejected": rejected,
                "confused_with": str(wrong.idxmax()) if wrong.max() > 0 else "",
                "share": float(wrong.max()) / images,
            }
        )
    return pd.DataFrame(rows).sort_values(["right", "subclass"], kind="stable")
