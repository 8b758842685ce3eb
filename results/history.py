"""A search's history as a table: its study read, a row for each trial."""

from collections.abc import Mapping
from typing import Any

import optuna
import pandas as pd
from upath import UPath

from results.database import Storage, is_missing
from results.record import RunError, SearchRecord, password_hint, study_url
from trainable.config import TrialConfig
from trainable.errors import reason_of
from trainable.novelty.metrics import MAIN, METRICS
from trainable.schema import CONFIG_STEPS, Step, schema_of, upgraded

INTERVALS = tuple(f"interval.{name}.{end}" for name in MAIN for end in ("low", "high"))
"""Ends of the main rates' 95% intervals; trials of before version 0.2 have none."""
PARTS = tuple(f"{part}.{name}" for part in ("part_a", "part_b") for name in MAIN)
"""The main rates of either part of the validation images, since protocol 2."""


def _trial_to_2(attributes: dict[str, Any]) -> dict[str, Any]:
    if "config" not in attributes:
        return attributes
    return attributes | {"config": upgraded(attributes["config"], 1, CONFIG_STEPS[:1])}


TRIAL_STEPS: tuple[Step, ...] = (_trial_to_2,)
"""Of a trial's attributes in the study."""


def trials_frame(folder: UPath, record: SearchRecord) -> pd.DataFrame:
    """Return one row per trial, by number: state, configuration, metrics of its best epoch.

    Columns: number, state, reason, baseline, repeat_of (a trial's number, or null),
    epochs_trained, host, device; `config`, the TrialConfig itself; every config key; best_epoch;
    every metric of `METRICS`; those of `INTERVALS` and `PARTS`; then novel_images_used, train_loss
    and the thresholds used (used_tau_super, used_tau_sub).

    Raises:
        RunError: The study cannot be read.
        SchemaError: A later version wrote it.
    """
    url = study_url(folder, record)
    if is_missing(url):
        raise RunError(f"the study {url} cannot be read: there is no such file")
    try:
        study = optuna.load_study(study_name=record.study_name, storage=Storage(url))
        attributes, trials = study.user_attrs, study.get_trials(deepcopy=False)
    except Exception as error:  # storage drivers raise their own types
        raise RunError(
            f"the study {url} cannot be read: {reason_of(error)}{password_hint(url)}"
        ) from error
    schema = schema_of(attributes, f"the study {url}")
    rows = [_row(trial, upgraded(trial.user_attrs, schema, TRIAL_STEPS)) for trial in trials]
    frame = pd.DataFrame(rows, columns=[*_row(optuna.trial.create_trial(value=0.0), {})])
    return frame.astype({"repeat_of": "Int64"})


def searched(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that the search itself asked for: all but the repeats."""
    return trials[trials["repeat_of"].isna()]


def _row(trial: optuna.trial.FrozenTrial, attributes: Mapping[str, Any]) -> dict[str, Any]:
    metrics, config = attributes.get("metrics", {}), attributes.get("config", {})
    return {
        "number": trial.number,
        "state": trial.state.name,
        "reason": attributes.get("reason", ""),
        "baseline": bool(attributes.get("baseline", False)),
        "repeat_of": attributes.get("repeat_of"),
        "epochs_trained": sum(key.startswith("epoch_") for key in attributes),
        "host": attributes.get("host", ""),
        "device": attributes.get("device", ""),
        "config": TrialConfig.from_dict(config) if config else None,
        **{key: config.get(key) for key in TrialConfig().to_dict()},
        "best_epoch": metrics.get("epoch"),
        **{name: metrics.get(name) for name in METRICS},
        **{name: metrics.get(name) for name in (*INTERVALS, *PARTS)},
        **{k: metrics.get(k) for k in ("novel_images_used", "train_loss")},
        "used_tau_super": metrics.get("tau_super"),
        "used_tau_sub": metrics.get("tau_sub"),
    }
