"""noveltune search|refit|report|predict|evaluate|train: every command under one name."""

import importlib
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

COMMANDS = {
    "search": ("search.run", "search for the best classifier; go on with a search"),
    "refit": ("search.refit", "train the best one on every class, and register it"),
    "report": ("results.report.__main__", "tables and pictures of a search"),
    "predict": ("results.predict", "images -> CSV of superclass and subclass indices"),
    "evaluate": ("results.evaluate", "labelled images -> what a model is worth"),
    "train": ("trainable.train", "one configuration alone, without Ray"),
}
"""The module of each, which `python -m` runs too, and what it does."""


def main(argv: list[str] | None = None) -> int:
    """Do what the first word says with the rest; return the exit code."""
    _stand_back()
    # Imported late, as the module of a command is: --help waits for nothing.
    from trainable.errors import nearest

    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--version"]:
        print(metadata.version("noveltune"))
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(
            f"error: noveltune has no command {name!r}{nearest(name, COMMANDS)}; it has {known}",
            file=sys.stderr,
        )
        return 2
    if name != "search" and sys.stderr.isatty() and not {"-h", "--help"} & {*rest}:
        # For who watches; a search says so itself, and which one.
        print(f"{name}: loading what it needs", file=sys.stderr, flush=True)
    code: int = importlib.import_module(COMMANDS[name][0]).main(rest)
    return code


def run() -> NoReturn:
    """Do the command of this process and end it."""
    _stand_back()
    from trainable.interrupted import answer_interrupts

    answer_interrupts()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written and closed; taking Ray, MLflow and torch apart takes seconds


def _usage() -> str:
    lines = [f"  {name:9} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: noveltune COMMAND [OPTIONS]     (noveltune COMMAND --help says more)",
            *("", *lines, ""),
            "First: noveltune search --space full_ablation",
        ]
    )


def _stand_back() -> None:
    """Find no package in the working folder before ours, whatever PYTHONPATH says."""
    here, root = str(Path.cwd()), str(Path(__file__).resolve().parents[1])
    if {"", here} & {*sys.path} and here != root:
        sys.path[:] = [*(each for each in sys.path if each not in ("", here)), root, here]
