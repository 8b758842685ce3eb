"""Which trial a refit takes, on which data, with which thresholds, and where it is registered."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState, create_trial
from PIL import Image, ImageOps
from upath import UPath

from results.evaluate import promise_of
from results.history import INTERVALS
from results.predict import main as predict
from results.record import SearchRecord, load_record, study_url, trial_folder
from search.refit import main
from search.retrain import (
    Choice,
    RefitError,
    choose,
    chosen,
    common_rule,
    evaluate_built_in,
    refit_data,
    retrain,
)
from tests import commands
from tests.made_searches import Search, record
from tests.trainable.tiny import silent, tiny_config, write_weights
from trainable.classifier import Classifier, read_info, save_classifier
from trainable.data.dataset import load_data
from trainable.data.splits import make_refit_pools
from trainable.novelty.metrics import MAIN
from trainable.novelty.rule import Rule
from trainable.schema import SCHEMA
from trainable.train import train
from trainable.trainer import Trainer


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Two configurations with three seeds each; the second is better by mean, not by luck."""
    search = Search(tmp_path)
    search.tell(lr=0.01, score=0.9, epoch=9, tau=0.9)
    search.tell(lr=0.02, score=0.8, epoch=2, tau=0.1)
    search.tell(lr=0.03, score=0.1)
    for seed, score, epoch, tau in ((1, 0.7, 5, 0.3), (2, 0.8, 4, 0.95)):
        search.tell(lr=0.01, seed=seed, repeat_of=0, score=0.4)
        search.tell(lr=0.02, seed=seed, repeat_of=1, score=score, epoch=epoch, tau=tau)
    return search


def test_best_mean_is_refitted_with_its_seeds_medians(search: Search) -> None:
    row = chosen(search.trials, search.record, None)
    assert (row["number"], row["config"].seed, row["seeds"]) == (1, 0, [1, 4, 6])
    assert row["best_epoch"] == 4


def test_median_epoch_of_an_even_number_of_seeds_is_whole(search: Search) -> None:
    for number in (0, 1):
        search.tell(lr=0.01 * (number + 1), seed=3, repeat_of=number, score=0.5, epoch=3)
    row = chosen(search.trials, search.record, None)
    assert row["best_epoch"] == 4  # of 2, 3, 4, 5


def test_trial_that_is_asked_for_is_refitted_as_it_was(search: Search) -> None:
    row = chosen(search.trials, search.record, 1)
    assert (row["number"], row["seeds"], row["best_epoch"]) == (1, [1], 2)


def test_configuration_with_a_failed_seed_is_not_taken(search: Search) -> None:
    search.tell("FAIL", lr=0.02, seed=3, repeat_of=1)
    search.tell(lr=0.01, seed=3, repeat_of=0, score=0.1)
    assert chosen(search.trials, search.record, None)["number"] == 0


def test_best_trial_is_taken_where_no_configuration_has_every_seed(search: Search) -> None:
    for number in (0, 1):
        search.tell("FAIL", lr=0.01 * (number + 1), seed=3, repeat_of=number)
    row = chosen(search.trials, search.record, None)
    assert (row["number"], row["seeds"], row["best_epoch"]) == (0, [0], 9)


def test_search_without_a_complete_trial_is_refused(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.tell("FAIL")
    with pytest.raises(RefitError, match="no trial is COMPLETE"):
        chosen(search.trials, search.record, None)
    with pytest.raises(RefitError, match="no COMPLETE trial 0, it is FAIL; python"):
        chosen(search.trials, search.record, 0)
    with pytest.raises(RefitError, match="no COMPLETE trial 7; python"):
        chosen(search.trials, search.record, 7)


def make_rule(**changes: Any) -> Rule:
    values: dict[str, Any] = {
        "super_score": "knn", "sub_score": "msp", "tau_super": 0.9, "tau_sub": (0.1, 0.7),
        "couple_novel": True, "restrict_sub": False,
    }  # fmt: skip
    return Rule(**values | changes)


def test_median_thresholds_are_of_the_seeds_that_use_the_same_scores() -> None:
    rules = [
        make_rule(),
        make_rule(tau_super=0.1, tau_sub=(0.3, 0.5)),
        make_rule(tau_super=0.3, tau_sub=(0.2, 0.9)),
        make_rule(tau_super=-40.0, super_score="rmds"),
    ]
    assert common_rule(rules) == make_rule(tau_super=0.3, tau_sub=(0.2, 0.7))
    assert common_rule(rules[3:] + rules[:3]) == rules[3]
    sums = [
        make_rule(super_score="msp[0.5,0.1]+knn[-1.0,0.5]", tau_super=-1.0),
        make_rule(super_score="msp[0.6,0.2]+knn[-1.5,0.4]", tau_super=-2.0),
        make_rule(super_score="msp[0.6,0.2]+rmds[-1.5,0.4]", tau_super=-9.0),
    ]
    assert common_rule(sums) == replace(sums[0], tau_super=-1.5)


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(
    tmp_path_factory: pytest.TempPathFactory, data: Path, make_mlflow: Callable[[Path], Path]
) -> Path:
    """A folder with an MLflow database and `runs/asked`, a search whose one trial is complete."""
    folder = make_mlflow(tmp_path_factory.mktemp("kept")).parent
    shutil.copytree(data, folder / "data")
    known, novel = str(folder / "data"), str(folder / "data/novel_images")
    weights = write_weights(folder / "weights.pt")
    loaded = load_data(known, novel, folder / "cache", note=print)
    config = tiny_config(novel_images=16)
    run = UPath(folder / "runs/asked")
    run.mkdir(parents=True)
    asked = record(
        data=known, novel=novel, data_fingerprint=loaded.fingerprint, weights=str(weights),
        cache=str(folder / "cache"), tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        experiment="birds",
    )  # fmt: skip
    asked.save(run)
    metrics = train(
        config, loaded, lambda _: None, folder=trial_folder(run, 0), weights=weights
    ).metrics
    study = optuna.create_study(
        storage=study_url(run, asked), study_name="asked", direction="maximize"
    )
    attributes = {"config": config.to_dict(), "metrics": metrics, "epoch_00001": metrics}
    study.add_trial(
        create_trial(state=TrialState.COMPLETE, value=metrics["score"], user_attrs=attributes)
    )
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own, as the working folder of commands that know nothing of each other."""
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(kept / "runs", tmp_path / "runs")
    shutil.copy(kept / "mlflow.db", tmp_path)
    monkeypatch.chdir(tmp_path)
    change(tmp_path, tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def change(folder: Path, **changes: Any) -> SearchRecord:
    """Write the search's record anew; return it."""
    run = UPath(folder / "runs/asked")
    changed = replace(load_record(run), **changes)
    changed.save(run)
    return changed


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def assert_refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """Refit, which must refuse before it trains; return its one line."""
    assert main(["--name", "asked", *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert "epoch" not in captured.out
    assert not (folder / "runs/asked/refit").exists()
    return line


def test_refit_on_other_data_than_the_searchs_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    shutil.copytree(change(folder).data, folder / "data")
    file = folder / "data/train_images/0.png"
    ImageOps.invert(Image.open(file).convert("RGB")).save(file)
    before = change(folder, data=str(folder / "data")).data_fingerprint
    line = assert_refused(capsys, folder)
    assert f"their fingerprint was {before}, now it is v" in line
    assert "or start a new search" in line
    assert client_of(folder).search_registered_models() == []


def test_refit_that_cannot_register_trains_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    client = client_of(folder)
    client.delete_experiment(client.create_experiment("birds"))
    assert "the experiment 'birds' is deleted" in assert_refused(capsys, folder)
    refused = assert_refused(capsys, folder, "--tracking-uri", "http://127.0.0.1:9")
    assert "So start the server" in refused
    (folder / "mlflow.db").unlink()
    assert "there is no such file" in assert_refused(capsys, folder)
    assert not (folder / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus-per-trial", "0.5"], "need --address: without it a refit trains in this process"),
        (["--cpus-per-trial", "2"], "need --address: without it a refit trains in this process"),
        (["--address", "auto", "--gpus-per-trial", "auto"], "must be 0 to 1, as a trial trains on"),
        (["--address", "auto", "--cpus-per-trial", "0"], "--cpus-per-trial must be above 0, but"),
        (["--address", "ray://head:10001"], "Ray's client does not place trials on nodes"),
        (["--address", "127.0.0.1:9"], "--address 127.0.0.1:9: no Ray cluster answers there"),
    ],
)
def test_refit_elsewhere_is_refused_as_a_search_is(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("search.cluster.joined.ANSWER_LIMIT_S", 0.1)
    assert said in assert_refused(capsys, folder, *arguments)


@pytest.mark.slow
def test_registering_that_failed_is_made_good_without_training_again(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "mlruns").write_text("no folder, so no artifact can be written")
    assert main(["--name", "asked"]) == 1
    captured = capsys.readouterr()
    assert "epoch 1/1" in captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("failed: runs/asked/refit/00000 is written and predicts, but is not")
    assert line.endswith("; the same command then registers it without training again")
    weights = (folder / "runs/asked/refit/00000/model.safetensors").read_bytes()
    of_trial, of_refit = (
        promise_of(json.loads((folder / f"runs/asked/{each}/00000/model.json").read_text()))
        for each in ("trials", "refit")
    )
    main_rates = {name: of_trial[name] for name in (*MAIN, *INTERVALS)}
    assert {name: of_refit[name] for name in main_rates} == main_rates
    assert f"promised: score {of_trial['score']:.3f} (" in captured.out

    (folder / "mlruns").unlink()
    assert main(["--name", "asked", "--experiment", "others"]) == 0
    said = capsys.readouterr().out
    assert "runs/asked/refit/00000 is trained already" in said
    assert "epoch 1/1" not in said
    assert "registered models:/asked/1\nchampion: version 1, the first\n" in said
    assert "MLFLOW_TRACKING_URI" not in os.environ  # a later command would log there
    assert (folder / "runs/asked/refit/00000/model.safetensors").read_bytes() == weights
    client = client_of(folder)
    (run,) = client.search_runs([client.get_experiment_by_name("others").experiment_id])
    assert run.data.tags["level"] == "refit"
    assert run.data.tags["mlflow.source.name"] == "python -m search.refit"
    assert run.data.metrics["promised/score"] == of_trial["score"]
    assert "None" not in run.data.params.values(), "of keys that do nothing"
    assert len(run.inputs.dataset_inputs) == 1
    assert run.data.tags["mlflow.note.content"].startswith("Knows 3 superclasses and ")

    file = folder / "runs/asked/refit/00000/refit.json"
    asked = json.loads(file.read_text())
    file.write_text(json.dumps(asked | {"schema": SCHEMA + 1, "version": "9.0.0"}))
    assert main(["--name", "asked"]) == 2
    refused = capsys.readouterr().err
    assert f"refit.json was written by noveltune 9.0.0 in schema {SCHEMA + 1}, and" in refused
    asked["config"].pop("near_novel")  # as written before there was such a key
    file.write_text(json.dumps({key: asked[key] for key in asked if key != "schema"}))
    assert main(["--name", "asked"]) == 0
    assert "runs/asked/refit/00000 is trained already" in capsys.readouterr().out

    file.write_text("{")  # what it was trained by is not known
    change(folder, weights=str(write_weights(tmp_path / "others.pt", seed=1)))
    assert main(["--name", "asked", "--tracking-uri", "sqlite:///mlflow.db"]) == 0
    said = capsys.readouterr().out
    assert "epoch 1/1" in said  # by other weights, so trained anew
    assert "registered models:/asked/3\nchampion: still version 1, not better: score 0." in said
    one, two = (client.get_model_version("asked", each) for each in "12")
    assert one.tags == two.tags
    assert {key: float(one.tags[key]) for key in MAIN} == {key: of_refit[key] for key in MAIN}
    info = json.loads((folder / "runs/asked/refit/00000/model.json").read_text())
    for key in ("superclasses", "subclasses"):
        assert json.loads(one.tags[key]) == info[key]
    assert json.loads(one.tags["tau_sub"]) == info["rule"]["tau_sub"]
    assert one.tags["data_fingerprint"] == change(folder).data_fingerprint
    assert one.tags["protocol"] == "1"  # as the record says
    assert "Trial 0 of the search `asked`" in one.description

    client.set_model_version_tag("asked", "1", "score", "0.001")
    assert main(["--name", "asked", "--experiment", "others"]) == 0
    moved = "champion: version 4 in place of version 1, better: score 0."
    assert moved in capsys.readouterr().out
    assert int(client.get_model_version_by_alias("asked", "champion").version) == 4


def test_ensemble_is_refitted_and_kept_as_one_model(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """Its thresholds are of what all members say."""
    record, run = change(folder), UPath(folder / "runs/asked")
    data, choice = refit_data(record, print), choose(run, record, None, print)
    choice = replace(choice, config=replace(choice.config, fine_tune="frozen"))
    told: list[str] = []
    for target, number in (("one", 1), ("three", 3), ("three", 3)):
        retrain(choice, record, data, run / target, told.append, ensemble=number)
    assert told[-1] == f"{run / 'three'} is trained already; to train it again, delete that folder"
    assert any(line.startswith("ensemble of 3: trains 3 times, predicts in the") for line in told)
    one, three = (read_info(run / name) for name in ("one", "three"))
    assert (one["members"], three["members"]) == (1, 3)
    assert one["rule"]["tau_super"] != three["rule"]["tau_super"]
    assert len(Classifier.load(run / "three").predict(data.images[:3]).subclass) == 3
    assert "`1 <= --ensemble <= 100` must hold, but got 0" in assert_refused(
        capsys, folder, "--ensemble", "0"
    )
    retrain(choice, record, data, run / "three", told.append)
    assert read_info(run / "three")["members"] == 1


# --- Interrupted ---------------------------------------------------------------------------------


def ask_for_three_epochs(folder: Path) -> None:
    """Add a frozen trial to the search, whose third epoch is the best of all."""
    run = UPath(folder / "runs/asked")
    study = optuna.load_study(study_name="asked", storage=study_url(run, load_record(run)))
    attributes = study.trials[0].user_attrs
    config = tiny_config(novel_images=16, fine_tune="frozen", epochs=3, ema=0.9)
    metrics = attributes["metrics"] | {"epoch": 3, "score": 1.0}
    attributes = {"config": config.to_dict(), "metrics": metrics, "epoch_00003": metrics}
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=1.0, user_attrs=attributes))
    shutil.copytree(folder / "runs/asked/trials/00000", folder / "runs/asked/trials/00001")


def left_by(target: UPath) -> dict[str, Any]:
    """Return all that a refit leaves, but for the seconds that it took."""
    assert {file.name for file in target.iterdir()} == {
        "model.safetensors", "model.json", "refit.json"
    }  # fmt: skip
    info = read_info(target)
    for name in ("epoch_s", "images_per_s"):
        del info["metrics"][name]
    return {
        "info": info,
        "weights": (target / "model.safetensors").read_bytes(),
        "asked": (target / "refit.json").read_bytes(),
    }


def counted_epochs(monkeypatch: pytest.MonkeyPatch, *, kill_at: int | None = None) -> list[int]:
    """Return a list that gets the number of every epoch that is trained from now on.

    Args:
        monkeypatch: Of the test.
        kill_at: Before the epoch of this place in the list the refit is interrupted.
    """
    trained: list[int] = []

    def train_epoch(trainer: Trainer, epoch: int, *said: Any) -> dict[str, float]:
        if len(trained) + 1 == kill_at:
            raise KeyboardInterrupt
        trained.append(epoch)
        return TRAIN_EPOCH(trainer, epoch, *said)

    monkeypatch.setattr(Trainer, "train_epoch", train_epoch)
    return trained


TRAIN_EPOCH = Trainer.train_epoch
DIES = """
import os, signal
from search.refit import main
from trainable.trainer import Trainer

train_epoch, epochs = Trainer.train_epoch, []
def dying(trainer, epoch, *said):
    epochs.append(epoch)
    if len(epochs) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_epoch(trainer, epoch, *said)

Trainer.train_epoch = dying
main(["--name", "asked", "--ensemble", "2"])
"""


@pytest.mark.slow
def test_refit_that_was_killed_goes_on_after_its_last_epoch_and_ends_as_an_undisturbed_one(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the second epoch of the second model; thresholds are of what both say at the end."""
    ask_for_three_epochs(folder)
    target = UPath(folder / "runs/asked/refit/00001")
    killed = commands.run(folder, "-c", DIES, OMP_NUM_THREADS="1")  # as this process does
    assert killed.code == -signal.SIGKILL, killed
    assert [file.name for file in target.iterdir()] == ["checkpoints"]

    trained = counted_epochs(monkeypatch)
    assert main(["--name", "asked", "--ensemble", "2"]) == 0
    said = capsys.readouterr().out
    assert trained == [2, 3]
    assert said.count("it goes on from its checkpoint") == 2  # the first model has nothing to do
    assert "registered models:/asked/1" in said

    disturbed = left_by(target)
    shutil.rmtree(str(target))
    record = change(folder)
    choice = choose(UPath(folder / "runs/asked"), record, None, silent)
    retrain(choice, record, refit_data(record, silent), target, silent, ensemble=2)
    assert trained == [2, 3, 1, 2, 3, 1, 2, 3]
    assert disturbed == left_by(target)
    tau = disturbed["info"]["rule"]["tau_super"]
    assert tau != choice.rule.tau_super, "no threshold was found by further heads"


def test_refit_goes_on_only_from_what_was_asked_alike(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_for_three_epochs(folder)
    record, search = change(folder), UPath(folder / "runs/asked")
    data, choice = refit_data(record, silent), choose(search, record, None, silent)
    target = search / "refit" / "00001"

    def refit(choice: Choice, ensemble: int = 1) -> None:
        retrain(choice, record, data, target, silent, ensemble=ensemble)

    with monkeypatch.context() as patch:
        counted_epochs(patch, kill_at=3)
        with pytest.raises(KeyboardInterrupt):
            refit(choice)
    for other, number in (
        (replace(choice, config=replace(choice.config, lr=0.01)), 1),
        (replace(choice, rule=replace(choice.rule, tau_super=0.123)), 1),
        (replace(choice, epochs=2), 1),
        (choice, 2),
    ):
        with monkeypatch.context() as patch:
            trained = counted_epochs(patch, kill_at=2)
            with pytest.raises(KeyboardInterrupt):
                refit(other, number)
        assert trained == [1], "it went on from a checkpoint of something else"
    trained = counted_epochs(monkeypatch)
    refit(choice)
    assert trained == [3]
    assert not (target / "checkpoints").exists()

    (target / "checkpoints/left").mkdir(parents=True)  # by a kill after all was written
    refit(choice)
    assert trained == [3]
    assert not (target / "checkpoints").exists()


# --- Predict -------------------------------------------------------------------------------------


def test_model_that_is_not_registered_names_the_store_and_what_it_has(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(folder)
    images = ["--images", str(data / "test_images"), "--out", "out.csv"]
    where = f"MLflow at sqlite:///{folder / 'mlflow.db'}"

    def refusal(*arguments: str) -> str:
        assert predict([*arguments, *images]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    line = refusal("--model", "models:/nosuch/1", "--tracking-uri", "sqlite:///mlflow.db")
    assert f"{where} does not give it (" in line
    assert "nosuch" in line.partition(where)[2]
    assert "; it has no model. Pass another" in line
    client.create_registered_model("birds")
    line = refusal("--model", "models:/nosuch@champion", "--tracking-uri", "sqlite:///mlflow.db")
    assert "; it has birds. Pass another" in line

    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    line = refusal("--model", "models:/nosuch/1")
    assert "MLflow at sqlite:///" in line
    assert f"{folder / 'empty/mlflow.db'}: there is no such file" in line
    assert [*Path().iterdir()] == []


def test_search_predicts_by_its_name_in_a_storage(
    capsys: pytest.CaptureFixture[str], folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--images", str(data / "test_images"), "--out"]
    assert predict(["--model", "asked", *where, "named.csv"]) == 0
    monkeypatch.chdir(data)
    assert predict(["--model", "memory://nowhere/asked", *where, "x.csv"]) == 2
    assert "memory://nowhere/asked holds no model.json" in capsys.readouterr().err
    assert predict(["--model", "askd", *where, "x.csv"]) == 2
    assert "runs/askd: no search of that name; there is none in runs: " in capsys.readouterr().err
    stored = ["--model", "asked", "--storage", str(folder / "runs")]
    assert predict([*stored, *where, str(folder / "stored.csv")]) == 0
    assert (folder / "stored.csv").read_text() == (folder / "named.csv").read_text()


def test_refit_of_the_built_in_data_says_what_was_promised_and_what_its_test_shows(
    tmp_path: Path, data: Path, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_data(str(data), str(data / "novel_images"), tmp_path / "cache", note=silent)
    weights = write_weights(tmp_path / "weights.pt")
    config = tiny_config(fine_tune="frozen")
    pools = make_refit_pools(loaded, config)
    result = train(config, loaded, lambda _: None, pools=pools, weights=weights, note=silent)
    promise = {"score": 0.9, "interval.score.low": 0.8, "interval.score.high": 0.95}
    rule = Rule(
        super_score="msp", sub_score="msp", tau_super=0.3, tau_sub=(0.1,) * 3,
        couple_novel=False, restrict_sub=False,
    )  # fmt: skip
    target = UPath(tmp_path / "refit")
    save_classifier(
        target, config, loaded, pools, result.branches, result.metrics, rule, result.banks,
        self_contained=True, promise=promise,
    )  # fmt: skip
    # Drawing the built-in data takes a quarter of a minute; this is a small one of the same kind.
    monkeypatch.setattr("search.retrain.synthetic_folder", lambda _: data)
    lines: list[str] = []
    evaluate_built_in(search.record, target, promise, lines.append)
    promised, found, wrote = lines
    assert wrote == f"wrote {target / 'evaluation' / 'index.html'}"
    assert (target / "evaluation" / "index.html").exists()
    assert promised == "promised: score 0.900 (0.800-0.950)"
    written = json.loads((tmp_path / "refit" / "evaluation" / "evaluation.json").read_text())
    assert found.startswith(f"found: score {written['metrics']['score']:.3f} (")
    assert f"unseen_super {written['metrics']['unseen_super']:.3f}" in found
    assert written["counts"]["images"] == len((data / "test_data.csv").read_text().splitlines()) - 1
    assert promise_of(Classifier.load(target).info) == promise


def test_refit_that_is_terminated_says_how_to_go_on(
    search: Search, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.refit.choose", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["--name", search.folder.name, "--storage", str(search.folder.parent)]) == 130
    assert capsys.readouterr().err == "interrupted: repeat the command to go on\n"
