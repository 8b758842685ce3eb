"""How text reaches the terminal: as it is."""

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """Return a console that prints what users, files and libraries wrote as they wrote it.

    Names, paths and reasons may hold [brackets] or :colons:, which rich takes for markup and emoji
    by default. What is bold or coloured is a `rich.text.Text`, or printed with a style.

    Args:
        options: Others of `rich.console.Console`.
    """
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2,000 images."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
