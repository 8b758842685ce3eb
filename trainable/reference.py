"""python -m trainable.reference: docs/config.md, from what stands at the keys and at the parts."""

import math
import sys
import typing
from dataclasses import fields

from trainable.config import TrialConfig
from trainable.keys import Key, key_of
from trainable.parts import REGISTRIES

HEADER = """# The config

Made by `python -m trainable.reference > docs/config.md`; do not edit.

A configuration is flat. A key of scope *branch* holds for both branches, and `super_KEY` or
`sub_KEY` overrides it for one branch of architecture `two_models`. A key of scope *head* holds for
both heads, and `super_KEY` or `sub_KEY` overrides it for one head of either architecture. null
stands for None.

| key | default | values | scope | meaning |
|---|---|---|---|---|
"""


def markdown() -> str:
    """Return the page."""
    hints = typing.get_type_hints(TrialConfig)
    lines = []
    for each in fields(TrialConfig):
        about = key_of(TrialConfig, each.name)
        if not about.is_override:
            cells = (_shown(each.default), _values(about, hints[each.name]), about.scope)
            lines.append(f"| `{each.name}` | {' | '.join(cells)} | {_cell(about.meaning)} |\n")
    tables = "".join(
        f"\n## {registry.kind.capitalize()}s (`{registry.key}`)\n\n"
        "| name | what it is | source |\n|---|---|---|\n"
        + "".join(
            f"| `{name}` | {_cell(registry.about(name).meaning)} | "
            f"{_cell(registry.about(name).source)} |\n"
            for name in registry
        )
        for registry in REGISTRIES
    )
    return HEADER + "".join(lines) + tables


def _values(about: Key, hint: object) -> str:
    """Return which values a key may have, in a few words."""
    if about.choices is not None:
        choices = ", ".join(f"`{each}`" for each in about.choices())
        return f"one of {choices}, or several joined by +" if about.is_sum else choices
    if about.form is not None:
        return about.form[1]
    types = typing.get_args(hint) or (hint,)
    or_null = " or null" if type(None) in types else ""
    if about.limits is not None:
        low, high = (f"{end:,}" if int in types else f"{end:g}" for end in about.limits)
        text = f"{low} or more" if about.limits[1] == math.inf else f"{low} to {high}"
        return text + or_null
    words = {bool: "true or false", float: "a number", str: "a name", int: "a whole number"}
    return next(words[each] for each in types if each in words) + or_null


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(markdown())
