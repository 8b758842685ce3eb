"""What released versions left is opened, listed, reported, refitted and predicted with for ever.

`tests/assets/v0_1` was written by version 0.1.0: three trials on the built-in data of which the
second failed, a repeat of the first, and a fourth that was interrupted before its first epoch.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from upath import UPath

from results.evaluate import main as evaluate
from results.history import trials_frame
from results.predict import main as predict
from results.ranking import best_trial
from results.record import load_record, run_folder, trial_folder
from results.report.__main__ import write_report
from results.report.material import Search
from results.report.tables import print_tables
from search.refit import main as refit
from search.run import main as run
from trainable.classifier import Classifier, load_outputs, load_rule
from trainable.data import synthetic
from trainable.novelty.thresholds import choose_rule
from trainable.schema import SCHEMA

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture
def v0_1(tmp_path: Path) -> UPath:
    """A copy, which may be written to, of the search that version 0.1.0 left."""
    shutil.copytree(ASSETS / "v0_1", tmp_path / "runs" / "v0_1")
    return run_folder("v0_1", UPath(tmp_path / "runs"))


def test_trials_of_version_0_1_are_listed_with_their_states_and_results(v0_1: UPath) -> None:
    record = load_record(v0_1)
    trials = trials_frame(v0_1, record)
    assert record.version == "0.1.0"
    assert trials["state"].tolist() == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE", "RUNNING"]
    assert trials["epochs_trained"].tolist() == [2, 0, 1, 2, 0]
    assert trials["repeat_of"].fillna(-1).tolist() == [-1, -1, -1, 0, -1]
    assert trials["left_out"].tolist() == ["none"] * 5, "that version left no superclass out"
    assert [config.left_out for config in trials["config"]] == ["none"] * 5
    assert trials["score"][0] == pytest.approx(0.297278, abs=1e-6)
    assert trials["score"][3] == pytest.approx(0.396776, abs=1e-6)
    assert "FileExistsError" in trials["reason"][1]
    best = best_trial(trials, record.metrics)
    assert best is not None
    assert best["number"] == 0


def test_a_search_of_version_0_1_is_reported(v0_1: UPath) -> None:
    record = load_record(v0_1)
    trials = trials_frame(v0_1, record)
    console = Console(width=200, record=True, quiet=False)
    print_tables(console, trials, record)
    text = console.export_text()
    assert "2 COMPLETE, 1 FAIL, 1 PRUNED, 1 RUNNING" in text
    assert "0.297 to 0.397" in text
    files = write_report([Search(v0_1, record)])
    assert {file.name for file in files} >= {"trials.csv", "repeats.csv"}
    assert all(file.exists() for file in files)


def test_a_trial_of_version_0_1_answers_by_the_rule_that_it_saved(v0_1: UPath) -> None:
    folder = trial_folder(v0_1, 0)
    classifier = Classifier.load(folder)
    assert load_rule(folder) == classifier.rule
    images = torch.randint(256, (3, 40, 40, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    answers = classifier.predict(images)
    assert ((answers.superclass >= 0) & (answers.superclass < len(classifier.superclasses))).all()
    assert ((answers.subclass >= 0) & (answers.subclass < len(classifier.subclasses))).all()


def test_thresholds_can_still_be_chosen_from_the_outputs_of_version_0_1(v0_1: UPath) -> None:
    folder = trial_folder(v0_1, 0)
    rule = choose_rule(load_outputs(folder), Classifier.load(folder).config)
    assert rule.super_score == rule.sub_score == "msp"


def test_results_predict_takes_a_search_of_version_0_1(v0_1: UPath, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "data", images_per_subclass=1, novel_per_class=1, test_per_class=1)
    out = tmp_path / "answers.csv"
    images = tmp_path / "data" / "test_images"
    assert predict(["--model", str(v0_1), "--images", str(images), "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 1 + len(list(images.iterdir()))
    labels = str(tmp_path / "data" / "test_data.csv")
    options = ["--labels", labels, "--out", str(tmp_path / "out")]
    assert evaluate(["--model", str(v0_1), "--images", str(images), *options]) == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    best = best_trial(trials_frame(v0_1, load_record(v0_1)), ["score"])
    assert best is not None
    assert written["promised"]["score"] == best["score"]
    assert written["promised_intervals"] == {}  # that version had none


def test_a_resume_of_version_0_1_is_refused_because_other_images_judge_now(
    v0_1: UPath, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (v0_1 / "search.json").read_bytes(), (v0_1 / "study.db").read_bytes()
    assert run(["--resume", "--name", "v0_1", "--storage", str(v0_1.parent)]) == 2
    error = capsys.readouterr().err
    assert "judged by validation protocol 1, and this version judges by protocol" in error
    assert "damaged" not in error
    assert ((v0_1 / "search.json").read_bytes(), (v0_1 / "study.db").read_bytes()) == before


@pytest.mark.slow
def test_a_search_of_version_0_1_is_refitted_and_the_model_predicts(
    v0_1: UPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((v0_1 / "search.json").read_text())
    (v0_1 / "search.json").write_text(json.dumps(record | {"cache": str(tmp_path / "cache")}))
    store = ["--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    code = refit(["--name", "v0_1", "--storage", str(v0_1.parent), *store])
    assert code == 0, capsys.readouterr().err
    classifier = Classifier.load(v0_1 / "refit" / "00000")
    assert classifier.config.left_out == "none"
    assert classifier.info["schema"] == SCHEMA
    images = torch.randint(256, (2, 40, 40, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    assert len(classifier.predict(images).subclass) == 2
