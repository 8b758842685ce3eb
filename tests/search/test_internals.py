"""What is used of Optuna's private members does what it is used for, and is used in one place."""

import re
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from results.database import Storage
from search.internals import all_trials, allows, engine_of, live, set_system_attribute, storage_of

PRIVATE = re.compile(
    r"(?<!self)(?<!cls)\._(storage|backend|trial_id|study_id|get_trials|contains)\b"
)


def test_private_members_of_optuna_are_used_in_one_file() -> None:
    root = Path(__file__).parents[2]
    users = {
        str(file.relative_to(root))
        for package in ("search", "results")
        for file in (root / package).rglob("*.py")
        if PRIVATE.search(file.read_text())
    }
    assert users == {"search/internals.py"}


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
    again = live(study, all_trials(study)[1])
    again.set_user_attr("host", "node")
    set_system_attribute(study, again, "completed_rung_0", 0.25)
    study.tell(again, 0.5)
    assert all_trials(study)[1].system_attrs == {"completed_rung_0": 0.25}
    assert [trial.user_attrs for trial in all_trials(study)] == [{}, {"host": "node"}]
    assert all_trials(study)[1].value == 0.5
    assert all_trials(study)[0] is all_trials(study)[0], "not copied"


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
