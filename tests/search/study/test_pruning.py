"""Halving decides, and records, as Optuna's own pruner does."""

import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.study.pruning import (
    REDUCTION_FACTOR,
    RUNG_FRACTION,
    decide,
    is_rung,
    record_rungs,
    rungs_of,
)

VALUES = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.9, -1.0, math.nan])


def histories() -> Any:
    """Trials side by side: how many epochs each has, and who reports what next."""
    epochs = st.lists(st.sampled_from([1, 4, 6, 12, 30]), min_size=1, max_size=8)
    reports = st.lists(st.tuples(st.integers(0, 7), VALUES), max_size=80)
    return st.tuples(epochs, reports, st.booleans())


@given(history=histories())
def test_halving_is_optuna_s(history: tuple[list[int], list[tuple[int, float]], bool]) -> None:
    epochs, reports, is_maximized = history
    theirs, ours = (
        optuna.create_study(direction="maximize" if is_maximized else "minimize") for _ in range(2)
    )
    at = [[study.ask() for _ in epochs] for study in (theirs, ours)]
    done = [0] * len(epochs)
    out: set[int] = set()
    for place, value in reports:
        number = place % len(epochs)
        if number in out or done[number] == epochs[number]:
            continue
        done[number] += 1
        epoch, num_epochs = done[number], epochs[number]
        for live in at:
            live[number].report(value, epoch)
        frozen = theirs.get_trials()[number]
        pruner = optuna.pruners.SuccessiveHalvingPruner(
            min_resource=max(1, num_epochs // RUNG_FRACTION), reduction_factor=REDUCTION_FACTOR
        )
        expected = pruner.prune(theirs, frozen)
        found = False
        if is_rung(epoch, num_epochs):
            trials = ours.get_trials()
            decision = decide(
                epoch, value, rungs_of(trials[number]),
                [rungs_of(each) for each in trials if each.number != number],
                num_epochs=num_epochs, is_maximized=is_maximized,
            )  # fmt: skip
            record_rungs(ours, at[1][number], decision.reached)
            found = decision.is_behind
        assert found == expected
        kept = [[each.system_attrs for each in study.get_trials()] for study in (theirs, ours)]
        assert kept[0] == kept[1]
        if expected:
            out.add(number)


@pytest.mark.parametrize(("num_epochs", "rungs"), [(0, [1, 3, 9]), (6, [1, 3, 9]), (15, [3, 9])])
def test_rungs_are_a_third_apart_from_a_fifth_of_the_epochs(
    num_epochs: int, rungs: list[int]
) -> None:
    assert [epoch for epoch in range(1, 10) if is_rung(epoch, num_epochs)] == rungs


# --- Private members of Optuna -------------------------------------------------------------------
