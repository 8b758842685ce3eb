"""Reads what searches left behind: tables, pictures, predictions."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

if sys.argv[:1] == ["-m"] and Path(sys.path[0]) != (_root := Path(__file__).parents[1]):
    # `python -m results.report`: a trainable.py in the working folder is not the package.
    sys.path[:] = [*sys.path[1:], str(_root), sys.path[0]]

import trainable as trainable  # sets what OpenMP reads when torch is imported


def open(search: str | os.PathLike[str], *, study: str | None = None) -> Any:
    """Return a search by its folder, `runs/birds`: what `noveltune.open` returns."""
    # By name: what is imported anywhere on a model's way is declared as needed by the model.
    return import_module("results.opened").open_search(search, study)
