"""What a resume may change, what it refuses, and who may resume."""

import os
import sqlite3
import subprocess
import time
from datetime import datetime, timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from upath import UPath

from search.internals import engine_of
from search.space.file import SpaceError
from search.space.space import load_space
from search.study import lock
from search.study.lock import LeaseLostError, LockError, only_driver
from search.study.storage import StudyError, create_study, open_study, with_distributions
from tests.made_searches import make_database
from tests.processes import other_processes

LIMIT_S = 300.0
"""Of every wait for another process."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return make_database(tmp_path / "study.db")


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
    assert with_distributions(study, wider, ("score",)) is study
    assert 0.01 <= study.ask().suggest_float("lr", 0.01, 10.0) <= 10.0


def test_a_new_choice_keeps_every_trial_with_its_number_state_and_values(
    study: optuna.Study,
) -> None:
    more = {"head": CategoricalDistribution(["linear", "cosine", "mlp"])}
    copy = with_distributions(study, more, ("score",))
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
    copy = with_distributions(study, {"head": CategoricalDistribution([other, "mlp"])}, ("score",))
    assert "head" not in copy.trials[0].params
    assert copy.trials[0].params["lr"] == study.trials[0].params["lr"]
    assert copy.trials[0].value == 0.5


def test_a_copy_left_by_a_killed_resume_is_not_overwritten(study: optuna.Study, url: str) -> None:
    create_study(url, "s~2", ("score",))
    more = {"head": CategoricalDistribution(["linear", "cosine", "mlp"])}
    assert with_distributions(study, more, ("score",)).study_name == "s~3"


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
        time.sleep(10 * LIMIT_S)


@pytest.mark.parametrize("folder", ["{tmp}", "memory://search", "{tmp}/other"])
def test_a_second_driver_is_refused_until_the_first_is_dead(
    folder: str, tmp_path: Path, study: optuna.Study, url: str
) -> None:
    folder = folder.format(tmp=tmp_path)
    (tmp_path / "other").mkdir()
    context = other_processes()
    held = context.Event()
    first = context.Process(target=_hold, args=(folder, url, held))
    first.start()
    try:
        assert held.wait(LIMIT_S)
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


def test_a_copied_search_is_not_run_beside_the_original(
    tmp_path: Path, study: optuna.Study, url: str
) -> None:
    """Each has a folder of its own, and a file there to lock; the study is one."""
    for name in ("original", "copy"):
        (tmp_path / name).mkdir()
    with (
        only_driver(UPath(tmp_path / "original"), study),
        pytest.raises(LockError, match="another driver, process"),
        only_driver(UPath(tmp_path / "copy"), open_study(url, "s")),
    ):
        pytest.fail("two drivers hold the lock")


def row_of(study: optuna.Study) -> dict[str, Any]:
    """Return the lease as the database has it."""
    engine = engine_of(study)
    assert engine is not None
    with engine.begin() as connection:
        mine = lock._DRIVERS.c.study == study.study_name
        (row,) = connection.execute(sa.select(lock._DRIVERS).where(mine)).mappings()
        return dict(row)


def change_row(study: optuna.Study, **values: Any) -> None:
    engine = engine_of(study)
    assert engine is not None
    with engine.begin() as connection:
        connection.execute(lock._DRIVERS.update().values(**values))


def leave_lease(study: optuna.Study, **values: Any) -> None:
    """Leave a lease as a driver that was killed does, with some values changed."""
    with only_driver(UPath("memory://search"), study):
        row = row_of(study)
    engine = engine_of(study)
    assert engine is not None
    with engine.begin() as connection:
        connection.execute(lock._DRIVERS.insert().values(**{**row, **values}))


def is_taken(study: optuna.Study) -> bool:
    try:
        with only_driver(UPath("memory://search"), study):
            return True
    except LockError:
        return False


OLD = datetime(2025, 11, 25)


def test_a_lease_of_another_machine_is_refused_as_soon_as_it_is_renewed(
    study: optuna.Study,
) -> None:
    leave_lease(study, machine="another", host="elsewhere", pid=1)
    said: list[str] = []

    def renew(line: str) -> None:
        said.append(line)
        change_row(study, beat=row_of(study)["beat"] + timedelta(seconds=1))

    with (
        pytest.raises(LockError, match=r"process 1 on elsewhere, is running this search$"),
        only_driver(UPath("memory://search"), study, renew),
    ):
        pytest.fail("the lease was ignored")
    (line,) = said
    assert line.endswith("is running this search, or is dead: this shows within 60 s")


@pytest.mark.parametrize("is_given_back", [False, True])
def test_a_lease_of_another_machine_is_waited_for_until_it_ends(
    study: optuna.Study, is_given_back: bool
) -> None:
    """As where a batch system moves a search to another node, at once and only once."""
    leave_lease(study, machine="another", host="elsewhere", pid=1)

    def end(_line: str) -> None:
        if is_given_back:
            engine = engine_of(study)
            assert engine is not None
            with engine.begin() as connection:
                connection.execute(lock._DRIVERS.delete())
        else:  # what the clock does, at once
            late = timedelta(seconds=lock.LEASE_S + 1)
            change_row(study, beat=row_of(study)["beat"] - late)

    with only_driver(UPath("memory://search"), study, end):
        assert row_of(study)["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("values", "is_free"),
    [
        # The number of a process that is alive, given anew to this one.
        ({"pid": os.getpid(), "started": "1", "beat": OLD}, True),
        ({"pid": os.getpid(), "started": "1"}, True),
        # Of before the machine was started again: its numbers and times say nothing.
        ({"machine": "of before", "pid": os.getpid(), "beat": OLD}, True),
        # Alive, only too busy to say so.
        ({"pid": os.getpid(), "beat": OLD}, False),
        ({"pid": 2**22 + 1}, True),
    ],
)
def test_a_lease_is_known_by_its_process_not_by_a_number_alone(
    study: optuna.Study, values: dict[str, Any], is_free: bool
) -> None:
    leave_lease(study, **values)
    assert is_taken(study) == is_free


def test_a_killed_driver_that_its_parent_does_not_take_note_of_is_dead(
    study: optuna.Study,
) -> None:
    """As where the first process of a container is no init."""
    with subprocess.Popen(["sleep", "600"]) as killed:
        try:
            started = lock._started(killed.pid)
            leave_lease(study, pid=killed.pid, started=started)
            assert not is_taken(study)
        finally:
            killed.kill()
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # and it stays a zombie
        assert is_taken(study)


def _start_at_once(url: str, barrier: Barrier, results: "Queue[str]") -> None:
    study = open_study(url, "s")
    barrier.wait(LIMIT_S)
    try:
        with only_driver(UPath("memory://search"), study):
            results.put("held")
            barrier.wait(LIMIT_S)  # until all have tried
    except LockError:
        results.put("refused")
        barrier.wait(LIMIT_S)


def race(url: str) -> None:
    """Have three processes start at once, and one of them get the search."""
    context = other_processes()
    barrier, results = context.Barrier(3), context.Queue()
    drivers = [
        context.Process(target=_start_at_once, args=(url, barrier, results)) for _ in range(3)
    ]
    for driver in drivers:
        driver.start()
    assert sorted(results.get(timeout=LIMIT_S) for _ in drivers) == ["held", "refused", "refused"]
    for driver in drivers:
        driver.join(LIMIT_S)


@pytest.mark.parametrize("is_left", [False, True])
def test_of_drivers_that_start_at_once_one_gets_the_search(
    study: optuna.Study, url: str, is_left: bool
) -> None:
    """Real processes; also where all of them find a dead driver's lease."""
    if is_left:
        leave_lease(study, pid=2**22 + 1)
    race(url)


def test_a_driver_that_lost_its_lease_is_told_and_leaves_the_other_ones(
    study: optuna.Study,
) -> None:
    with only_driver(UPath("memory://search"), study) as check:
        check()
        change_row(study, holder="another")
        with pytest.raises(LeaseLostError, match="another one runs the search now"):
            check()
    assert row_of(study)["holder"] == "another"


def test_a_space_file_that_loops_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.space.file.TIME_LIMIT_S", 0.5)
    for text in (
        "while True: pass",
        "NUM_TRIALS = 1\ndef space(trial):\n    while True: pass",
    ):
        file = UPath(tmp_path / "loop.py")
        file.write_text(text)
        with pytest.raises(SpaceError, match=r"took over 0\.5 s"):
            load_space(file)
