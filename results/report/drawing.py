"""How every picture looks: one style, one meaning for each colour, no word over another."""

import base64
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trainable.config import Task

# Okabe and Ito's colours, safe for colour-blind readers. Each means one thing in every picture.
INK, FAINT, PAPER = "#1b1c1e", "#c3c6cb", "#fefefe"
"""Words and lines; what only guides the eye; what is behind all."""
TRIAL, PRUNED, BEST = "#6e7681", "#b6bcc4", "#009e73"
"""Complete trials, pruned ones, the best one."""
KNOWN, NOVEL = "#0072b2", "#d55e00"
"""Images of known classes; novel ones."""
SEARCHES = ("#cc79a7", "#e69f00", "#56b4e9", "#8a7b00")
"""Searches side by side."""
VARIABLES = {
    INK: "ink", FAINT: "faint", PAPER: "paper", TRIAL: "trial", PRUNED: "pruned", BEST: "best",
    KNOWN: "known", NOVEL: "novel",
}  # fmt: skip
"""Colours that the page changes where it is dark, by the name of their CSS variable."""

LEVELS: dict[Task, str] = {"super": "superclass", "sub": "subclass"}
Floats = npt.NDArray[np.float64]

WIDTH = 4.6
"""Inches: readable on a phone, two beside each other on a screen."""
MARKER_PT = 3
"""From the middle of a point to its edge, about."""
MANY = 400
"""Points or lines from which they are drawn as pixels inside the picture: all are drawn still."""
_STYLE: Any = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "legend.fontsize": 7.5,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": FAINT,
    "grid.linewidth": 0.5, "grid.alpha": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "svg.fonttype": "path", "svg.hashsalt": "noveltune",
    # Names may hold a $, and letters that no font here has: tables show those in the reader's.
    "text.parse_math": False, "text.hinting": "none", "lines.linewidth": 1.4,
}  # fmt: skip
_WORDS = {
    "score": "score", "seen_super": "seen superclass right", "seen_sub": "seen subclass right",
    "unseen_super": "unseen superclass called novel",
    "unseen_sub": "unseen subclass called novel",
    "known_rejected_super": "known superclass called novel",
    "known_rejected_sub": "known subclass called novel",
}  # fmt: skip


HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.4, foreground=PAPER)]
"""Makes words readable over lines and points."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of the report: what it shows, what follows from it, and the figures behind it."""

    name: str
    """Of its files, without ending."""
    title: str
    """What it shows."""
    caption: str
    """What to conclude, computed from the figures."""
    table: pd.DataFrame
    """What was drawn; rates are fractions."""
    figures: tuple[Figure, ...]
    """Its panels."""
    slider: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What a threshold slider below a panel needs, by panel; see `thresholds.thresholds`."""

    def _repr_html_(self) -> str:
        """Return it as a notebook shows it."""
        with style():
            shown = [base64.b64encode(png(each)).decode() for each in self.figures]
        panels = "".join(f'<img width="460" src="data:image/png;base64,{each}">' for each in shown)
        return f"<div>{panels}</div><p>{escape(self.caption)}</p>"


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in the report's style."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing", UserWarning)
        yield


def panel(title: str, height: float = 3.4, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Return a figure with one axes below a title that says what it shows."""
    # Words are as wide in every format where they are not fitted to pixels.
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    # What is wider than a phone scrolls there, not made smaller: its title is whole at once.
    characters = int(12.4 * width) if width <= WIDTH else int(9.5 * WIDTH)
    figure.suptitle(
        textwrap.fill(title, characters), x=0.01, ha="left", fontsize=9.5, fontweight="bold"
    )
    return figure, figure.add_subplot()


def rows_panel(title: str, labels: Sequence[str], row: float) -> tuple[Figure, Axes]:
    """Return a panel with a labelled row for each place from 0, the first on top.

    Args:
        title: Of the panel.
        labels: In lines, see `room`; no row is lower than they are.
        row: Inches of a row, at least.
    """
    lines = max(label.count("\n") + 1 for label in labels)
    figure, axes = panel(title, 1.3 + max(row, 0.08 + 0.13 * lines) * len(labels))
    axes.set_yticks(range(len(labels)), labels, fontsize=7.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    return figure, axes


def is_fraction(metric: str) -> bool:
    """Whether a metric is shown as percent: all but cross-entropies."""
    return not metric.startswith("ce_")


def said(metric: str) -> str:
    """Return a metric in words."""
    return _WORDS.get(metric, metric.replace("_", " "))


def number(metric: str, value: float, *, signed: bool = False) -> str:
    """Return a value of a metric as words show it: 46.1%, +1.2 points, 0.873."""
    shown, digits, unit = value, 3, ""
    if is_fraction(metric):
        shown, digits, unit = 100 * value, 1, " points" if signed else "%"
    shown = round(shown, digits) or 0.0  # not -0.0: nothing has no sign
    return f"{shown:{'+' if signed and shown else ''}.{digits}f}{unit}"


def between(metric: str, low: float, high: float, *, signed: bool = False) -> str:
    """Return a range in words: 42.0% to 55.0%, -1.2 to +0.3 points."""
    first = number(metric, low, signed=signed).removesuffix(" points")
    return f"{first} to {number(metric, high, signed=signed)}"


def plain(metric: str, value: float) -> str:
    """Return a value as tables show it, whose head names the unit."""
    if value != value:
        return ""
    return f"{100 * value:.1f}" if is_fraction(metric) else f"{value:.3f}"


def as_metric(axis: Any, metric: str, label: str = "") -> None:
    """Label an axis with a metric and its unit."""
    if is_fraction(metric):
        axis.set_major_formatter(FuncFormatter(_percent))
    axis.set_label_text(label or said(metric))


def as_percent(axis: Any, label: str) -> None:
    """Label an axis of fractions, which are shown as percent."""
    axis.set_major_formatter(FuncFormatter(_percent))
    axis.set_label_text(label)


def as_difference(axis: Any, metric: str) -> None:
    """Label an axis with differences of a metric, which are points of percent."""
    if is_fraction(metric):
        axis.set_major_formatter(FuncFormatter(_points))
    points = ", percentage points" if is_fraction(metric) else ""
    axis.set_label_text(f"difference in {said(metric)}{points}")


def _points(value: float, _: int | None = None) -> str:
    shown = round(100 * value, 3)
    return f"{shown:+g}" if shown else "0"


def _percent(value: float, _: int | None = None) -> str:
    return f"{round(100 * value, 3):g}%"


def as_count(axis: Any, label: str) -> None:
    """Label an axis of whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_label_text(label)


def legend_below(axes: Axes, columns: int = 3) -> None:
    """Put the legend below the axes, where nothing is drawn."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(
            handles, labels, loc="outside lower left", ncols=columns, columnspacing=1.2,
            handletextpad=0.5,
        )  # fmt: skip


def label_points(axes: Axes, places: Sequence[tuple[float, float]], labels: Sequence[str]) -> int:
    """Write labels beside points where there is room; return how many there was no room for.

    None is over another label, nor over a point. Call it last: room is known when all else is
    drawn.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    taken = [text.get_window_extent(renderer) for text in figure.findobj(mpl.text.Text)
             if text.get_text() and text.get_visible()]  # fmt: skip
    inside = axes.get_window_extent(renderer)
    points, around = _points_of(axes), figure.dpi * MARKER_PT / 72
    left_out = 0
    for place, label in zip(places, labels, strict=True):
        for offset, ha, va in (
            ((5, 4), "left", "bottom"), ((-5, 4), "right", "bottom"),
            ((5, -4), "left", "top"), ((-5, -4), "right", "top"),
        ):  # fmt: skip
            text = axes.annotate(
                label, place, xytext=offset, textcoords="offset points", fontsize=7.5, ha=ha, va=va
            )
            text.set_in_layout(False)
            text.set_path_effects(HALO)
            box = text.get_window_extent(renderer)
            is_inside = inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
            is_free = not any(box.overlaps(each) for each in taken)
            is_free = is_free and not box.padded(around).count_contains(points)
            if is_inside and box.y0 >= inside.y0 and is_free:
                taken.append(box)
                break
            text.remove()
        else:
            left_out += 1
    return left_out


def _points_of(axes: Axes) -> Floats:
    """Return where an axes' points are, pixels (N, 2)."""
    places = [np.asarray(each.get_offsets(), float) for each in axes.collections
              if isinstance(each, PathCollection)]  # fmt: skip
    places += [np.asarray(line.get_xydata(), float) for line in axes.lines
               if line.get_marker() not in ("None", None, "", " ")]  # fmt: skip
    found = np.concatenate([np.empty((0, 2)), *places])
    return np.asarray(axes.transData.transform(found[np.isfinite(found).all(1)]), float)


def laid_out(figure: Figure) -> Figure:
    """Return a figure whose layout is found once for all formats: it takes longer than drawing."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # "none" leaves a placeholder, and each format is drawn twice
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure on white, for slides and mails."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """Return a figure for print, its words as outlines."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    # Hundredths of a point are finer than any eye; matplotlib writes millionths.
    return re.sub(r'(?<= )(d|x|y)="[^"]*"', _rounded, text).encode()


def _rounded(match: re.Match[str]) -> str:
    return re.sub(r"(\d\.\d\d)\d+", r"\1", match[0])


def inline(svg_text: bytes, prefix: str) -> str:
    """Return an SVG for a page: its ids its own, its colours the page's.

    Args:
        svg_text: From `svg`.
        prefix: No other picture of the page has it.
    """
    text = svg_text.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def room(items: Sequence[str], width: int, lines: int = 3) -> list[str]:
    """Return labels in at most so many lines of at most `width` characters each.

    Lines end between words, and in a word that is longer than a line behind a sign of it.
    """
    return ["\n".join(_in_lines(item, width, lines)) for item in items]


def _in_lines(text: str, width: int, most: int) -> list[str]:
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    found: list[str] = []
    for line in wrapper.wrap(text):
        while len(line) > width:  # one word
            ends = [line.rfind(sign, 0, width) + 1 for sign in "+/_-."]
            # Between names rather than within one, unless that leaves half of the line empty.
            end = next((each for each in ends[:2] if each > width / 2), max(ends)) or width
            found.append(line[:end])
            line = line[end:]
        found.append(line)
    if len(found) > most:
        rest = textwrap.shorten(" ".join(found[most - 1 :]), width, placeholder=" …")
        found[most - 1] = rest if len(rest) > 2 else f"{found[most - 1][: width - 1]}…"
    return found[:most] or [""]


def rows_of(frame: pd.DataFrame) -> list[Any]:
    """Return the rows of a frame, their columns as attributes."""
    return [*frame.itertuples()]


def by_size(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value)


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
