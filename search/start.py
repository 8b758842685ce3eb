"""What a start makes, and takes back where it fails before its first trial."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import optuna
from sqlalchemy import make_url
from upath import UPath

from results.database import STORAGE_ERRORS
from results.record import RECORD_FILE, SearchRecord, study_url
from search.plan import SearchError
from search.study.lock import LeaseLostError
from search.study.storage import StudyError, create_study, delete_study, open_study


@dataclass(frozen=True, kw_only=True)
class New:
    """What a start makes; null: it was there before."""

    database: Path | None
    folder: UPath
    is_folder_new: bool
    searches: UPath | None
    """Folder of all searches."""

    @classmethod
    def of(cls, folder: UPath, url: str) -> Self:
        """Look before the start."""
        file = make_url(url).database if url.startswith("sqlite") else None
        return cls(
            database=Path(file) if file and not Path(file).exists() else None,
            folder=folder,
            is_folder_new=not folder.exists(),
            searches=None if folder.parent.exists() else folder.parent,
        )

    def remove(self, *, only_empty: bool = False) -> None:
        """Remove it, or what of it holds nothing."""
        with contextlib.suppress(OSError):
            if self.database and not (only_empty and self.database.stat().st_size):
                self.database.unlink()
        with contextlib.suppress(OSError):
            if self.is_folder_new and only_empty:
                self.folder.fs.rmdir(self.folder.path)
            elif self.is_folder_new:
                self.folder.fs.rm(self.folder.path, recursive=True)
        with contextlib.suppress(OSError):
            if self.searches:
                # Unless others are there by now: `UPath.rmdir` would delete them, too.
                self.searches.fs.rmdir(self.searches.path)


@contextmanager
def taken_back(study: optuna.Study, new: New | None) -> Iterator[None]:
    """Have a start that fails before its first trial leave nothing: the corrected command is then
    a new search. A resume makes nothing new.
    """
    try:
        yield
    except (LeaseLostError, *STORAGE_ERRORS):
        raise  # nothing can be looked up or taken back there
    except BaseException:
        with contextlib.suppress(*STORAGE_ERRORS):
            if new and not study.get_trials(deepcopy=False):
                # First what makes it a search: one that is killed amid this can be started again.
                with contextlib.suppress(OSError):
                    (new.folder / RECORD_FILE).unlink(missing_ok=True)
                if delete_study(study):  # others are there, of a start beside this one
                    new = replace(new, database=None)
                new.remove()
        raise


def study_of(
    folder: UPath, record: SearchRecord, metrics: tuple[str, ...], *, resume: bool
) -> tuple[optuna.Study, New | None]:
    """Return the search's study, opened or created, and what was made for it; null: a resume.

    Raises:
        SearchError: The folder cannot be made.
        StudyError: The study is not there, cannot be read, or is another search's.
    """
    url = study_url(folder, record)
    new = None if resume else New.of(folder, url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise SearchError(f"--storage: a search cannot be kept there: {why}") from error
    try:
        if resume:
            return open_study(url, record.study_name), None
        return create_study(url, record.study_name, metrics), new
    except StudyError:
        if new:
            new.remove(only_empty=True)
        raise
