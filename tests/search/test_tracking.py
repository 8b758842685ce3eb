"""MLflow shows every trial and every epoch once, whatever happens to its server or to ours."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Param, Run
from upath import UPath

from results.mlflow_store import TrackingError
from results.record import EXPERIMENT
from results.trial import Trial, TrialState
from search import tracking
from search.tracking import SearchInfo, Tracker
from tests.commands import ROOT, Command
from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.epoch import Epoch

DEADLINE_S = 180.0

DATA = Data(
    images=torch.zeros(3, 2, 2, 3, dtype=torch.uint8),
    superclass=torch.tensor([0, 0, 1]),
    subclass=torch.tensor([0, 1, 2]),
    borrowed_class=torch.full((3,), -1),
    native_side=torch.full((3,), 2),
    superclasses=("bird",),
    subclasses=("robin", "wren"),
    borrowed_classes=(),
    super_of_sub=(0, 0),
    fingerprint="0" * 64,
    source="birds.zip",
    novel_source="pool.zip",
)


def epochs(count: int) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(number=n, metrics={"score": n / 10, "train_loss": 1 / n, "score_calibration": n / 10})
        for n in range(1, count + 1)
    )


def trial(number: int = 0, num_epochs: int = 0, **changes: Any) -> Trial:
    """Return a running trial, unless `changes` say otherwise."""
    values = {"host": "node", "device": "cpu"} | changes
    return Trial(
        number=number,
        config=TrialConfig(alpha=0.5, epochs=3),
        state=TrialState(values.pop("state", "RUNNING")),
        is_baseline=number == 0,
        epochs=epochs(num_epochs),
        **values,
    )


def complete(number: int = 0) -> Trial:
    metrics = {"score": 0.3, "seen_sub": 0.25, "tau_super": 0.5, "not shown": 1.0}
    best = Epoch(number=3, metrics=metrics | {"interval.score.low": 0.2})
    return trial(number, 3, state="COMPLETE", best=best)


def worth(number: int, score: float) -> Trial:
    """Return a complete trial of that score."""
    return replace(complete(number), best=Epoch(number=3, metrics={"score": score}))


def wait_until(event: Callable[[], object], within_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + within_s
    while not event():
        assert time.monotonic() < end_s
        time.sleep(0.05)


class Notes(list[str]):
    """Lines that a tracker had for a person."""

    def __call__(self, line: str) -> None:
        self.append(line)


def info_of(folder: Path, search_id: str = "0123") -> SearchInfo:
    return SearchInfo(
        id=search_id,
        name="asked",
        folder=UPath(folder),
        params={"num_trials": 4, "seed": 0},
        tags={"git_commit": "unknown"},
        question="Which?",
        keep_models="all",
    )


def test_commit_is_that_of_the_packages_own_repository_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*command: str) -> str:
        run = ["git", "-c", "user.name=me", "-c", "user.email=me@host", *command]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    file = tmp_path / "site-packages" / "search" / "tracking.py"
    file.parent.mkdir(parents=True)
    file.touch()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another project")
    monkeypatch.setattr(tracking, "__file__", str(file))
    assert tracking._git_commit() == "unknown"
    git("add", ".")
    git("commit", "-q", "-m", "its own")
    assert tracking._git_commit() == git("rev-parse", "HEAD")


class Shown:
    """What MLflow shows of one search."""

    def __init__(self, uri: str, search_id: str = "0123") -> None:
        self.client, self._id = MlflowClient(tracking_uri=uri), search_id

    def runs(self, level: str) -> list[Run]:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        query = f"tags.search_id = '{self._id}' and tags.level = '{level}'"
        found = self.client.search_runs([experiment.experiment_id], query)
        return sorted(found, key=lambda run: int(run.data.tags.get("trial", 0)))

    @property
    def parent(self) -> Run:
        (parent,) = self.runs("parent")
        return parent

    def child(self, number: int = 0) -> Run:
        (child,) = [run for run in self.runs("trial") if run.data.tags["trial"] == str(number)]
        return child

    def steps(self, number: int = 0, metric: str = "score") -> list[int]:
        history = self.client.get_metric_history(self.child(number).info.run_id, metric)
        return [each.step for each in history]

    def has_steps(self, count: int, number: int = 0) -> Callable[[], bool]:
        def has() -> bool:
            numbers = [run.data.tags["trial"] for run in self.runs("trial")]
            return str(number) in numbers and len(self.steps(number)) >= count

        return has


# --- A file --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def is_never_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: what a test expects to be said is about what it does."""
    monkeypatch.setattr(tracking, "BEHIND_S", float("inf"))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, make_mlflow: Callable[[Path], Path]) -> Path:
    """A folder with an MLflow database, shared: the searches in it have ids of their own."""
    return make_mlflow(tmp_path_factory.mktemp("mlflow")).parent


@pytest.fixture
def uri(database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(database)  # MLflow puts artifacts beside its database
    return f"sqlite:///{database / 'mlflow.db'}"


@pytest.fixture
def search_id(request: pytest.FixtureRequest) -> str:
    """Of this test's search."""
    return str(request.node.name)


@pytest.fixture
def shown(uri: str, search_id: str) -> Shown:
    return Shown(uri, search_id)


Opener = Callable[[], Tracker]


@pytest.fixture
def opened(uri: str, search_id: str, tmp_path: Path) -> Opener:
    """Return what starts a tracker of this test's search, as a driver or a resumed one does."""

    def opened() -> Tracker:
        tracker = Tracker(uri, info_of(tmp_path, search_id), Notes())
        tracker.start(DATA, [])
        return tracker

    return opened


def test_epochs_that_take_several_calls_arrive_whole_and_once(
    opened: Opener, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_MAX_METRICS", 4)  # an epoch has three
    tracker = opened()
    tracker.update(complete())
    assert tracker.close("FINISHED", [])
    for name in ("score", "training/train_loss"):
        assert shown.steps(0, name) == [1, 2, 3]
    assert shown.steps(0, "chosen/score") == [0]
    assert shown.child().data.params["alpha"] == "0.5"


def test_tracker_that_falls_behind_says_by_how_much(
    uri: str, search_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: now_s, time=time.time, sleep=time.sleep)
    monkeypatch.setattr(tracking, "time", clock)
    monkeypatch.setattr(tracking, "BEHIND_S", 600.0)
    notes = Notes()
    tracker = Tracker(uri, info_of(tmp_path, search_id), notes)
    for number in range(3):
        tracker.update(trial(number))
    now_s = 720.0
    tracker.start(DATA, [])
    assert tracker.close("FINISHED", [], within_s=DEADLINE_S)
    assert notes == [
        "MLflow is 12 min behind, with 3 trials to send; the search does not wait for it"
    ], "once, and not of each that waited as long"


def test_complete_trial_is_shown_with_its_epochs_and_its_best(
    opened: Opener, shown: Shown, tmp_path: Path
) -> None:
    (tmp_path / "trials/00000").mkdir(parents=True)
    for name in ("model.json", "model.safetensors", "outputs.safetensors", "checkpoint_1.pt"):
        (tmp_path / "trials/00000" / name).write_text(name)
    tracker = opened()
    for count in range(4):
        tracker.update(trial(num_epochs=count))
    tracker.update(complete())
    assert tracker.close("FINISHED", [])
    child = shown.child()
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == shown.parent.info.run_id
    assert child.data.tags["mlflow.runName"] == "asked-00000"
    expected = {"state": "COMPLETE", "baseline": "true", "host": "node", "device": "cpu"}
    expected |= {"architecture": "two_heads", "git_commit": "unknown", "search": "asked"}
    assert expected.items() <= child.data.tags.items()
    assert child.data.params["alpha"] == "0.5"
    assert not {"tau_sub", "super_lr", "sub_head"} & child.data.params.keys()
    assert child.inputs.dataset_inputs[0].dataset.name == "birds"
    assert (shown.steps(), shown.steps(metric="training/train_loss")) == ([1, 2, 3], [1, 2, 3])
    assert [*child.data.metrics][:3] == ["score", "two_levels/score_calibration",
                                         "training/train_loss"]  # fmt: skip
    best = {k: v for k, v in child.data.metrics.items() if k.startswith("chosen/")}
    assert best == {
        "chosen/epoch": 3, "chosen/score": 0.3, "chosen/seen_sub": 0.25, "chosen/tau_super": 0.5,
        "chosen/interval.score.low": 0.2,
    }  # fmt: skip
    artifacts = shown.client.list_artifacts(child.info.run_id, "best")
    assert {artifact.path for artifact in artifacts} == {
        "best/model.json", "best/model.safetensors", "best/outputs.safetensors",
    }  # fmt: skip


def test_search_is_shown_in_the_experiment_that_it_names(
    uri: str, search_id: str, tmp_path: Path
) -> None:
    client = MlflowClient(uri)
    number = client.create_experiment("by number")
    names: list[dict[str, Any]] = [{"experiment": "by name"}, {"experiment_id": number}]
    for named in names:
        tracker = Tracker(uri, replace(info_of(tmp_path, search_id), **named), Notes())
        tracker.start(DATA, [])
        assert tracker.close("FINISHED", [])
    for name in ("by name", "by number"):
        (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        assert run.data.tags["search_id"] == search_id


def test_repeat_names_the_trial_that_it_repeats(opened: Opener, shown: Shown) -> None:
    tracker = opened()
    tracker.update(trial(0))
    tracker.update(trial(1, repeat_of=0))
    assert tracker.close("KILLED", [])
    assert "repeat_of" not in shown.child(0).data.tags
    assert shown.child(1).data.tags["repeat_of"] == "0"


def test_parent_shows_params_data_and_files(
    uri: str, search_id: str, shown: Shown, tmp_path: Path
) -> None:
    for name in ("space.py", "trials.csv"):
        (tmp_path / name).write_text(name)
    tracker = Tracker(uri, info_of(tmp_path, search_id), Notes())
    tracker.start(DATA, [tmp_path / "space.py"])  # type: ignore[list-item]
    assert shown.parent.info.status == "RUNNING"
    assert tracker.close("FINISHED", [tmp_path / "trials.csv"])  # type: ignore[list-item]
    parent = shown.parent
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"num_trials": "4", "seed": "0"}
    (given,) = parent.inputs.dataset_inputs
    assert given.dataset.name == "birds"
    artifacts = shown.client.list_artifacts(parent.info.run_id)
    assert {artifact.path for artifact in artifacts} == {"space.py", "trials.csv"}


@pytest.mark.parametrize(
    ("state", "status"), [("COMPLETE", "FINISHED"), ("PRUNED", "FINISHED"), ("FAIL", "FAILED")]
)
def test_state_of_a_trial_is_true_in_mlflow(
    opened: Opener, shown: Shown, state: str, status: str
) -> None:
    tracker = opened()
    tracker.update(trial(num_epochs=1, state=state, reason="broken" if state == "FAIL" else ""))
    assert tracker.close("FINISHED", [])
    child = shown.child()
    assert (child.info.status, child.data.tags["state"]) == (status, state)
    assert child.data.tags.get("reason") == ("broken" if state == "FAIL" else None)


def test_trials_that_ran_when_a_search_was_killed_are_killed_and_then_go_on(
    opened: Opener, shown: Shown
) -> None:
    tracker = opened()
    tracker.update(trial(0, 1))
    tracker.update(complete(1))
    assert tracker.close("KILLED", [])
    assert [run.info.status for run in shown.runs("trial")] == ["KILLED", "FINISHED"]
    assert shown.parent.info.status == "KILLED"

    again = opened()
    again.update(trial(0, 1))
    wait_until(lambda: shown.child(0).info.status == "RUNNING")
    assert shown.parent.info.status == "RUNNING"
    again.update(complete(0))
    assert again.close("FINISHED", [])
    assert shown.steps(0) == [1, 2, 3]
    assert [run.info.status for run in shown.runs("trial")] == ["FINISHED", "FINISHED"]


def test_resumed_search_goes_on_in_the_same_runs(opened: Opener, shown: Shown) -> None:
    first = opened()
    first.update(trial(0, 2))
    assert first.close("KILLED", [])
    run_ids = shown.parent.info.run_id, shown.child(0).info.run_id
    second = opened()
    second.update(complete(0))
    second.update(complete(1))
    assert second.close("FINISHED", [])
    assert (shown.parent.info.run_id, shown.child(0).info.run_id) == run_ids
    assert len(shown.runs("trial")) == 2
    assert shown.steps(0) == [1, 2, 3]


def test_search_that_could_not_start_is_not_shown(opened: Opener, shown: Shown) -> None:
    tracker = opened()
    tracker.take_back()
    tracker.close("FAILED", [])
    assert shown.runs("parent") == []


def test_search_that_could_not_be_resumed_is_shown_as_before(opened: Opener, shown: Shown) -> None:
    first = opened()
    assert first.close("KILLED", [])
    second = opened()
    second.take_back()
    assert second.close("FAILED", [])
    assert shown.parent.info.status == "FAILED"


def test_tracker_that_gave_up_sends_nothing_when_the_server_is_back(
    opened: Opener, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume in the same process sends it, and it would arrive twice."""
    notes: list[str] = []
    tracker = opened()
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "_client", None)
        patch.setattr(tracker, "_note", notes.append)
        tracker.update(complete())
        wait_until(lambda: len(notes) > 0)  # it has failed once
        # What is asked to stop while it waits does not wait for the rest of the minute.
        patch.setattr("search.tracking.HURRY_S", 0.2)
        assert not tracker.close("KILLED", [], within_s=DEADLINE_S, is_hurried=lambda: True)
    tracker._thread.join(DEADLINE_S)
    assert not tracker._thread.is_alive()
    assert shown.runs("trial") == []
    assert shown.parent.info.status == "RUNNING"


def test_finished_trial_is_left_alone_by_a_resume(opened: Opener, shown: Shown) -> None:
    first = opened()
    first.update(complete())
    assert first.close("FINISHED", [])
    before = shown.child()
    second = opened()
    second.update(complete())
    assert second.close("FINISHED", [])
    assert shown.steps() == [1, 2, 3]
    assert shown.steps(metric="chosen/score") == [0]
    assert shown.child().info.end_time == before.info.end_time


def test_searches_of_one_name_do_not_mix(
    uri: str, search_id: str, shown: Shown, tmp_path: Path
) -> None:
    for each in (search_id, f"{search_id}-other"):
        tracker = Tracker(uri, info_of(tmp_path, each), Notes())
        tracker.start(DATA, [])
        tracker.update(complete())
        assert tracker.close("FINISHED", [])
    assert len(shown.runs("parent")) == len(shown.runs("trial")) == 1


def test_params_of_a_trial_arrive_after_a_crash_between_its_run_and_its_params(
    opened: Opener, shown: Shown, search_id: str
) -> None:
    first = opened()
    assert first.close("KILLED", [])
    tags = {"search_id": search_id, "level": "trial", "trial": "0"}
    shown.client.create_run(shown.parent.info.experiment_id, tags=tags)
    second = opened()
    second.update(complete())
    assert second.close("FINISHED", [])
    assert shown.child().data.params["alpha"] == "0.5"


def test_params_and_data_of_a_search_arrive_after_a_crash_between_its_run_and_them(
    opened: Opener, shown: Shown, search_id: str, uri: str, tmp_path: Path
) -> None:
    other = Tracker(uri, info_of(tmp_path, f"{search_id}-other"), Notes())
    other.start(DATA, [])  # makes the experiment
    assert other.close("FINISHED", [])
    experiment = shown.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    left = shown.client.create_run(
        experiment.experiment_id, tags={"search_id": search_id, "level": "parent"}
    )
    shown.client.log_batch(left.info.run_id, params=[Param("num_trials", "4")])
    tracker = opened()
    assert tracker.close("FINISHED", [])
    assert shown.parent.info.run_id == left.info.run_id
    assert shown.parent.data.params == {"num_trials": "4", "seed": "0"}
    assert len(shown.parent.inputs.dataset_inputs) == 1


# --- How the search stands -----------------------------------------------------------------------


def best_of_parent(shown: Shown) -> dict[int, float]:
    history = shown.client.get_metric_history(shown.parent.info.run_id, "best/score")
    steps = [each.step for each in history]
    assert len(steps) == len(set(steps))
    return {each.step: each.value for each in history}


def test_parent_shows_how_the_search_stands_and_a_resume_sends_the_rest(
    opened: Opener, shown: Shown
) -> None:
    first = opened()
    for each in (worth(1, 0.5), trial(0, 1), trial(2, 1, state="FAIL", reason="broken")):
        first.update(each)
    assert first.close("KILLED", [])
    assert best_of_parent(shown) == {}  # trial 0 may still be better
    assert shown.parent.data.tags["trials_fail"] == "1"
    second = opened()
    for each in (worth(1, 0.5), worth(0, 0.3), trial(2, 1, state="FAIL"), worth(3, 0.7)):
        second.update(each)
    assert second.close("KILLED", [])
    assert best_of_parent(shown) == {0: 0.3, 1: 0.5, 2: 0.5, 3: 0.7}
    third = opened()
    for each in (worth(1, 0.5), worth(0, 0.3), trial(2, 1, state="FAIL"), worth(3, 0.7)):
        third.update(each)
    third.update(worth(4, 0.6))
    assert third.close("FINISHED", [])
    assert best_of_parent(shown) == {0: 0.3, 1: 0.5, 2: 0.5, 3: 0.7, 4: 0.7}
    tags = shown.parent.data.tags
    assert [tags[f"trials_{state}"] for state in ("complete", "pruned", "fail")] == ["4", "0", "1"]
    assert tags["best_trial"] == "3"
    said = tags["mlflow.note.content"].splitlines()
    assert said[:3] == ["Which?", "", "Trials: 4 complete, 1 fail."]
    assert [line.split(" | ")[:2] for line in said[6:]] == [
        ["| 3", "0.700"], ["| 4", "0.600"], ["| 1", "0.500"], ["| 0", "0.300"],
    ]  # fmt: skip


def test_description_that_a_user_wrote_stays(opened: Opener, shown: Shown) -> None:
    tracker = opened()
    tracker.update(worth(0, 0.3))
    wait_until(lambda: "mlflow.note.content" in shown.parent.data.tags)
    shown.client.set_tag(shown.parent.info.run_id, "mlflow.note.content", "Mine.")
    tracker.update(worth(1, 0.5))
    assert tracker.close("FINISHED", [])
    assert shown.parent.data.tags["mlflow.note.content"] == "Mine."
    assert shown.parent.data.tags["best_trial"] == "1"


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("all", {0, 1, 2}), ("best_1", {1, 2}), ("best_2", {0, 1, 2}), ("none", set())],
)
def test_models_are_kept_of_the_best_as_asked_and_sent_once(
    uri: str, search_id: str, shown: Shown, tmp_path: Path, keep: str, kept: set[int]
) -> None:
    for number in range(4):
        (tmp_path / f"trials/{number:05d}").mkdir(parents=True)
        (tmp_path / f"trials/{number:05d}/model.json").write_text("{}")
    rounds = [[worth(0, 0.4), worth(1, 0.5)], [worth(0, 0.4), worth(1, 0.5), worth(2, 0.6)]]
    for trials in rounds:  # the second resumes the first with another trial
        tracker = Tracker(uri, replace(info_of(tmp_path, search_id), keep_models=keep), Notes())
        tracker.start(DATA, [])
        for each in trials:
            tracker.update(each)
        assert tracker.close("FINISHED", [])
        (tmp_path / "trials/00001/model.json").write_text("not sent again")
    found = {n: shown.client.list_artifacts(shown.child(n).info.run_id, "best") for n in range(3)}
    assert {number for number, files in found.items() if files} == kept
    if 1 in kept:
        text = mlflow.artifacts.load_text(f"{shown.child(1).info.artifact_uri}/best/model.json")
        assert text == "{}"


# --- What a user deleted -------------------------------------------------------------------------


def test_trials_of_a_deleted_parent_go_below_a_new_one(opened: Opener, shown: Shown) -> None:
    first = opened()
    first.update(worth(0, 0.3))
    first.update(trial(1, 1))
    assert first.close("KILLED", [])
    shown.client.delete_run(shown.parent.info.run_id)
    second = opened()
    for each in (worth(0, 0.3), worth(1, 0.4)):
        second.update(each)
    assert second.close("FINISHED", [])
    assert len(shown.runs("trial")) == 2
    for child in shown.runs("trial"):
        assert child.data.tags["mlflow.parentRunId"] == shown.parent.info.run_id
    assert best_of_parent(shown) == {0: 0.3, 1: 0.4}
    assert shown.parent.data.params == {"num_trials": "4", "seed": "0"}
    assert len(shown.parent.inputs.dataset_inputs) == 1


def test_run_that_a_user_deleted_stays_deleted(opened: Opener, shown: Shown) -> None:
    first = opened()
    first.update(worth(0, 0.3))
    first.update(trial(1, 1))
    assert first.close("KILLED", [])
    for number in (0, 1):
        shown.client.delete_run(shown.child(number).info.run_id)
    second = opened()
    for each in (worth(0, 0.3), worth(1, 0.4), worth(2, 0.5)):
        second.update(each)
    assert second.close("FINISHED", [])
    assert [run.data.tags["trial"] for run in shown.runs("trial")] == ["2"]


def test_what_is_deleted_while_the_search_runs_holds_up_nothing(
    opened: Opener, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RETRY_S", (0.01,))
    tracker = opened()
    tracker.update(trial(0, 1))
    tracker.update(worth(1, 0.3))
    wait_until(shown.has_steps(1))
    wait_until(lambda: shown.parent.data.tags.get("best_trial") == "1")
    shown.client.delete_run(shown.child(0).info.run_id)
    shown.client.delete_run(shown.parent.info.run_id)
    tracker.update(worth(0, 0.2))
    tracker.update(worth(2, 0.4))
    assert tracker.close("FINISHED", [], within_s=DEADLINE_S)
    assert [run.data.tags["trial"] for run in shown.runs("trial")] == ["1", "2"]
    for child in shown.runs("trial"):
        assert child.data.tags["mlflow.parentRunId"] == shown.parent.info.run_id
    assert best_of_parent(shown) == {0: 0.2, 1: 0.3, 2: 0.4}


# --- A server ------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """An MLflow server that can be stopped and started again on what it kept."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._process: Command | None = None
        self._said = ""

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._process = Command(
            self._folder, "-m", "mlflow", "server",
            "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}",
            "--artifacts-destination", str(self._folder / "artifacts"),
            "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1",
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        )  # fmt: skip
        self._process.wait_for(self._is_up)

    def stop(self) -> None:
        """Kill it with all its processes."""
        if self._process is not None:
            self._said = self.log()
            self._process.clean_up()
            self._process = None
            wait_until(lambda: not self._is_up())

    def _is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def log(self) -> str:
        """Return what it has said, before it was stopped too."""
        return self._said + (str(self._process.done()) if self._process is not None else "")


@pytest.fixture
def server(
    tmp_path: Path, make_mlflow: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A running server, which may be slow."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    make_mlflow(tmp_path)
    server = Server(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_server_that_cannot_be_reached_at_the_start_is_an_error_soon(
    tmp_path: Path,
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    tracker = Tracker(uri, info_of(tmp_path), Notes())
    start_s = time.monotonic()
    with pytest.raises(TrackingError) as raised:
        tracker.start(DATA, [])
    assert time.monotonic() - start_s < 100  # MLflow's own seven tries take four minutes
    message = str(raised.value)
    assert message.startswith(f"MLflow at {uri}: ")
    assert message.endswith(". So start the server, or pass another --tracking-uri")
    assert "\n" not in message
    assert not tracker.close("KILLED", [])


@pytest.mark.slow
def test_what_happens_during_an_outage_arrives_after_it(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "RETRY_S", (0.5,))
    (tmp_path / "trials/00000").mkdir(parents=True)
    (tmp_path / "trials/00000/model.json").write_text("{}")
    notes, shown = Notes(), Shown(server.uri)
    tracker = Tracker(server.uri.replace("//", "//me:PLUGH@"), info_of(tmp_path), notes)
    tracker.start(DATA, [])
    tracker.update(trial(0, 1))
    wait_until(shown.has_steps(1))

    server.stop()
    tracker.update(trial(0, 2))  # the search does not wait for the server, which starts below
    tracker.update(trial(1, 1))
    wait_until(lambda: len(notes) > 0)
    tracker.update(complete(0))
    tracker.update(trial(2))
    for count in range(4):
        tracker.update(trial(3, count))
    tracker.update(replace(complete(3), host="another node"))

    server.start()
    wait_until(shown.has_steps(3))
    tracker.update(complete(1))
    tracker.update(trial(2, 3, state="PRUNED"))
    assert tracker.close("FINISHED", [], within_s=DEADLINE_S)
    assert [run.data.tags["trial"] for run in shown.runs("trial")] == ["0", "1", "2", "3"]
    for number in range(4):
        assert shown.steps(number) == shown.steps(number, "training/train_loss") == [1, 2, 3]
        assert shown.child(number).data.params["alpha"] == "0.5"
    assert shown.steps(0, "chosen/score") == [0]
    assert [run.data.tags["state"] for run in shown.runs("trial")] == [
        "COMPLETE", "COMPLETE", "PRUNED", "COMPLETE",
    ]  # fmt: skip
    assert shown.child(3).data.tags["host"] == "another node", "the newest is what arrives"
    artifacts = shown.client.list_artifacts(shown.child(0).info.run_id, "best")
    assert [artifact.path for artifact in artifacts] == ["best/model.json"]
    assert shown.parent.info.status == "FINISHED"
    assert all("MLflow took nothing" in note for note in notes)
    assert "View run" not in capfd.readouterr().out
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if b"PLUGH" in file.read_bytes()]
    assert not [note for note in notes if "PLUGH" in note]
    assert "PLUGH" not in server.log()


DRIVER = """
import sys, time
from pathlib import Path
from tests.search.test_tracking import DATA, Notes, Tracker, complete, info_of, trial
tracker = Tracker(sys.argv[1], info_of(Path(sys.argv[2])), Notes())
tracker.start(DATA, [])
tracker.update(trial(0, 1))
sys.stdin.readline()
tracker.update(complete(0))
tracker.update(complete(1))
start_s = time.monotonic()
print(tracker.close("KILLED", [], within_s=3), time.monotonic() - start_s)
"""


@pytest.mark.slow
def test_what_an_outage_kept_back_is_sent_by_the_resume(server: Server, tmp_path: Path) -> None:
    shown = Shown(server.uri)
    # In a process of its own, which ends as a driver does: with its tracker.
    with Command(ROOT, "-c", DRIVER, server.uri, str(tmp_path)) as driver:
        driver.wait_for(shown.has_steps(1))
        run_ids = shown.parent.info.run_id, shown.child(0).info.run_id
        server.stop()
        driver.tell("go on")
        done = driver.ended()
    assert done.code == 0, done
    is_sent, took_s = done.out.split()
    assert is_sent == "False"
    assert 3 <= float(took_s) < DEADLINE_S

    server.start()
    notes = Notes()
    tracker = Tracker(server.uri, info_of(tmp_path), notes)
    tracker.start(DATA, [])
    for number in range(2):
        tracker.update(complete(number))
    assert tracker.close("FINISHED", [], within_s=DEADLINE_S)
    assert (shown.parent.info.run_id, shown.child(0).info.run_id) == run_ids
    assert len(shown.runs("trial")) == 2
    for number in range(2):
        assert shown.steps(number) == [1, 2, 3]
        assert shown.child(number).info.status == "FINISHED"
    assert shown.parent.info.status == "FINISHED"
    assert notes == []
