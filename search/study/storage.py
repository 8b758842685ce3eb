"""Studies in a database, by Optuna: created, opened, and told anew with other choices."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from sqlalchemy import make_url

from results.database import (
    OPEN_RETRY_S,
    STORAGE_ERRORS,
    Storage,
    is_missing,
    patiently,
    sqlite_file,
)
from results.record import password_hint
from results.trial import TRIAL_STEPS
from search.internals import allows, storage_of
from trainable.errors import UserError, reason_of
from trainable.novelty.metrics import METRICS
from trainable.schema import SCHEMA, schema_of, stamp, upgraded
from trainable.urls import public


class StudyError(UserError):
    """A study that cannot be created, opened or continued."""


def check_database(url: str) -> None:
    """Check that a database can be used, before anything is read for a search; it leaves nothing.

    Raises:
        StudyError: It cannot: it is no URL, no server answers, or there is no folder for its file.
    """
    try:
        if make_url(url).get_backend_name() == "sqlite":
            _check_file(url)
            return
        engine = sa.create_engine(url)
        patiently(lambda: engine.connect().close(), OPEN_RETRY_S)
        engine.dispose()
    except (*STORAGE_ERRORS, ImportError) as error:
        raise _unreadable(url, error) from error


def _check_file(url: str) -> None:
    file = sqlite_file(url)
    if not file:
        raise StudyError(f"{url} is forgotten with this process: name a file, sqlite:///FILE.db")
    if not Path(file).absolute().parent.is_dir():
        raise StudyError(f"the study's database {url} cannot be used: there is no such folder")
    if Path(file).is_dir():
        raise StudyError(f"the study's database {url} cannot be used: it is a folder")


def create_study(url: str, name: str, metrics: tuple[str, ...]) -> optuna.Study:
    """Create the study in a database; one without trials, of a killed start, is taken.

    Raises:
        StudyError: The database cannot be used, or has a study of that name.
    """
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
    return _named(_stamped(study), metrics)


def _stamped(study: optuna.Study) -> optuna.Study:
    for key, value in stamp().items():
        study.set_user_attr(key, value)
    return study


def _named(study: optuna.Study, metrics: Sequence[str]) -> optuna.Study:
    """Return `study`, its objectives named for those who look at it, as optuna-dashboard does."""
    if study.metric_names != [*metrics]:
        with warnings.catch_warnings():  # since Optuna 3.2, and in 5 still called experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([*metrics])
    return study


def open_study(url: str, name: str) -> optuna.Study:
    """Open the study of an earlier run.

    Raises:
        StudyError: The database cannot be read, or has no study of that name.
        SchemaError: A later version made it.
    """
    if is_missing(url):
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


def delete_study(study: optuna.Study) -> bool:
    """Delete a study; return whether its database has others."""
    optuna.delete_study(study_name=study.study_name, storage=storage_of(study))
    return bool(optuna.get_all_study_names(storage_of(study)))


def with_distributions(
    study: optuna.Study, distributions: Mapping[str, BaseDistribution], metrics: Sequence[str]
) -> optuna.Study:
    """Return `study`, or a copy of it under a new name if its parameters' choices have changed or
    an earlier version stored its trials in another form. Its objectives bear their names.

    Optuna refuses a parameter whose choices differ from those of earlier trials, so a space with
    a new choice needs the earlier trials told anew: same numbers, states and values, with the
    new choices. A value that is no longer a choice is dropped from what the sampler learns from;
    the trial's configuration keeps it.
    """
    trials = study.get_trials(deepcopy=False)
    schema = schema_of(study.user_attrs, f"the study {study.study_name}")
    # Trials share what they were drawn from, so that there are few of them to look at.
    drawn_from = {
        (name, id(old)): (name, old)
        for trial in trials
        for name, old in trial.distributions.items()
    }
    if schema == SCHEMA and all(
        _is_compatible(old, distributions[name])
        for name, old in drawn_from.values()
        if name in distributions
    ):
        return _named(study, metrics)
    storage = storage_of(study)
    taken = {summary.study_name for summary in optuna.get_all_study_summaries(storage)}
    base = study.study_name.partition("~")[0]
    name = next(each for n in itertools.count(2) if (each := f"{base}~{n}") not in taken)
    retold = optuna.create_study(storage=storage, study_name=name, directions=study.directions)
    retold.add_trials([_retold(trial, distributions, schema) for trial in trials])
    return _named(_stamped(retold), metrics)


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
    kept = {name: value for name, value in trial.params.items() if allows(now[name], value)}
    told = optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params=kept,
        distributions={name: now[name] for name in kept},
        user_attrs=upgraded(trial.user_attrs, schema, TRIAL_STEPS),
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )
    # It says that it ran now.
    told.datetime_start, told.datetime_complete = trial.datetime_start, trial.datetime_complete
    return told


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
        f"the study's database {url} cannot be used: {reason}. Nothing was changed"
        f"{password_hint(url)}"
    )
