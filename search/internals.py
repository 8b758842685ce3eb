"""What we use of Optuna that it does not promise; `test_internals.py` says what each must do."""

from collections.abc import Callable
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.samplers._tpe import sampler as tpe

from results.database import Storage

T = TypeVar("T")
_READER = optuna.samplers.TPESampler(multivariate=True)


def storage_of(study: optuna.Study) -> optuna.storages.BaseStorage:
    """Return where a study is kept."""
    return study._storage


def _behind_cache(study: optuna.Study) -> optuna.storages.BaseStorage:
    storage = storage_of(study)
    return getattr(storage, "_backend", storage)


def engine_of(study: optuna.Study) -> sa.Engine | None:
    """Return the database that a study is kept in, behind Optuna's cache; None: in none."""
    return getattr(_behind_cache(study), "engine", None)


def at_once(study: optuna.Study, write: Callable[[bool], T]) -> T:
    """Return what `write` returns, as `Storage.at_once` does where the study is in a database."""
    storage = _behind_cache(study)
    return storage.at_once(write) if isinstance(storage, Storage) else write(False)


def ask(study: optuna.Study) -> optuna.Trial:
    """Ask as the study does, a waiting trial first, without reading the trials that run."""
    number, waiting = study._study_id, (optuna.trial.TrialState.WAITING,)
    if _behind_cache(study).get_all_trials(number, deepcopy=False, states=waiting):
        return study.ask()
    return optuna.Trial(study, storage_of(study).create_new_trial(number))


def ask_again(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> optuna.Trial:
    """Ask for a trial of the same parameters."""
    running = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
    )
    number = study._study_id
    made = storage_of(study).create_new_trial(number, template_trial=running)
    return optuna.Trial(study, made)


def live(study: optuna.Study, trial: optuna.trial.FrozenTrial | optuna.Trial) -> optuna.Trial:
    """Return a running trial to be written to, as it is stored, whatever process asked for it."""
    return optuna.Trial(study, trial._trial_id)


def stored(study: optuna.Study, trial: optuna.Trial) -> optuna.trial.FrozenTrial:
    """Return a trial as its storage has it now."""
    return _behind_cache(study).get_trial(trial._trial_id)


def set_system_attribute(study: optuna.Study, trial: optuna.Trial, key: str, value: Any) -> None:
    """Write what Optuna's own parts write of a trial."""
    storage_of(study).set_trial_system_attr(trial._trial_id, key, value)


def allows(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a parameter may have that value."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


# What TPE does with trials, one at a time and all at once.


def params_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters; of a running one, too, what was drawn and is not suggested."""
    return _READER._get_params(trial, None)  # type: ignore[arg-type]


def num_good(study: optuna.Study, num_finished: int) -> int:
    """Return how many of the finished trials TPE takes for good ones."""
    is_single = len(study.directions) == 1
    return (tpe.default_gamma if is_single else tpe.default_gamma_multiobjective)(num_finished)


def pruned_rank(trial: optuna.trial.FrozenTrial, study: optuna.Study) -> tuple[float, float]:
    """Return what orders pruned trials, the best first."""
    return tpe._get_pruned_trial_score(trial, study)


def split_trials(
    study: optuna.Study, trials: list[optuna.trial.FrozenTrial], num_good: int
) -> tuple[list[optuna.trial.FrozenTrial], list[optuna.trial.FrozenTrial]]:
    """Return the good trials and the others, each by number."""
    return tpe._split_trials(study, trials, num_good)
