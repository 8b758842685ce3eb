"""Trials as Optuna's database has them, read table by table: an object for each row is slow."""

import functools
import gc
import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.orm import Session

from results.record import RunError

_TRIALS = models.TrialModel.__table__


def stored_trials(
    session: Session,
    study_id: int,
    states: Container[TrialState] | None,
    included_trial_ids: Iterable[int],
    trial_id_greater_than: int,
    *,
    only_attributes: bool = False,
) -> list[FrozenTrial]:
    """Return what Optuna's own `_get_trials` does, with these arguments.

    With the user's attributes alone, without parameters and values, it takes two thirds of the
    time.
    """
    is_asked = _TRIALS.c.study_id == study_id
    if states is not None:
        is_asked &= _TRIALS.c.state.in_([state for state in TrialState if state in states])
    if trial_id_greater_than > -1:
        known = [each for each in included_trial_ids if each <= trial_id_greater_than]
        is_new = _TRIALS.c.trial_id > trial_id_greater_than
        is_asked &= is_new | _TRIALS.c.trial_id.in_(known) if known else is_new
    trials = session.execute(
        sa.select(*(_TRIALS.c[name] for name in _OF_A_TRIAL))
        .where(is_asked)
        .order_by(_TRIALS.c.trial_id)
    ).all()
    if not trials:
        return []

    def rows(model: Any, *names: str) -> dict[int, list[Any]]:
        """Return the rows of a table by trial, as they were written, if they are asked for."""
        found: dict[int, list[Any]] = defaultdict(list)
        if only_attributes and model is not models.TrialUserAttributeModel:
            return found
        table = model.__table__
        (key,) = table.primary_key
        query = sa.select(key, table.c.trial_id, *(table.c[name] for name in names))
        query = query.join(_TRIALS, _TRIALS.c.trial_id == table.c.trial_id).where(is_asked)
        # Sorted here: a database sorts the long texts along.
        for _, trial_id, *values in sorted(session.execute(query).all(), key=itemgetter(0)):
            found[trial_id].append(values)
        return found

    values = rows(models.TrialValueModel, "objective", "value", "value_type")
    params = rows(models.TrialParamModel, "param_name", "param_value", "distribution_json")
    user, system = (
        rows(model, "key", "value_json")
        for model in (models.TrialUserAttributeModel, models.TrialSystemAttributeModel)
    )
    steps = rows(
        models.TrialIntermediateValueModel,
        "step", "intermediate_value", "intermediate_value_type",
    )  # fmt: skip
    to_value = models.TrialValueModel.stored_repr_to_value
    to_step = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    made = []
    for trial_id, number, state, start, complete in trials:
        told = {place: to_value(*stored) for place, *stored in values[trial_id]}
        drawn = {name: (_distribution(text), value) for name, value, text in params[trial_id]}
        made.append(
            FrozenTrial(
                number=number,
                state=state,
                value=None,
                values=[told[place] for place in sorted(told)] or None,
                datetime_start=_local(start),
                datetime_complete=_local(complete),
                params={name: each.to_external_repr(v) for name, (each, v) in drawn.items()},
                distributions={name: each for name, (each, _) in drawn.items()},
                user_attrs=_Attributes(number, user[trial_id]),  # type: ignore[arg-type]
                system_attrs={key: json.loads(text) for key, text in system[trial_id]},
                intermediate_values={step: to_step(*stored) for step, *stored in steps[trial_id]},
                trial_id=trial_id,
            )
        )
    return made


@contextmanager
def uncollected() -> Iterator[None]:
    """Have no garbage collected within: it would look at all that is read, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Attributes(Mapping[str, Any]):
    """A trial's attributes, each decoded when it is asked for: of a finished trial's epochs, which
    are nearly all of what is stored, few ever are.

    Raises:
        RunError: When one is asked for that is no JSON.
    """

    def __init__(self, number: int, rows: Iterable[Iterable[str]]) -> None:
        self._trial = number
        self._texts: dict[str, str] = dict(rows)  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Any:
        text = self._texts[key]
        try:
            return json.loads(text)
        except ValueError as error:
            raise RunError(
                f"attribute {key} of trial {self._trial} in the study is damaged ({error}): take "
                "the study from a copy"
            ) from error

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default, without an exception on the way."""
        return self[key] if key in self._texts else default

    def __contains__(self, key: object) -> bool:
        return key in self._texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __repr__(self) -> str:
        return repr(dict(self))


_OF_A_TRIAL = ("trial_id", "number", "state", "datetime_start", "datetime_complete")
_distribution: Callable[[str], BaseDistribution] = functools.lru_cache(4096)(json_to_distribution)


def _local(stored: datetime | None) -> datetime | None:
    """Return a stored time, which is UTC, as Optuna shows it."""
    return stored and stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
