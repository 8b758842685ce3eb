"""Searches from Python: `noveltune.search` and `noveltune.open`, as a notebook calls them."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import noveltune
import results
from results.opened import OpenedSearch
from tests.commands import ROOT, run
from trainable.classifier import load_outputs, save_outputs
from trainable.errors import UserError
from trainable.novelty.metrics import METRICS


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenedSearch:
    """A finished search in `runs/old` of the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "tests/assets/v0_1", tmp_path / "runs/old")
    return noveltune.open("runs/old")


def test_open_search_has_trials_the_best_and_models(old: OpenedSearch) -> None:
    trials = old.trials
    best = old.best
    assert best is not None
    complete = trials[trials["state"] == "COMPLETE"]
    assert best["number"] in {*complete["number"]}
    assert {*old.models} >= {f"trials/{number:05d}" for number in complete["number"]}
    assert noveltune.open("old").models == old.models
    assert results.open("runs/old").models == old.models


def test_pictures_of_an_open_search_are_figures_with_what_they_show(old: OpenedSearch) -> None:
    pictures = old.pictures
    assert {"history", "tradeoff", "learning"} <= {*pictures}
    for picture in pictures.values():
        assert all(isinstance(each, Figure) for each in picture.figures)
        assert len(picture.table) > 0
    shown = pictures["history"]._repr_html_()
    assert shown.count("data:image/png") == len(pictures["history"].figures)
    assert pictures["history"].caption[:20] in shown


def test_models_of_an_open_search_predict(old: OpenedSearch, data: Path) -> None:
    images = data / "test_images"
    table = old.predict(images)
    assert len(table) == len([*images.iterdir()])
    assert table.columns[0] == "image"
    assert table.equals(old.predict(images, f"trials/{int(old.best['number']):05d}"))


def test_trial_is_judged_by_another_decision_without_training(old: OpenedSearch) -> None:
    row = old.trials.query("state == 'COMPLETE'").iloc[0]
    number = int(row["number"])
    as_it_was = old.judged(number)
    none, some, many = (
        old.judged(number, tau_sub=tau)["known_rejected_sub"] for tau in (-1e9, 0.0, 1e9)
    )
    assert none <= some <= many == 1.0
    assert old.judged(number, sub_novelty_score="energy")["auroc_sub"] != as_it_was["auroc_sub"]
    both = old.judged(number, novelty_score="energy")
    assert both == old.judged(number, super_novelty_score="energy", sub_novelty_score="energy")
    assert old.judged(number, couple_novel=True)["unseen_sub"] >= as_it_was["unseen_sub"]


def test_what_a_trial_cannot_be_judged_by_is_refused(old: OpenedSearch) -> None:
    with pytest.raises(UserError, match="`lr` is decided before training"):
        old.judged(0, lr=1e-3)
    with pytest.raises(UserError, match="no COMPLETE trial 99"):
        old.judged(99)
    number = int(old.best["number"])
    with pytest.raises(UserError, match="must be one of"):
        old.judged(number, sub_novelty_score="maxlogit")
    folder = old.models[f"trials/{number:05d}"]
    save_outputs(folder, replace(load_outputs(folder), sub_feature_scores={}))
    with pytest.raises(UserError, match=f"trial {number} of .* did not keep rmds of the subclass"):
        old.judged(number, sub_novelty_score="max_logit+rmds")


def test_mistakes_in_a_call_are_exceptions_that_say_what_to_do(old: OpenedSearch) -> None:
    with pytest.raises(UserError, match="no search of that name; there are: old"):
        noveltune.open("runs/odl")
    with pytest.raises(UserError, match=r"no model 'trials/0000'.*there are trials/00000, "):
        old.load("trials/0000")
    with pytest.raises(UserError, match=r"did you mean 'full_ablation'\?"):
        noveltune.search("full_ablatoin")
    with pytest.raises(TypeError, match=r"no option 'trails' \(did you mean 'trials'\?\)"):
        noveltune.search("smoke", trails=3)
    with pytest.raises(TypeError, match="no option 'dry_run'"):
        noveltune.search("smoke", dry_run=True)
    with pytest.raises(UserError, match="--trials: invalid int value: 'many'"):
        noveltune.search("smoke", trials="many")
    with pytest.raises(UserError, match=r"unknown key 'lrr' \(did you mean 'lr'\?\)"):
        noveltune.search("smoke", settings={"lrr": 1.0})


@pytest.mark.slow
def test_cells_of_the_documentation_run_one_after_the_other(tmp_path: Path, data: Path) -> None:
    page = (ROOT / "docs/notebook.md").read_text()
    cells = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(cells) > 3
    file = re.fullmatch(r"%%writefile (\S+)\n(.*)", cells[0], re.DOTALL)
    assert file is not None
    (tmp_path / file[1]).write_text(file[2])
    (tmp_path / "photos").symlink_to(data / "test_images")
    code = "\n".join(cells[1:])
    done = run(tmp_path, "-c", code)
    assert done.code == 0, done
    search = noveltune.open(tmp_path / "runs/heads")
    best = search.best
    assert best is not None
    again = search.judged(int(best["number"]))
    found = {name: float(best[name]) for name in METRICS if name in again}
    assert len(found) > 20
    assert {name: again[name] for name in found} == pytest.approx(found, nan_ok=True)
