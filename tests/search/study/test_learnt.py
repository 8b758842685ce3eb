"""What the sampler keeps changes no suggestion: Optuna's own TPE is asked, too."""

import warnings
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from results.record import Repeat
from search.internals import split_trials
from search.study.learnt import Learnt
from tests.search.study.test_study import OUTSIDE, Loader, Memory, epoch_of, load, scored
from trainable.rng import generator

__all__ = ["load"]  # a fixture

TEXT = f"""
NUM_TRIALS = 60
EPOCHS = 6
BASELINES = [{{"architecture": "two_heads", "lr": 1e-3, "alpha": 0.5}}, {OUTSIDE}]
def space(trial):
    architecture = trial.suggest_categorical("architecture", ["two_heads", "two_models"])
    config = {{"architecture": architecture, "lr": trial.suggest_float("lr", 1e-5, 0.1, log=True)}}
    config["batch_size"] = trial.suggest_int("batch_size", 16, 128, step=16)
    if architecture == "two_heads":
        config["alpha"] = trial.suggest_float("alpha", 0.01, 1.0)
        config["optimizer"] = trial.suggest_categorical("optimizer", ["adam", "adamw"])
    elif trial.number > 30:  # a parameter that no group knows yet
        config["super_lr"] = trial.suggest_float("super_lr", 1e-5, 0.1, log=True)
    return config
"""


class OptunasOwn(optuna.samplers.TPESampler):
    """Optuna's TPE, which walks over all trials; a stream of its own for each parameter."""

    def __init__(self, *purpose: str | int, hidden: set[int]) -> None:
        seed = generator(*purpose).initial_seed() % 2**32
        super().__init__(seed=seed, multivariate=True, group=True)
        self._purpose, self._hidden = purpose, hidden

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return super().infer_relative_search_space(Shown(study, self._hidden), trial)  # type: ignore[arg-type]

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return super().sample_relative(Shown(study, self._hidden), trial, search_space)  # type: ignore[arg-type]

    def sample_independent(self, study: Any, trial: Any, param_name: str, distribution: Any) -> Any:
        fresh = OptunasOwn(*self._purpose, param_name, hidden=self._hidden)
        shown: Any = Shown(study, self._hidden)
        return super(OptunasOwn, fresh).sample_independent(shown, trial, param_name, distribution)


class Shown:
    """A study without the trials that a sampler must not see."""

    def __init__(self, study: optuna.Study, hidden: set[int]) -> None:
        self._study, self._hidden = study, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool = True, states: Any = None, **_: Any) -> list[Any]:
        return [
            trial for trial in self._study.get_trials(deepcopy=False)
            if trial.params and trial.number not in self._hidden
            and (states is None or trial.state in states)
        ]  # fmt: skip


def suggested_by_optuna(memory: Memory, place: int) -> dict[str, Any]:
    """Return the parameters of the next trial, all that was drawn for it included."""
    before = memory.optuna
    copy = optuna.create_study(directions=before.directions)
    copy.add_trials(before.get_trials())
    hidden = {repeat.number for repeat in memory.repeats}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy.sampler = OptunasOwn("sampler", memory.seed, place, hidden=hidden)
    memory.space.ask(copy.ask())
    return drawn(copy.trials[-1])


def drawn(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    attributes = {k: v for k, v in trial.system_attrs.items() if k.startswith("tpe:")}
    return trial.params | attributes


@pytest.mark.parametrize("metric", [["score"], ["ce_sub"], ["seen_sub", "unseen_sub"]])
def test_suggestions_are_those_of_optunas_own_tpe_over_every_kind_of_trial(
    load: Loader, metric: list[str]
) -> None:
    """Complete, pruned, failed and running ones, baselines in the space and outside, repeats.

    Three are running at any time, and end in another order than they began.
    """
    memory = Memory(load(TEXT, metric=metric), None)
    memory.repeats = [Repeat(number=9, trial=0, seed=1), Repeat(number=10, trial=0, seed=2)]
    study, running, states = memory.open(), [], set()
    for number in range(46):
        place = number - sum(repeat.number < number for repeat in memory.repeats)
        is_sampled = place >= 2 and number not in (9, 10)
        expected = suggested_by_optuna(memory, place) if is_sampled else None
        trial = study.next()
        assert trial is not None
        if is_sampled:
            assert drawn(memory.optuna.get_trials()[number]) == expected, number
        running.append(number)
        if len(running) < 4:
            continue
        ended = running.pop(number % 3)
        config = study.trials[ended].config
        assert config is not None
        if ended % 7 == 3:
            study.fail(ended, "by the test")
        elif not study.report(ended, told(epoch_of(config, 1).metrics["score"])):
            study.finish(ended, told(epoch_of(config, 6).metrics["score"]))
        states.add(study.trials[ended].state)
    assert states >= {"COMPLETE", "FAIL"}
    assert ("PRUNED" in states) == (len(metric) == 1)
    assert_same(study._learnt, memory.open()._learnt)


def told(score: float) -> Any:
    epoch = scored(1, round(score, 1))  # so that some are equal
    return type(epoch)(number=1, metrics={**epoch.metrics, "ce_sub": round(1 - score, 1)})


def assert_same(kept: Learnt, fresh: Learnt) -> None:
    """What was kept while trials came and went is what a resume finds."""
    assert [*sorted(kept.finished)] == [*sorted(fresh.finished)]
    assert [t.number for t in kept.examples()] == [t.number for t in fresh.examples()]
    for one, other in zip(kept.split(-1, 4), fresh.split(-1, 4), strict=True):
        assert one.tolist() == other.tolist()
        names = ("lr", "alpha")
        left, right = kept.observations(one, names), fresh.observations(other, names)
        assert {k: v.tolist() for k, v in left.items()} == {k: v.tolist() for k, v in right.items()}


def test_trial_that_broke_a_constraint_is_ranked_as_optuna_does(load: Loader) -> None:
    study = optuna.create_study(direction="maximize")
    for number, value in enumerate([0.9, 0.8, 0.7]):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        if number == 0:
            trial.set_constraint("memory", 1.0)
        study.tell(trial, value)
    good, others = Learnt(study, study.get_trials()).split(3, 1)
    assert (good.tolist(), others.tolist()) == ([1], [0, 2])


def test_where_few_are_complete_the_best_pruned_ones_are_good_too() -> None:
    study = optuna.create_study(direction="maximize")
    for number in range(20):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        if number == 5:
            study.tell(trial, 0.5)
        else:
            trial.report(number / 20, 1 + number % 2)
            study.tell(trial, state=TrialState.PRUNED)
    good, others = Learnt(study, study.trials).split(20, 3)
    expected = split_trials(study, study.trials, 3)
    assert [good.tolist(), others.tolist()] == [[t.number for t in half] for half in expected]
    assert good.tolist() == [5, 17, 19]
