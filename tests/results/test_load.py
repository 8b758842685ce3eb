"""A search on disk becomes a table: one row per trial, the best one, the Pareto front."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.load import (
    RECORD_FILE,
    Repeat,
    RunError,
    SearchRecord,
    absolute_url,
    best_row,
    load_record,
    pareto_rows,
    run_folder,
    study_url,
    trials_frame,
)
from trainable.config import TrialConfig
from trainable.novelty.metrics import METRICS


def record(**changes: Any) -> SearchRecord:
    values: dict[str, Any] = {
        "id": "0123",
        "name": "asked",
        "num_trials": 4,
        "epochs": None,
        "metrics": ["score"],
        "fixed": {"image_size": 32},
        "seed": 0,
        "data": "synthetic",
        "novel": "synthetic",
        "data_fingerprint": "abc",
        "weights": None,
        "cache": "cache",
        "study": None,
        "study_name": "asked",
        "tracking_uri": "sqlite:///mlflow.db",
        "version": "0.1.0",
    }
    return SearchRecord(**(values | changes))


def frame(**columns: list[Any]) -> pd.DataFrame:
    """Return a table of trials that are COMPLETE unless `state` says otherwise."""
    size = len(next(iter(columns.values())))
    return pd.DataFrame({"number": range(size), "state": ["COMPLETE"] * size} | columns)


# --- The record ----------------------------------------------------------------------------------


def test_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    record(metrics=["seen_sub", "unseen_sub"]).save(tmp_path)
    assert load_record(tmp_path) == record(metrics=["seen_sub", "unseen_sub"])
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]


def test_record_keeps_its_repeats(tmp_path: Path) -> None:
    repeats = [Repeat(number=4, trial=2, seed=1), Repeat(number=5, trial=2, seed=2)]
    record(repeats=repeats).save(tmp_path)
    assert load_record(tmp_path).repeats == repeats


def test_record_of_before_there_were_repeats_has_none(tmp_path: Path) -> None:
    old = asdict(record())
    del old["repeats"]
    (tmp_path / RECORD_FILE).write_text(json.dumps(old))
    assert load_record(tmp_path) == record()


def test_searches_are_kept_in_runs_unless_told_otherwise(tmp_path: Path) -> None:
    assert run_folder("asked", None) == Path("runs/asked")
    assert run_folder("asked", tmp_path) == tmp_path / "asked"


def test_study_is_found_in_the_folder_wherever_that_is_moved(tmp_path: Path) -> None:
    assert study_url(tmp_path, record()) == f"sqlite:///{tmp_path.resolve() / 'study.db'}"
    assert study_url(tmp_path, record(study="mysql://host/db")) == "mysql://host/db"


def test_search_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    for name in ("second", "first"):
        (tmp_path / name).mkdir()
        record(name=name).save(tmp_path / name)
    (tmp_path / "no search").mkdir()
    with pytest.raises(RunError) as raised:
        load_record(tmp_path / "third")
    expected = f"{tmp_path / 'third'}: no search of that name; there are: first, second"
    assert str(raised.value) == expected


def test_search_that_is_not_there_is_said_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no search of that name$"):
        load_record(tmp_path / "third")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b'"asked"',
        b"\xff\xfe",
        b"{}",
        json.dumps(asdict(record()) | {"unknown": 1}).encode(),
        json.dumps(asdict(record()) | {"repeats": [{"trial": 1}]}).encode(),
        json.dumps(asdict(record()) | {"repeats": [5]}).encode(),
        json.dumps(asdict(record()) | {"repeats": None}).encode(),
        json.dumps(asdict(record())).encode()[:-20],
    ],
)
def test_damaged_record_is_named_and_left_as_it_is(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / RECORD_FILE).write_bytes(damage)
    with pytest.raises(RunError, match=r"search\.json is damaged .*; nothing was changed"):
        load_record(tmp_path)
    assert (tmp_path / RECORD_FILE).read_bytes() == damage


# --- The trials ----------------------------------------------------------------------------------


def test_rows_show_state_config_and_metrics_of_every_trial(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=study_url(tmp_path, record()), study_name="asked", direction="maximize"
    )
    config = TrialConfig(alpha=0.5, architecture="two_models")
    metrics = dict.fromkeys(METRICS, 0.25) | {"epoch": 2, "tau_super": 0.9, "tau_sub": 0.1}
    complete = study.ask()
    complete.set_user_attr("config", config.to_dict())
    complete.set_user_attr("baseline", True)
    complete.set_user_attr("host", "node")
    complete.set_user_attr("epoch_00001", {})
    complete.set_user_attr("epoch_00002", {})
    complete.set_user_attr("metrics", metrics)
    study.tell(complete, 0.25)
    failed = study.ask()
    failed.set_user_attr("config", TrialConfig().to_dict())
    failed.set_user_attr("baseline", False)
    failed.set_user_attr("reason", "out of memory")
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    study.ask()  # its driver was killed before it had a configuration
    trials = trials_frame(tmp_path, record())
    assert [*trials["number"]] == [0, 1, 2]
    assert [*trials["state"]] == ["COMPLETE", "FAIL", "RUNNING"]
    assert [*trials["baseline"]] == [True, False, False]
    assert [*trials["epochs_trained"]] == [2, 0, 0]
    assert [*trials["reason"]] == ["", "out of memory", ""]
    first = trials.iloc[0]
    assert (first["config"], first["alpha"], first["host"]) == (config, 0.5, "node")
    assert (first["best_epoch"], first["used_tau_super"], first["used_tau_sub"]) == (2, 0.9, 0.1)
    assert all(first[name] == 0.25 for name in METRICS)
    assert trials.iloc[2]["config"] is None


def test_study_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(RunError, match=r"the study sqlite:///.*study\.db cannot be read"):
        trials_frame(tmp_path, record())


def test_study_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the study sqlite:///.*study\.db cannot be read"):
        trials_frame(tmp_path, record())


# --- The best ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "number"), [("score", 2), ("seen_sub", 2), ("ce_sub", 1)])
def test_best_row_follows_the_direction_of_the_metric(metric: str, number: int) -> None:
    best = best_row(frame(**{metric: [0.5, 0.1, 0.9]}), [metric])
    assert best is not None
    assert best["number"] == number


def test_best_row_is_the_first_of_equals() -> None:
    best = best_row(frame(score=[0.1, 0.9, 0.9]), ["score"])
    assert best is not None
    assert best["number"] == 1


def test_best_row_is_complete() -> None:
    trials = frame(score=[0.9, 0.2, 0.1], state=["PRUNED", "FAIL", "COMPLETE"])
    best = best_row(trials, ["score"])
    assert best is not None
    assert best["number"] == 2


def test_best_row_of_a_front_is_by_score() -> None:
    trials = frame(score=[0.1, 0.9, 0.5], seen_sub=[0.9, 0.5, 0.1], unseen_sub=[0.1, 0.5, 0.9])
    best = best_row(trials, ["seen_sub", "unseen_sub"])
    assert best is not None
    assert best["number"] == 1


@pytest.mark.parametrize("trials", [pd.DataFrame([]), frame(score=[0.9], state=["PRUNED"])])
def test_there_is_no_best_row_without_a_complete_trial(trials: pd.DataFrame) -> None:
    assert best_row(trials, ["score"]) is None


def is_dominated(row: np.ndarray, rows: np.ndarray) -> bool:
    """Say by pairs whether another row is no worse in every column and better in one."""
    for other in rows:
        no_worse = [other[k] >= row[k] for k in range(len(row))]
        better = [other[k] > row[k] for k in range(len(row))]
        if all(no_worse) and any(better):
            return True
    return False


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 3)] * 3, st.sampled_from(["COMPLETE", "PRUNED", "FAIL"])),
        min_size=1,
        max_size=12,
    )
)
def test_pareto_rows_are_those_that_no_other_one_beats(
    rows: list[tuple[int, int, int, str]],
) -> None:
    trials = frame(
        seen_sub=[row[0] / 3 for row in rows],
        unseen_sub=[row[1] / 3 for row in rows],
        ce_sub=[float(row[2]) for row in rows],
        state=[row[3] for row in rows],
    )
    complete = {n: (r[0], r[1], -r[2]) for n, r in enumerate(rows) if r[3] == "COMPLETE"}
    values = np.array([*complete.values()])
    expected = [n for n, row in complete.items() if not is_dominated(np.array(row), values)]
    front = pareto_rows(trials, ["seen_sub", "unseen_sub", "ce_sub"])
    assert [*front["number"]] == expected


def test_tilde_in_the_url_of_a_sqlite_file_is_the_home_folder() -> None:
    assert absolute_url("sqlite:///~/a.db") == f"sqlite:///{Path.home().resolve() / 'a.db'}"
