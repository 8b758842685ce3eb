"""What we use of Optuna that it does not promise; `test_internals.py` says what each must do."""

from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution


def storage_of(study: optuna.Study) -> optuna.storages.BaseStorage:
    """Return where a study is kept."""
    return study._storage


def engine_of(study: optuna.Study) -> sa.Engine | None:
    """Return the database that a study is kept in, behind Optuna's cache; None: in none."""
    storage = storage_of(study)
    return getattr(getattr(storage, "_backend", storage), "engine", None)


def live(study: optuna.Study, frozen: optuna.trial.FrozenTrial) -> optuna.Trial:
    """Return a running trial to be written to, whatever process asked for it."""
    return optuna.Trial(study, frozen._trial_id)


def set_system_attribute(study: optuna.Study, trial: optuna.Trial, key: str, value: Any) -> None:
    """Write what Optuna's own parts write of a trial."""
    storage_of(study).set_trial_system_attr(trial._trial_id, key, value)


def all_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return a study's trials as samplers read them: without a copy, also within a suggestion."""
    return study._get_trials(deepcopy=False)


def allows(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a parameter may have that value."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False
