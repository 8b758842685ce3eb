"""The study is the memory: it survives a driver that is killed after any operation.

No Ray here. A test plays the driver and its workers: it asks, reports and tells, and now and then
throws the Study object away and opens another one on the same storage, as a resume does.
"""

import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from upath import UPath

from results import database
from results.database import Storage
from results.record import Repeat, Retry
from results.trial import Trial
from search.space.space import Space, load_space
from search.study.learnt import Learnt
from search.study.lock import LeaseLostError
from search.study.pruning import RUNG_FRACTION
from search.study.storage import (
    StudyError,
    check_database,
    create_study,
    open_study,
    with_distributions,
)
from search.study.study import Study
from tests.made_searches import make_database
from trainable.config import TrialConfig
from trainable.epoch import Epoch
from trainable.schema import SCHEMA, SchemaError, stamp

EPOCHS = 6
INSIDE = {"architecture": "two_heads", "lr": 1e-3, "alpha": 0.5}
OUTSIDE = {"batch_size": 8, "lr": 1.0}

TEXT = f"""
NUM_TRIALS = 24
EPOCHS = {EPOCHS}
BASELINES = [{INSIDE}, {OUTSIDE}]
def space(trial):
    architecture = trial.suggest_categorical("architecture", ["two_heads", "two_models"])
    config = {{"architecture": architecture, "lr": trial.suggest_float("lr", 1e-5, 0.1, log=True)}}
    if architecture == "two_heads":
        config["alpha"] = trial.suggest_float("alpha", 0.01, 1.0)
    return config
"""

Loader = Callable[..., Space]


class Memory:
    """A database on which Study objects come and go, as drivers do."""

    def __init__(self, space: Space, url: str | None, seed: int = 0) -> None:
        self.space, self.seed, self.url = space, seed, url
        self.repeats: list[Repeat] = []
        self.retries: list[Retry] = []
        if url is None:
            self._storage = optuna.storages.InMemoryStorage()
            study = optuna.create_study(
                storage=self._storage,
                study_name="asked",
                directions=["maximize"] * len(space.metrics),
            )
            for key, value in stamp().items():
                study.set_user_attr(key, value)
        else:
            create_study(url, "asked", space.metrics)

    @property
    def optuna(self) -> optuna.Study:
        """The raw study, freshly loaded: what a killed driver left."""
        if self.url is None:
            return optuna.load_study(storage=self._storage, study_name="asked")
        return open_study(self.url, "asked")

    def open(self, observer: Callable[[Trial], None] = lambda trial: None) -> Study:
        return Study(
            self.optuna, self.space, seed=self.seed, observers=[observer], repeats=self.repeats,
            retries=self.retries,
        )  # fmt: skip


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    """Load a space file of the given text."""

    def load(text: str = TEXT, **options: Any) -> Space:
        file = tmp_path / "asked.py"
        file.write_text(text)
        return load_space(UPath(file), **options)

    return load


@pytest.fixture(params=["in memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Of the storage; None is in this process."""
    return None if request.param == "in memory" else make_database(tmp_path / "study.db")


@pytest.fixture
def memory(load: Loader, url: str | None) -> Memory:
    """The storage of a search of `TEXT`."""
    return Memory(load(), url)


def epoch_of(config: TrialConfig, epoch: int) -> Epoch:
    """Return what a worker reports: better with lr near 1e-3, and later, with noise."""
    noise = random.Random(f"{config.lr} {config.alpha} {epoch}").random()
    fit = math.exp(-((math.log10(config.lr) + 3) ** 2))
    score = fit * (1 - 0.5**epoch) * 0.8 + noise * 0.2
    return scored(epoch, score)


def scored(epoch: int, score: float) -> Epoch:
    metrics = {
        "score": score,
        "score_calibration": score + 0.01,
        "seen_sub": score,
        "unseen_sub": 1 - score,
    }
    return Epoch(number=epoch, metrics=metrics)


def best_of(trial: Trial) -> Epoch:
    return max(trial.epochs, key=lambda epoch: epoch.metrics["score_calibration"])


def do_next(study: Study, number: int) -> bool:
    """Play the worker of trial `number` for one report; return whether it goes on."""
    trial = study.trials[number]
    assert trial.config is not None
    if len(trial.epochs) == trial.config.epochs:
        study.finish(number, best_of(trial))
        return False
    return not study.report(number, epoch_of(trial.config, len(trial.epochs) + 1))


def run_out(study: Study, number: int) -> Trial:
    """Play the worker of trial `number` to the end."""
    while do_next(study, number):
        pass
    return study.trials[number]


def resumed(memory: Memory, running: list[int]) -> Study:
    """Open the study as a resume does: running trials come first and repeat their reports."""
    study = memory.open()
    for number in sorted(running):
        trial = study.next()
        assert trial is not None
        assert trial.number == number
        for metrics in trial.epochs:
            assert not study.report(number, metrics)
    return study


def run_search(memory: Memory, *, slots: int, is_killed_often: bool) -> dict[int, Trial]:
    """Run a whole search, `slots` trials taking turns; return its trials."""
    study = memory.open()
    running: list[int] = []
    is_exhausted = False
    while running or not is_exhausted:
        if is_killed_often:
            study = resumed(memory, running)
        if len(running) < slots and not is_exhausted:
            trial = study.next()
            is_exhausted = trial is None
            if trial is not None:
                running.append(trial.number)
        elif do_next(study, number := running.pop(0)):
            running.append(number)
    return memory.open().trials


# --- Baselines -----------------------------------------------------------------------------------


def test_baselines_come_first(memory: Memory) -> None:
    study = memory.open()
    first = [study.next() for _ in range(3)]
    assert [trial.number for trial in first if trial] == [0, 1, 2]
    assert [trial.config.to_dict() for trial in first[:2] if trial] == [*memory.space.baselines]
    assert [trial.is_baseline for trial in first if trial] == [True, True, False]


def test_baseline_inside_the_space_gives_the_sampler_its_parameters(memory: Memory) -> None:
    study = memory.open()
    for _ in range(2):
        study.next()
    inside, outside = memory.optuna.get_trials()
    assert inside.params == INSIDE
    assert outside.params == {}


def test_baseline_is_never_pruned_but_others_are_measured_against_it(load: Loader) -> None:
    memory = Memory(load(), None)
    study = memory.open()
    for number, score in enumerate([0.9, 0.1]):
        assert study.next()
        assert not study.report(number, scored(1, score))
    assert study.next()
    assert study.report(2, scored(1, 0.5))


# --- States --------------------------------------------------------------------------------------


def test_trial_with_all_its_epochs_is_complete_with_the_metrics_of_its_best(memory: Memory) -> None:
    study = memory.open()
    assert study.next()
    for epoch in range(1, EPOCHS + 1):
        assert not study.report(0, scored(epoch, 0.9 if epoch == 4 else 0.1 * epoch))
    study.finish(0, scored(4, 0.9))
    (trial,) = memory.optuna.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.9)
    assert trial.intermediate_values[4] == 0.9
    again = memory.open().trials[0]
    assert (again.state, again.is_finished) == ("COMPLETE", True)
    assert again.best == scored(4, 0.9)


def test_pruned_trial_is_not_reported_as_complete(load: Loader, url: str | None) -> None:
    memory = Memory(load("NUM_TRIALS = 9\nEPOCHS = 6\n" + "def space(trial): return {}\n"), url)
    study = memory.open()
    for number, score in enumerate([0.9, 0.8]):
        assert study.next()
        pruned = study.report(number, scored(1, score))
        assert pruned == (number == 1)
    trial = memory.optuna.get_trials()[1]
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.8})
    again = memory.open().trials[1]
    assert again.state == "PRUNED"
    assert again.epochs == (scored(1, 0.8),)
    assert again.best == scored(1, 0.8)


def test_pruned_trial_has_the_metrics_of_its_best_epoch_by_the_calibration_half(
    load: Loader,
) -> None:
    memory = Memory(load("NUM_TRIALS = 9\nEPOCHS = 6\n" + "def space(trial): return {}\n"), None)
    study = memory.open()
    for number, offset in ((0, 0.5), (1, 0.6)):
        assert study.next()
        assert not study.report(number, scored(1, offset))
        assert not study.report(number, scored(2, offset))
        if number == 0:
            assert not study.report(0, scored(3, 0.9))
    metrics = {**scored(3, 0.7).metrics, "score_calibration": 0.1}
    best_first = Epoch(number=3, metrics=metrics)
    assert study.report(1, best_first)
    assert study.trials[1].best == scored(1, 0.6)


def test_failed_trial_keeps_its_reason(memory: Memory) -> None:
    study = memory.open()
    assert study.next()
    study.fail(0, "the loss is nan in epoch 1: lower lr")
    assert memory.optuna.get_trials()[0].state == TrialState.FAIL
    again = memory.open().trials[0]
    assert (again.state, again.reason) == ("FAIL", "the loss is nan in epoch 1: lower lr")


def test_trial_that_ends_well_after_all_keeps_no_reason(memory: Memory) -> None:
    study = memory.open()
    assert study.next()
    trial = memory.optuna.get_trials()[0]
    # A driver killed after this write, and before the trial's state.
    memory.optuna._storage.set_trial_user_attr(trial._trial_id, "reason", "its process died")
    assert run_out(resumed(memory, [0]), 0).state == "COMPLETE"
    assert memory.optuna.get_trials()[0].user_attrs["reason"] == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_final_metric_that_is_not_finite_is_a_failure(memory: Memory, value: float) -> None:
    study = memory.open()
    assert study.next()
    study.finish(0, scored(EPOCHS, value))
    assert memory.optuna.get_trials()[0].state == TrialState.FAIL
    again = memory.open().trials[0]
    assert again.state == "FAIL"
    assert again.reason.startswith("score is not finite")


def test_trial_without_the_metric_that_is_optimised_is_a_failure(load: Loader) -> None:
    # unseen_sub_near is left out where no subclass is held out.
    memory = Memory(load(metric=["unseen_sub_near"]), None)
    study = memory.open()
    assert study.next()
    study.report(0, scored(1, 0.5))
    study.finish(0, scored(1, 0.5))
    assert study.trials[0].state == "FAIL"
    assert "unseen_sub_near" in study.trials[0].reason


def test_finished_trial_is_not_told_twice(memory: Memory) -> None:
    study = memory.open()
    assert study.next()
    study.finish(0, scored(EPOCHS, 0.5))
    study.fail(0, "its worker process died")
    study.finish(0, scored(EPOCHS, 0.9))
    assert memory.open().trials[0].best == scored(EPOCHS, 0.5)
    assert memory.optuna.get_trials()[0].state == TrialState.COMPLETE


def test_where_a_trial_ran_is_recorded(memory: Memory) -> None:
    study = memory.open()
    assert study.next()
    study.start(0, host="node-7", device="cpu")
    again = memory.open().trials[0]
    assert (again.host, again.device) == ("node-7", "cpu")


def test_failed_trials_count_towards_the_number_of_trials(load: Loader) -> None:
    memory = Memory(load(num_trials=3), None)
    study = memory.open()
    for number in range(3):
        assert study.next()
        study.fail(number, "broken")
    assert study.next() is None
    assert study.num_finished == 3


# --- Pruning -------------------------------------------------------------------------------------


def test_last_epoch_is_never_pruned(load: Loader) -> None:
    text = "NUM_TRIALS = 9\nEPOCHS = 1\ndef space(trial): return {}\n"
    study = Memory(load(text), None).open()
    for number, score in enumerate([0.9, 0.5, 0.1]):
        assert study.next()
        assert not study.report(number, scored(1, score))
        study.finish(number, scored(1, score))
    assert {trial.state for trial in study.trials.values()} == {"COMPLETE"}


def test_first_rung_is_after_a_fifth_of_the_epochs(load: Loader) -> None:
    text = "NUM_TRIALS = 9\nEPOCHS = 15\ndef space(trial): return {}\n"
    study = Memory(load(text), None).open()
    pruned_at = []
    for number, score in enumerate([0.9, 0.1]):
        assert study.next()
        pruned_at += [e for e in range(1, 4) if study.report(number, scored(e, score))]
    assert pruned_at == [15 // RUNG_FRACTION]


def test_several_objectives_never_prune(load: Loader, url: str | None) -> None:
    text = "NUM_TRIALS = 9\nEPOCHS = 5\ndef space(trial): return {}\n"
    memory = Memory(load(text, metric=["seen_sub", "unseen_sub"]), url)
    study = memory.open()
    for number, score in enumerate([0.9, 0.5, 0.1]):
        assert study.next()
        for epoch in range(1, 6):
            assert not study.report(number, scored(epoch, score))
        study.finish(number, scored(5, score))
    assert [trial.values for trial in memory.optuna.get_trials()] == [
        [score, 1 - score] for score in (0.9, 0.5, 0.1)
    ]
    assert len(memory.optuna.best_trials) == 3


# --- Reports that are repeated -------------------------------------------------------------------


def test_repeated_report_of_a_known_epoch_is_not_recorded_twice(memory: Memory) -> None:
    study = memory.open()
    assert study.next()
    for epoch in (1, 2, 1, 2, 3):
        study.report(0, scored(epoch, 0.1 * epoch))
    assert [epoch.number for epoch in study.trials[0].epochs] == [1, 2, 3]
    again = memory.open()
    assert again.next()
    for epoch in (1, 2, 3, 4):
        again.report(0, scored(epoch, 0.1 * epoch))
    assert [epoch.number for epoch in memory.open().trials[0].epochs] == [1, 2, 3, 4]
    (trial,) = memory.optuna.get_trials()
    assert sorted(trial.intermediate_values) == [1, 2, 3, 4]


def test_epochs_come_back_in_order_beyond_the_ninth(load: Loader, url: str | None) -> None:
    text = "NUM_TRIALS = 1\nEPOCHS = 12\ndef space(trial): return {}\n"
    memory = Memory(load(text), url)
    study = memory.open()
    assert study.next()
    for epoch in range(1, 12):
        study.report(0, scored(epoch, 0.5))
    assert [each.number for each in memory.open().trials[0].epochs] == [*range(1, 12)]


@pytest.mark.parametrize("write", ["report", "set_user_attr"])
def test_epoch_recorded_in_half_by_a_killed_driver_is_whole_after_a_resume(
    memory: Memory, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = memory.open()
    assert study.next()
    study.report(0, scored(1, 0.1))

    def kill(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, write, kill)
        with pytest.raises(KeyboardInterrupt):
            study.report(0, scored(2, 0.2))
    again = memory.open()
    assert again.next()
    for epoch in (1, 2, 3):
        again.report(0, scored(epoch, 0.1 * epoch))
    assert [epoch.number for epoch in memory.open().trials[0].epochs] == [1, 2, 3]
    assert sorted(memory.optuna.get_trials()[0].intermediate_values) == [1, 2, 3]


# --- Resuming ------------------------------------------------------------------------------------


def test_running_trials_are_handed_out_first_with_number_and_config(memory: Memory) -> None:
    study = memory.open()
    given = [study.next() for _ in range(4)]
    study.report(2, scored(1, 0.9))
    study.finish(1, scored(EPOCHS, 0.5))
    again = memory.open()
    handed_out = [again.next() for _ in range(3)]
    assert [(t.number, t.config) for t in handed_out if t] == [
        (t.number, t.config) for t in given if t and t.number != 1
    ]
    assert handed_out[1] is not None
    assert handed_out[1].epochs == (scored(1, 0.9),)
    new = again.next()
    assert new is not None
    assert new.number == 4


def test_only_resumed_trials_are_handed_out_when_asked(memory: Memory) -> None:
    study = memory.open()
    study.next()
    again = memory.open()
    resumed_trial = again.next(only_resumed=True)
    assert resumed_trial is not None
    assert resumed_trial.number == 0
    assert again.next(only_resumed=True) is None
    assert len(memory.optuna.get_trials()) == 1


def test_trials_handed_back_are_handed_out_again(memory: Memory) -> None:
    study = memory.open()
    given = [study.next() for _ in range(3)]
    study.finish(1, scored(EPOCHS, 0.5))
    assert study.handed_out == [0, 2]
    study.hand_back()
    assert study.handed_out == []
    again = [study.next(), study.next()]
    assert [trial.config for trial in again if trial] == [
        trial.config for trial in given if trial and trial.number != 1
    ]
    study.report(2, scored(1, 0.5))
    assert len(study.trials[2].epochs) == 1


def test_finished_trial_never_runs_again(memory: Memory) -> None:
    study = memory.open()
    for number in range(3):
        assert study.next()
        study.finish(number, scored(EPOCHS, 0.1 * number))
    again = memory.open()
    assert again.num_finished == 3
    trial = again.next()
    assert trial is not None
    assert trial.number == 3


def test_resume_with_more_trials_goes_on_asking(load: Loader, url: str | None) -> None:
    memory = Memory(load(num_trials=3), url)
    assert len(run_search(memory, slots=1, is_killed_often=False)) == 3
    memory.space = load(num_trials=5)
    trials = run_search(memory, slots=1, is_killed_often=False)
    assert sorted(trials) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("slots", [1, 3])
def test_exactly_num_trials_when_killed_after_every_operation(
    load: Loader, url: str | None, slots: int
) -> None:
    memory = Memory(load(num_trials=4), url)
    run_search(memory, slots=slots, is_killed_often=True)
    trials = memory.optuna.get_trials()
    assert [trial.number for trial in trials] == [*range(4)]
    assert all(trial.state.is_finished() for trial in trials)


def assert_killed_equals_undisturbed(load: Loader, url: str | None, slots: int) -> None:
    undisturbed = run_search(Memory(load(), None), slots=slots, is_killed_often=False)
    killed = run_search(Memory(load(), url), slots=slots, is_killed_often=True)
    assert {trial.state for trial in undisturbed.values()} == {"COMPLETE", "PRUNED"}
    assert [(t.number, t.config) for t in killed.values()] == [
        (t.number, t.config) for t in undisturbed.values()
    ]
    assert killed == undisturbed


@pytest.mark.parametrize("slots", [1, 3])
def test_search_killed_after_every_operation_equals_an_undisturbed_one(
    load: Loader, slots: int
) -> None:
    assert_killed_equals_undisturbed(load, None, slots)


@pytest.mark.slow
def test_search_on_a_file_killed_after_every_operation_equals_an_undisturbed_one(
    load: Loader, tmp_path: Path
) -> None:
    assert_killed_equals_undisturbed(load, f"sqlite:///{tmp_path / 'study.db'}", slots=3)


def test_suggestions_differ_with_the_seed(load: Loader) -> None:
    configs = []
    for seed in (0, 1):
        study = Memory(load(), None, seed=seed).open()
        trials = [study.next() for _ in range(4)]
        configs.append([trial.config for trial in trials if trial])
    assert configs[0][:2] == configs[1][:2]
    assert configs[0][2] != configs[1][2]


def test_sampler_learns_from_what_was_reported(load: Loader) -> None:
    trials = run_search(Memory(load(num_trials=40), None), slots=1, is_killed_often=False)
    distance = [abs(math.log10(trial.config.lr) + 3) for trial in trials.values()]
    assert sum(distance[25:]) / 15 < sum(distance[2:12]) / 10


@pytest.mark.parametrize("number", [0, 1, 2, 12])
def test_trial_killed_between_ask_and_config_gets_the_config_it_would_have_had(
    load: Loader, url: str | None, number: int
) -> None:
    expected = run_search(Memory(load(), None), slots=1, is_killed_often=False)[number]
    memory = Memory(load(), url)
    study = memory.open()
    for before in range(number):
        assert study.next()
        run_out(study, before)
    killed = memory.open()
    killed._configured = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        killed.next()
    left = memory.optuna.get_trials()[number]
    assert (left.state, left.user_attrs) == (TrialState.RUNNING, {})
    again = memory.open()
    trial = again.next()
    assert trial is not None
    assert (trial.number, trial.config) == (number, expected.config)
    assert trial.is_baseline == (number < 2)
    assert memory.open().trials[number].config == expected.config


def test_trial_asked_for_by_a_killed_driver_gets_a_config(memory: Memory) -> None:
    memory.optuna.ask()
    study = memory.open()
    assert study.trials == {}
    trial = study.next()
    assert trial is not None
    assert (trial.number, trial.config.to_dict()) == (0, memory.space.baselines[0])
    assert run_out(study, 0).state == "COMPLETE"
    assert memory.open().num_finished == 1


@pytest.mark.parametrize("number", [2, 14])
def test_trial_killed_between_two_suggestions_gets_the_config_it_would_have_had(
    load: Loader, number: int
) -> None:
    expected = run_search(Memory(load(), None), slots=1, is_killed_often=False)[number]
    memory = Memory(load(), None)
    study = memory.open()
    for before in range(number):
        assert study.next()
        run_out(study, before)
    killed = memory.open()

    def one_suggestion(number: int, trial: optuna.Trial) -> Trial:
        trial.suggest_categorical("architecture", ["two_heads", "two_models"])
        raise KeyboardInterrupt

    killed._configured = one_suggestion  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.next()
    again = memory.open().next()
    assert again is not None
    assert (again.number, again.config) == (number, expected.config)


def test_baseline_enqueued_by_a_killed_driver_is_tried_once(load: Loader, url: str | None) -> None:
    second = {"architecture": "two_models", "lr": 2e-3}
    memory = Memory(load(TEXT.replace(str(OUTSIDE), str(second))), url)
    memory.optuna.enqueue_trial(INSIDE)
    study = memory.open()
    first = [study.next(), study.next()]
    assert [trial.config.to_dict() for trial in first if trial] == [*memory.space.baselines]
    assert [trial.params for trial in memory.optuna.get_trials()] == [INSIDE, second]


# --- A rung that was decided and not told --------------------------------------------------------


def with_rung(load: Loader, url: str | None, others: list[float]) -> Memory:
    """Return a search in which the first epoch of `others` was reported."""
    text = f"NUM_TRIALS = 99\nEPOCHS = {EPOCHS}\ndef space(trial): return {{}}\n"
    memory = Memory(load(text), url)
    study = memory.open()
    for number, score in enumerate(others):
        assert study.next()
        study.report(number, scored(1, score))
        if not study.trials[number].is_finished:
            study.finish(number, scored(EPOCHS, score))
    return memory


@pytest.mark.parametrize(
    ("others", "score"),
    [
        pytest.param([0.9], 0.5, id="second of two"),
        pytest.param([0.9, 0.8, 0.7, 0.6], 0.85, id="second of five"),
        pytest.param([0.9, 0.8, 0.7, 0.6], 0.95, id="first of five"),
        pytest.param([0.9, 0.8, 0.7, 0.6, 0.5], 0.85, id="second of six"),
    ],
)
def test_rung_decided_but_not_told_is_decided_again_the_same_way(
    load: Loader, url: str | None, others: list[float], score: float
) -> None:
    undisturbed = with_rung(load, None, others).open()
    number = len(others)
    assert undisturbed.next()
    expected = undisturbed.report(number, scored(1, score))

    memory = with_rung(load, url, others)
    killed = memory.open()
    killed._tell = lambda trial: None  # type: ignore[method-assign]
    assert killed.next()
    assert killed.report(number, scored(1, score)) == expected
    assert memory.optuna.get_trials()[number].state == TrialState.RUNNING

    again = memory.open()
    trial = again.next()
    assert trial is not None
    assert trial.number == number
    assert again.report(number, scored(1, score)) == expected
    assert again.trials[number].state == ("PRUNED" if expected else "RUNNING")


def test_trial_that_passed_a_rung_is_not_pruned_there_after_a_resume(load: Loader) -> None:
    memory = with_rung(load, None, [])
    study = memory.open()
    for number, score in enumerate([0.5, 0.6, 0.7]):
        assert study.next()
        assert not study.report(number, scored(1, score))
    again = memory.open()
    for _ in range(3):
        again.next()
    assert [again.report(n, scored(1, s)) for n, s in enumerate([0.5, 0.6, 0.7])] == [False] * 3


# --- Observers and storages ----------------------------------------------------------------------


def test_observers_see_every_change(memory: Memory) -> None:
    seen: list[Trial] = []
    study = memory.open(seen.append)
    study.next()
    study.start(0, host="node", device="cpu")
    study.report(0, scored(1, 0.5))
    study.report(0, scored(1, 0.5))
    study.finish(0, scored(EPOCHS, 0.5))
    study.next()
    study.fail(1, "broken")
    changes = [(t.number, t.state, t.host, len(t.epochs), t.reason) for t in seen]
    assert changes == [
        (0, "RUNNING", "", 0, ""),
        (0, "RUNNING", "node", 0, ""),
        (0, "RUNNING", "node", 1, ""),
        (0, "COMPLETE", "node", 1, ""),
        (1, "RUNNING", "", 0, ""),
        (1, "FAIL", "", 0, "broken"),
    ]
    assert study.trials[0] == seen[3]


def test_observer_sees_the_pruned_trial_after_its_last_epoch(load: Loader) -> None:
    memory = with_rung(load, None, [0.9])
    seen: list[Trial] = []
    study = memory.open(seen.append)
    study.next()
    study.report(1, scored(1, 0.1))
    assert [(trial.state, len(trial.epochs)) for trial in seen] == [
        ("RUNNING", 0),
        ("RUNNING", 1),
        ("PRUNED", 1),
    ]


def test_study_of_a_taken_name_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    create_study(url, "asked", ("score",)).ask()
    with pytest.raises(StudyError, match="already has a study named 'asked': pass another --name"):
        create_study(url, "asked", ("score",))


def test_study_without_trials_that_a_killed_start_left_is_taken(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    create_study(url, "asked", ("score",))
    assert create_study(url, "asked", ("score",)).study_name == "asked"
    with pytest.raises(StudyError, match="already has a study named 'asked': pass another --name"):
        create_study(url, "asked", ("ce_sub",))


def test_objectives_bear_their_names_also_in_a_study_of_before(tmp_path: Path) -> None:
    """As optuna-dashboard shows them; a study of before has none until it is resumed."""
    url, metrics = f"sqlite:///{tmp_path / 'study.db'}", ("score", "ce_sub")
    assert create_study(url, "asked", metrics).metric_names == [*metrics]
    assert optuna.load_study(storage=url, study_name="asked").metric_names == [*metrics]
    before = optuna.create_study(storage=url, study_name="before", directions=["maximize"])
    for key, value in stamp().items():
        before.set_user_attr(key, value)
    assert open_study(url, "before").metric_names is None, "to read it changes nothing"
    assert with_distributions(open_study(url, "before"), {}, ("score",)).study_name == "before"
    assert open_study(url, "before").metric_names == ["score"]


def test_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    create_study(url, "asked", ("score",))
    with pytest.raises(StudyError, match="has no study named 'other'"):
        open_study(url, "other")


@pytest.mark.parametrize("url", ["nonsense://", "not a url", "sqlite:////no/such/folder/study.db"])
def test_storage_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(StudyError, match=f"the study's database {url}"):
        create_study(url, "asked", ("score",))


def test_damaged_storage_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    file.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    before = file.read_bytes()
    with pytest.raises(StudyError, match="the study's database"):
        open_study(f"sqlite:///{file}", "asked")
    assert file.read_bytes() == before


def test_direction_follows_the_metric(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = create_study(url, "asked", ("ce_sub", "seen_sub"))
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]


# --- A space with other choices ------------------------------------------------------------------


def test_resume_with_another_choice_keeps_every_trial(load: Loader, url: str | None) -> None:
    memory = Memory(load(num_trials=6), url)
    before = run_search(memory, slots=1, is_killed_often=False)
    text = TEXT.replace('["two_heads", "two_models"]', '["two_models"]')
    wider = load(text, num_trials=12)
    ran = [(t.datetime_start, t.datetime_complete) for t in memory.optuna.get_trials()]
    study = with_distributions(memory.optuna, wider.distributions, wider.metrics)
    assert study.study_name == "asked~2"
    assert [(t.datetime_start, t.datetime_complete) for t in study.get_trials()] == ran
    resumed_study = Study(study, wider, seed=0, observers=[])
    assert resumed_study.trials == before
    for number in range(6, 12):
        trial = resumed_study.next()
        assert trial is not None
        assert trial.number == number
        assert trial.config.architecture == "two_models"
        run_out(resumed_study, number)
    assert resumed_study.next() is None


def test_resume_with_a_wider_range_needs_no_copy(load: Loader) -> None:
    memory = Memory(load(num_trials=6), None)
    run_search(memory, slots=1, is_killed_often=False)
    wider = load(TEXT.replace("1e-5, 0.1", "1e-6, 1.0"))
    assert (
        with_distributions(memory.optuna, wider.distributions, wider.metrics).study_name == "asked"
    )


def test_trial_left_running_is_handed_out_after_a_resume_with_another_choice(
    load: Loader, url: str | None
) -> None:
    memory = Memory(load(num_trials=6), url)
    study = memory.open()
    given = [study.next() for _ in range(4)]
    study.report(3, scored(1, 0.9))
    other = load(TEXT.replace('["two_heads", "two_models"]', '["two_models"]'), num_trials=6)
    copy = with_distributions(memory.optuna, other.distributions, other.metrics)
    again = Study(copy, other, seed=0, observers=[])
    handed_out = [again.next() for _ in range(4)]
    assert [trial.config for trial in handed_out if trial] == [t.config for t in given if t]
    assert again.trials[3].epochs == (scored(1, 0.9),)


# --- Repeats -------------------------------------------------------------------------------------


def repeats_of(trials: dict[int, Trial], numbers: list[int], *, seeds: int) -> list[Repeat]:
    """Return repeats of complete trials with seeds 1, 2, ..., numbered after all there are."""
    assert {trials[number].state for number in numbers} == {"COMPLETE"}
    pairs = [(number, seed) for seed in range(1, seeds) for number in numbers]
    return [
        Repeat(number=len(trials) + n, trial=number, seed=seed)
        for n, (number, seed) in enumerate(pairs)
    ]


@pytest.mark.parametrize("is_killed_often", [False, True])
def test_repeats_run_the_same_configuration_with_other_seeds_each_once(
    load: Loader, url: str | None, is_killed_often: bool
) -> None:
    memory = Memory(load(num_trials=3), url)
    trials = run_search(memory, slots=1, is_killed_often=False)
    memory.repeats = repeats_of(trials, [0, 1], seeds=3)
    after = run_search(memory, slots=2, is_killed_often=is_killed_often)
    assert [*after] == [*range(7)]
    assert {number: after[number] for number in trials} == trials
    for repeat in memory.repeats:
        trial, repeated = after[repeat.number], trials[repeat.trial].config
        assert repeated is not None
        assert (trial.state, trial.repeat_of) == ("COMPLETE", repeat.trial)
        assert trial.config == replace(repeated, seed=repeat.seed)
        assert not trial.is_baseline


def test_study_is_done_when_its_own_trials_and_the_repeats_have_ended(load: Loader) -> None:
    memory = Memory(load(num_trials=2), None)
    study = memory.open()
    assert not study.is_done
    trials = run_search(memory, slots=1, is_killed_often=False)
    assert memory.open().is_done
    memory.repeats = repeats_of(trials, [0], seeds=2)
    study = memory.open()
    assert not study.is_done
    trial = study.next()
    assert trial is not None
    assert not study.is_done
    study.fail(trial.number, "out of memory")
    assert study.is_done
    memory.space = load(num_trials=3)
    assert not memory.open().is_done


def test_repeat_is_never_pruned_and_prunes_no_other(load: Loader) -> None:
    text = "NUM_TRIALS = 1\nEPOCHS = 6\ndef space(trial): return {}\n"
    memory = Memory(load(text), None)
    memory.repeats = repeats_of(run_search(memory, slots=1, is_killed_often=False), [0], seeds=3)
    study = memory.open()
    for score in (0.0, 1.0):
        trial = study.next()
        assert trial is not None
        for epoch in range(1, EPOCHS + 1):
            assert not study.report(trial.number, scored(epoch, score))
        study.finish(trial.number, scored(EPOCHS, score))
    repeats = [memory.optuna.get_trials()[each.number] for each in memory.repeats]
    assert not any(key.startswith("completed_rung") for t in repeats for key in t.system_attrs)


@pytest.mark.parametrize("slots", [1, 3])
def test_search_extended_after_its_repeats_asks_what_it_would_have_asked_without(
    load: Loader, slots: int
) -> None:
    searches = {}
    for is_repeated in (False, True):
        memory = Memory(load(num_trials=18), None)
        trials = run_search(memory, slots=1, is_killed_often=False)
        if is_repeated:
            complete = [n for n, trial in trials.items() if trial.state == "COMPLETE"]
            memory.repeats = repeats_of(trials, complete, seeds=5)
            assert len(memory.repeats) >= 8
            run_search(memory, slots=slots, is_killed_often=False)
        memory.space = load(num_trials=30)
        trials = run_search(memory, slots=slots, is_killed_often=is_repeated)
        assert [*trials] == [*range(30 + len(memory.repeats))]
        own = [trial for trial in trials.values() if trial.repeat_of is None]
        searches[is_repeated] = [(trial.config, trial.state) for trial in own]
    assert searches[True] == searches[False]


def test_baselines_not_yet_run_come_after_the_repeats(load: Loader) -> None:
    text = "EPOCHS = 1\nBASELINES = [{'lr': 0.1}, {'lr': 0.2}, {'lr': 0.3}]\n"
    memory = Memory(load(text, num_trials=2), None)
    memory.repeats = repeats_of(run_search(memory, slots=1, is_killed_often=False), [0, 1], seeds=2)
    memory.space = load(text, num_trials=3)
    trials = run_search(memory, slots=1, is_killed_often=True)
    assert [trial.config.lr for trial in trials.values()] == [0.1, 0.2, 0.1, 0.2, 0.3]
    assert [trial.is_baseline for trial in trials.values()] == [True, True, False, False, True]


def test_repeats_keep_their_mark_when_a_new_choice_moves_the_study(
    load: Loader, url: str | None
) -> None:
    memory = Memory(load(num_trials=3), url)
    trials = run_search(memory, slots=1, is_killed_often=False)
    memory.repeats = repeats_of(trials, [0], seeds=2)
    after = run_search(memory, slots=1, is_killed_often=False)
    more = load(TEXT.replace('["two_heads", "two_models"]', '["two_models"]'), num_trials=3)
    retold = with_distributions(memory.optuna, more.distributions, more.metrics)
    assert retold.study_name != "asked"
    again = Study(retold, more, seed=0, observers=[], repeats=memory.repeats)
    assert again.trials == after
    assert again.is_done


# --- What the sampler cannot learn from ----------------------------------------------------------


def test_retry_runs_a_failed_trial_again_as_it_was_and_the_search_goes_on_as_before(
    load: Loader, url: str | None
) -> None:
    undisturbed = run_search(Memory(load(num_trials=16), None), slots=1, is_killed_often=False)
    failed = next(n for n in range(10, 16) if undisturbed[n].state == "COMPLETE")
    memory = Memory(load(num_trials=16), url)
    study = memory.open()
    for number in range(failed + 1):
        trial = study.next()
        assert trial is not None
        assert trial.config is not None
        if number == failed:
            study.report(failed, epoch_of(trial.config, 1))
            study.fail(failed, "the disk was full")
        else:
            run_out(study, number)
    memory.retries = [Retry(number=failed + 1, trial=failed)]
    trials = run_search(memory, slots=1, is_killed_often=True)
    assert [*trials] == [*range(17)]
    assert memory.open().is_done
    assert (trials[failed].state, trials[failed].reason) == ("FAIL", "the disk was full")
    assert [n for n, trial in trials.items() if trial.retry_of is not None] == [failed + 1]
    stored = memory.optuna.get_trials()
    assert stored[failed + 1].params == stored[failed].params != {}
    # It ends, and what comes after it is, as if it had not failed.
    assert [(trials[n + 1].config, trials[n + 1].state) for n in range(failed, 16)] == [
        (undisturbed[n].config, undisturbed[n].state) for n in range(failed, 16)
    ]


def test_baselines_outside_the_space_change_nothing_that_the_sampler_asks(load: Loader) -> None:
    """Their values are the best there are: were they seen, nothing else would be good."""
    searches = []
    for is_complete in (False, True):
        baselines = str([{"batch_size": 8 + n, "lr": 1e-3} for n in range(5)])
        text = TEXT.replace(f"[{INSIDE}, {OUTSIDE}]", baselines)
        memory = Memory(load(text, num_trials=26), None)
        study = memory.open()
        for number in range(5):
            assert study.next()
            if is_complete:
                study.finish(number, scored(EPOCHS, 0.99))
            else:
                study.fail(number, "a FAIL is no part of the history")
        searches.append(
            [t.config for t in run_search(memory, slots=1, is_killed_often=is_complete).values()]
        )
    assert searches[0] == searches[1]
    assert len(set(searches[0])) == 26


def test_trial_that_a_new_choice_left_without_parameters_is_hidden_from_the_sampler(
    load: Loader,
) -> None:
    text = "NUM_TRIALS = {}\nEPOCHS = 1\ndef space(trial):\n    return {{'optimizer': "
    text += "trial.suggest_categorical('optimizer', {})}}\n"
    memory = Memory(load(text.format(3, ["adam"])), None)
    run_search(memory, slots=1, is_killed_often=False)
    later = load(text.format(30, ["adamw"]))
    retold = with_distributions(memory.optuna, later.distributions, later.metrics)
    assert [trial.params for trial in retold.get_trials()] == [{}] * 3
    trial = retold.ask()
    trial.suggest_categorical("optimizer", ["adamw"])
    retold.tell(trial, 0.1)
    assert [*Learnt(retold, retold.get_trials()).finished] == [3]


def test_ten_random_starts_are_counted_without_baselines_outside_the_space(load: Loader) -> None:
    """Relative suggestions, which TPE makes and records, begin after ten trials with parameters."""
    baselines = str([{"batch_size": 8 + n, "lr": 1e-3} for n in range(4)])
    memory = Memory(load(TEXT.replace(f"[{INSIDE}, {OUTSIDE}]", baselines)), None)
    run_search(memory, slots=1, is_killed_often=False)
    first = next(
        trial.number
        for trial in memory.optuna.get_trials()
        if any(key.startswith("tpe:relative_params") for key in trial.system_attrs)
    )
    assert first == 4 + 10


# --- A configuration that turns out bad ----------------------------------------------------------

RARE = """
NUM_TRIALS = 8
EPOCHS = 1
BASELINES = [{"lr": 0.3}]
def space(trial):
    lr = trial.suggest_float("lr", 0.0001, 1.0)
    if trial.number in (2, 4):  # no dry trial is: the 40 of them are numbered, too
        raise KeyError("rare")
    return {"lr": lr, "alpha": -1.0 if trial.number == 5 else 0.1}
"""


def rare(load: Loader, monkeypatch: pytest.MonkeyPatch, text: str = RARE) -> Space:
    monkeypatch.setattr("search.space.dry_trials.DRY_TRIALS", 2)
    return load(text)


@pytest.mark.parametrize("is_killed_often", [False, True])
def test_bad_configuration_of_a_rare_branch_fails_its_own_trial_with_the_reason(
    load: Loader, url: str | None, monkeypatch: pytest.MonkeyPatch, is_killed_often: bool
) -> None:
    memory = Memory(rare(load, monkeypatch), url)
    study, seen = memory.open(), []
    while (trial := study.next()) is not None:
        seen.append((trial.number, trial.state))
        if not trial.is_finished:
            run_out(study, trial.number)
        if is_killed_often:
            study = memory.open()
    assert seen == [(n, "FAIL" if n in (2, 4, 5) else "RUNNING") for n in range(8)]
    trials = memory.open().trials
    assert [str(trial.state) for trial in trials.values()].count("COMPLETE") == 5
    assert "space() raised KeyError in line 8: 'rare'" in trials[2].reason
    assert "`0 <= alpha <= 1000` must hold, but got -1.0" in trials[5].reason
    assert trials[5].config is None
    left = memory.optuna.get_trials()
    assert [t.number for t in left if t.state == TrialState.FAIL] == [2, 4, 5]
    assert memory.open().is_done


def test_space_that_loops_when_asked_fails_its_own_trial(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RARE.replace('raise KeyError("rare")', "while True: pass")
    space = rare(load, monkeypatch, text)
    study, trials = Memory(space, None).open(), []
    for number in range(4):
        monkeypatch.setattr("search.space.file.TIME_LIMIT_S", 1.0 if number == 2 else 60.0)
        trials.append(study.next())
    assert [trial.state for trial in trials if trial] == ["RUNNING"] * 2 + ["FAIL", "RUNNING"]
    assert "took over 1 s" in study.trials[2].reason


def test_time_of_a_database_that_is_away_is_not_that_of_the_space_file(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(load(), f"sqlite:///{tmp_path / 'study.db'}")
    write, clock, away_s = Storage._set_trial_param, time.monotonic, [0.0]

    def late(*args: Any) -> None:
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "its time runs"
        away_s[0] += 3600.0
        write(*args)

    monkeypatch.setattr(Storage, "_set_trial_param", late)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + away_s[0])
    study = memory.open()
    trials = [study.next() for _ in range(3)]
    assert [(trial.state, trial.reason) for trial in trials if trial] == [("RUNNING", "")] * 3


@pytest.mark.parametrize("method", ["set_trial_user_attr", "set_trial_state_values"])
def test_event_that_is_cut_off_is_written_again_whole(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """At each of its writes, once: what was written before is lost with it. The last trials are
    TPE's: a suggestion that goes on where the lost one stopped would be another.
    """
    memory = Memory(load(num_trials=14), f"sqlite:///{tmp_path / 'study.db'}")
    expected = run_search(Memory(load(num_trials=14), None), slots=1, is_killed_often=False)
    write, cut = getattr(Storage, method), ConnectionError("cut")
    seen: set[object] = set()

    def cut_off(storage: Storage, trial_id: int, *args: Any, **kwargs: Any) -> Any:
        done = write(storage, trial_id, *args, **kwargs)
        what = (trial_id, kwargs.get("key", "state"))
        if what not in seen:
            seen.add(what)
            raise sa.exc.OperationalError("", {}, cut)
        return done

    monkeypatch.setattr(database, "is_cut", lambda error: getattr(error, "orig", None) is cut)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # no server restarts meanwhile
    monkeypatch.setattr(Storage, method, cut_off)
    assert run_search(memory, slots=1, is_killed_often=False) == expected
    assert len(seen) >= 4


def test_what_something_else_wrote_into_the_study_is_noticed(memory: Memory) -> None:
    """Else a trial would be told under another's number, or in a state that the study has not."""
    told: list[Trial] = []
    study = memory.open(told.append)
    first = study.next()
    assert first is not None
    assert first.config is not None
    while len(study.trials[first.number].epochs) < first.config.epochs:
        assert do_next(study, first.number)
    memory.optuna.tell(first.number, state=optuna.trial.TrialState.FAIL)
    with pytest.raises(StudyError, match="trial 0 ends as COMPLETE and is FAIL already"):
        run_out(study, first.number)
    assert not told[-1].is_finished
    memory.optuna.ask()
    with pytest.raises(StudyError, match="trial 1 was asked for and came as 2: something else"):
        study.next()


def test_driver_that_may_not_write_writes_nothing_more(memory: Memory) -> None:
    """Whatever it was about to do."""

    def lost() -> None:
        raise LeaseLostError("another driver")

    study = memory.open()
    assert study.next()
    before = [vars(trial) for trial in memory.optuna.get_trials()]
    study._check = lost
    for act in (
        study.next,
        lambda: study.start(0, host="node", device="cpu"),
        lambda: study.report(0, scored(1, 0.5)),
        lambda: study.finish(0, scored(1, 0.5)),
        lambda: study.fail(0, "broken"),
    ):
        with pytest.raises(LeaseLostError):
            act()
    assert [vars(trial) for trial in memory.optuna.get_trials()] == before


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:study?mode=memory&uri=true",
    ],
)  # fmt: skip
def test_storage_that_ends_with_the_process_is_refused(url: str) -> None:
    with pytest.raises(StudyError, match="forgotten with this process: name a file"):
        check_database(url)


@pytest.mark.parametrize("slashes", ["", "//"])
def test_study_in_a_file_named_by_a_uri_is_made_and_found_again(
    tmp_path: Path, slashes: str
) -> None:
    url = f"sqlite:///file:{slashes}{tmp_path / 'study.db'}?uri=true"
    check_database(url)
    create_study(url, "asked", ("score",))
    assert open_study(url, "asked").study_name == "asked"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:/study.db", "Could not parse SQLAlchemy URL"),
        ("sqlite3:///study.db", "Can't load plugin"),
        ("sqlite:////", "it is a folder"),
    ],
)
def test_url_of_no_database_is_named_with_its_reason(url: str, reason: str) -> None:
    with pytest.raises(StudyError, match=f"{url} cannot be used: {reason}"):
        check_database(url)


def test_study_in_a_file_that_is_not_there_is_named_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no such file, so no study named 'asked'"):
        open_study(f"sqlite:///{tmp_path / 'study.db'}", "asked")
    assert not [*tmp_path.iterdir()]


# --- Studies of other versions -------------------------------------------------------------------


def test_new_study_says_which_schema_it_has(tmp_path: Path) -> None:
    study = create_study(f"sqlite:///{tmp_path / 'study.db'}", "asked", ("score",))
    assert study.user_attrs == stamp()


def test_study_of_a_later_version_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    create_study(url, "asked", ("score",)).set_user_attr("schema", SCHEMA + 1)
    with pytest.raises(SchemaError, match=f"in schema {SCHEMA + 1}, and noveltune"):
        open_study(url, "asked")


def test_study_without_a_schema_goes_on_as_a_copy_in_todays(load: Loader, tmp_path: Path) -> None:
    url, space = f"sqlite:///{tmp_path / 'study.db'}", load()
    old = optuna.create_study(storage=url, study_name="asked", direction="maximize")
    config = TrialConfig().to_dict()
    del config["left_out"]
    for state in (TrialState.COMPLETE, TrialState.RUNNING):
        old.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=0.5 if state == TrialState.COMPLETE else None,
                user_attrs={"config": config, "metrics": {"score": 0.5}},
            )
        )
    new = with_distributions(open_study(url, "asked"), space.distributions, space.metrics)
    assert (new.study_name, new.user_attrs["schema"]) == ("asked~2", SCHEMA)
    assert "left_out" not in old.trials[0].user_attrs["config"], "the old one is as it was"
    trials = Study(new, space, seed=0, observers=[]).trials
    assert [trial.state for trial in trials.values()] == ["COMPLETE", "RUNNING"]
    assert [trial.config.left_out for trial in trials.values()] == ["none", "none"]
    assert with_distributions(new, space.distributions, space.metrics) is new
