"""What is used of Optuna's private members is there, does its work, and is used nowhere else."""

import ast
import importlib
import inspect
import re
from functools import partial
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from results.database import Storage
from search.internals import (
    allows,
    ask,
    at_once,
    engine_of,
    live,
    set_system_attribute,
    storage_of,
    stored,
)
from tests.commands import ROOT
from tests.search.test_imports import PACKAGES, imports_of

USED = {
    "search/internals.py": {
        "_storage", "_study_id", "_trial_id", "_backend", "_contains", "_get_params",
        "tpe._get_pruned_trial_score", "tpe._split_trials",
        "tpe.default_gamma", "tpe.default_gamma_multiobjective",
    },
    "search/study/sampler.py": {
        "_sample", "_get_internal_repr", "_get_trials",
        "_build_parzen_estimator", "_compute_acquisition_func", "_compare",
        "_rng", "_n_ei_candidates",
    },
    "search/space/suggestions.py": {"_suggest", "_params"},
    "results/database.py": {"_get_trials", "_set_trial_param"},
    "results/stored_trials.py": {
        "models.TrialModel", "models.TrialParamModel", "models.TrialValueModel",
        "models.TrialIntermediateValueModel",
        "models.TrialUserAttributeModel", "models.TrialSystemAttributeModel",
    },
}  # fmt: skip
"""What each file uses or overrides of Optuna that it does not promise.

`test_learnt.py` says what the sampler's must do, `test_database.py` what the database's must, and
the dry trials of `test_space.py` the suggestions'.
"""


def owners() -> list[object]:
    """Return one of each kind that Optuna gives us."""
    study = optuna.create_study(storage="sqlite:///:memory:")
    return [
        study, study.ask(), study.trials[0], storage_of(study), Storage("sqlite:///:memory:"),
        FloatDistribution(0, 1), optuna.trial.FixedTrial({}), optuna.samplers.TPESampler(),
    ]  # fmt: skip


def unpromised(file: Path, private: set[str]) -> set[str]:
    """Return what a file uses of these private members, and of what private modules hold."""
    tree = ast.parse(file.read_text())
    modules, names = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.startswith("optuna"):
                is_private = "._" in module
                modules |= {a.asname or a.name for a in node.names if is_private}
            case ast.ClassDef():
                names |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.Constant(value=str(name)):
                names.add(name)
    return names & private | {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in modules
    }


def test_what_optuna_does_not_promise_is_there_and_used_nowhere_else() -> None:
    has = {name for owner in owners() for name in dir(owner)}
    private = {name for name in has if re.match("_[a-z]", name)}
    found = {
        str(file.relative_to(ROOT)): unpromised(file, private)
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if "optuna" in imports_of(file)
    }
    assert {file: names for file, names in found.items() if names} == USED


@pytest.mark.parametrize("file", USED)
def test_what_is_overridden_takes_what_optuna_gives(file: str) -> None:
    """Where Optuna renames its own, ours would not be called any more."""
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for ours in filter(inspect.isclass, vars(module).values()):
        if ours.__module__ != module.__name__ or ours.__base__ is None:
            continue
        for name, member in vars(ours).items():
            theirs = getattr(ours.__base__, name, None)
            if name.startswith("__") or not inspect.isfunction(member) or theirs is None:
                continue
            takes, given = (inspect.signature(each).parameters for each in (member, theirs))
            if not any(each.kind == each.VAR_POSITIONAL for each in takes.values()):
                assert [*takes] == [*given], name


def test_study_tells_its_storage_and_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    for storage in (Storage(url), url):
        study = optuna.create_study(storage=storage, load_if_exists=True, study_name="asked")
        assert optuna.get_all_study_names(storage_of(study)) == ["asked"]
        engine = engine_of(study)
        assert engine is not None
        assert str(engine.url) == url
    assert engine_of(optuna.create_study()) is None


def test_trial_that_another_process_asked_for_can_be_written_to() -> None:
    study = optuna.create_study()
    study.ask()
    study.ask()
    again = live(study, study.trials[1])
    again.set_user_attr("host", "node")
    set_system_attribute(study, again, "completed_rung_0", 0.25)
    study.tell(again, 0.5)
    assert stored(study, again).system_attrs == {"completed_rung_0": 0.25}
    assert [trial.user_attrs for trial in study.trials] == [{}, {"host": "node"}]
    assert stored(study, again).value == 0.5


@pytest.mark.parametrize("url", [None, "sqlite:///{}/study.db"])
def test_a_trial_that_waits_is_asked_for_first(url: str | None, tmp_path: Path) -> None:
    storage = url and Storage(url.format(tmp_path))
    study = optuna.create_study(storage=storage)
    study.enqueue_trial({"x": 0.25})
    first, second = ask(study), ask(study)
    assert [first.number, second.number] == [0, 1]
    assert first.suggest_float("x", 0, 1) == 0.25
    assert [trial.state.name for trial in study.trials] == ["RUNNING"] * 2


def test_what_is_written_at_once_arrives_whole_or_not_at_all(tmp_path: Path) -> None:
    study = optuna.create_study(storage=Storage(f"sqlite:///{tmp_path / 'study.db'}"))
    trial = study.ask()
    commits: list[object] = []
    engine = engine_of(study)
    assert engine is not None
    sa.event.listen(engine, "commit", commits.append)

    def write(is_again: bool, *, is_killed: bool = False) -> float:
        trial.set_user_attr("host", "node")
        value = trial.suggest_float("x", 0, 1)
        assert stored(study, trial).user_attrs == {"host": "node"}, "it sees what it wrote"
        if is_killed:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        at_once(study, partial(write, is_killed=True))
    assert (stored(study, trial).user_attrs, stored(study, trial).params) == ({}, {})
    trial = live(study, study.trials[0])
    commits.clear()
    value = at_once(study, write)
    assert len(commits) == 1
    assert stored(study, trial).params == {"x": value}
    trial.set_user_attr("device", "cpu")  # and on its own again
    assert stored(study, trial).user_attrs == {"host": "node", "device": "cpu"}


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (CategoricalDistribution(("a", 1)), ["a", 1], ["b", 2, None]),
        (IntDistribution(1, 9, step=2), [1, 9], [0, 2, 10, "x"]),
        (FloatDistribution(0.1, 1.0, log=True), [0.1, 1.0], [0.05, 2.0, "x", None]),
    ],
)
def test_choices_are_known(
    distribution: optuna.distributions.BaseDistribution, inside: list[object], outside: list[object]
) -> None:
    assert all(allows(distribution, value) for value in inside)
    assert not any(allows(distribution, value) for value in outside)
