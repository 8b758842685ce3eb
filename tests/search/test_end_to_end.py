"""Searches as people run them: real commands, real Ray, real signals, and what is left behind."""

import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from upath import UPath

from results.history import trials_frame
from results.naming import acting_together
from results.predict import main as predict
from results.record import load_record
from results.report.__main__ import main as report
from search.interrupts import ANSWER
from tests.commands import Command, Done, run
from tests.held import HeldSearch, held_search
from trainable.classifier import load_outputs
from trainable.config import TrialConfig
from trainable.novelty.rule import Rule
from trainable.novelty.thresholds import choose_rule
from trainable.out_of_fold import SUBCLASS_SHARES, TENTHS

pytestmark = pytest.mark.slow

SPACE = '''"""Does a tiny search run?"""
NUM_TRIALS = 4
EPOCHS = 2
COMMON = {"fine_tune": "frozen", "image_size": 32, "feature_views": 1, "novel_images": 16}
BASELINES = [{**COMMON, "architecture": "two_models", "lr": 1e-2}]

def space(trial):
    architecture = trial.suggest_categorical("architecture", ["two_heads", "two_models"])
    return {**COMMON, "architecture": architecture,
            "lr": trial.suggest_float("lr", 1e-3, 1e-1, log=True)}
'''


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def arguments(data: Path, cache: Path) -> list[str]:
    """What every new search is given."""
    pool = data / "novel_images"
    return [
        "-m", "search.run", "--space", "tiny.py", "--data", str(data), "--novel", str(pool),
        "--cache", str(cache),
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, make_mlflow: Callable[[Path], Path]) -> Path:
    """Where a search is started: `runs/` comes to lie in it, `mlflow.db` is there and empty."""
    make_mlflow(tmp_path)
    (tmp_path / "tiny.py").write_text(SPACE)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Command]]:
    """Start commands that are killed at the end of the test, whatever happens."""
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        started.append(Command(folder, *arguments))
        return started[-1]

    yield start
    for command in started:
        command.clean_up()


# --- What MLflow and the study hold --------------------------------------------------------------


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(folder: Path, level: str) -> list[Run]:
    """Return the runs of a level, by trial number."""
    client = client_of(folder)
    experiment = client.get_experiment_by_name("noveltune")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.level = '{level}'")
    return sorted(found, key=lambda each: int(each.data.tags.get("trial", 0)))


def trials_of(folder: Path, name: str) -> pd.DataFrame:
    run_folder = folder / "runs" / name
    return trials_frame(UPath(run_folder), load_record(UPath(run_folder)))


def steps_of(folder: Path, child: Run, metric: str) -> list[int]:
    history = client_of(folder).get_metric_history(child.info.run_id, metric)
    return [each.step for each in history]


def assert_mlflow_mirrors_the_study(folder: Path, name: str, num_trials: int) -> None:
    """Check one ended run for each trial, with each of its epochs once."""
    trials = trials_of(folder, name)
    assert [*trials["number"]] == [*range(num_trials)]
    assert {*trials["state"]} <= {"COMPLETE", "PRUNED"}
    (parent,) = runs_of(folder, "parent")
    assert parent.info.status == "FINISHED"
    children = runs_of(folder, "trial")
    assert [child.data.tags["trial"] for child in children] == [*map(str, range(num_trials))]
    for child, (_, trial) in zip(children, trials.iterrows(), strict=True):
        assert child.info.status == "FINISHED"
        assert child.data.tags["state"] == trial["state"]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        expected = [*range(1, trial["epochs_trained"] + 1)]
        assert steps_of(folder, child, "score") == expected
        assert steps_of(folder, child, "training/train_loss") == expected
        if trial["state"] == "COMPLETE":
            assert trial["epochs_trained"] == trial["epochs"]


# --- A search that nothing disturbs --------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A search that ran to its end."""

    folder: Path
    done: Done

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads(self.done.last_line)
        return summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, cache: Path) -> Finished:
    """The search of `SPACE`, its sources given relative to the folder it was started in."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.py").write_text(SPACE)
    source = os.path.relpath(data, folder)
    done = run(
        folder, "-m", "search.run", "--space", "tiny.py", "--json", "--data", source,
        "--novel", f"{source}/novel_images", "--cache", os.path.relpath(cache, folder),
    )  # fmt: skip
    assert done.code == 0, done
    return Finished(folder, done)


def test_search_ends_with_one_json_object(finished: Finished) -> None:
    summary = finished.summary
    assert summary["name"] == "tiny"
    assert sum(summary["trials"].values()) == 4
    assert set(summary["trials"]) <= {"COMPLETE", "PRUNED"}
    best = summary["best_trial"]
    assert TrialConfig.from_dict(best["config"]).epochs == 2
    assert 0 <= best["metrics"]["score"] <= 1
    assert summary["wall_s"] > 0
    for key in ("run", "trials"):
        assert (finished.folder / summary["paths"][key]).exists()
    assert summary["paths"]["tracking_uri"] == f"sqlite:///{finished.folder / 'mlflow.db'}"


def test_search_names_its_best_trial(finished: Finished) -> None:
    trials = trials_of(finished.folder, "tiny")
    complete = trials[trials["state"] == "COMPLETE"]
    best = complete.loc[complete["score"].idxmax()]
    assert finished.summary["best_trial"]["number"] == best["number"]
    assert finished.summary["best_trial"]["metrics"]["score"] == best["score"]


def test_search_says_what_comes_next(finished: Finished) -> None:
    for line in (
        "  python -m results.report --name tiny",
        "  python -m search.refit --name tiny",
        "  mlflow ui",
    ):
        assert line in finished.done.out.splitlines()


def test_search_prints_a_line_for_every_trial_and_nothing_of_its_tools(finished: Finished) -> None:
    lines = re.findall(r"^trial (\d{5})  (?:COMPLETE|PRUNED)", finished.done.out, re.MULTILINE)
    assert sorted(lines) == ["00000", "00001", "00002", "00003"]
    assert finished.done.err == ""
    assert not re.search(r"\bray\b|optuna|\btune\b|warning", finished.done.out, re.IGNORECASE)


def test_trials_table_has_a_row_for_every_trial(finished: Finished) -> None:
    table = pd.read_csv(finished.folder / "runs/tiny/trials.csv")
    assert [*table["number"]] == [0, 1, 2, 3]
    assert [*table["baseline"]] == [True, False, False, False]
    assert {*table["state"]} <= {"COMPLETE", "PRUNED"}
    assert table.loc[0, "state"] == "COMPLETE"
    complete = table[table["state"] == "COMPLETE"]
    assert {*complete["epochs_trained"]} == {2}
    assert complete["score"].between(0, 1).all()


def test_folder_of_a_search_holds_what_a_resume_needs_and_no_more(finished: Finished) -> None:
    run_folder = finished.folder / "runs/tiny"
    assert {path.name for path in run_folder.iterdir()} == {
        "driver.lock", "report", "search.json", "search.log", "space.py", "study.db", "trials",
        "trials.csv",
    }  # fmt: skip
    assert (run_folder / "space.py").read_text() == SPACE
    for _, trial in trials_of(finished.folder, "tiny").iterrows():
        folder = run_folder / "trials" / f"{trial['number']:05d}"
        assert {path.name for path in folder.iterdir()} == files_of(trial["state"])


def files_of(state: str) -> set[str]:
    """Return what a trial leaves: only one that ran to its end has the table of choices."""
    files = {"model.json", "model.safetensors", "outputs.safetensors"}
    return files | {"scores.csv"} if state == "COMPLETE" else files


def test_mlflow_holds_every_epoch_of_every_trial_once(finished: Finished) -> None:
    assert_mlflow_mirrors_the_study(finished.folder, "tiny", 4)
    for child in runs_of(finished.folder, "trial"):
        if child.data.tags["state"] == "COMPLETE":
            assert steps_of(finished.folder, child, "score") == [1, 2]


def test_mlflow_runs_of_trials_show_params_tags_and_best_metrics(finished: Finished) -> None:
    trials = trials_of(finished.folder, "tiny")
    children = runs_of(finished.folder, "trial")
    for child, (_, trial) in zip(children, trials.iterrows(), strict=True):
        tags = child.data.tags
        assert tags["mlflow.runName"] == f"tiny-{trial['number']:05d}"
        assert tags["architecture"] == trial["architecture"]
        assert tags["baseline"] == str(trial["baseline"]).lower()
        assert (tags["host"], tags["device"]) == (os.uname().nodename, trial["device"])
        assert re.fullmatch(r"[0-9a-f]{40}|unknown", tags["git_commit"])
        shown = acting_together(trial["config"])
        assert child.data.params == {key: str(value) for key, value in shown.items()}
        for metric in ("score", "seen_sub", "unseen_sub", "auroc_super"):
            assert child.data.metrics[f"chosen/{metric}"] == pytest.approx(trial[metric])
        assert child.data.metrics["chosen/epoch"] == trial["best_epoch"]


def test_mlflow_runs_of_trials_hold_the_best_model(finished: Finished) -> None:
    client = client_of(finished.folder)
    trials = trials_of(finished.folder, "tiny")
    complete = trials[trials["state"] == "COMPLETE"].sort_values(
        ["score", "number"], ascending=[False, True]
    )
    kept = {str(number) for number in complete["number"][:3]}
    for child in runs_of(finished.folder, "trial"):
        artifacts = {item.path for item in client.list_artifacts(child.info.run_id, "best")}
        files = files_of("COMPLETE") if child.data.tags["trial"] in kept else set()
        assert artifacts == {f"best/{name}" for name in files}


def test_mlflow_parent_holds_the_question_the_data_and_the_table(finished: Finished) -> None:
    (parent,) = runs_of(finished.folder, "parent")
    client = client_of(finished.folder)
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"report", "search.json", "space.py", "trials.csv"}
    shown = {item.path for item in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/index.html", "report/history.png"} <= shown
    (given,) = parent.inputs.dataset_inputs
    assert given.dataset.name == "tiny"
    assert json.loads(str(given.dataset.profile)) == {"known": 96, "all": 144}
    assert parent.data.params["num_trials"] == "4"
    assert parent.data.params["metric"] == "score"
    assert parent.data.tags["mlflow.runName"] == "tiny"
    number = finished.summary["best_trial"]["number"]
    assert parent.data.tags["best_trial"] == str(number)
    question, _, rest = parent.data.tags["mlflow.note.content"].partition("\n")
    assert f": {question}\n" in finished.done.out
    assert f"\n| {number} | " in rest


# --- What a search is for ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(finished: Finished) -> str:
    """The URI of the model that a refit of the best trial registered."""
    done = run(finished.folder, "-m", "search.refit", "--name", "tiny")
    assert done.code == 0, done
    number = finished.summary["best_trial"]["number"]
    assert f"refit of trial {number:05d}: " in done.out
    assert (finished.folder / f"runs/tiny/refit/{number:05d}/model.json").exists()
    assert "registered models:/tiny/1\n" in done.out
    return "models:/tiny/1"


def assert_answers(table: pd.DataFrame, data: Path) -> None:
    """Check a row for every test image, by number, with classes that there are."""
    assert [*table.columns] == ["image", "superclass_index", "subclass_index"]
    count = len([*(data / "test_images").iterdir()])
    assert [*table["image"]] == [f"{number}.png" for number in range(count)]
    assert table["superclass_index"].between(0, 3).all()
    assert table["subclass_index"].between(0, 24).all()


def test_run_folder_predicts_the_test_images_in_order(
    finished: Finished, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.folder)
    out = tmp_path / "predicted.csv"
    assert predict(["--model", "runs/tiny", "--images", str(data), "--out", str(out)]) == 0
    assert_answers(pd.read_csv(out), data)


def test_registered_model_answers_by_command(
    finished: Finished, registered: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "predicted.csv"
    images = ["--images", str(data), "--out", str(out)]
    done = run(finished.folder, "-m", "results.predict", "--model", registered, *images)
    assert done.code == 0, done
    assert "wrote " in done.out
    assert_answers(pd.read_csv(out), data)


def refit_rule(trial: UPath, config: TrialConfig) -> Rule:
    """The rule that all of a trial's outputs choose."""
    return choose_rule(load_outputs(trial), config)


def test_refit_knows_every_subclass(finished: Finished, registered: str) -> None:
    number = finished.summary["best_trial"]["number"]
    info = json.loads((finished.folder / f"runs/tiny/refit/{number:05d}/model.json").read_text())
    trial = json.loads((finished.folder / f"runs/tiny/trials/{number:05d}/model.json").read_text())
    assert len(info["subclass_of_output"]) == 24
    assert len(trial["subclass_of_output"]) < 24
    folder = UPath(finished.folder / f"runs/tiny/trials/{number:05d}")
    config = TrialConfig.from_dict(trial["config"])
    rule = refit_rule(folder, config)
    assert info["rule"]["sub_score"] == rule.sub_score


def test_report_writes_its_pictures(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.folder)
    assert report(["--name", "tiny"]) == 0
    out = capsys.readouterr().out
    for name in ("history.png", "tradeoff.png"):
        with Image.open(finished.folder / "runs/tiny/report" / name) as image:
            image.load()
    assert "Best: trial" in out
    assert "has this page already" in out, "the search drew the same, and it is sent once"


def state_of_mlflow(folder: Path) -> list[dict[str, Any]]:
    """Return what a resume of a finished search must leave alone."""
    client = client_of(folder)
    return [
        {
            "trial": child.data.tags["trial"],
            "status": child.info.status,
            "end": child.info.end_time,
            "history": {
                name: [
                    (each.step, each.value)
                    for each in client.get_metric_history(child.info.run_id, name)
                ]
                for name in sorted(child.data.metrics)
            },
        }
        for child in runs_of(folder, "trial")
    ]


def test_resume_of_a_finished_search_runs_and_changes_nothing(
    finished: Finished, tmp_path: Path
) -> None:
    run_folder = finished.folder / "runs/tiny"
    files = {path: path.stat().st_mtime_ns for path in (run_folder / "trials").rglob("*")}
    before = state_of_mlflow(finished.folder)
    # From another folder: what was given by relative paths must still be found.
    storage = str(finished.folder / "runs")
    done = run(
        tmp_path, "-m", "search.run", "--resume", "--name", "tiny", "--storage", storage, "--json"
    )
    assert done.code == 0, done
    assert "4 of 4 trials are finished already\n" in done.out
    assert "nothing was left to do: all that was asked for has ended\n" in done.out
    summary = json.loads(done.last_line)
    assert summary["trials"] == finished.summary["trials"]
    assert summary["best_trial"] == finished.summary["best_trial"]
    now = {path: path.stat().st_mtime_ns for path in (run_folder / "trials").rglob("*")}
    assert now == files
    assert not (tmp_path / "mlflow.db").exists()
    assert len(runs_of(finished.folder, "parent")) == 1
    assert state_of_mlflow(finished.folder) == before


# --- Searches that are disturbed -----------------------------------------------------------------

AGAIN = "python -m search.run --resume --name tiny"
RESUME = shlex.split(AGAIN)[1:]
ONE_AT_A_TIME = ["--concurrency", "1"]
ONE_AGAIN = f"{AGAIN} --concurrency 1"


def test_search_stopped_in_every_way_refuses_another_driver_and_is_finished_by_what_it_says(
    folder: Path, arguments: list[str], start: Callable[..., Command]
) -> None:
    """Its trials stand still whenever it is stopped, so that no step here is a race with them."""
    held = held_search(folder, trials=3, epochs=7, name="tiny.py")
    held.hold_them()
    search = start(*arguments, *ONE_AT_A_TIME)
    search.wait_for(held.one_stands)
    assert_another_driver_is_refused(folder)
    stopped_by_two_interrupts(folder, search)

    held.hold_them()
    code, text = interrupted_on_a_terminal(folder, held, *RESUME)
    assert code == 130, text
    assert text.startswith("tiny: loading what a search needs\r\n")
    assert "MLflow: mlflow ui" in text
    assert "stopping after this step; again stops now" in text
    assert "interrupted, a resume goes on with them: 0000" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0, "the cursor is there again"
    assert "\x1b" not in (folder / "runs/tiny/search.log").read_text()
    assert text.splitlines()[-1] == AGAIN
    assert_killed(folder, text)

    held.hold_them()
    stopped_by_sigterm(folder, held, start(*RESUME, *ONE_AT_A_TIME, "--json", "--quiet"))

    resume = [*RESUME, *ONE_AT_A_TIME]
    over = run(folder, *resume, "--time-budget", "1s")  # over before the first of them goes on
    assert (over.code, over.last_line) == (130, ONE_AGAIN), over
    assert re.search(r"^tiny: \d+ trials? \(.*\d interrupted.*\)$", over.out, re.MULTILINE)
    assert re.search(r"^interrupted, a resume goes on with them: \d{5} \(", over.out, re.MULTILINE)
    done = run(folder, *resume)
    assert done.code == 0, done
    assert_mlflow_mirrors_the_study(folder, "tiny", 3)
    assert {*trials_of(folder, "tiny")["epochs"]} == {7}
    assert not (folder / "runs/tiny/.tune").exists()


def assert_another_driver_is_refused(folder: Path) -> None:
    record = folder / "runs/tiny/search.json"
    before = record.read_bytes()
    second = run(folder, *RESUME)
    assert second.code == 2
    assert second.err == "error: runs/tiny: another driver is running this search\n"
    assert record.read_bytes() == before


def stopped_by_two_interrupts(folder: Path, search: Command) -> None:
    """Check that the second one stops it as a kill does."""
    search.process.send_signal(signal.SIGINT)
    search.wait_for(lambda: ANSWER in search.done().out)
    search.process.send_signal(signal.SIGINT)
    done = search.ended()
    assert done.code == 130, done
    assert done.last_line == ONE_AGAIN
    (parent,) = runs_of(folder, "parent")
    assert parent.info.status == "RUNNING", "it took the time to say how it ended"


def stopped_by_sigterm(folder: Path, held: HeldSearch, search: Command) -> None:
    """Check what one that is told by SIGTERM, as a batch system sends it, leaves and says."""
    log = folder / "runs/tiny/search.log"
    answers = log.read_text().count(ANSWER)
    search.wait_for(held.one_stands)
    search.process.terminate()
    search.wait_for(lambda: log.read_text().count(ANSWER) > answers)
    held.hold.unlink()
    done = search.ended()
    assert done.code == 130, done
    (line,) = done.out.splitlines()
    assert json.loads(line)["name"] == "tiny"
    assert done.err.splitlines()[-1] == ONE_AGAIN
    assert "Traceback" not in done.err
    assert (folder / "runs/tiny/trials.csv").exists()
    assert_killed(folder, done.err)


def interrupted_on_a_terminal(folder: Path, held: HeldSearch, *arguments: str) -> tuple[int, str]:
    """Type Ctrl-C at a search once a trial stands still, which then goes on; return its exit code
    and output.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    search = Command(folder, *arguments, terminal=slave, TERM="xterm", COLUMNS="80", LINES="24")
    os.close(slave)
    said, is_asked = b"", False
    try:
        while chunk := _read(master):
            said += chunk
            if not is_asked and b" running" in said and held.one_stands():
                is_asked = bool(os.write(master, b"\x03"))  # as the key does
            if ANSWER.encode() in said:
                held.hold.unlink(missing_ok=True)
        return search.ended().code, said.decode()
    finally:
        search.clean_up()
        os.close(master)


def assert_killed(folder: Path, said: str) -> None:
    """Check what MLflow shows, unless it was too slow to be told within seconds."""
    if "MLflow has not got everything yet" in " ".join(said.split()):  # a terminal breaks lines
        return
    (parent,) = runs_of(folder, "parent")
    assert parent.info.status == "KILLED"
    assert "RUNNING" not in {each.info.status for each in runs_of(folder, "trial")}


def _read(terminal: int) -> bytes:
    """Return what was written to a terminal; nothing once nobody holds it any more."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_resume_takes_more_trials_and_a_space_with_a_new_choice_and_a_wider_range(
    folder: Path, finished: Finished
) -> None:
    shutil.copytree(finished.folder / "runs", folder / "runs")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    before = pd.read_csv(folder / "runs/tiny/trials.csv")
    wider = SPACE.replace("1e-3, 1e-1", "1e-4, 1.0").replace(
        '"lr": trial',
        '"head": trial.suggest_categorical("head", ["linear", "cosine"]), "lr": trial',
    )
    wider = wider.replace('["two_heads", "two_models"])', '["two_models"])')
    (folder / "wider.py").write_text(wider)
    done = run(
        folder, "-m", "search.run", "--resume", "--name", "tiny", "--space", "wider.py",
        "--trials", "6", "--epochs", "3", "--concurrency", "1", "--json", "--tracking-uri", uri,
    )  # fmt: skip
    assert done.code == 0, done
    assert sum(json.loads(done.last_line)["trials"].values()) == 6
    after = pd.read_csv(folder / "runs/tiny/trials.csv")
    same = ["number", "state", "architecture", "lr", "epochs", "score"]
    pd.testing.assert_frame_equal(after[same][:4], before[same])
    assert {*after["epochs"][4:]} == {3}
    assert {*after["architecture"][4:]} == {"two_models"}


def test_search_without_a_cache_or_a_trial_that_succeeds_exits_1_and_says_why_and_can_be_retried(
    folder: Path, arguments: list[str]
) -> None:
    (folder / "temporary").mkdir()
    own = {"XDG_CACHE_HOME": str(folder / "unused"), "TMPDIR": str(folder / "temporary")}
    (folder / "runs/tiny").mkdir(parents=True)
    (folder / "runs/tiny/trials").write_text("where the trials' folders should be")
    asked = [*arguments[: arguments.index("--cache")], "--no-cache", "--name", "tiny"]
    few = ["--trials", "2", "--epochs", "1", *ONE_AT_A_TIME, "--json"]
    done = run(folder, *asked, *few, **own)
    assert done.code == 1, done
    summary = json.loads(done.last_line)
    assert (summary["trials"], summary["best_trial"]) == ({"FAIL": 2}, None)
    assert "No trial has finished, so there is no result.\n" in done.out
    assert re.search(r"^1 failed: \w+Error: .*trials", done.out, re.MULTILINE)
    assert [child.info.status for child in runs_of(folder, "trial")] == ["FAILED", "FAILED"]

    (folder / "runs/tiny/trials").unlink()
    done = run(folder, *RESUME, "--retry-failed", *ONE_AT_A_TIME, "--json", **own)
    assert done.code == 0, done
    assert load_record(UPath(folder / "runs/tiny")).cache is None
    assert not (folder / "unused" / "noveltune").exists()
    assert [*(folder / "temporary").glob("noveltune-*")] == []
    summary = json.loads(done.last_line)
    assert sum(summary["trials"].values()) == 2
    assert {*summary["trials"]} <= {"COMPLETE", "PRUNED"}
    assert summary["ran_again"] == 2
    assert re.search(r"^tiny: 2 trials \(.*\); 2 more failed and ran again$", done.out, re.M)
    tags = [child.data.tags.get("retry_of") for child in runs_of(folder, "trial")]
    assert tags == [None, None, "0", "1"]


# --- Called by other programs --------------------------------------------------------------------

IN_A_THREAD = """
import sys, threading
from search.run import main
codes = []
thread = threading.Thread(target=lambda: codes.append(main(sys.argv[1:])))
thread.start()
thread.join()
sys.exit(codes[0] if codes else "the search raised")
"""


def test_search_in_a_thread_with_a_long_temporary_folder_and_mlflow_elsewhere(
    folder: Path, arguments: list[str]
) -> None:
    (folder / "mlflow.db").rename(folder / "elsewhere.db")
    uri = f"sqlite:///{folder / 'elsewhere.db'}"
    temporary = folder / ("t" * 60)
    temporary.mkdir()
    few = [*arguments[2:], "--trials", "1", "--epochs", "1", "--tracking-uri", uri]
    done = run(folder, "-c", IN_A_THREAD, *few, TMPDIR=str(temporary), RAY_TMPDIR="")
    assert done.code == 0, done
    assert done.err == ""
    line = f"Ray's sockets are in /tmp: their names would be too long in {temporary}"
    assert done.out.count(line) == 1
    assert f"  mlflow ui --backend-store-uri {uri}" in done.out.splitlines()
    assert not (folder / "mlflow.db").exists()
    done = run(folder, "-m", "search.refit", "--name", "tiny")
    assert done.code == 0, done
    assert len(mlflow.MlflowClient(tracking_uri=uri).search_registered_models()) == 1
    assert not (folder / "mlflow.db").exists()


# --- Repeats -------------------------------------------------------------------------------------


def test_repeats_killed_in_the_middle_are_resumed_and_the_best_mean_is_refitted(
    folder: Path, arguments: list[str], start: Callable[..., Command]
) -> None:
    held = held_search(folder, trials=3, epochs=2, name="tiny.py", fine_tune="frozen")
    assert run(folder, *arguments, *ONE_AT_A_TIME).code == 0
    before = trials_of(folder, "tiny")
    assert [*before["state"]] == ["COMPLETE"] * 3

    resume = [*RESUME, *ONE_AT_A_TIME]
    held.hold_them()
    repeats = start(*resume, "--repeat", "3", "--top", "2")
    repeats.wait_for(held.one_stands)
    repeats.process.kill()
    repeats.ended()
    held.hold.unlink()
    planned = load_record(UPath(folder / "runs/tiny")).repeats
    assert len(planned) == 4
    assert {*trials_of(folder, "tiny")["state"][3:]} == {"RUNNING"}

    done = run(folder, *resume, "--repeat", "3", "--top", "all", "--json")
    assert done.code == 0, done
    assert "Best by mean over 3 seeds: trial " in done.out
    assert load_record(UPath(folder / "runs/tiny")).repeats[:4] == planned
    assert_mlflow_mirrors_the_study(folder, "tiny", 9)
    after = trials_of(folder, "tiny")
    pd.testing.assert_frame_equal(after[:3], before)
    assert {*after["state"]} == {"COMPLETE"}
    best_two = [*before.sort_values(["score", "number"], ascending=[False, True])["number"][:2]]
    third = ({0, 1, 2} - {*best_two}).pop()
    asked = [(number, seed) for seed in (1, 2) for number in best_two]
    asked += [(third, seed) for seed in (1, 2)]
    assert [*zip(after["repeat_of"][3:], after["seed"][3:], strict=True)] == asked
    tags = [child.data.tags.get("repeat_of") for child in runs_of(folder, "trial")]
    assert tags == [None] * 3 + [str(number) for number, _ in asked]

    means = after.groupby("lr")["score"].mean()
    best = int(before.loc[before["lr"] == means.idxmax(), "number"].iloc[0])
    assert json.loads(done.last_line)["best_trial"]["number"] == best
    table = pd.read_csv(folder / "runs/tiny/repeats.csv")
    scores = table[table["metric"] == "score"]
    assert [*scores["mean"]] == pytest.approx(sorted(means, reverse=True))

    done = run(folder, "-m", "search.refit", "--name", "tiny")
    assert done.code == 0, done
    assert f"refit of trial {best:05d}: " in done.out
    assert "the best mean over 3 seeds; their median thresholds\n" in done.out
    # Of a frozen branch the medians reject other shares in the refit, so they are found anew.
    num = len(TENTHS) * 3 + SUBCLASS_SHARES
    assert f"thresholds: by {num} further heads" in done.out
    info = json.loads((folder / f"runs/tiny/refit/{best:05d}/model.json").read_text())
    assert len({*info["rule"]["tau_sub"]}) == 1
