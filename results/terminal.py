"""How text reaches the terminal, and whoever else listens: as it is."""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text

WIDEST = 100_000
"""Columns for whoever has no terminal, a file or a pipe: a row of a table is a line there."""
_AS_IT_IS: dict[str, Any] = {
    "highlight": False, "markup": False, "emoji": False, "soft_wrap": True,
}  # fmt: skip
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Escape sequences and control characters, all but line ends and tabs."""
_WHOLE = re.compile(
    r"(?:python -m|noveltune (?=[a-z])|mlflow models|mlflow ui --|\w+=\S+ (?=mlflow )).*|\S+"
)
"""What no line is broken in: a word, such as a path, and a command to the end of its line."""
_INDENT = "\n  "
"""Before what goes on on another line."""


class HeardConsole(Console):
    """A console that also tells what it prints, as plain text, to one who listens.

    That one hears it in full width, as a pipe does, and also where the console is quiet.
    """

    listener: Callable[[str], None] | None = None

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and tell."""
        objects = tuple(without_control(o) if isinstance(o, str) else o for o in objects)
        if self.is_terminal or self.is_jupyter:
            shown = objects
            if options.get("soft_wrap", self.soft_wrap):
                shown = tuple(_between_words(each, self.width) for each in objects)
            super().print(*shown, **options)
        else:
            super().print(_in_full_width(*objects, **options), end="")
        if self.listener is not None:
            self.listener(_in_full_width(*objects, **options))


@dataclass(frozen=True)
class GivesWay:
    """Items with commas, dim, in one line: as many of them as there is room for."""

    text: str
    before: str = ""
    """What stays, however little room there is."""

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        room = options.max_width - cell_len(self.before)
        items = self.text.split(", ")
        shown = self.text
        while cell_len(shown) > room and len(items) > 1:
            items.pop()
            shown = ", ".join([*items, "…"])
        line = Text(self.before, no_wrap=True, overflow="ellipsis")
        yield line.append(shown, style="dim")

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, min(cell_len(self.before + self.text), options.max_width))


def _between_words(printed: Any, width: int) -> Any:
    """Return text with its lines broken between words where a terminal would break them anywhere.

    What is no text comes back as it is. A path or a command stays whole, to be copied.
    """
    if not isinstance(printed, str | Text):
        return printed
    lines = []
    for line in (Text(printed) if isinstance(printed, str) else printed).split(allow_blank=True):
        plain, begin, breaks = line.plain, 0, list[int]()
        for word in _WHOLE.finditer(plain):
            room = width if not breaks else width - len(_INDENT) + 1
            is_first = not plain[begin : word.start()].strip()
            if not is_first and cell_len(plain[begin : word.end()]) > room:
                begin = word.start()
                breaks.append(begin)
        pieces = line.divide(breaks)
        for piece in pieces:
            piece.rstrip()
        lines.append(Text(_INDENT).join(pieces))
    return Text("\n").join(lines)


def _in_full_width(*objects: Any, **options: Any) -> str:
    """Return what would be printed, in lines as wide as it takes."""
    file = io.StringIO()
    plain = Console(
        file=file, width=WIDEST, color_system=None, force_terminal=False, force_jupyter=False,
        **_AS_IT_IS,
    )  # fmt: skip
    plain.print(*objects, **options)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def plain_console(*, listener: Callable[[str], None] | None = None, **options: Any) -> HeardConsole:
    """Return a console that prints what users, files and libraries wrote as they wrote it.

    Names, paths and reasons may hold [brackets] or :colons:, which rich takes for markup and emoji
    by default. What is bold or coloured is a `rich.text.Text`, or printed with a style.

    Args:
        listener: Is told what is printed, see `HeardConsole`.
        options: Others of `rich.console.Console`.
    """
    console = HeardConsole(**_AS_IT_IS, **options)
    console.listener = listener
    return console


def without_control(text: str) -> str:
    """Return what libraries and users wrote without what would move a cursor or change colours."""
    return _CONTROL.sub("", text)


def one_line(text: str) -> str:
    """Return a reason or a name, which may be several lines, as one."""
    return " ".join(without_control(text).split())


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2,000 images, 3 classes."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def duration(seconds: float) -> str:
    """Return a time as a person says it: under 1 s, 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if not seconds >= 0:
        return "unknown"
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
