"""Reads what searches left behind: tables, pictures, predictions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if sys.argv[:1] == ["-m"] and Path(sys.path[0]) != (_root := Path(__file__).parents[1]):
    # `python -m results.report`: a trainable.py in the working folder is not the package.
    sys.path[:] = [*sys.path[1:], str(_root), sys.path[0]]

import trainable as trainable  # sets what OpenMP reads when torch is imported

if TYPE_CHECKING:
    import os

    from results.opened import OpenedSearch


def open(search: str | os.PathLike[str], *, study: str | None = None) -> OpenedSearch:
    """Return a search by its folder, `runs/birds`: the same as `noveltune.open`."""
    from results.opened import open_search  # takes seconds, so only when it is asked for

    return open_search(search, study)
