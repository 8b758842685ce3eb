"""A report as one page: offline, light and dark, with PNG, SVG and CSV of everything beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from upath import UPath

from results.report import anatomy, answer, confusion, drawing, overview
from results.report.drawing import Picture, plain, said
from results.report.links import shown_by
from results.report.material import Search
from trainable.checkpoint import write_atomically

PAGE = "index.html"


@dataclass
class Section:
    """A part of the page, under a heading."""

    anchor: str
    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it would be a heading alone."""
        return not (self.lines or self.tables or self.pictures or self.facts)


class Writer:
    """Writes what the page shows beside it, and keeps what the page needs of it."""

    def __init__(self, folder: UPath) -> None:
        self.folder = folder
        self.files: list[UPath] = []

    def write(self, name: str, content: bytes) -> str:
        """Write a file; return its name."""
        write_atomically(self.folder / name, content)
        self.files.append(self.folder / name)
        return name

    def picture(self, picture: Picture) -> dict[str, Any]:
        """Write a picture as PNG and SVG, and what it shows as CSV; return what the page needs."""
        panels, files = [], []
        for place, figure in enumerate(picture.figures):
            drawing.laid_out(figure)
            stem = picture.name if place == 0 else f"{picture.name}-{place + 1}"
            svg = drawing.svg(figure)
            files.append(self.write(f"{stem}.png", drawing.png(figure)))
            files.append(self.write(f"{stem}.svg", svg))
            suptitle = figure.get_suptitle().replace("\n", " ")
            panels.append(
                {
                    "svg": Markup(drawing.inline(svg, stem)),
                    "title": suptitle,
                    "is_wide": figure.get_figwidth() > 1.2 * drawing.WIDTH,
                    "slider": picture.slider.get(place),
                }
            )
        files.append(self.write(f"{picture.name}.csv", _csv(picture.table)))
        return {
            "name": picture.name, "title": picture.title, "caption": picture.caption,
            "panels": panels, "files": files,
        }  # fmt: skip

    def table(
        self, name: str, frame: pd.DataFrame, shown: dict[str, Any], **more: bytes
    ) -> dict[str, Any]:
        """Write a table as CSV and in the forms of `more`; return what the page needs of it.

        Args:
            name: Of its files, without ending.
            frame: What is in it.
            shown: Its cells as the page shows them. Where some take a `whole` line, a narrow
                screen shows each row as lines, in which `labels` name the other cells.
            more: Contents by ending.
        """
        files = [self.write(f"{name}.csv", _csv(frame))]
        files += [self.write(f"{name}.{ending}", content) for ending, content in more.items()]
        empty = {"note": "", "groups": [], "text": [], "whole": [], "labels": shown["heads"]}
        return {"name": name, "files": files, **empty, **shown}


def pictures_of(search: Search) -> dict[str, Picture]:
    """Return the pictures of a search's page by name."""
    search.parts.use()
    with drawing.style():
        found = [*overview.pictures(search), *anatomy.pictures(search)]
    return {each.name: each for each in found}


def write_page(searches: Sequence[Search]) -> list[UPath]:
    """Write the page of the first search, the others beside it; return the files."""
    search = searches[0]
    writer = Writer(search.folder / "report")
    with drawing.style():
        sections = _sections(searches, writer)
    name = search.record.name
    return write_sections(
        writer, sections, name=name, title=f"{name}: what the search found",
        sentences=answer.sentences(search), warnings=answer.differences(searches),
    )  # fmt: skip


def write_sections(
    writer: Writer, sections: Sequence[Section], *, name: str, title: str,
    sentences: Sequence[str], warnings: Sequence[str],
) -> list[UPath]:  # fmt: skip
    """Write a page of what a writer wrote beside it; return all of its files, the page first.

    Args:
        writer: Has written what the sections show.
        sections: In their order.
        name: Heading of the page.
        title: Of its window.
        sentences: The answer, which stands first.
        warnings: What to be careful about.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("results.report", "."), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["whole_options"] = _whole_options
    text = environment.get_template("page.html").render(
        name=name, title=title, sentences=sentences, warnings=warnings,
        sections=[each for each in sections if not each.is_empty],
    )  # fmt: skip
    page = writer.folder / PAGE
    before = shown_by(page)
    write_atomically(page, text.encode())
    for each in before - {file.name for file in writer.files}:
        (page.parent / each).unlink(missing_ok=True)  # it would be taken for this page's
    return [page, *writer.files]


def _whole_options(text: str) -> Markup:
    """Return a text in which no line ends within the name of a command's option."""
    return Markup(
        re.sub(r"(?<!\S)--[\w-]+", r'<span class="option">\g<0></span>', str(escape(text)))
    )


def _sections(searches: Sequence[Search], writer: Writer) -> list[Section]:
    """Return the parts of the page in the order in which they answer."""
    search = searches[0]
    drawn = pictures_of(search)
    order = (
        ("questions", "What each choice changes", ("questions",)),
        ("seen-unseen", "Seen against unseen", ("tradeoff", "hierarchy")),
        ("course", "How it went", ("history",)),
        ("thresholds", "What every threshold would give", ("thresholds",)),
        ("curves", "ROC, precision and recall", ("roc", "precision")),
        ("reliability", "Reliability", ("reliability",)),
        ("learning-curves", "Learning curves", ("learning",)),
        ("mattered", "What mattered", ("importance", "parallel")),
        ("slots", "Slots", ("timeline",)),
        ("subclasses", "Subclass by subclass", ()),
        ("confused", "What was taken for what", ("confusion",)),
        ("mistakes", "The worst mistakes", ("mistakes", "missed")),
        ("seeds", "Seeds", ("repeats",)),
    )
    sections = [_side_by_side(searches, writer), _main(search, writer)]
    for anchor, title, names in order:
        pictures = [writer.picture(drawn[name]) for name in names if name in drawn]
        section = Section(anchor, title, pictures=pictures)
        if anchor == "subclasses" and search.anatomy is not None:
            section.tables.append(_subclasses(search, writer))
        if anchor == "mistakes":
            section.lines += anatomy.remarks(search)
        sections.append(section)
    return [*sections, Section("run", "What was run", facts=answer.facts(search))]


def _main(search: Search, writer: Writer) -> Section:
    section = Section("table", "The main table")
    rows = answer.main_rows(search)
    if not rows:
        return section
    names = answer.columns(search.metric)
    groups = [{"title": "", "span": 3 + len(names) - 6}]
    groups += [{"title": title, "span": len(group)} for title, group in answer.GROUPS]
    heads = ["trial", "configuration", "seeds"]
    heads += [name.split("_")[0] if name in sum((g for _, g in answer.GROUPS), ()) else said(name)
              for name in names]  # fmt: skip
    cells = []
    for row in rows:
        first = [(str(row.trial), ""), (row.name, row.role), (str(row.seeds), "")]
        for name in names:
            mean, low, high = row.values[name]
            ends = f"({plain(name, low)}-{plain(name, high)})" if row.seeds > 1 else ""
            first.append((plain(name, mean), ends))
        cells.append({"cells": first, "is_best": row.is_best})
    of_group = {name: f"{name.split('_')[0]} {title}" for title, group in answer.GROUPS
                for name in group}  # fmt: skip
    shown = {"groups": groups, "heads": heads, "rows": cells, "text": [1], "whole": [1],
             "labels": [*heads[:3], *(of_group.get(name, said(name)) for name in names)],
             "note": answer.protocol_note(search)}  # fmt: skip
    frame = answer.main_frame(rows, search.metric)
    section.tables.append(
        writer.table("table", frame, shown, tex=answer.latex(rows, search.metric).encode())
    )
    return section


def _side_by_side(searches: Sequence[Search], writer: Writer) -> Section:
    section = Section("side-by-side", "Side by side")
    if len(searches) < 2:
        return section
    metric = searches[0].metric
    frame = answer.comparison(searches)
    searches[0].parts.use()  # the rest of the page is its own
    rates = [name for name in answer.columns(metric) if name in frame]
    rows = []
    for row in frame.to_dict("records"):
        has_ends = row["low"] == row["low"]
        ends = f"({plain(metric, row['low'])}-{plain(metric, row['high'])})" if has_ends else ""
        trial = "" if pd.isna(row["best trial"]) else str(int(row["best trial"]))
        cells = [(row["search"], ""), (trial, ""), (row["configuration"], "")]
        values = ["" if pd.isna(row[name]) else plain(name, row[name]) for name in rates]
        cells += [(value, ends if place == 0 else "") for place, value in enumerate(values)]
        cells += [(str(row[state]), "") for state in ("complete", "pruned", "failed")]
        rows.append({"cells": [*cells, (f"{row['minutes']:.1f}", "")], "is_best": False})
    heads = ["search", "best trial", "configuration", *(name.replace("_", " ") for name in rates)]
    heads += ["complete", "pruned", "failed", "minutes"]
    note = "In percent, with the 95% interval for other classes of each one's best trial."
    shown = {"heads": heads, "rows": rows, "text": [0, 2], "whole": [0, 2], "note": note}
    section.tables.append(writer.table("searches", frame, shown))
    picture = overview.side_by_side(searches)
    if picture is not None:
        section.pictures.append(writer.picture(picture))
    return section


def _subclasses(search: Search, writer: Writer) -> dict[str, Any]:
    assert search.anatomy is not None
    frame = confusion.subclass_frame(search.anatomy)
    note = (
        "Percent of the images of each subclass, the worst first. A held-out subclass is right "
        "where it is called novel. Confused with: the most frequent wrong known subclass."
    )
    return subclass_table(writer, frame, note)


def subclass_table(writer: Writer, frame: pd.DataFrame, note: str) -> dict[str, Any]:
    """Write `confusion.subclass_frame`; return what the page needs of it."""
    rows = [
        {
            "cells": [
                (row["subclass"], ""), (row["superclass"], ""), (row["kind"], ""),
                (str(row["images"]), ""), (plain("", row["right"]), ""),
                (plain("", row["rejected"]), ""),
                (row["confused_with"] and f"{row['confused_with']} {plain('', row['share'])}", ""),
            ],
            "is_best": False,
        }
        for row in frame.to_dict("records")
    ]  # fmt: skip
    heads = ["subclass", "superclass", "kind", "images", "right", "called novel", "confused with"]
    shown = {"heads": heads, "rows": rows, "text": [0, 1, 2, 6], "whole": [0],
             "labels": ["", "", "", *heads[3:]], "note": note}  # fmt: skip
    return writer.table("subclasses", frame, shown)


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()
