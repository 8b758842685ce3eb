"""A database that is away is waited for, and no longer than said."""

import copy
import math
import pickle
import socket
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from results.database import STORAGE_ERRORS, Storage, patiently


def test_patience_within_patience_is_not_multiplied() -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        engine = sa.create_engine(f"postgresql+psycopg://127.0.0.1:{probe.getsockname()[1]}/none")
    tries = 0

    def reach() -> None:
        nonlocal tries
        tries += 1
        engine.connect()

    with pytest.raises(STORAGE_ERRORS, match="refused"):
        patiently(lambda: patiently(lambda: patiently(reach)), waits_s=(0.01,) * 3)
    assert tries == 4
    with pytest.raises(STORAGE_ERRORS):
        patiently(reach, waits_s=(0.01,))
    assert tries == 6, "each call has its own"


def test_trials_read_by_table_are_those_that_optuna_reads(tmp_path: Path) -> None:
    """Of every state, with values that are no numbers, of two studies in one database."""
    storage = Storage(f"sqlite:///{tmp_path / 'study.db'}")
    optuna.create_study(storage=storage, study_name="other").ask().suggest_float("x", 0, 1)
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    study.enqueue_trial({"x": 0.5})
    for number in range(8):
        trial = study.ask()
        trial.suggest_float("x", 1e-3, 1, log=True)
        trial.suggest_categorical("kind", [None, True, "a", 2.5])
        if number % 2:
            trial.suggest_int("n", 1, 9, step=2)
        trial.set_user_attr("config", {"lr": [0.1, None]})
        if number == 3:
            study.tell(trial, [math.inf, -math.inf])
        elif number < 5:
            study.tell(trial, [number, 0.5])
        elif number == 6:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    study.enqueue_trial({"x": 0.25}, user_attrs={"who": "a person"})
    steps = optuna.create_study(storage=storage, study_name="steps")
    trial = steps.ask()
    for step, value in enumerate([0.5, math.nan, math.inf]):
        trial.report(value, step)
    every = [1, 2, 3]
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    whiches: list[tuple[Any, set[int], int]] = [
        (None, set(), -1), (finished, set(), -1), (None, {2, 3, 9}, 5), (None, set(), 4)
    ]  # fmt: skip
    for study_id in every:
        for which in whiches:
            asked = (study_id, *which)
            expected = optuna.storages.RDBStorage._get_trials(storage, *asked)
            found = storage._get_trials(*asked)
            assert repr(found) == repr(expected), "repr: nan is not nan"
            assert [[*trial.params] for trial in found] == [[*trial.params] for trial in expected]
        whole = storage.all_trials(study_id)
        for each in whole:
            each.params, each.distributions, each.system_attrs = {}, {}, {}
            each.values, each.intermediate_values = None, {}
        assert repr(storage.all_trials(study_id, only_attributes=True)) == repr(whole)
    assert len(storage._get_trials(2, None, set(), -1)) == 9
    assert storage._get_trials(99, None, set(), -1) == []


def test_attributes_that_are_decoded_late_are_those_that_were_written(tmp_path: Path) -> None:
    storage = Storage(f"sqlite:///{tmp_path / 'study.db'}")
    trial = optuna.create_study(storage=storage).ask()
    written = {"config": {"lr": [0.1, None]}, "host": "node", "reruns": 0}
    for key, value in written.items():
        trial.set_user_attr(key, value)
    (read,) = storage.all_trials(1)
    for each in (read, copy.copy(read), copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        assert (each.user_attrs, each) == (written, storage.get_trial(read._trial_id))
        assert {**each.user_attrs} == written
        assert (each.user_attrs.get("none", 1), "none" in each.user_attrs) == (1, False)
