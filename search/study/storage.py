"""Optuna's storage in a database, over connections that may be cut; studies in it."""

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.trial import TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from results.history import TRIAL_STEPS
from results.record import password_hint
from trainable.errors import UserError, reason_of
from trainable.novelty.metrics import METRICS
from trainable.schema import SCHEMA, schema_of, stamp, upgraded
from trainable.urls import public

RETRY_S = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Waits between the tries of one call: half a minute, in which a server can restart."""
OPEN_RETRY_S = RETRY_S[:4]
"""The same where a database is opened: a wrong URL shall be known in seconds."""

STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""What a database that is away, full or damaged raises."""

T = TypeVar("T")


class StudyError(UserError):
    """A study that cannot be created, opened or continued."""


class Storage(optuna.storages.RDBStorage):
    """Tries again where the connection was cut, whatever is the same when done twice."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {}
        if url.startswith("sqlite"):
            options["connect_args"] = {"timeout": 60}
        else:
            options["pool_pre_ping"] = True
        patiently(lambda: super(Storage, self).__init__(url, engine_kwargs=options), OPEN_RETRY_S)

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
    "get_trial_id_from_study_id_trial_number", "get_trial_param", "get_all_trials", "_get_trials",
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

    Within `call` nothing else is patient: the waits would be multiplied.
    """
    if _patience.is_on:
        return call()
    _patience.is_on = True
    try:
        for wait_s in waits_s:
            try:
                return call()
            except STORAGE_ERRORS as error:
                if not is_cut(error):
                    raise
                time.sleep(wait_s)
        return call()
    finally:
        _patience.is_on = False


class _Patience(threading.local):
    """Whether this thread is within a call that is tried again."""

    is_on = False


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


def create_study(url: str, name: str, metrics: tuple[str, ...]) -> optuna.Study:
    """Create the study in an Optuna storage; one without trials, of a killed start, is taken.

    Raises:
        StudyError: The storage cannot be used, or has a study of that name.
    """
    if url.startswith("sqlite") and make_url(url).database in (None, "", ":memory:"):
        raise StudyError(f"{url} is forgotten with this process: name a file, sqlite:///FILE.db")
    directions = [METRICS[metric] for metric in metrics]
    storage = _storage(url)
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
        wanted = [direction.upper() for direction in directions]
        if study.trials or [direction.name for direction in study.directions] != wanted:
            raise StudyError(
                f"{url} already has a study named {name!r}: pass another --name"
            ) from None
    except STORAGE_ERRORS as error:
        raise _unreadable(url, error) from error
    return _stamped(study)


def _stamped(study: optuna.Study) -> optuna.Study:
    for key, value in stamp().items():
        study.set_user_attr(key, value)
    return study


def open_study(url: str, name: str) -> optuna.Study:
    """Open the study of an earlier run.

    Raises:
        StudyError: The storage cannot be read, or has no study of that name.
        SchemaError: A later version made it.
    """
    if url.startswith("sqlite") and (file := make_url(url).database) and not Path(file).exists():
        raise StudyError(f"{url}: there is no such file, so no study named {name!r}")
    storage = _storage(url)
    try:
        study = optuna.load_study(storage=storage, study_name=name)
        schema_of(study.user_attrs, f"the study {name} in {url}")
    except KeyError:
        raise StudyError(f"{url} has no study named {name!r}") from None
    except STORAGE_ERRORS as error:
        raise _unreadable(url, error) from error
    return study


def with_distributions(
    study: optuna.Study, distributions: Mapping[str, BaseDistribution]
) -> optuna.Study:
    """Return `study`, or a copy of it under a new name if its parameters' choices have changed or
    an earlier version stored its trials in another form.

    Optuna refuses a parameter whose choices differ from those of earlier trials, so a space with
    a new choice needs the earlier trials told anew: same numbers, states and values, with the
    new choices. A value that is no longer a choice is dropped from what the sampler learns from;
    the trial's configuration keeps it.
    """
    trials = study.get_trials(deepcopy=False)
    schema = schema_of(study.user_attrs, f"the study {study.study_name}")
    if schema == SCHEMA and all(
        _is_compatible(trial.distributions[name], distribution)
        for trial in trials
        for name, distribution in distributions.items()
        if name in trial.distributions
    ):
        return study
    storage = study._storage
    taken = {summary.study_name for summary in optuna.get_all_study_summaries(storage)}
    base = study.study_name.partition("~")[0]
    name = next(each for n in itertools.count(2) if (each := f"{base}~{n}") not in taken)
    retold = optuna.create_study(storage=storage, study_name=name, directions=study.directions)
    retold.add_trials([_retold(trial, distributions, schema) for trial in trials])
    return _stamped(retold)


def _is_compatible(old: BaseDistribution, new: BaseDistribution) -> bool:
    try:
        check_distribution_compatibility(old, new)
    except ValueError:
        return False
    return True


def _retold(
    trial: optuna.trial.FrozenTrial, distributions: Mapping[str, BaseDistribution], schema: int
) -> optuna.trial.FrozenTrial:
    now = {name: distributions.get(name, old) for name, old in trial.distributions.items()}
    kept = {name: value for name, value in trial.params.items() if _is_choice(now[name], value)}
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params=kept,
        distributions={name: now[name] for name in kept},
        user_attrs=upgraded(trial.user_attrs, schema, TRIAL_STEPS),
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )


def _is_choice(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


def _storage(url: str) -> optuna.storages.BaseStorage:
    try:
        return Storage(url)
    except (*STORAGE_ERRORS, ImportError) as error:
        raise _unreadable(url, error) from error
    except RuntimeError as error:  # an older or a newer schema
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: Exception) -> StudyError:
    reason = reason_of(error).replace("$STORAGE_URL", public(url)).rstrip(".")
    return StudyError(
        f"the study storage {url} cannot be used: {reason}. Nothing was changed{password_hint(url)}"
    )
