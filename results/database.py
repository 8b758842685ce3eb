"""A study's database, over connections that may be cut."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import optuna
from optuna.trial import TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from results.stored_trials import stored_trials, uncollected

RETRY_S = (0.1, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Waits between the tries of one call: half a minute, in which a server can restart."""
OPEN_RETRY_S = RETRY_S[:6]
"""The same where a database is opened: a wrong URL shall be known in seconds."""

STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What a database that is away, full or damaged raises."""

T = TypeVar("T")


def is_missing(url: str) -> bool:
    """Return whether a URL is of a SQLite file that is not there: opening it would make one."""
    if not url.startswith("sqlite"):
        return False
    file = sqlite_file(url)
    return bool(file) and not Path(file).exists()


def sqlite_file(url: str) -> str:
    """Return the file of a SQLite database, also of a `file:` URI; nothing: it is in memory."""
    parts = make_url(url)
    file = parts.database or ""
    if file.startswith("file:") and "uri" in parts.query:
        file = "" if parts.query.get("mode") == "memory" else unquote(urlsplit(file).path)
    return "" if file == ":memory:" else file


class Storage(optuna.storages.RDBStorage):
    """Tries again where the connection was cut, whatever is the same when done twice."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {}
        if url.startswith("sqlite"):
            options["connect_args"] = {"timeout": 60}
        else:
            options["pool_pre_ping"] = True
        patiently(lambda: super(Storage, self).__init__(url, engine_kwargs=options), OPEN_RETRY_S)

    def at_once(self, write: Callable[[bool], T]) -> T:
        """Return what `write` returns, with all that it writes in one transaction: all or nothing.

        Args:
            write: Called again where the connection was cut; it is told whether it was called
                before, and whether that arrived is unknown then.
        """
        is_again = False

        def once() -> T:
            nonlocal is_again
            was_called, is_again = is_again, True
            with self.engine.begin() as connection, _hurriedly():
                # Optuna's calls end their transactions; of a session that joins one, none ends it.
                self.scoped_session.remove()
                self.scoped_session(bind=connection)
                try:
                    return write(was_called)
                finally:
                    self.scoped_session.remove()

        return patiently(once)

    def _get_trials(self, *which: Any, **named: Any) -> list[optuna.trial.FrozenTrial]:
        def read() -> list[optuna.trial.FrozenTrial]:
            session = self.scoped_session()
            try:
                with uncollected():
                    return stored_trials(session, *which, **named)
            finally:
                session.close()

        return patiently(read)

    def all_trials(
        self, study_id: int, *, only_attributes: bool = False
    ) -> list[optuna.trial.FrozenTrial]:
        """Return a study's trials by number; without parameters and values if attributes do."""
        trials = self._get_trials(study_id, None, (), -1, only_attributes=only_attributes)
        return sorted(trials, key=lambda trial: trial.number)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """Set the state; a try whose answer was lost may have done it."""
        is_again = False

        def once() -> bool:
            nonlocal is_again
            is_first, is_again = not is_again, True
            try:
                return super(Storage, self).set_trial_state_values(trial_id, state, values)
            except optuna.exceptions.UpdateFinishedTrialError:
                if is_first or self.get_trial(trial_id).state != state:
                    raise
                return True

        return patiently(once)


# Reads, and writes of one value under one key. Not among them: what makes a trial or a study,
# where a second one might appear; `Study.next` looks for a trial whose making was not answered.
_REPEATABLE = (
    "get_study_id_from_name", "get_study_name_from_id", "get_study_directions",
    "get_study_user_attrs", "get_study_system_attrs", "get_all_studies", "get_trial",
    "get_trial_id_from_study_id_trial_number", "get_trial_param", "get_all_trials",
    "set_study_user_attr", "set_study_system_attr", "set_trial_param", "_set_trial_param",
    "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr",
)  # fmt: skip


def _repeatable(name: str) -> Callable[..., Any]:
    method = getattr(optuna.storages.RDBStorage, name)

    def call(self: Storage, *args: Any, **kwargs: Any) -> Any:
        return patiently(partial(method, self, *args, **kwargs))

    return call


for _name in _REPEATABLE:
    setattr(Storage, _name, _repeatable(_name))


def patiently(call: Callable[[], T], waits_s: Sequence[float] = RETRY_S) -> T:
    """Return what `call` returns, trying again while the database cannot be reached.

    What is patient within `call` shares its waits, which would be multiplied otherwise.
    """
    outer = _patience.waits
    waits = outer if outer is not None else iter(waits_s)
    _patience.waits = waits
    try:
        while True:
            try:
                return call()
            except STORAGE_ERRORS as error:
                wait_s = next(waits, None) if is_cut(error) else None
                if wait_s is None:
                    raise
                time.sleep(wait_s)
    finally:
        _patience.waits = outer


@contextmanager
def _hurriedly() -> Iterator[None]:
    """Have no patience within: what was written before would be lost with the connection."""
    outer, _patience.waits = _patience.waits, iter(())
    try:
        yield
    finally:
        _patience.waits = outer


class _Patience(threading.local):
    """Of a thread."""

    waits: Iterator[float] | None = None
    """What is left of the waits of the outermost patient call."""


_patience = _Patience()


def is_cut(error: BaseException | None) -> bool:
    """Return whether a connection was cut or refused; nothing else is worth another try."""
    while error is not None and not isinstance(error, DBAPIError):
        error = error.__cause__
    if error is None or isinstance(error.orig, sqlite3.Error):
        return False  # a file, and Optuna's timeout has passed
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    is_refused = isinstance(error, OperationalError) and code is None
    # 08: connection exceptions; 57P: the server shuts down, has crashed or starts.
    return error.connection_invalidated or is_refused or str(code).startswith(("08", "57P"))
