"""What released versions left is opened, listed, reported, refitted and predicted with for ever.

All are of the built-in data. `tests/assets/v0_1` was written by version 0.1.0: three trials of
which the second failed, a repeat of the first, and a fourth that was interrupted before its first
epoch. `tests/assets/v0_2` was written by version 0.2.0: two trials of which the second failed, and
a repeat of the first whose driver was killed when it had asked for it.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
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
from tests import commands
from trainable.classifier import Classifier, load_outputs, load_rule
from trainable.data import synthetic
from trainable.novelty.thresholds import choose_rule
from trainable.schema import SCHEMA

ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True, kw_only=True)
class Released:
    """What a released version's search holds."""

    folder: str
    version: str
    states: tuple[str, ...]
    epochs_trained: tuple[int, ...]
    repeat_of: tuple[int, ...]
    """-1: of none."""
    left_out: str
    score: float
    """Of trial 0, the best."""
    counts: str
    scores: tuple[str, str]
    """That trial 0 goes by."""


V0_1 = Released(
    folder="v0_1", version="0.1.0", states=("COMPLETE", "FAIL", "PRUNED", "COMPLETE", "RUNNING"),
    epochs_trained=(2, 0, 1, 2, 0), repeat_of=(-1, -1, -1, 0, -1), left_out="none", score=0.297278,
    counts="2 COMPLETE, 1 FAIL, 1 PRUNED, 1 RUNNING", scores=("msp", "msp"),
)  # fmt: skip
V0_2 = Released(
    folder="v0_2", version="0.2.0", states=("COMPLETE", "FAIL", "RUNNING"),
    epochs_trained=(1, 0, 0), repeat_of=(-1, -1, -1), left_out="features", score=0.370159,
    counts="1 COMPLETE, 1 FAIL, 1 RUNNING", scores=("msp", "msp"),
)  # fmt: skip
every_release = pytest.mark.parametrize("release", [V0_1, V0_2], ids=lambda each: each.folder)


@pytest.fixture
def kept(tmp_path: Path) -> Callable[[Released], UPath]:
    """Gives a copy, which may be written to, of the search that a version left."""

    def copied(release: Released) -> UPath:
        shutil.copytree(ASSETS / release.folder, tmp_path / "runs" / release.folder)
        return run_folder(release.folder, UPath(tmp_path / "runs"))

    return copied


Kept = Callable[[Released], UPath]


@every_release
def test_trials_are_listed_with_their_states_and_results(kept: Kept, release: Released) -> None:
    folder = kept(release)
    record = load_record(folder)
    trials = trials_frame(folder, record)
    assert record.version == release.version
    assert (*trials["state"],) == release.states
    assert (*trials["epochs_trained"],) == release.epochs_trained
    assert (*trials["repeat_of"].fillna(-1),) == release.repeat_of
    configs = [config for config in trials["config"] if config is not None]
    assert {config.left_out for config in configs} == {release.left_out}
    assert {*trials["left_out"].dropna()} == {release.left_out}
    assert trials["score"][0] == pytest.approx(release.score, abs=1e-6)
    assert "FileExistsError" in trials["reason"][1]
    best = best_trial(trials, record.metrics)
    assert best is not None
    assert best["number"] == 0


@every_release
def test_a_search_is_reported(kept: Kept, release: Released) -> None:
    folder = kept(release)
    record = load_record(folder)
    trials = trials_frame(folder, record)
    console = Console(width=200, record=True, quiet=False)
    print_tables(console, trials, record)
    text = console.export_text()
    assert release.counts in text
    if release is V0_1:
        assert "0.297 to 0.397" in text
    files = write_report([Search(folder, record)])
    tables = {"trials.csv", *(["repeats.csv"] if release is V0_1 else [])}  # two seeds are complete
    assert {file.name for file in files} >= tables
    assert all(file.exists() for file in files)


@every_release
def test_a_trial_answers_by_the_rule_that_it_saved(kept: Kept, release: Released) -> None:
    folder = trial_folder(kept(release), 0)
    classifier = Classifier.load(folder)
    assert load_rule(folder) == classifier.rule
    images = torch.randint(256, (3, 40, 40, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    answers = classifier.predict(images)
    assert ((answers.superclass >= 0) & (answers.superclass < len(classifier.superclasses))).all()
    assert ((answers.subclass >= 0) & (answers.subclass < len(classifier.subclasses))).all()


@every_release
def test_thresholds_can_still_be_chosen_from_outputs(kept: Kept, release: Released) -> None:
    folder = trial_folder(kept(release), 0)
    rule = choose_rule(load_outputs(folder), Classifier.load(folder).config)
    assert (rule.super_score, rule.sub_score) == release.scores


@pytest.mark.slow
@every_release
def test_results_predict_and_evaluate_take_a_search(
    kept: Kept, release: Released, tmp_path: Path
) -> None:
    folder = kept(release)
    synthetic.write(tmp_path / "data", images_per_subclass=1, novel_per_class=1, test_per_class=1)
    out = tmp_path / "answers.csv"
    images = tmp_path / "data" / "test_images"
    assert predict(["--model", str(folder), "--images", str(images), "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 1 + len(list(images.iterdir()))
    labels = str(tmp_path / "data" / "test_data.csv")
    options = ["--labels", labels, "--out", str(tmp_path / "out")]
    assert evaluate(["--model", str(folder), "--images", str(images), *options]) == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    best = best_trial(trials_frame(folder, load_record(folder)), ["score"])
    assert best is not None
    assert written["promised"]["score"] == best["score"]
    assert bool(written["promised_intervals"]) == (release is not V0_1)  # which had none


def test_a_resume_of_version_0_1_is_refused_because_other_images_judge_now(
    kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    v0_1 = kept(V0_1)
    before = (v0_1 / "search.json").read_bytes(), (v0_1 / "study.db").read_bytes()
    assert run(["--resume", "--name", "v0_1", "--storage", str(v0_1.parent)]) == 2
    error = capsys.readouterr().err
    assert "judged by validation protocol 1, and this version judges by protocol" in error
    assert "damaged" not in error
    assert ((v0_1 / "search.json").read_bytes(), (v0_1 / "study.db").read_bytes()) == before


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the built-in data's images and features, which the versions share."""
    return tmp_path_factory.mktemp("cache")


def stores_of(folder: UPath, tmp_path: Path, cache: Path) -> list[str]:
    """Return the options that name a kept search, which is given a `cache` that is there."""
    record = json.loads((folder / "search.json").read_text())
    (folder / "search.json").write_text(json.dumps(record | {"cache": str(cache)}))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return ["--tracking-uri", uri, "--name", folder.name, "--storage", str(folder.parent)]


@pytest.mark.slow
def test_a_search_of_version_0_2_is_resumed(
    kept: Kept, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps what it is given
    folder = kept(V0_2)
    before = trials_frame(folder, load_record(folder))
    stores = stores_of(folder, tmp_path, cache)
    done = commands.run(tmp_path, "-m", "search.run", "--resume", *stores)
    assert done.code == 0, done
    trials = trials_frame(folder, load_record(folder))
    pd.testing.assert_frame_equal(trials[:2], before[:2], check_dtype=False)
    assert (*trials["state"],) == (*V0_2.states[:2], "COMPLETE")
    assert trials.iloc[2][["repeat_of", "seed"]].tolist() == [0, 1]


@pytest.mark.slow
def test_a_search_of_version_0_1_is_refitted_and_the_model_predicts(
    kept: Kept, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # where MLflow keeps models
    folder = kept(V0_1)
    assert refit(stores_of(folder, tmp_path, cache)) == 0, capsys.readouterr().err
    classifier = Classifier.load(folder / "refit" / "00000")
    assert classifier.config.left_out == "none"
    assert classifier.info["schema"] == SCHEMA
    assert json.loads((folder / "refit/00000/refit.json").read_text())["schema"] == SCHEMA
    images = torch.randint(256, (2, 40, 40, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    assert len(classifier.predict(images).subclass) == 2
