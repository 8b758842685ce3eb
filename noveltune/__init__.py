"""Searches from Python: for a notebook, or a program of one's own.

import noveltune

birds = noveltune.search("full_ablation", name="birds", trials=20)
birds = noveltune.open("runs/birds")  # later, or while it runs
birds.trials.sort_values("score")  # a pandas table: one row per trial
birds.best["config"]
birds.load().predict(images_NHWC)  # or birds.predict("photos.zip"): a table
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from results.opened import OpenedSearch

__all__ = ["open", "search"]

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("search", "results", "trainable", "spaces")


def search(
    space: str | os.PathLike[str] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> OpenedSearch:
    """Run a search, or resume one, and return it opened.

    It prints as the command does. Stopped by an interrupt, or without a trial that succeeded, it
    returns what there is.

    Args:
        space: A space file, or the name of a shipped one. It is a file, not a function, so that a
            resume can ask the same question: in a notebook write it by `%%writefile`. Null with
            `resume=True`.
        settings: Keys fixed for every trial: `--set`.
        options: Every other option of `noveltune search`, by its name: `trials=20`,
            `data="birds.zip"`, `storage="results"`, `resume=True`, `time_budget="90m"`.

    Raises:
        UserError: A mistake in what was asked.
        TypeError: No option of that name.
    """
    _check_packages()
    from results.opened import open_search
    from search.run import called

    return open_search(*called(space, settings or {}, options))


def open(search: str | os.PathLike[str], *, study: str | None = None) -> OpenedSearch:
    """Return a search, finished, interrupted or running, by its folder: `runs/birds`.

    Args:
        search: The folder.
        study: URL of its database, where that needs a password: none is kept.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    _check_packages()
    from results.opened import open_search

    return open_search(search, study)


def _check_packages() -> None:
    """Refuse a file of the user's that Python takes for a package of ours.

    Raises:
        ImportError: With its path.
    """
    for name in _PACKAGES:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if name not in sys.modules:
            from importlib.util import find_spec

            spec = find_spec(name)
            loaded = spec.origin if spec else None
        if loaded is not None and Path(loaded).resolve() != _ROOT / name / "__init__.py":
            raise ImportError(
                f"{loaded} has the name of a package of noveltune, `{name}`, and Python finds it "
                "first: rename it, or work in another folder, and start Python anew"
            )
