"""When a trial has fallen behind: successive halving, as a function of what is recorded.

Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning,
2020): a trial that reaches a rung goes on if it is among the best third of those that have reached
it so far. Decisions and what is recorded of them are those of Optuna's `SuccessiveHalvingPruner`,
which a test proves, so that searches of before go on as they would have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna

from search.internals import set_system_attribute

REDUCTION_FACTOR = 3
"""A third of the trials pass each rung."""
RUNG_FRACTION = 5
"""The first rung is after a fifth of the epochs."""

_KEY = "completed_rung_"
"""With a rung's number: Optuna's name for the value that a trial had there."""


@dataclass(frozen=True)
class Decision:
    """What follows from an epoch."""

    is_behind: bool
    reached: Mapping[int, float]
    """The value at each rung that this epoch reached."""


def rung_epoch(rung: int, num_epochs: int) -> int:
    """Return after how many epochs a trial of `num_epochs` reaches a rung, the first being 0."""
    return max(1, num_epochs // RUNG_FRACTION) * int(REDUCTION_FACTOR**rung)


def is_rung(epoch: int, num_epochs: int) -> bool:
    """Return whether a trial of `num_epochs` is judged after `epoch`."""
    rung = 0
    while rung_epoch(rung, num_epochs) < epoch:
        rung += 1
    return rung_epoch(rung, num_epochs) == epoch


def decide(
    epoch: int,
    value: float,
    before: Mapping[int, float],
    others: Sequence[Mapping[int, float]],
    *,
    num_epochs: int,
    is_maximized: bool,
) -> Decision:
    """Return whether a trial has fallen behind after an epoch.

    Args:
        epoch: From 1.
        value: After it; NaN has fallen behind at the next rung.
        before: The trial's own values at the rungs that earlier epochs reached.
        others: The same of every other trial, whatever became of it.
        num_epochs: That the trial is to run.
        is_maximized: Whether a higher value is better.
    """
    reached: dict[int, float] = {}
    rung = next(k for k in range(len(before) + 1) if k not in before)
    while epoch >= rung_epoch(rung, num_epochs):
        if math.isnan(value):
            return Decision(True, reached)
        reached[rung] = value
        there = [each[rung] for each in others if rung in each]
        if not _is_among_best(value, there, is_maximized):
            return Decision(True, reached)
        rung += 1
    return Decision(False, reached)


def _is_among_best(value: float, others: Sequence[float], is_maximized: bool) -> bool:
    """Return whether a value is in the best third, itself counted; of fewer than 3, the best."""
    ranked = sorted([*others, value], reverse=is_maximized)
    last = ranked[max(len(ranked) // REDUCTION_FACTOR, 1) - 1]
    return value >= last if is_maximized else value <= last


def rungs_of(trial: optuna.trial.FrozenTrial) -> dict[int, float]:
    """Return a trial's values at the rungs that it reached, by the rung's number."""
    return {
        int(key.removeprefix(_KEY)): value
        for key, value in trial.system_attrs.items()
        if key.startswith(_KEY)
    }


def record_rungs(study: optuna.Study, trial: optuna.Trial, reached: Mapping[int, float]) -> None:
    """Write a trial's values at rungs to where Optuna's own pruner does."""
    for rung, value in reached.items():
        set_system_attribute(study, trial, f"{_KEY}{rung}", value)
