"""How long a search will still take follows from what was measured."""

from typing import Any

import pytest

from results.trial import Trial, TrialState
from search.time_left import Known, seconds_left
from trainable.config import TrialConfig
from trainable.epoch import Epoch


def trial(number: int, done: int, state: str, *, epochs: int = 10, **more: Any) -> Trial:
    return Trial(
        number=number, config=TrialConfig(epochs=epochs), state=TrialState(state),
        epochs=tuple(Epoch(number=n, metrics={}) for n in range(1, done + 1)),
        **{"is_baseline": False, **more},
    )  # fmt: skip


def left(*trials: Trial, num_pruned: int = 0, num_whole: int = 0, slots: int = 1,
         within: dict[int, float] | None = None) -> float | None:  # fmt: skip
    """Each epoch took 2 s so far."""
    within = within or {}
    done = {each.number: within.get(each.number, len(each.epochs)) for each in trials}
    seconds = {number: 2.0 * epochs for number, epochs in done.items()}
    known = Known(trials=trials, within=within, seconds=seconds)
    return seconds_left(known, num_pruned=num_pruned, num_whole=num_whole, slots=slots)


def test_nothing_is_said_before_an_epoch_was_measured() -> None:
    assert left() is None
    assert left(trial(0, 0, "RUNNING"), num_pruned=3) is None


def test_trials_to_come_take_what_a_trial_took_and_share_the_slots() -> None:
    done = trial(0, 10, "COMPLETE")
    assert left(done, num_pruned=4) == pytest.approx(80)
    assert left(done, num_pruned=4, slots=2) == pytest.approx(40)


def test_pruning_shortens_what_is_to_come_but_no_baseline() -> None:
    ended = trial(0, 10, "COMPLETE"), trial(1, 2, "PRUNED")  # 6 of 10 epochs on average
    assert left(*ended, num_pruned=5) == pytest.approx(60)
    assert left(*ended, num_whole=5) == pytest.approx(100)


def test_running_trial_goes_on_as_those_that_came_as_far() -> None:
    ended = trial(0, 10, "COMPLETE"), trial(1, 2, "PRUNED")
    assert left(*ended, trial(2, 1, "RUNNING")) == pytest.approx(10)  # 6 of 10, 1 is done
    assert left(*ended, trial(2, 4, "RUNNING")) == pytest.approx(12)  # past the rung: all 10
    assert left(*ended, trial(2, 1, "RUNNING", is_baseline=True)) == pytest.approx(18)


def test_part_of_an_epoch_counts() -> None:
    running = trial(0, 4, "RUNNING")
    assert left(running, within={0: 4.5}) == pytest.approx(11)


def test_last_trial_takes_its_time_however_many_slots_there_are() -> None:
    assert left(trial(0, 5, "RUNNING"), slots=8) == pytest.approx(10)


def test_features_that_the_first_trial_computed_are_not_computed_for_each_epoch_to_come() -> None:
    def begun(number: int, first_s: float, others: int) -> Trial:
        first = Epoch(number=1, metrics={}, seconds=1.5, elapsed_s=first_s)
        later = [Epoch(number=2 + n, metrics={}, elapsed_s=2.0) for n in range(others)]
        return Trial(number=number, config=TrialConfig(epochs=10), state=TrialState("RUNNING"),
                     is_baseline=False, epochs=(first, *later))  # fmt: skip

    def left_of(*trials: Trial, num_whole: int = 0) -> float | None:
        seconds = {each.number: sum(e.passed_s for e in each.epochs) for each in trials}
        known = Known(trials=trials, within={}, seconds=seconds)
        return seconds_left(known, num_whole=num_whole, num_pruned=0, slots=1)

    assert left_of(begun(0, 30.0, 1)) == pytest.approx(8 * 2)
    assert left_of(begun(0, 30.0, 0)) == pytest.approx(9 * 1.5)
    assert left_of(begun(0, 30.0, 1), num_whole=1) == pytest.approx(8 * 2 + 28 + 20)
    both = begun(0, 30.0, 1), begun(1, 3.0, 1)
    assert left_of(*both, num_whole=1) == pytest.approx(2 * 8 * 2 + 1 + 20)


def test_failed_trials_say_nothing_about_pruning() -> None:
    ended = trial(0, 10, "COMPLETE"), trial(1, 1, "FAIL")
    assert left(*ended, num_pruned=1) == pytest.approx(20)
