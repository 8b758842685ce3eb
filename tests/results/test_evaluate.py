"""Does an evaluation say what a model's answers are worth, and leave nothing out?"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from upath import UPath

from results.evaluate import compared, main, promise_lines, promise_of
from results.evaluation import Evaluation, evaluate, frequent
from results.evaluation import held_out as held_out_of
from results.labels import UNLABELLED, Labels
from results.promise import comparable
from results.report.evaluated import sentences
from tests.trainable.made_outputs import make_outputs
from tests.trainable.tiny import silent, tiny_config, write_weights
from trainable.classifier import Classifier
from trainable.config import TrialConfig
from trainable.data.dataset import load_data
from trainable.data.splits import NOVEL_SUPER, PSEUDO_NOVEL, SEEN
from trainable.novelty.metrics import MAIN, judge
from trainable.novelty.thresholds import Outputs, choose_rule
from trainable.train import train

RULE = choose_rule(make_outputs(0), TrialConfig())
# Subclass c is known by its name, but the model was trained without it.
CLASSES = {
    "superclasses": ["x", "y"], "subclasses": ["a", "b", "c", "d", "e"],
    "subclass_of_output": [0, 1, 3, 4], "super_of_output": [0, 0, 1, 1, 2],
}  # fmt: skip


def made_classifier() -> Classifier:
    """Return a classifier of `CLASSES` that answers by `RULE`; it has no network."""
    info = {
        **CLASSES, "config": {}, "stored_size": 8,
        "rule": {**vars(RULE), "tau_sub": list(RULE.tau_sub)},
    }  # fmt: skip
    return Classifier(info, (), ())


@pytest.fixture
def classifier() -> Classifier:
    return made_classifier()


def bounds(low: float, high: float) -> dict[str, float]:
    """Return a promise of two rates with these intervals."""
    ends = {"low": low, "high": high}
    names = ("score", "seen_sub")
    return dict.fromkeys(names, (low + high) / 2) | {
        f"interval.{name}.{end}": value for name in names for end, value in ends.items()
    }


def labels_of(outputs: Outputs) -> Labels:
    """Return labels that say of made-up outputs what they are."""
    subclass = torch.tensor([0, 1, 3, 4, 5])[outputs.sub_target]
    names = tuple(f"{number}.png" for number in outputs.rows.tolist())
    return Labels(
        images=names,
        superclass=outputs.super_target,
        subclass=subclass,
        true_class=outputs.true_class,
    )


def evaluated(classifier: Classifier, outputs: Outputs, labels: Labels | None = None) -> Evaluation:
    return evaluate(outputs, classifier, labels or labels_of(outputs))


def test_metrics_are_those_of_a_search_and_lie_within_their_intervals(
    classifier: Classifier,
) -> None:
    outputs = make_outputs(5, num=600)
    found = evaluated(classifier, outputs)
    assert found.metrics == pytest.approx(judge(outputs, RULE))
    assert found.intervals.keys() == found.metrics.keys()
    assert {"auroc_super", "oscr_sub", "hierarchy_area", "ece_sub", *MAIN} <= found.metrics.keys()
    for name, (low, high) in found.intervals.items():
        assert low < high, name
        assert low - 0.02 <= found.metrics[name] <= high + 0.02, name


def test_known_name_of_a_subclass_that_the_model_was_trained_without_is_novel(
    classifier: Classifier,
) -> None:
    outputs = make_outputs(6, kinds=[SEEN, PSEUDO_NOVEL, NOVEL_SUPER])
    labels = labels_of(outputs)
    as_c = labels.subclass.masked_fill(outputs.kind == PSEUDO_NOVEL, 2)
    found = evaluated(classifier, outputs, replace(labels, subclass=as_c))
    assert found.metrics == pytest.approx(judge(outputs, RULE))
    assert found.counts["novel_subclass"] == int((outputs.kind == PSEUDO_NOVEL).sum())
    assert found.confusion["subclass"].loc["c"].sum() == found.counts["novel_subclass"]


def test_image_without_a_subclass_counts_for_the_superclass_alone(classifier: Classifier) -> None:
    outputs = make_outputs(7, num=300)
    labels = labels_of(outputs)
    bare = torch.arange(300) % 3 == 0
    found = evaluated(
        classifier,
        outputs,
        replace(labels, subclass=labels.subclass.masked_fill(bare, UNLABELLED)),
    )
    of_rest, of_all = judge(outputs.where(~bare), RULE), judge(outputs, RULE)
    for name in ("seen_sub", "unseen_sub", "auroc_sub", "ce_sub", "score", "hierarchy_area"):
        assert found.metrics[name] == pytest.approx(of_rest[name]), name
    assert found.metrics["unseen_super"] == pytest.approx(of_all["unseen_super"])
    assert found.metrics["ce_super"] == pytest.approx(of_all["ce_super"])
    assert found.counts["without_subclass"] == int(bare.sum())
    assert found.confusion["superclass"].to_numpy().sum() == 300
    assert found.confusion["subclass"].to_numpy().sum() == int((~bare).sum())
    unlabelled = {labels.images[place] for place in bare.nonzero()[:, 0].tolist()}
    wrong = found.wrong[found.wrong["level"] == "subclass"]
    assert not unlabelled & set(wrong["image"])


def test_labels_of_one_kind_give_what_they_allow(classifier: Classifier) -> None:
    found = evaluated(classifier, make_outputs(8, kinds=[SEEN]))
    assert {"seen_super", "seen_sub", "known_rejected_sub", "ce_sub"} <= found.metrics.keys()
    assert not {"unseen_super", "unseen_sub", "score", "auroc_sub"} & found.metrics.keys()
    assert found.intervals.keys() == found.metrics.keys()


PROMISED = {
    "seen_super_seen": 0.9, "seen_super_held_out": 0.7, "seen_super": 0.8,
    "known_rejected_super_seen": 0.05, "known_rejected_super_held_out": 0.15,
    "known_rejected_super": 0.1, "unseen_super_left_out": 0.8, "unseen_super_borrowed": 1.0,
    "unseen_super": 0.8, "hmean_super": 0.8, "seen_sub": 0.6, "known_rejected_sub": 0.2,
    "unseen_sub_near": 0.3, "unseen_sub_far": 0.9, "unseen_sub_left_out": 0.9, "unseen_sub": 0.6,
    "hmean_sub": 0.6, "score": 0.7, "auroc_sub": 0.8, "ce_super": 0.5,
    "interval.unseen_sub.low": 0.5, "interval.unseen_sub.high": 0.7,
    "interval.seen_sub.low": 0.5, "interval.seen_sub.high": 0.7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "expected", "gone"),
    [
        ([SEEN, PSEUDO_NOVEL, NOVEL_SUPER], {}, []),
        (
            [SEEN, PSEUDO_NOVEL],  # what is of near ones alone is compared with near ones
            {"unseen_sub": 0.3, "hmean_sub": 0.4},
            ["unseen_super", "score", "auroc_sub", "ce_super"],
        ),
        (
            [SEEN, NOVEL_SUPER],
            {"seen_super": 0.9, "known_rejected_super": 0.05, "unseen_sub": 0.9}
            | {"hmean_super": 2 * 0.9 * 0.8 / 1.7, "hmean_sub": 0.72},
            ["auroc_sub", "ce_super", "unseen_sub_near"],
        ),
        ([SEEN], {"seen_super": 0.9}, ["unseen_sub", "score", "hmean_sub"]),
    ],
)
def test_promise_is_over_the_groups_that_the_labels_have(
    classifier: Classifier, kinds: list[int], expected: dict[str, float], gone: list[str]
) -> None:
    found = evaluated(classifier, make_outputs(9, num=200, kinds=kinds))
    promise, told = comparable(PROMISED, found.counts)
    assert bool(told) == (len(kinds) < 3)
    assert {name: promise[name] for name in expected} == pytest.approx(expected)
    assert not {*gone} & promise.keys()
    # What is of one group is as it was, with its interval; a mean over others has none.
    assert (promise["seen_sub"], promise["interval.seen_sub.low"]) == (0.6, 0.5)
    assert ("interval.unseen_sub.low" in promise) == (len(kinds) == 3)
    if not gone:
        assert promise == PROMISED


def test_nothing_is_promised_of_superclasses_whose_group_nobody_knows(
    classifier: Classifier,
) -> None:
    outputs = make_outputs(7, num=300)
    labels = labels_of(outputs)
    bare = labels.subclass.masked_fill(torch.arange(300) % 3 == 0, UNLABELLED)
    found = evaluated(classifier, outputs, replace(labels, subclass=bare))
    promise, told = comparable(PROMISED, found.counts)
    assert not {"seen_super", "seen_super_seen", "known_rejected_super", "ce_super"} & {*promise}
    kept = ("unseen_super", "seen_sub", "unseen_sub", "score", "auroc_sub")
    assert [promise[name] for name in kept] == [PROMISED[name] for name in kept]
    assert told.startswith("the labels have images without a subclass; nothing comparable was ")


def test_confusions_and_wrong_answers_agree_with_the_metrics(classifier: Classifier) -> None:
    outputs = make_outputs(9, num=400)
    found = evaluated(classifier, outputs)
    for level in ("superclass", "subclass"):
        confusion = found.confusion[level]
        mistakes = confusion.to_numpy().sum() - np.trace(confusion.to_numpy())
        wrong = found.wrong[found.wrong["level"] == level]
        assert len(wrong) == mistakes > 0
        assert (wrong["truth"] != wrong["answer"]).all()
        assert confusion.to_numpy().sum() == 400
    novel = found.confusion["superclass"].loc["novel"]
    assert novel["novel"] / novel.sum() == pytest.approx(found.metrics["unseen_super"])
    assert found.wrong["margin"].is_monotonic_decreasing
    # A known answer's score reaches the threshold, and the margin says by how much.
    answered = found.wrong[
        (found.wrong["answer"] != "novel") & (found.wrong["level"] == "superclass")
    ]
    spread = outputs.score("super", RULE.super_score).std(correction=0).item()
    assert (answered["margin"] >= 0).all()
    expected = (answered["score"] - RULE.tau_super) / spread
    assert answered["margin"].tolist() == pytest.approx(expected.tolist())
    of_super = found.wrong[found.wrong["level"] == "superclass"]
    rejected = of_super[(of_super["answer"] == "novel") & (of_super["score"] < RULE.tau_super)]
    expected = (RULE.tau_super - rejected["score"]) / spread
    assert rejected["margin"].tolist() == pytest.approx(expected.tolist())
    assert len(rejected) > 3
    most = frequent(found.confusion["subclass"], 3)
    assert most["images"].is_monotonic_decreasing
    first = most.iloc[0]
    row = found.confusion["subclass"].loc[first["truth"]]
    assert (first["images"], first["share"]) == (
        row[first["answer"]],
        row[first["answer"]] / row.sum(),
    )


def test_it_is_no_mistake_to_call_novel_what_the_model_was_trained_without(
    classifier: Classifier,
) -> None:
    outputs = make_outputs(9, num=400)
    labels = labels_of(outputs)
    held_out = outputs.kind == PSEUDO_NOVEL
    named = replace(labels, subclass=labels.subclass.masked_fill(held_out, 2))  # c, by its name
    found, before = evaluated(classifier, outputs, named), evaluated(classifier, outputs, labels)
    assert found.confusion["subclass"].loc[["c"], ["novel"]].to_numpy().sum() > 0
    of_c = found.wrong[found.wrong["truth"] == "c"]
    assert len(of_c) > 0
    assert "novel" not in set(of_c["answer"])
    assert len(found.wrong) == len(before.wrong)
    rows = frequent(found.confusion["subclass"], 99, held_out_of(found.judged))
    assert rows[(rows["truth"] == "c") & (rows["answer"] == "novel")].empty


@pytest.mark.parametrize(
    ("promise", "said"),
    [
        ({}, "carries no promise of a search"),
        ({"score": 0.5}, "no intervals for these images"),
        (bounds(0.0, 1.0), "All 2 main rates lie within"),
        (bounds(0.98, 1.0), "0 of 2 main rates lie within"),
    ],
)
def test_page_says_what_became_of_the_promise(
    classifier: Classifier, promise: dict[str, float], said: str
) -> None:
    found = evaluated(classifier, make_outputs(9, num=400))
    worth, kept, sure = sentences(found, compared(found, promise))
    assert worth.startswith(
        f"On 400 labelled images this model has a score of {100 * found.metrics['score']:.1f}%"
    )
    assert said in kept
    assert sure.startswith("How sure: ")


def test_promise_and_what_was_found_are_two_lines(classifier: Classifier) -> None:
    found = evaluated(classifier, make_outputs(5, num=600))
    promise = {
        "score": 0.75,
        "interval.score.low": 0.7,
        "interval.score.high": 0.8,
        "seen_sub": 0.5,
    }
    promised, second = promise_lines(found, promise)
    assert promised == "promised: score 0.750 (0.700-0.800), seen_sub 0.500"
    assert second.startswith(f"found: score {found.metrics['score']:.3f} (")
    assert promise_of({"metrics": {"epoch": 3.0}}) == {}
    assert promise_of({"metrics": {"score": 0.5}}) == {"score": 0.5}
    assert promise_of({"metrics": {"score": 0.5}, "promise": {"score": 0.4}}) == {"score": 0.4}


@pytest.fixture(scope="module")
def trial(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained trial's folder, and its weights."""
    folder = tmp_path_factory.mktemp("trial")
    weights = write_weights(folder / "weights.pt")
    loaded = load_data(str(data), str(data / "novel_images"), folder / "cache", note=silent)
    train(
        tiny_config(fine_tune="frozen"), loaded, lambda _: None,
        folder=UPath(folder / "model"), weights=weights, note=silent,
    )  # fmt: skip
    return folder / "model", weights


def test_command_writes_every_figure_beside_the_promise(
    trial: tuple[Path, Path], data: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in {"COLUMNS": "80", "TTY_COMPATIBLE": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)  # a terminal; a pipe has lines as wide as it takes
    model, weights = trial
    arguments = ["--model", str(model), "--weights", str(weights), "--images", str(data)]
    assert main([*arguments, "--labels", str(data / "test_data.csv"), "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown, result = printed[:-1], json.loads(printed[-1])
    out = model / "evaluation"
    assert result["out"] == str(out)
    assert max(map(len, [line for line in shown if not line.startswith("wrote")])) <= 100
    assert all(len(line) <= 80 for line in shown if line.startswith(" "))
    table = pd.read_csv(out / "metrics.csv").set_index("metric")
    for name in MAIN:
        assert table.loc[name, "found"] == pytest.approx(result["metrics"][name])
        assert table.loc[name, "promised"] == pytest.approx(result["promised"][name])
        assert table.loc[name, "promised_low"] == pytest.approx(
            result["promised_intervals"][name][0]
        )
        assert any(f" {name} " in line for line in shown)
    written = json.loads((out / "evaluation.json").read_text())
    assert written == {name: value for name, value in result.items() if name != "out"}
    labels = pd.read_csv(data / "test_data.csv")
    assert result["counts"]["images"] == len(labels)
    assert result["counts"]["novel_of_unknown_class"] == 0
    confusion = pd.read_csv(out / "confusion_subclass.csv", index_col="truth")
    assert confusion.to_numpy().sum() == len(labels)
    assert f"wrote {out / 'index.html'}: " in " ".join(" ".join(shown).split())
    page = (out / "index.html").read_text()
    links = re.findall(r'<a href="([\w.-]+)">', page)
    assert {name.rpartition(".")[2] for name in links} == {"png", "svg", "csv"}
    assert [name for name in links if not (out / name).exists()] == []
    assert {"promise.csv", "metrics.csv", "confusion.csv", "subclasses.csv"} <= {*links}
    assert {"thresholds.svg", "roc.png", "precision.png", "mistakes.png"} <= {*links}
    assert "hierarchy.svg" in links
    assert set(pd.read_csv(out / "wrong.csv")["image"]) <= set(labels["image"])


def test_command_counts_what_does_not_match_and_refuses_what_cannot(
    trial: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, weights = trial
    labels = pd.read_csv(data / "test_data.csv")
    labels.loc[0, "image"] = "nosuch.png"
    labels.to_csv(tmp_path / "labels.csv", index=False)
    images = tmp_path / "images"
    shutil.copytree(data / "test_images", images)
    (images / str(labels["image"][1])).write_bytes(b"")
    arguments = ["--model", str(model), "--weights", str(weights), "--images", str(images)]
    arguments += ["--labels", str(tmp_path / "labels.csv"), "--out"]
    assert main([*arguments, str(tmp_path / "out")]) == 2
    assert "or pass --skip-broken" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "out"), "--skip-broken"]) == 0
    printed = capsys.readouterr().out
    missing = f"nosuch.png, {labels['image'][1]}"
    assert f"2 rows of images that are not there: {missing}" in printed
    assert "1 image without a row, not judged: " in printed
    assert f"{len(labels) - 2} images: " in printed
    skipped = tmp_path / "out" / "skipped.csv"
    assert f"wrote {skipped}: 1 broken image skipped" in printed
    assert [*pd.read_csv(skipped)["image"]] == [labels["image"][1]]
    assert main([*arguments, str(tmp_path / "labels.csv"), "--skip-broken"]) == 2
    assert "this is a file, a folder is needed" in capsys.readouterr().err
