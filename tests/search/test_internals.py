"""What is used of Optuna's private members does what it is used for, and is used in one place."""

import re
from functools import partial
from pathlib import Path
from typing import Any

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

ROOT = Path(__file__).parents[2]

PRIVATE: dict[str, Any] = {
    "_storage": optuna.create_study(),
    "_study_id": optuna.create_study(),
    "_trial_id": optuna.create_study().ask(),
    "_contains": optuna.distributions.FloatDistribution(0, 1),
    "_suggest": optuna.trial.FixedTrial({}),
    "_params": optuna.trial.FixedTrial({}),
    "_backend": optuna.storages.get_storage("sqlite:///:memory:"),
}
"""What is used of Optuna that it does not promise, with something that has it."""


def test_optuna_has_the_private_members_that_are_used() -> None:
    for name, owner in PRIVATE.items():
        assert hasattr(owner, name), f"Optuna {optuna.__version__} has no {name} any more"


def test_no_other_private_members_of_optuna_are_used_and_only_in_one_file() -> None:
    """Of a study, a trial, a distribution or a storage."""
    pattern = re.compile(
        r"\b(study|trial|live|frozen|storage|distribution|trials\[.+?\])(\._[a-z]\w*)"
    )
    found: dict[str, set[str]] = {}
    for file in (ROOT / "search").rglob("*.py"):
        for match in pattern.finditer(file.read_text()):
            found.setdefault(match[2][1:], set()).add(str(file.relative_to(ROOT)))
    files = {file for each in found.values() for file in each}
    assert found.keys() <= PRIVATE.keys()
    assert files == {"search/internals.py"}


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
