"""Searches on the disk whose trials are told, not trained."""

import datetime
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from upath import UPath

from results.history import trials_frame
from results.record import SearchRecord, study_url, trial_folder
from results.report import __main__ as report
from results.report import material
from results.report.tables import print_tables
from trainable.classifier import INFO_FILE, KEYS, save_outputs
from trainable.config import TrialConfig
from trainable.novelty.metrics import METRICS
from trainable.novelty.thresholds import Outputs, choose_rule
from trainable.schema import stamp

SPACE = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "architecture": CategoricalDistribution(["two_heads", "two_models"]),
}


def record(**changes: Any) -> SearchRecord:
    """Return what was asked of a search, with these changes."""
    values: dict[str, Any] = {
        "id": "0123",
        "name": "asked",
        "num_trials": 4,
        "epochs": None,
        "metrics": ["score"],
        "fixed": {},
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


@cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "study.db")
        optuna.storages.RDBStorage(f"sqlite:///{file}").engine.dispose()
        return file.read_bytes()


def make_database(file: Path) -> str:
    """Put Optuna's tables into a new SQLite file, and return its URL.

    They are copied: Optuna takes longer to make them than most tests take for all else.
    """
    file.write_bytes(_empty_database())
    return f"sqlite:///{file}"


class Search:
    """A search on disk whose trials are told, not trained."""

    def __init__(self, folder: Path, metrics: tuple[str, ...] = ("score",)) -> None:
        self.folder = folder
        self.record = record(metrics=[*metrics])
        self.record.save(UPath(folder))
        make_database(folder / "study.db")
        self.study = optuna.create_study(
            storage=study_url(UPath(folder), self.record),
            study_name="asked",
            directions=[METRICS[name] for name in metrics],
        )

    def tell(
        self,
        state: str = "COMPLETE",
        *,
        baseline: bool = False,
        architecture: str = "two_heads",
        lr: float = 1e-3,
        head: str = "linear",
        seed: int = 0,
        repeat_of: int | None = None,
        retry_of: int | None = None,
        epoch: int = 1,
        tau: float = 0.5,
        reason: str = "",
        metrics: Mapping[str, float] | None = None,
        keys: Mapping[str, Any] | None = None,
        **more: float,
    ) -> None:
        """Add a trial; a metric that is not given is 0.5. Its configuration has `keys`, too."""
        found: dict[str, Any] = dict.fromkeys(METRICS, 0.5) | (metrics or {}) | more
        found |= {"epoch": epoch, "tau_super": tau, "tau_sub": 1 - tau}
        has_params = not baseline and repeat_of is None
        config = TrialConfig(architecture=architecture, lr=lr, seed=seed, head=head, **keys or {})
        values = [found[name] for name in self.record.metrics]
        self.study.add_trial(
            create_trial(
                state=TrialState[state],
                values=values if state == "COMPLETE" else None,
                params={"lr": lr, "architecture": architecture} if has_params else {},
                distributions=SPACE if has_params else {},
                user_attrs={
                    "config": config.to_dict(),
                    "baseline": baseline,
                    **({} if repeat_of is None else {"repeat_of": repeat_of}),
                    **({} if retry_of is None else {"retry_of": retry_of}),
                    "reason": reason,
                    "epoch_00001": found,
                    "metrics": found if state in ("COMPLETE", "PRUNED") else {},
                },
            )
        )

    @property
    def trials(self) -> pd.DataFrame:
        return trials_frame(UPath(self.folder), self.record)

    def read(self) -> material.Search:
        """Return it as a report sees it."""
        return material.Search(UPath(self.folder), self.record)

    def write(self) -> list[str]:
        """Write the report; return the names of its files."""
        files = report.write_report([self.read()])
        assert all(file.stat().st_size > 0 for file in files)
        return [str(file.relative_to(UPath(self.folder))) for file in files]

    def tables(self) -> str:
        """Return the tables as printed, 200 columns wide."""
        console = Console(file=io.StringIO(), width=200, highlight=False)
        print_tables(console, self.trials, self.record)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


def add(search: Search, start_s: float, end_s: float, score: float, *, hours: int = 0) -> None:
    """Add a trial that ran from `start_s` to `end_s`, seconds after midnight and some hours."""
    begin = datetime.datetime(2026, 1, 1) + datetime.timedelta(hours=hours)
    frozen = create_trial(
        state=TrialState.COMPLETE, value=score,
        user_attrs={"config": TrialConfig().to_dict(), "metrics": {"score": score}, "host": "h"},
    )  # fmt: skip
    frozen.datetime_start = begin + datetime.timedelta(seconds=start_s)
    frozen.datetime_complete = begin + datetime.timedelta(seconds=end_s)
    search.study.add_trial(frozen)


def leave_outputs(search: Search, number: int, outputs: Outputs) -> None:
    """Write what a trial leaves: outputs, and a classifier's JSON."""
    folder = trial_folder(UPath(search.folder), number)
    folder.mkdir(parents=True)
    save_outputs(folder, outputs)
    info = dict.fromkeys(KEYS) | stamp() | {
        "rule": asdict(choose_rule(outputs, TrialConfig())),
        "superclasses": ["bird", "<dog>"], "subclasses": ["a", "$b_{", "c$", "鳥"],
        "subclass_of_output": [0, 1, 2, 3],
    }  # fmt: skip
    (folder / INFO_FILE).write_text(json.dumps(info))
