"""A search on disk becomes a table: one row per trial."""

import sqlite3
from pathlib import Path

import optuna
import pytest
from upath import UPath

from results.history import frame_of, read_trials, trials_frame
from results.record import (
    RunError,
    study_url,
)
from results.trial import Trial, TrialState, to_attributes
from tests.made_searches import record
from trainable.config import TrialConfig
from trainable.epoch import Epoch
from trainable.novelty.metrics import METRICS
from trainable.parts import HEADS
from trainable.schema import SCHEMA, SchemaError
from trainable.user_parts import UserParts


def test_rows_show_state_config_and_metrics_of_every_trial(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=study_url(UPath(tmp_path), record()), study_name="asked", direction="maximize"
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
    trials = trials_frame(UPath(tmp_path), record())
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


def test_table_without_rows_has_the_columns_of_one_with_rows() -> None:
    trial = Trial(number=0, config=TrialConfig(), state=TrialState.RUNNING, is_baseline=False)
    empty, other = frame_of([]), frame_of([trial])
    assert [*empty] == [*other]
    for name in ("state", "config", "architecture", "host"):
        assert empty[name].dtype == object, name
    for name in ("score", "train_loss", "gpu_hours", "repeat_of"):
        assert empty[name].dtype == other[name].dtype, name


def test_a_search_without_parts_leaves_none_of_an_earlier_one_registered(tmp_path: Path) -> None:
    head = "from torch.nn import Linear\nfrom trainable.parts import HEADS\n"
    head += "HEADS.register('mine', source='x')(Linear)\n"
    asked = record()
    optuna.create_study(storage=study_url(UPath(tmp_path), asked), study_name=asked.study_name)
    try:
        UserParts(files=("mine.py",), sources={"mine.py": head}).use()
        assert "mine" in HEADS
        trials_frame(UPath(tmp_path), asked)
        assert "mine" not in HEADS
    finally:
        UserParts().use()


def test_damaged_attribute_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    study = optuna.create_study(storage=study_url(UPath(tmp_path), record()), study_name="asked")
    study.set_user_attr("schema", SCHEMA)
    epochs = (Epoch(number=1, metrics={"score": 0.5}, seconds=2.0),)
    trial = Trial(
        number=0, config=TrialConfig(), state=TrialState.PRUNED, is_baseline=False, epochs=epochs
    )
    told = optuna.trial.create_trial(
        state=optuna.trial.TrialState.PRUNED, user_attrs=to_attributes(trial)
    )
    study.add_trial(told)

    def damage(key: str) -> None:
        with sqlite3.connect(tmp_path / "study.db") as database:
            database.execute(
                "UPDATE trial_user_attributes SET value_json = '{\"torn' WHERE key = ?", (key,)
            )

    damage("epoch_00001")  # which the table does not need
    assert [*trials_frame(UPath(tmp_path), record())["epochs_trained"]] == [1]
    (read,) = read_trials(UPath(tmp_path), record())
    assert read.taken["passed_s"] == 2.0
    with pytest.raises(RunError, match=r"attribute epoch_00001 of trial 0 .* is damaged"):
        list(read.epochs)
    damage("config")
    with pytest.raises(RunError, match=r"attribute config of trial 0 .* take the study from"):
        trials_frame(UPath(tmp_path), record())


def test_study_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(RunError, match=r"the study sqlite:///.*study\.db cannot be read"):
        trials_frame(UPath(tmp_path), record())


def test_study_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the study sqlite:///.*study\.db cannot be read"):
        trials_frame(UPath(tmp_path), record())


def test_study_of_a_later_version_is_refused_naming_both(tmp_path: Path) -> None:
    study = optuna.create_study(storage=study_url(UPath(tmp_path), record()), study_name="asked")
    study.set_user_attr("schema", SCHEMA + 1)
    study.set_user_attr("version", "9.8.7")
    with pytest.raises(SchemaError, match=r"the study sqlite:.* noveltune 9\.8\.7 in schema"):
        trials_frame(UPath(tmp_path), record())
    # Before any of its parts runs, which may need that version, too.
    with pytest.raises(SchemaError):
        trials_frame(UPath(tmp_path), record(said={"PARTS": {"files": ["missing.py"]}}))
