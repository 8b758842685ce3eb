"""Where a search is kept: checked first, made, and taken back where no trial comes of it."""

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import optuna
from upath import UPath

from results.database import STORAGE_ERRORS, is_missing, sqlite_file
from results.record import RECORD_FILE, SearchRecord, run_folder, study_url
from search.plan import SearchError
from search.study.lock import LeaseLostError
from search.study.storage import StudyError, create_study, delete_study, open_study
from trainable.errors import reason_of


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
        return cls(
            database=Path(sqlite_file(url)) if is_missing(url) else None,
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


def check_place(storage: UPath | None, name: str) -> None:
    """Check that a search of that name can be kept there, before anything is read for it.

    It leaves nothing: where there is a disk, a file without a name in what is there already.

    Args:
        storage: Folder of all searches; null: the default.
        name: Of the search.

    Raises:
        SearchError: It cannot.
    """
    folder = run_folder(name, storage)
    try:
        if isinstance(folder, Path):
            there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
            with tempfile.TemporaryFile(dir=there) as probe:
                probe.write(b"?")  # a full disk takes an empty file
        else:
            new = New.of(folder, "")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stored = folder / f".probe_{uuid.uuid4().hex}"
                stored.write_bytes(b"?")
                stored.unlink()
            finally:
                new.remove(only_empty=True)
    except Exception as error:  # object stores raise their own types
        raise _no_place(folder, error) from error


def _no_place(folder: UPath, error: Exception) -> SearchError:
    why = getattr(error, "strerror", None) or reason_of(error)  # not the name of a probe
    return SearchError(
        f"--storage {folder.parent}: a search cannot be kept there ({why}): pass a folder that "
        "can be written"
    )


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
        raise _no_place(folder, error) from error
    try:
        if resume:
            return open_study(url, record.study_name), None
        return create_study(url, record.study_name, metrics), new
    except StudyError:
        if new:
            new.remove(only_empty=True)
        raise
