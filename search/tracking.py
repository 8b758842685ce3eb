"""What people look at: one MLflow run per trial under one parent run, through outages."""

import contextlib
import getpass
import json
import logging
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from upath import UPath

from results.history import INTERVALS
from results.mlflow_store import connect, experiment_id, explained, local_copies, runs_page
from results.naming import acting_together
from results.record import EXPERIMENT, KEEP_MODELS, SearchRecord, trial_folder
from results.terminal import counted, duration
from results.trial import Trial, TrialState
from search.metric_names import CHOSEN, grouped, place
from search.standing import DESCRIPTION, Standing
from trainable.classifier import INFO_FILE, MODEL_FILE, OUTPUTS_FILE, TABLE_FILE
from trainable.data.dataset import Data
from trainable.errors import reason_of, typed
from trainable.novelty.metrics import METRICS
from trainable.urls import public

RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between attempts while the server does not answer."""
CLOSE_S = 60.0
"""How long the end of a search waits for what is not sent yet."""
HURRY_S = 5.0
"""The same where someone waits for that end."""
BEHIND_S = 60.0
"""A change that waited as long to be sent is worth a line; the next is, when one waited twice as
long as was said."""
_MODEL_FOLDER = "best"
"""Of a trial's artifacts: the model of its best epoch."""
_MAX_METRICS = 800
"""In one batch: servers take 1000 of metrics, parameters and tags."""
_MAX_TAG = 5000
"""Characters of a tag that every server takes."""

_STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "FINISHED",
    TrialState.FAIL: "FAILED",
}


@dataclass(frozen=True, kw_only=True)
class SearchInfo:
    """What the parent run says about its search."""

    id: str
    """Unique: finds the runs again, whatever a search is called."""
    name: str
    folder: UPath
    params: dict[str, Any]
    tags: dict[str, str]
    experiment: str = EXPERIMENT
    experiment_id: str | None = None
    """In place of the name."""
    metrics: tuple[str, ...] = ("score",)
    """That it optimises."""
    question: str = ""
    keep_models: str = KEEP_MODELS

    @property
    def num_kept(self) -> int:
        """How many of the best trials give MLflow their models at the end; `all` do as they end."""
        return int(self.keep_models.removeprefix("best_")) if "_" in self.keep_models else 0


def search_info(record: SearchRecord, folder: UPath, data: Data, question: str) -> SearchInfo:
    """Return what the parent run says about a search: what was asked, and where it came from."""
    keys = ("num_trials", "epochs", "seed", "data", "novel", "weights", "version")
    params = {
        **{key: getattr(record, key) for key in keys},
        "study": record.study and public(record.study),
        "metric": ",".join(record.metrics),
        "fixed": json.dumps(record.fixed),
        "data_fingerprint": data.fingerprint,
    }
    return SearchInfo(
        id=record.id,
        name=record.name,
        folder=folder,
        params=params,
        tags={"git_commit": _git_commit(), "driver_host": os.uname().nodename}
        | source_tags("search.run"),
        experiment=record.experiment,
        experiment_id=record.experiment_id,
        metrics=tuple(record.metrics),
        question=question,
        keep_models=record.keep_models,
    )


def source_tags(module: str) -> dict[str, str]:
    """Return MLflow's own tags of who started what: the command of a module."""
    tags = {"mlflow.source.name": typed(module), "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _git_commit() -> str:
    """Return the commit of this package's own repository, which need not be the one that the folder
    lies in: an installed package may be in another project's environment."""
    here = Path(__file__)

    def git(*command: str) -> str | None:
        run = ["git", *command]
        try:
            done = subprocess.run(run, cwd=here.parent, capture_output=True, text=True)
        except OSError:
            return None  # no git here
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return "unknown"
    return git("rev-parse", "HEAD") or "unknown"


@dataclass(frozen=True)
class _End:
    status: str
    artifacts: tuple[UPath, ...]


class Tracker:
    """Brings MLflow to the state of the study, in the background.

    It holds no record of its own: what a trial should look like comes from the study, what is
    there already from the server. After an outage or a crash the difference is sent, so that no
    epoch is missing or doubled.
    """

    def __init__(self, uri: str, info: SearchInfo, note: Callable[[str], None]) -> None:
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every new database
        self._uri = uri
        self._info, self._note = info, note
        self._pending: dict[int, Trial] = {}
        self._since_s: dict[int, float] = {}
        """When what is pending of a trial began to wait."""
        self._worth_telling_s = BEHIND_S
        self._end: _End | None = None
        self._run_ids: dict[int, str] = {}
        self._sent_epochs: dict[int, set[int]] = {}
        self._unsent_params: dict[int, list[Param]] = {}
        self._standing = Standing(info.metrics, info.num_kept)
        self._is_stale = False
        self._sent_best: set[int] | None = None
        self._ended: set[int] = set()
        self._changed = threading.Condition()
        self._tries: dict[int, int] = {}
        self._is_closing = self._has_arrived = self._is_abandoned = False
        self._made_parent_id: str | None = None
        self._is_taken_back = False
        self._last_failure = ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self, data: Data, artifacts: list[UPath]) -> None:
        """Find or create the parent run, and begin to send.

        Raises:
            TrackingError: The server does not answer, or cannot be used.
        """
        self._client = connect(self._uri)
        with explained(self._uri):
            self._experiment_id = experiment_id(
                self._client, self._info.experiment, self._info.experiment_id
            )
            self._input = dataset_input(data)
            parents = self._find("parent")
            if parents:
                self._parent_id = parents[0].info.run_id
                self._client.update_run(self._parent_id, status="RUNNING")
            else:
                self._parent_id = self._made_parent_id = self._create_parent()
            self._describe_parent()
            self._log_files(self._parent_id, artifacts)
            for run in self._find("trial", view=ViewType.ALL):
                self._take_over(run)
        self._thread.start()

    @property
    def page(self) -> str:
        """Where a browser shows this search's runs, once it has started."""
        return runs_page(self._uri, self._experiment_id, self._info.id)

    def _take_over(self, run: Run) -> None:
        """Go on with a trial's run that is there; what a user deleted stays so, and is at its end.

        A run whose parent was deleted goes below the one that there is now.
        """
        number = int(run.data.tags["trial"])
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            if number not in self._run_ids:
                self._ended.add(number)
            return
        self._run_ids[number] = run.info.run_id
        self._ended.discard(number)
        if run.data.tags.get("mlflow.parentRunId") != self._parent_id:
            self._client.set_tag(run.info.run_id, "mlflow.parentRunId", self._parent_id)
        if run.info.status in (_STATUS[TrialState.COMPLETE], _STATUS[TrialState.FAIL]):
            self._ended.add(number)  # ending the run is the last call of all

    def update(self, trial: Trial) -> None:
        """Have MLflow show `trial` as it is now; returns at once."""
        with self._changed:
            if trial.is_finished and self._standing.add(trial):
                self._is_stale = True
                self._changed.notify()
            if trial.number in self._ended:
                return
            self._pending[trial.number] = trial
            self._since_s.setdefault(trial.number, time.monotonic())
            self._changed.notify()

    def close(
        self, status: str, artifacts: list[UPath], *, within_s: float = CLOSE_S,
        is_hurried: Callable[[], bool] = lambda: False,
    ) -> bool:  # fmt: skip
        """Send the rest and end the parent run; return whether everything arrived.

        Args:
            status: FINISHED, FAILED, or KILLED: then runs still RUNNING are KILLED, too.
            artifacts: Files for the parent run.
            within_s: How long to try, in seconds.
            is_hurried: Whether somebody asked to stop by now: then `HURRY_S` are all there is.
        """
        with self._changed:
            self._end = _End(status, tuple(artifacts))
            self._is_closing = True
            self._changed.notify()
        start_s = time.monotonic()
        while self._thread.is_alive():
            limit_s = min(within_s, HURRY_S) if is_hurried() else within_s
            if (left_s := start_s + limit_s - time.monotonic()) <= 0:
                break
            self._thread.join(min(left_s, 0.1))
        self.abandon()
        return self._has_arrived

    def abandon(self) -> None:
        """Send nothing more: whoever resumes the search sends the rest."""
        with self._changed:
            self._is_abandoned = True
            self._changed.notify()

    def take_back(self) -> None:
        """Delete the parent run if this start made it: it failed before there was a trial."""
        if self._made_parent_id is None:
            return
        with contextlib.suppress(Exception):  # stores raise types of their own; `close` tells
            self._client.delete_run(self._made_parent_id)
            self._is_taken_back = True

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                while not (
                    self._pending or self._is_stale or self._is_closing or self._is_abandoned
                ):
                    self._changed.wait()
                if self._is_abandoned:
                    return
                # One that is refused again and again must not hold up the others.
                number = min(self._pending, key=self._order, default=None)
                behind = self._how_far_behind()
                trial = None if number is None else self._pending.pop(number)
                if number is not None:
                    del self._since_s[number]
            if behind:
                self._note(behind)
            try:
                if trial is not None:
                    self._send(trial)
                    self._tries.pop(trial.number, None)
                elif self._is_stale:
                    self._send_standing()
                else:
                    self._send_end()
                    self._has_arrived = True
                    return
                failures = 0
            except Exception as error:  # noqa: BLE001 (artifact stores raise types of their own)
                if trial is not None:
                    self._put_back(trial)
                else:
                    self._sent_best = None  # whether it arrived is unknown
                self._tell_failure(error)
                time.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                failures += 1

    def _order(self, number: int) -> tuple[int, int]:
        return self._tries.get(number, 0), number

    def _put_back(self, trial: Trial) -> None:
        """Keep what could not be sent, unless something newer is waiting."""
        with self._changed:
            self._pending.setdefault(trial.number, trial)
            self._since_s.setdefault(trial.number, time.monotonic())
            self._tries[trial.number] = self._tries.get(trial.number, 0) + 1
        # Whether the failed call arrived is unknown: ask before sending again.
        self._sent_epochs.pop(trial.number, None)
        self._run_ids.pop(trial.number, None)

    def _how_far_behind(self) -> str:
        """Return what is to be said of how far the server, which answers, is behind the search."""
        behind_s = time.monotonic() - min(self._since_s.values(), default=math.inf)
        if behind_s < BEHIND_S:
            self._worth_telling_s = BEHIND_S
        if behind_s < self._worth_telling_s or self._tries:
            return ""
        self._worth_telling_s = 2 * behind_s
        return (
            f"MLflow is {duration(behind_s)} behind, with {counted(len(self._pending), 'trial')} "
            "to send; the search does not wait for it"
        )

    def _tell_failure(self, error: Exception) -> None:
        line = reason_of(error)
        if line != self._last_failure:
            self._note(f"MLflow took nothing ({line}); the search goes on and sends it later")
            self._last_failure = line

    def _send_standing(self) -> None:
        """Bring the parent run to how the search stands."""
        with self._changed:
            self._is_stale = False
        if self._is_taken_back:
            return
        try:
            name = f"best/{self._standing.metric}"
            if self._sent_best is None:
                self._mend_parent()
                history = self._client.get_metric_history(self._parent_id, name)
                self._sent_best = {metric.step for metric in history}
            with self._changed:
                missing = self._standing.best_by_number(self._sent_best)
                tags = self._standing.tags(self._info.question)
            note = self._client.get_run(self._parent_id).data.tags.get(DESCRIPTION, "")
            if note and not note.startswith(self._info.question):
                del tags[DESCRIPTION]  # a user wrote another
            now_ms = int(time.time() * 1000)
            shown = [RunTag(key, value[:_MAX_TAG]) for key, value in tags.items()]
            best = [Metric(name, value, now_ms, step) for step, value in missing.items()]
            for start in range(0, max(len(best), 1), _MAX_METRICS):
                batch = best[start : start + _MAX_METRICS]
                self._client.log_batch(self._parent_id, metrics=batch, tags=shown)
                self._sent_best |= {metric.step for metric in batch}
        except BaseException:
            self._is_stale = True
            raise

    def _mend_parent(self) -> None:
        """Have a parent run where a user deleted it; the trials' runs go below the new one."""
        run = self._client.get_run(self._parent_id)
        if run.info.lifecycle_stage != LifecycleStage.DELETED:
            return
        self._parent_id = self._create_parent()
        self._describe_parent()
        for child in self._find("trial"):
            self._client.set_tag(child.info.run_id, "mlflow.parentRunId", self._parent_id)

    def _send(self, trial: Trial) -> None:
        run_id = self._run_id(trial)
        if run_id is None:
            return
        sent = self._sent(trial, run_id)
        params = self._unsent_params.pop(trial.number, [])
        now_ms = int(time.time() * 1000)
        new = [epoch for epoch in trial.epochs if epoch.number not in sent]
        values = [
            _in_place(
                Metric(grouped(key), float(value), now_ms, epoch.number)
                for key, value in epoch.to_dict().items()
                if key != "epoch"
            )
            for epoch in new
        ]
        tags = _where(trial) if new else []
        if trial.is_finished:
            values.append(_best(trial, now_ms))
            tags = _ended(trial)
        # What a server takes in one call costs it hardly more than a part of it.
        for batch in _batches(values):
            self._client.log_batch(run_id, metrics=batch, params=params, tags=tags)
            params = []
        sent |= {epoch.number for epoch in new}
        if trial.is_finished:
            if self._info.keep_models == "all":
                self._log_files(run_id, self._files_of(trial), _MODEL_FOLDER)
            self._client.set_terminated(run_id, _STATUS[trial.state])

    def _files_of(self, trial: Trial) -> list[UPath]:
        """Return what there is of a trial's model."""
        folder = trial_folder(self._info.folder, trial.number)
        files = [folder / name for name in (MODEL_FILE, INFO_FILE, OUTPUTS_FILE, TABLE_FILE)]
        return [file for file in files if file.exists()]

    def _keep_best(self) -> None:
        """Send the models of the best trials, less what is there of them."""
        for trial in self._standing.best[: self._info.num_kept]:
            if run_id := self._run_ids.get(trial.number):
                sent = self._client.list_artifacts(run_id, _MODEL_FOLDER)
                names = {Path(each.path).name for each in sent}
                files = [file for file in self._files_of(trial) if file.name not in names]
                self._log_files(run_id, files, _MODEL_FOLDER)

    def _log_files(
        self, run_id: str, files: Sequence[UPath], artifact_path: str | None = None
    ) -> None:
        with local_copies(files) as copies:
            for copy in copies:
                self._client.log_artifact(run_id, str(copy), artifact_path)

    def _send_end(self) -> None:
        assert self._end is not None
        if self._is_taken_back:
            return
        self._mend_parent()
        self._log_files(self._parent_id, self._end.artifacts)
        if self._end.status != "KILLED":  # then it is not known yet which are the best
            self._keep_best()
        for run in self._find("trial"):
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")
        self._client.set_terminated(self._parent_id, self._end.status)

    def _run_id(self, trial: Trial) -> str | None:
        """Return the trial's run: the one there is, or a new one; None if a user deleted it."""
        if trial.number not in self._run_ids:
            # `start` found all runs there were; since then only a failed call may have made one.
            if trial.number in self._tries:
                for run in self._find("trial", trial.number, ViewType.ALL):
                    self._take_over(run)
            if trial.number in self._run_ids:
                return self._run_ids[trial.number]
            if trial.number in self._ended:
                return None
            self._run_ids[trial.number] = self._create_child(trial)
        return self._run_ids[trial.number]

    def _sent(self, trial: Trial, run_id: str) -> set[int]:
        """Return the epochs the server has; the first time in a process, the run is set going."""
        if trial.number not in self._sent_epochs:
            run = self._client.get_run(run_id)
            self._unsent_params[trial.number] = _missing(run, _params(trial))
            self._log_missing_input(run)
            self._client.update_run(run_id, status="RUNNING")
            history = self._client.get_metric_history(run_id, "score")
            self._sent_epochs[trial.number] = {metric.step for metric in history}
        return self._sent_epochs[trial.number]

    def _create_child(self, trial: Trial) -> str:
        tags = {
            **self._tags("trial"),
            "mlflow.runName": f"{self._info.name}-{trial.number:05d}",
            "mlflow.parentRunId": self._parent_id,
            "trial": str(trial.number),
            "state": trial.state,
            "architecture": trial.config.architecture if trial.config else "",
            "baseline": str(trial.is_baseline).lower(),
        }
        if trial.retry_of is not None:
            tags["retry_of"] = str(trial.retry_of)
        if trial.repeat_of is not None:
            tags["repeat_of"] = str(trial.repeat_of)
        run = self._client.create_run(self._experiment_id, tags=tags)
        self._unsent_params[trial.number] = _missing(run, _params(trial))
        self._log_missing_input(run)
        self._sent_epochs[trial.number] = set()
        return str(run.info.run_id)

    def _create_parent(self) -> str:
        tags = {**self._tags("parent"), "mlflow.runName": self._info.name}
        run_id: str = self._client.create_run(self._experiment_id, tags=tags).info.run_id
        return run_id

    def _describe_parent(self) -> None:
        """Log the search's parameters and data set, unless they are there."""
        run = self._client.get_run(self._parent_id)
        self._client.log_batch(self._parent_id, params=_missing(run, self._info.params))
        self._log_missing_input(run)

    def _log_missing_input(self, run: Run) -> None:
        if run.inputs is None or not run.inputs.dataset_inputs:
            self._client.log_inputs(run.info.run_id, [self._input])

    def _tags(self, level: str) -> dict[str, str]:
        return {
            **self._info.tags,
            "search": self._info.name,
            "search_id": self._info.id,
            "level": level,
        }

    def _find(
        self, level: str, number: int | None = None, view: int = ViewType.ACTIVE_ONLY
    ) -> list[Any]:
        query = f"tags.search_id = '{self._info.id}' and tags.level = '{level}'"
        if number is not None:
            query += f" and tags.trial = '{number}'"
        runs: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], query, run_view_type=view, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs


def _missing(run: Run, params: Mapping[str, Any]) -> list[Param]:
    """Return what a run lacks of its parameters; MLflow lets none change."""
    return [
        Param(key, str(value)[:6000])
        for key, value in params.items()
        if value is not None and key not in run.data.params
    ]


def _params(trial: Trial) -> dict[str, Any]:
    """Return what acts in a configuration, by the keys that it sets: of both levels, or of one."""
    return {} if trial.config is None else acting_together(trial.config)


def dataset_input(data: Data) -> DatasetInput:
    """Return the data that a run trains on, as its page names them."""
    dataset = Dataset(
        name=Path(data.source).stem,
        digest=data.fingerprint[:36],
        source_type="noveltune",
        source=json.dumps({"data": data.source, "novel": data.novel_source}),
        profile=json.dumps({"known": data.num_known, "all": len(data.images)}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "search")])


def _where(trial: Trial) -> list[RunTag]:
    return [RunTag("host", trial.host), RunTag("device", trial.device)] if trial.host else []


def _best(trial: Trial, now_ms: int) -> list[Metric]:
    """Return what counts as a trial's result."""
    return _in_place(
        Metric(f"{CHOSEN}/{key}", float(value), now_ms, 0)
        for key, value in (trial.best.to_dict() if trial.best else {}).items()
        if key in (*METRICS, *INTERVALS, "epoch", "tau_super", "tau_sub", "novel_images_used")
    )


def _in_place(metrics: Iterable[Metric]) -> list[Metric]:
    """Return metrics as a run's page is to show them: a new one comes behind those it has."""
    return sorted(metrics, key=lambda metric: place(metric.key))


def _ended(trial: Trial) -> list[RunTag]:
    tags = [RunTag("state", trial.state), *_where(trial)]
    return [*tags, RunTag("reason", trial.reason[:_MAX_TAG])] if trial.reason else tags


def _batches(values: Sequence[list[Metric]]) -> list[list[Metric]]:
    """Return metrics in batches that servers take, at least one, each epoch's in one of them: what
    arrived of an epoch is taken for the whole of it.
    """
    batches: list[list[Metric]] = [[]]
    for each in values:
        if batches[-1] and len(batches[-1]) + len(each) > _MAX_METRICS:
            batches.append([])
        batches[-1] += each
    return batches
