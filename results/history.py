"""A search's history as a table: its study read, a row for each trial."""

from typing import Any

import numpy as np
import optuna
import pandas as pd
from upath import UPath

from results.database import Storage, is_missing
from results.record import RunError, SearchRecord, password_hint, study_url
from results.stored_trials import uncollected
from results.trial import USAGE, Trial, from_optuna
from trainable.config import TrialConfig
from trainable.errors import reason_of
from trainable.novelty.metrics import MAIN, METRICS
from trainable.schema import schema_of
from trainable.user_parts import kept_parts

CONFIG_KEYS = tuple(TrialConfig().to_dict())
INTERVALS = tuple(f"interval.{name}.{end}" for name in MAIN for end in ("low", "high"))
"""Ends of the main rates' 95% intervals; trials of before version 0.2 have none."""
RATES_OF_PARTS = tuple(f"{part}.{name}" for part in ("part_a", "part_b") for name in MAIN)
"""The main rates of either part of the validation images, since protocol 2."""
_TAKEN = ("images_per_s", "peak_bytes", "host_peak_bytes", "gpu_utilisation", "gpu_hours")


def read_trials(folder: UPath, record: SearchRecord) -> list[Trial]:
    """Return the trials of a search, by number; raises what `read_study` does."""
    return read_study(folder, record, only_attributes=True)[0]


def read_study(
    folder: UPath, record: SearchRecord, *, only_attributes: bool = False
) -> tuple[list[Trial], list[optuna.trial.FrozenTrial]]:
    """Return the trials of a search, by number, and as Optuna holds them, with their times.

    Args:
        folder: The search's.
        record: What was asked of it.
        only_attributes: Whether Optuna's may lack their parameters and values.

    Raises:
        RunError: The study cannot be read.
        SchemaError: A later version wrote it.
    """
    url = study_url(folder, record)
    if is_missing(url):
        raise RunError(f"the study {url} cannot be read: there is no such file")
    try:
        storage = Storage(url)
        study = storage.get_study_id_from_name(record.study_name)
        attributes = storage.get_study_user_attrs(study)
        trials = storage.all_trials(study, only_attributes=only_attributes)
    except Exception as error:  # storage drivers raise their own types
        raise RunError(
            f"the study {url} cannot be read: {reason_of(error)}{password_hint(url)}"
        ) from error
    schema = schema_of(attributes, f"the study {url}")
    # Configurations name them; those of a search that was read before are none of this one's.
    kept_parts(folder, record.said.get("PARTS", {}).get("files", ())).use()
    return [from_optuna(trial, schema) for trial in trials], trials


def trials_frame(folder: UPath, record: SearchRecord) -> pd.DataFrame:
    """Return one row per trial, by number: state, configuration, metrics of its best epoch.

    Columns: number, state, reason, baseline, repeat_of and retry_of (a trial's number, or
    null), epochs_trained; those of `results.trial.USAGE`; `config`, the TrialConfig itself; every
    config key; best_epoch; every metric of `METRICS`; those of `INTERVALS` and `RATES_OF_PARTS`;
    then novel_images_used, train_loss and the thresholds used (used_tau_super, used_tau_sub).

    Raises:
        RunError: The study cannot be read.
        SchemaError: A later version wrote it.
    """
    with uncollected():
        return frame_of(read_trials(folder, record))


def frame_of(trials: list[Trial]) -> pd.DataFrame:
    """Return the table that `trials_frame` describes."""
    configs = [trial.config.to_dict() if trial.config else {} for trial in trials]
    metrics = [trial.metrics for trial in trials]
    usage = [trial.usage for trial in trials]
    rates = (*METRICS, *INTERVALS, *RATES_OF_PARTS)
    # Without a value a column would be of objects, and its nulls no NaN.
    measured = np.array([[*map(each.get, rates)] for each in metrics], dtype=float)
    measured = measured.reshape(len(trials), len(rates))  # of no trial, too

    columns: dict[str, Any] = {
        "number": [trial.number for trial in trials],
        "state": [trial.state.value for trial in trials],
        "reason": [trial.reason for trial in trials],
        "baseline": [trial.is_baseline for trial in trials],
        "repeat_of": pd.array([trial.repeat_of for trial in trials], dtype="Int64"),
        "retry_of": pd.array([trial.retry_of for trial in trials], dtype="Int64"),
        "epochs_trained": [len(trial.epochs) for trial in trials],
        **{name: [each[name] for each in usage] for name in USAGE},
        "config": [trial.config for trial in trials],
        **{key: [each.get(key) for each in configs] for key in CONFIG_KEYS},
        "best_epoch": [trial.best.number if trial.best else None for trial in trials],
        **dict(zip(rates, measured.T, strict=True)),
        "novel_images_used": [each.get("novel_images_used") for each in metrics],
        "train_loss": np.array([each.get("train_loss") for each in metrics], dtype=float),
        "used_tau_super": [each.get("tau_super") for each in metrics],
        "used_tau_sub": [each.get("tau_sub") for each in metrics],
    }
    columns |= {name: np.array(columns[name], dtype=float) for name in _TAKEN}
    frame = pd.DataFrame(columns)
    # pandas takes a list without values for numbers.
    lists = [name for name, column in columns.items() if isinstance(column, list)]
    return frame if trials else frame.astype(dict.fromkeys(lists, object))


def searched(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that the search itself asked for: all but the repeats."""
    return trials[trials["repeat_of"].isna()]


def ran_again(trials: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows are failed trials that ran again: history beside the trials asked for."""
    return trials["number"].isin(trials["retry_of"].dropna())
