"""What a resume may change, what it refuses, and who may resume."""

import multiprocessing
import sqlite3
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from upath import UPath

from search import lock, space
from search.lock import LockError, only_driver
from search.space import SpaceError, load_space
from search.study import StudyError, create_study, open_study, with_distributions


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def study(url: str) -> optuna.Study:
    """One complete, one pruned and one running trial of a choice and a number."""
    study = create_study(url, "s", ("score",))
    for state in (TrialState.COMPLETE, TrialState.PRUNED, None):
        trial = study.ask()
        trial.suggest_categorical("head", ["linear", "cosine"])
        trial.suggest_float("lr", 0.1, 1.0)
        trial.set_user_attr("config", {"kept": True})
        trial.report(0.5, 1)
        if state is not None:
            study.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state=state)
    return study


def test_wider_ranges_go_on_in_the_same_study(study: optuna.Study) -> None:
    wider = {"lr": FloatDistribution(0.01, 10.0)}
    assert with_distributions(study, wider) is study
    assert 0.01 <= study.ask().suggest_float("lr", 0.01, 10.0) <= 10.0


def test_a_new_choice_keeps_every_trial_with_its_number_state_and_values(
    study: optuna.Study,
) -> None:
    more = {"head": CategoricalDistribution(["linear", "cosine", "mlp"])}
    copy = with_distributions(study, more)
    assert copy.study_name == "s~2"
    for old, new in zip(study.trials, copy.trials, strict=True):
        assert (new.number, new.state, new.values) == (old.number, old.state, old.values)
        assert new.params == old.params
        assert new.user_attrs == old.user_attrs
        assert new.intermediate_values == old.intermediate_values
    assert copy.ask().suggest_categorical("head", ["linear", "cosine", "mlp"])


def test_a_removed_choice_is_forgotten_by_the_sampler_but_not_by_the_trial(
    study: optuna.Study,
) -> None:
    chosen = study.trials[0].params["head"]
    other = "cosine" if chosen == "linear" else "linear"
    copy = with_distributions(study, {"head": CategoricalDistribution([other, "mlp"])})
    assert "head" not in copy.trials[0].params
    assert copy.trials[0].params["lr"] == study.trials[0].params["lr"]
    assert copy.trials[0].value == 0.5


def test_a_copy_left_by_a_killed_resume_is_not_overwritten(study: optuna.Study, url: str) -> None:
    create_study(url, "s~2", ("score",))
    more = {"head": CategoricalDistribution(["linear", "cosine", "mlp"])}
    assert with_distributions(study, more).study_name == "s~3"


def test_a_start_that_was_killed_before_its_first_trial_can_start_again(url: str) -> None:
    create_study(url, "s", ("score",))
    assert create_study(url, "s", ("score",)).trials == []


def test_a_study_with_trials_is_not_taken_for_a_new_search(study: optuna.Study, url: str) -> None:
    with pytest.raises(StudyError, match="already has a study named 's'"):
        create_study(url, "s", ("score",))
    assert len(study.trials) == 3


def test_a_torn_study_file_is_refused_and_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    torn = b"SQLite format 3\x00" + bytes(range(256)) * 20
    file.write_bytes(torn)
    with pytest.raises(StudyError, match=r"cannot be used: .*Nothing was changed"):
        open_study(f"sqlite:///{file}", "s")
    assert file.read_bytes() == torn


def test_a_study_of_an_older_optuna_is_refused_with_the_command_that_upgrades_it(
    study: optuna.Study, url: str
) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("update alembic_version set version_num = 'v2.6.0.a'")
    with pytest.raises(StudyError) as raised:
        open_study(url, "s")
    message = str(raised.value)
    assert f"`$ optuna storage upgrade --storage {url}`" in message
    assert "\n" not in message


def test_a_study_that_is_not_there_is_named(study: optuna.Study, url: str) -> None:
    with pytest.raises(StudyError, match="has no study named 'other'"):
        open_study(url, "other")


def _hold(folder: str, url: str, held: Event) -> None:
    with only_driver(UPath(folder), open_study(url, "s")):
        held.set()
        time.sleep(60)


@pytest.mark.parametrize("folder", ["{tmp}", "memory://search"])
def test_a_second_driver_is_refused_until_the_first_is_dead(
    folder: str, tmp_path: Path, study: optuna.Study, url: str
) -> None:
    folder = folder.format(tmp=tmp_path)
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    first = context.Process(target=_hold, args=(folder, url, held))
    first.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(LockError, match="another driver"),
            only_driver(UPath(folder), open_study(url, "s")),
        ):
            pytest.fail("two drivers hold the lock")
    finally:
        first.kill()
        first.join()
    with only_driver(UPath(folder), open_study(url, "s")):
        pass


def test_a_lease_of_another_machine_ends_when_it_is_not_renewed(
    study: optuna.Study, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = {"id": "x", "host": "elsewhere", "pid": 1, "time_s": time.time()}
    study.set_user_attr("driver", beat)
    with (
        pytest.raises(LockError, match="process 1 on elsewhere"),
        only_driver(UPath("memory://search"), study),
    ):
        pytest.fail("the lease was ignored")
    study.set_user_attr("driver", beat | {"time_s": time.time() - lock.LEASE_S - 1})
    with only_driver(UPath("memory://search"), study):
        pass


def test_a_space_file_that_loops_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "TIME_LIMIT_S", 0.5)
    for text in (
        "while True: pass",
        "NUM_TRIALS = 1\ndef space(trial):\n    while True: pass",
    ):
        file = UPath(tmp_path / "loop.py")
        file.write_text(text)
        with pytest.raises(SpaceError, match=r"took over 0\.5 s"):
            load_space(file)
