"""A trial goes into Optuna's attributes and comes back the same, by the one codec."""

from dataclasses import replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.trial import Trial, TrialState, from_optuna, to_attributes
from tests.trainable.test_epoch import EPOCHS
from trainable.config import TrialConfig
from trainable.epoch import Epoch
from trainable.schema import SCHEMA

OPTUNA = {state.name: state for state in optuna.trial.TrialState}


def stored(trial: Trial) -> optuna.trial.FrozenTrial:
    """Return what Optuna holds of the trial."""
    frozen = optuna.trial.create_trial(
        state=OPTUNA[trial.state],
        value=0.5 if trial.state is TrialState.COMPLETE else None,
        user_attrs=to_attributes(trial),
    )
    frozen.number = trial.number
    return frozen


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    state = draw(st.sampled_from([*TrialState]))
    epochs = [each for each in draw(st.lists(EPOCHS, max_size=3)) if each.metrics]
    numbered = tuple(
        type(each)(**vars(each) | {"number": n}) for n, each in enumerate(epochs, start=1)
    )
    has_result = state in (TrialState.COMPLETE, TrialState.PRUNED) and numbered
    host = draw(st.sampled_from(["", "node"]))
    return Trial(
        number=draw(st.integers(0, 99)),
        config=draw(st.sampled_from([None, TrialConfig(alpha=0.5)])),
        state=state,
        is_baseline=draw(st.booleans()),
        repeat_of=draw(st.none() | st.integers(0, 9)),
        epochs=numbered,
        best=numbered[0] if has_result else None,
        reason="out of memory" if state is TrialState.FAIL else "",
        node="abc" if host else "",
        gpu=draw(st.sampled_from(["", "0", "0,1"])) if host else "",
        gpus=draw(st.sampled_from([0.0, 0.25, 1.0])) if host else 0.0,
        reruns=draw(st.integers(0, 2)),
        lost_nodes=draw(st.integers(0, 2)),
        host=host,
        device="cpu" if host else "",
    )


@settings(deadline=None)
@given(trials())
def test_trial_comes_back_as_it_was_stored(trial: Trial) -> None:
    again = from_optuna(stored(trial), SCHEMA)
    assert again == trial
    assert again.usage == trial.usage


def test_states_are_optunas() -> None:
    assert {state.value for state in TrialState} == {*OPTUNA}
    for state in TrialState:
        assert state.is_finished == OPTUNA[state].is_finished()


def test_reason_that_a_killed_driver_left_is_none_of_a_trial_that_goes_on() -> None:
    left = optuna.trial.create_trial(
        state=OPTUNA["RUNNING"], user_attrs={"config": TrialConfig().to_dict(), "reason": "so near"}
    )
    assert from_optuna(left, SCHEMA).reason == ""


def test_usage_of_a_trial_is_over_all_its_epochs() -> None:
    epochs = tuple(
        Epoch(
            number=n, metrics={}, seconds=seconds, images_per_s=speed, elapsed_s=1800.0,
            peak_bytes=n, host_peak_bytes=10 - n, gpu_utilisation=0.2 * n, gpus=0.25 * n,
        )
        for n, seconds, speed in ((1, 10.0, 30.0), (2, 30.0, 10.0))
    )  # fmt: skip
    before = Epoch(number=0, metrics={}, seconds=10.0)  # of a version that did not measure it
    trial = Trial(
        number=0, config=None, state=TrialState.RUNNING, is_baseline=False,
        epochs=(before, *epochs), gpus=1.0,
    )  # fmt: skip
    usage = trial.usage
    assert (usage["images_per_s"], usage["gpu_hours"]) == (15.0, 0.375)
    assert (usage["peak_bytes"], usage["host_peak_bytes"]) == (2, 9)
    assert usage["gpu_utilisation"] == pytest.approx(0.3)
    assert replace(trial, epochs=(before,)).usage["images_per_s"] is None
