"""An evaluation as a page like a search's: what was promised, and what labelled images gave."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from upath import UPath

from results.evaluation import Evaluation, held_out
from results.report.answer import versions
from results.report.confusion import confusion_of, subclass_rows, superclass_of
from results.report.curves import hierarchy_of, precision, reliability, roc
from results.report.drawing import (
    BEST,
    INK,
    LEVELS,
    Picture,
    as_percent,
    between,
    legend_below,
    number,
    plain,
    room,
    rows_of,
    rows_panel,
    said,
    style,
)
from results.report.page import Section, Writer, subclass_table, write_sections
from results.report.sheets import on_sheets, sheets_of
from results.report.thresholds import thresholds
from trainable.config import Task
from trainable.data.dataset import images_named
from trainable.errors import typed
from trainable.novelty.metrics import MAIN
from trainable.novelty.rule import Rule
from trainable.novelty.scores.sums import plain as score_name

_UNCHOSEN = "These images had no part in choosing the threshold: no promise, but what it gave."


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which model was evaluated, on what, as it was typed."""

    model: str
    images: str
    labels: str
    stored_size: int
    """Pixels, of a side of what the model was shown."""
    told: str
    """What of the promise is not comparable, see `results.promise.comparable`."""


def write_evaluation_page(
    folder: UPath, asked: Asked, found: Evaluation, table: pd.DataFrame
) -> list[UPath]:
    """Write the page into a folder, and all in it beside it; return the files, the page first.

    Args:
        folder: There is one.
        asked: Of what.
        found: What it shows.
        table: Metrics beside their promise, see `results.evaluate.compared`.
    """
    table = table.set_index("metric").astype(float).reset_index()
    writer = Writer(folder)
    with style():
        sections = _sections(writer, asked, found, table)
    return write_sections(
        writer, sections, name=f"Evaluation of {asked.model}",
        title=f"{asked.model}: what it is worth",
        sentences=sentences(found, table), warnings=[each for each in (asked.told,) if each],
    )  # fmt: skip


def _sections(
    writer: Writer, asked: Asked, found: Evaluation, table: pd.DataFrame
) -> list[Section]:
    judged = found.judged
    frames: dict[Task, pd.DataFrame] = {
        task: found.confusion[level] for task, level in LEVELS.items()
    }
    shown = {
        task: frame[frame.sum(axis=1) > 0].rename_axis("shows") for task, frame in frames.items()
    }
    shown["sub"] = shown["sub"].rename(
        index={name: f"{name}, held out" for name in held_out(judged)}
    )
    superclass = superclass_of(judged)
    wrong = _wrong(found)
    images = images_named(asked.images, on_sheets(wrong), asked.stored_size)
    drawn: dict[str, Sequence[Picture | None]] = {
        "thresholds": [thresholds(judged, _UNCHOSEN)],
        "curves": [roc(judged, ""), precision(judged, ""), hierarchy_of(judged)],
        "reliability": [reliability(judged)],
        "subclasses": [],
        "confused": [
            confusion_of({k: v for k, v in shown.items() if len(v)}, judged.who, superclass)
        ],
        "mistakes": sheets_of(wrong, lambda name: images[name].numpy()),
    }
    titles = {
        "thresholds": "What every threshold would give", "curves": "ROC, precision and recall",
        "reliability": "Reliability", "subclasses": "Subclass by subclass",
        "confused": "What was taken for what", "mistakes": "The worst mistakes",
    }  # fmt: skip
    sections = [_promised(writer, table)]
    for anchor, pictures in drawn.items():
        section = Section(anchor, titles[anchor])
        section.pictures += [writer.picture(each) for each in pictures if each is not None]
        if anchor == "subclasses" and len(shown["sub"]):
            section.tables.append(_subclasses(writer, superclass, shown["sub"]))
        sections.append(section)
    return [*sections, Section("run", "What was judged", facts=_facts(asked, found))]


# --- What was promised, and what was found -------------------------------------------------------


def sentences(found: Evaluation, table: pd.DataFrame) -> list[str]:
    """Return what the model is worth, what that is beside its promise, and how sure it is."""
    rows = table.set_index("metric")
    counts = found.counts
    names = [name for name in MAIN if name in rows.index]
    lines = []
    if names:
        name = names[0]
        value, ends = found.metrics[name], between(name, *found.intervals[name])
        lines.append(
            f"On {counts['images']:,} labelled images this model has a {said(name)} of "
            f"{number(name, value)} (95% interval {ends})."
        )
    lines.append(_kept(rows.loc[names]))
    novel = counts["novel_subclass"] + counts["novel_superclass"]
    sure = (
        f"How sure: {counts['seen']:,} images are of seen subclasses, {novel:,} are novel to one "
        f"level or both, of {counts['novel_classes']:,} classes; intervals are for other "
        "classes"
    )
    if counts["novel_of_unknown_class"]:
        sure += (
            f", and too narrow where novel: which class {counts['novel_of_unknown_class']:,} novel "
            "images show is not known (column true_class)"
        )
    return [*lines, f"{sure}."]


def _kept(rows: pd.DataFrame) -> str:
    """Return which of the main rates lie where they were promised."""
    held = rows.dropna(subset=["promised_low"])
    if not len(held):
        return (
            "It carries no promise of a search for these (it was trained outside one, or by an "
            "earlier version), so there is nothing to hold its figures against."
            if rows["promised"].isna().all()
            else "Its promise has no intervals for these images, so the table shows it alone."
        )
    outside = held[(held["found"] < held["promised_low"]) | (held["found"] > held["promised_high"])]
    if not len(outside):
        return f"All {len(held)} main rates lie within the intervals that the search promised."
    told = ", ".join(
        f"{said(row.Index)} {number(row.Index, row.found)} (promised "
        f"{between(row.Index, row.promised_low, row.promised_high)})"
        for row in rows_of(outside)
    )
    return (
        f"{len(held) - len(outside)} of {len(held)} main rates lie within the intervals that the "
        f"search promised; outside: {told}."
    )


def _promised(writer: Writer, table: pd.DataFrame) -> Section:
    section = Section("promise", "Promised, and found")
    rows = []
    for row in rows_of(table):
        name = str(row.metric)
        cells = [(name.replace("_", " "), ""), (plain(name, row.promised), ""),
                 (_ends(name, row.promised_low, row.promised_high), ""),
                 (plain(name, row.found), ""), (_ends(name, row.low, row.high), "")]  # fmt: skip
        rows.append({"cells": cells, "is_best": name in MAIN})
    heads = ["metric", "promised", "95%", "found", "95%"]
    note = "Percent, cross-entropies (ce) as they are. The main rates are bold."
    shown = {"heads": heads, "rows": rows, "text": [0], "whole": [0], "note": note}
    picture = _promise_picture(table)
    if picture is not None:
        section.pictures.append(writer.picture(picture))
    section.tables.append(writer.table("metrics", table, shown))
    return section


def _ends(name: str, low: float, high: float) -> str:
    return "" if low != low else f"{plain(name, low)}-{plain(name, high)}"


def _promise_picture(table: pd.DataFrame) -> Picture | None:
    rows = table[table["metric"].isin(MAIN)]
    if not len(rows):
        return None
    labels = room([said(str(each)) for each in rows["metric"]], 20)
    figure, axes = rows_panel("Main rates as promised and as found, 95% intervals", labels, 0.5)
    for place, row in enumerate(rows_of(rows)):
        for shift, low, value, high, colour, marker in (
            (-0.14, row.promised_low, row.promised, row.promised_high, INK, "s"),
            (0.14, row.low, row.found, row.high, BEST, "o"),
        ):
            axes.hlines(place + shift, low, high, color=colour, lw=1.6)
            axes.plot([value], [place + shift], marker, ms=5.5, color=colour)
    axes.plot([], [], "s-", ms=5.5, color=INK, label="promised by the search")
    axes.plot([], [], "o-", ms=5.5, color=BEST, label="found on these images")
    as_percent(axes.xaxis, "rate")
    legend_below(axes, 2)
    has_promise = not rows["promised"].isna().all()
    return Picture(
        name="promise", title="Main rates as promised and as found",
        caption=_kept(rows.set_index("metric")) if has_promise else "Nothing was promised.",
        table=rows, figures=(figure,),
    )  # fmt: skip


# --- The rest ------------------------------------------------------------------------------------


def _wrong(found: Evaluation) -> pd.DataFrame:
    """Return the wrong answers as `sheets.wrong_frame` has them, by name of the image."""
    frame = found.wrong.rename(columns={"image": "row", "truth": "shows"})
    known = {*found.judged.outputs_names[:-1], *found.judged.superclasses[:-1]}
    return frame.assign(is_novel=~frame["shows"].isin(known)).drop(columns="score")


def _subclasses(
    writer: Writer, superclass: Mapping[str, str], frame: pd.DataFrame
) -> dict[str, Any]:
    note = (
        "Percent of the images of each subclass, the worst first. A novel one is right where it is "
        "called novel. Confused with: the most frequent wrong known subclass."
    )
    return subclass_table(writer, subclass_rows(frame, superclass), note)


def _facts(asked: Asked, found: Evaluation) -> list[tuple[str, str]]:
    command = [*typed("results.evaluate").split(), "--model", asked.model]
    command += ["--images", asked.images, "--labels", asked.labels]
    counts = ", ".join(
        f"{value:,} {name.replace('_', ' ')}" for name, value in found.counts.items()
    )
    return [
        ("the same evaluation again", shlex.join(command)),
        ("images", counts),
        ("answered by", _rule_said(found.judged.rule)),
        ("wrong answers", f"{len(found.wrong):,}, in wrong.csv"),
        ("reported by", versions()),
    ]


def _rule_said(rule: Rule) -> str:
    taus = ", ".join(f"{each:.4g}" for each in dict.fromkeys(rule.tau_sub))
    return (
        f"{score_name(rule.super_score)} at {rule.tau_super:.4g} for the superclass, "
        f"{score_name(rule.sub_score)} at {taus} for the subclass"
    )
