"""Images that the best trial answers wrongly, by how sure it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from results.report.drawing import (
    LEVELS,
    Picture,
    panel,
    room,
    rows_of,
)
from results.report.material import Best, Search
from results.terminal import counted
from trainable.config import TASKS, Task
from trainable.data.splits import LEFT_OUT, SECOND
from trainable.novelty.thresholds import Answers, Outputs

SHEET = (4, 3)
"""Rows and columns of images."""


def sheets(best: Best, search: Search) -> list[Picture | None]:
    """Show the surest wrong answers to known images, and the surest known answers to novel ones."""
    frame = wrong_frame(best, search)
    if search.data is None:
        return []
    images = search.data.images
    return sheets_of(frame, lambda row: images[row].numpy())


def sheets_of(
    frame: pd.DataFrame, image_of: Callable[[Any], npt.NDArray[np.uint8]]
) -> list[Picture | None]:
    """Show the surest of `wrong_frame`; `image_of` gives the image of a row, (S, S, 3)."""
    mistakes = frame[~frame["is_novel"]]
    missed = frame[frame["is_novel"]]
    return [
        _sheet(mistakes, "mistakes", "Known images answered most surely wrong", image_of),
        _sheet(missed, "missed", "Novel images called known most surely", image_of),
    ]


def on_sheets(frame: pd.DataFrame) -> set[Any]:
    """Return which rows of `wrong_frame` are shown as images."""
    groups = (frame[~frame["is_novel"]], frame[frame["is_novel"]])
    return {row for group in groups for row in _shown(group)["row"]}


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


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop_duplicates("row").head(SHEET[0] * SHEET[1])


def _answered(answer: str, level: str) -> str:
    """Return an answer in words; novel to which level, as an image may be so to one alone."""
    return f"novel {level}" if answer == "novel" else answer.replace("_", " ")


def _sheet(
    frame: pd.DataFrame, name: str, title: str, image_of: Callable[[Any], npt.NDArray[np.uint8]]
) -> Picture | None:
    if not len(frame):
        return None
    num_columns = SHEET[1]
    shown = _shown(frame)
    used = -(-len(shown) // num_columns)
    figure, axes = panel(title, 0.5 + 1.75 * used)
    axes.remove()
    for place, row in enumerate(rows_of(shown)):
        image = image_of(row.row)
        cell = figure.add_subplot(used, num_columns, place + 1)
        cell.imshow(image)
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
        lines = room([f"{row.shows.replace('_', ' ')}"], 20)[0]
        answer = room([f"→ {_answered(row.answer, row.level)}"], 20)[0]
        cell.set_xlabel(f"{lines}\n{answer}", fontsize=7, labelpad=3)
    groups = frame.groupby(["shows", "answer", "level"]).size()
    top = groups.sort_values(ascending=False, kind="stable")
    (shows, answer, level), count = top.index[0], int(top.iloc[0])
    return Picture(
        name=name,
        title=title,
        caption=f"What each shows, and what it was called, the surest first; {len(frame)} wrong "
        f"answers in all, at either level. The most frequent: {shows} called "
        f"{_answered(answer, level)}, {counted(count, 'time')}.",
        table=frame,
        figures=(figure,),
    )
