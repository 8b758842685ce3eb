"""A saved classifier answers as the trial did, anywhere, or says why it cannot."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from upath import UPath

from tests.trainable.made_outputs import NOVELTY_SCORES, make_outputs, with_folds
from tests.trainable.tiny import BACKBONE, silent, tiny_config, write_weights
from trainable.classifier import (
    INFO_FILE,
    MODEL_FILE,
    OUTPUTS_FILE,
    TABLE_FILE,
    Classifier,
    Predictions,
    load_outputs,
    save_classifier,
    save_outputs,
)
from trainable.config import TASKS, Task, TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import Pools, make_pools, true_classes
from trainable.errors import DataError, WeightsError
from trainable.model import backbones
from trainable.model.branch import BranchModel
from trainable.novelty.bank import FeatureBank
from trainable.novelty.rule import Rule, decide
from trainable.novelty.thresholds import available_scores, choose_rule
from trainable.schema import SCHEMA, SchemaError, version
from trainable.train import TrialResult, together, train

VARIED = {"novelty_score": "max_logit", "novel_images": 10, "lr": 3e-3, "epochs": 2}
"""A trial whose answers are not all novel."""
CONFIG = tiny_config(fine_tune="last_1", **VARIED)
"""Of the classifier that most tests load."""


@pytest.fixture(scope="module")
def trial(tiny_data: Data, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained trial; not to be changed."""
    folder = tmp_path_factory.mktemp("trial")
    train(CONFIG, tiny_data, silent, folder=UPath(folder), weights=tiny_weights, note=silent)
    return folder


@pytest.fixture
def copied(trial: Path, tmp_path: Path) -> Path:
    """A copy of the trial's folder, to be damaged."""
    return Path(shutil.copytree(trial, tmp_path / "trial"))


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        pytest.fail("pretrained weights were asked for")

    monkeypatch.setattr(backbones, "_downloaded", refuse)


def save_by_hand(
    folder: Path,
    data: Data,
    *,
    config: TrialConfig = CONFIG,
    change: Callable[[list[BranchModel]], None] = silent,
    **rule: Any,
) -> Pools:
    """Save an untrained classifier after `change`; return the pools that it goes with."""
    pools = make_pools(data, config)
    num_classes: Any = {"super": len(data.superclasses) + 1, "sub": len(pools.subclasses) + 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        branches = [
            BranchModel.build(branch, num_classes, config.seed, pretrained=False)
            for branch in config.branches()
        ]
    change(branches)
    banks = [None] * len(branches)
    save_classifier(
        UPath(folder), config, data, pools, branches, {}, rule_by_hand(data, **rule), banks,
        self_contained=True,
    )  # fmt: skip
    return pools


def rule_by_hand(data: Data, **changes: Any) -> Rule:
    """Return a rule that accepts everything, after `changes`."""
    accept_all = (-1e9,) * len(data.superclasses)
    rule = Rule(
        super_score="max_logit", sub_score="max_logit", tau_super=-1e9, tau_sub=accept_all,
        couple_novel=False, restrict_sub=False,
    )  # fmt: skip
    return replace(rule, **changes)


# --- Ensembles ---------------------------------------------------------------------------


@pytest.mark.parametrize("fine_tune", ["frozen", "last_1"])
def test_ensemble_answers_by_the_means_of_what_its_members_say(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path, fine_tune: str
) -> None:
    config = tiny_config(
        architecture="two_models", sub_fine_tune=fine_tune, super_fine_tune="frozen",
        super_novelty_score="knn_difference", sub_novelty_score="gen+rmds", **VARIED,
    )  # fmt: skip
    pools = make_pools(tiny_data, config)
    seeds = [replace(config, seed=seed) for seed in (0, 1, 2)]
    results = [
        train(each, tiny_data, silent, pools=pools, weights=tiny_weights, note=silent, judge=False)
        for each in seeds
    ]
    rule = Rule(
        super_score="knn_difference", sub_score="gen[-1.5,0.5]+rmds[-30.0,9.0]", tau_super=-1e9,
        tau_sub=(-1e9,) * 3, couple_novel=False, restrict_sub=False,
    )  # fmt: skip

    def loaded(name: str, members: Sequence[TrialResult]) -> Classifier:
        whole = together(members)
        save_classifier(
            UPath(tmp_path / name), config, tiny_data, pools, whole.branches, {}, rule,
            whole.banks, self_contained=True,
        )  # fmt: skip
        return Classifier.load(UPath(tmp_path / name))

    images = tiny_data.images[pools.val[:40]]
    alone = [loaded(str(i), [each]).response(images) for i, each in enumerate(results)]
    said = loaded("all", results).response(images)
    for name in ("super_logits", "sub_logits"):
        each = torch.stack([getattr(response, name) for response in alone])
        assert len(each.unique(dim=0)) == 3
        assert torch.equal(getattr(said, name), each.mean(0))
    of_sub = torch.stack([response.sub_feature_scores["rmds"] for response in alone])
    assert torch.equal(said.sub_feature_scores["rmds"], of_sub.mean(0))
    outputs = together(results).outputs  # by which a refit finds its thresholds
    assert outputs is not None
    torch.testing.assert_close(outputs.sub_logits[:40], said.sub_logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs.rows, pools.val)


# --- Answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"fine_tune": "last_1", "head": "cosine", "couple_novel": True},
        {"fine_tune": "full", "novelty_score": "knn_difference", "ema": 0.5, "restrict_sub": True},
        {
            "fine_tune": "frozen",
            "super_novelty_score": "energy",
            "sub_novelty_score": "rmds",
            "tau_sub_per_superclass": True,
        },
        {
            "architecture": "two_models",
            "sub_image_size": 48,
            "sub_fine_tune": "frozen",
            "super_novelty_score": "gen",
            "sub_novelty_score": "knn",
            "outlier_exposure": 1.0,
            "known_rejection_sub": 0.3,
        },
        {"fine_tune": "last_1", "novelty_score": "best"},
        {"fine_tune": "frozen", "novelty_score": "max_logit+rmds", "sub_novelty_score": "gen+knn"},
        {
            "architecture": "two_models",
            "fine_tune": "frozen",
            "super_backbone": f"{BACKBONE}+efficientnet_lite0",
            "super_novelty_score": "knn_difference",
        },
        {
            "architecture": "two_models",
            "super_image_size": 48,
            "super_fine_tune": "frozen",
            "sub_fine_tune": "last_1",
            "super_novelty_score": "knn",
            "sub_novelty_score": "super_rmds+max_logit+super_energy+knn",
        },
    ],
    ids=[
        "last_1",
        "knn_difference",
        "energy and rmds",
        "knn of one of two",
        "best",
        "sums",
        "two backbones of one branch",
        "scores of the other branch",
    ],
)
def test_loaded_classifier_answers_as_the_trial_did(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path, changes: dict[str, Any]
) -> None:
    """Loaded as a trial keeps it, with the pretrained weights, and as a refit does, with all."""
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(tiny_weights, weights / f"{BACKBONE}.pth")
    config = tiny_config(**(VARIED | changes))
    result = train(
        config,
        tiny_data,
        silent,
        folder=UPath(tmp_path),
        cache=tmp_path,
        weights=weights,
        note=silent,
    )
    pools = make_pools(tiny_data, config)
    outputs = load_outputs(UPath(tmp_path))
    rule = choose_rule(outputs, config)
    assert torch.equal(outputs.rows, pools.val)
    save_classifier(
        UPath(tmp_path / "refit"), config, tiny_data, pools, result.branches, result.metrics, rule,
        result.banks, self_contained=True,
    )  # fmt: skip
    kept = Classifier.load(UPath(tmp_path), weights)
    refitted = Classifier.load(UPath(tmp_path / "refit"))  # no weights anywhere
    assert kept.rule == refitted.rule == rule
    answers = kept.predict(tiny_data.images[outputs.rows])
    for name, values in vars(refitted.predict(tiny_data.images[outputs.rows])).items():
        assert torch.equal(values, getattr(answers, name)), name
    super_score = outputs.score("super", rule.super_score)
    sub_score = outputs.score("sub", rule.sub_score)
    torch.testing.assert_close(answers.super_score, super_score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answers.sub_score, sub_score, rtol=1e-4, atol=1e-4)
    superclass, output = decide(outputs, rule)
    subclass = torch.tensor([*pools.subclasses, len(tiny_data.subclasses)])[output]
    tau_sub = torch.tensor(rule.tau_sub)[:, None].double()
    clear = (super_score - rule.tau_super).abs() > 1e-4
    clear &= ((sub_score - tau_sub).abs() > 1e-4).all(0)
    assert clear.sum() >= len(clear) - 2  # others may fall to either side by rounding
    assert torch.equal(answers.superclass[clear], superclass[clear])
    assert torch.equal(answers.subclass[clear], subclass[clear])
    assert len(superclass.unique()) > 1
    assert len(subclass.unique()) > 1


def test_no_image_of_the_calibration_lies_on_a_threshold(trial: Path) -> None:
    """Rounding, which differs with the batch and the machine, must not change its answer."""
    outputs = load_outputs(UPath(trial))
    info = json.loads((trial / INFO_FILE).read_text())
    taus: dict[Task, float] = {
        "super": info["rule"]["tau_super"],
        "sub": info["rule"]["tau_sub"][0],
    }
    for task, tau in taus.items():
        assert (outputs.score(task, "max_logit") - tau).abs().min() > 1e-5, task


def test_rule_is_that_of_the_trials_best_epoch(trial: Path, tiny_weights: Path) -> None:
    info = json.loads((trial / INFO_FILE).read_text())
    classifier = Classifier.load(UPath(trial), tiny_weights)
    assert classifier.info == info
    assert classifier.rule.tau_super == info["metrics"]["tau_super"]
    assert set(classifier.rule.tau_sub) == {info["metrics"]["tau_sub"]}
    assert classifier.rule == choose_rule(load_outputs(UPath(trial)), CONFIG)


def test_every_part_of_a_rule_comes_back(tmp_path: Path, tiny_data: Data) -> None:
    """Exactly, as a threshold lies between two scores."""
    rule = rule_by_hand(
        tiny_data, super_score="energy", sub_score="gen", tau_super=0.1 + 0.2,
        tau_sub=(1 / 3, -2.5e-17, 4.0), couple_novel=True, restrict_sub=True,
    )  # fmt: skip
    save_by_hand(tmp_path, tiny_data, **vars(rule))
    assert Classifier.load(UPath(tmp_path)).rule == rule


def test_labels_end_with_novel(trial: Path, tiny_data: Data, tiny_weights: Path) -> None:
    classifier = Classifier.load(UPath(trial), tiny_weights)
    assert classifier.superclasses == (*tiny_data.superclasses, "novel")
    assert classifier.subclasses == (*tiny_data.subclasses, "novel")
    assert classifier.config == CONFIG
    assert classifier.stored_size == tiny_data.images.shape[1] == 64


def test_answers_count_subclasses_as_the_data_does(tmp_path: Path, tiny_data: Data) -> None:
    """Held-out subclasses have no output, so outputs and indices are not the same numbers."""
    images = tiny_data.images[:3]
    pools = make_pools(tiny_data, CONFIG)
    num_sub = len(tiny_data.subclasses)
    assert len(pools.subclasses) < num_sub
    save_by_hand(tmp_path, tiny_data)
    classifier = Classifier.load(UPath(tmp_path))
    bias = classifier._branches[0].heads["sub"].bias
    found = []
    for output in range(len(pools.subclasses) + 1):
        with torch.no_grad():
            bias[output] += 1e6 * (output + 1)  # more than of those before
        (subclass,) = classifier.predict(images).subclass.unique()
        found.append(int(subclass))
    held_out = set(range(num_sub)) - set(pools.subclasses)
    assert found == [*pools.subclasses, num_sub]
    assert held_out.isdisjoint(found)
    assert held_out


@pytest.mark.parametrize("couple_novel", [False, True])
def test_novel_superclass_makes_the_subclass_novel_only_where_coupled(
    tmp_path: Path, tiny_data: Data, couple_novel: bool
) -> None:
    def never_novel(models: list[BranchModel]) -> None:
        with torch.no_grad():
            models[0].heads["super"].bias[-1] = models[0].heads["sub"].bias[-1] = -1e6

    save_by_hand(tmp_path, tiny_data, change=never_novel, tau_super=1e9, couple_novel=couple_novel)
    answers = Classifier.load(UPath(tmp_path)).predict(tiny_data.images[:20])
    assert (answers.superclass == len(tiny_data.superclasses)).all()
    assert (answers.subclass == len(tiny_data.subclasses)).all() == couple_novel
    assert (answers.subclass == len(tiny_data.subclasses)).any() == couple_novel


def test_score_below_the_threshold_is_novel(tmp_path: Path, tiny_data: Data) -> None:
    images = tiny_data.images[:20]
    save_by_hand(tmp_path / "all", tiny_data)
    free = Classifier.load(UPath(tmp_path / "all")).predict(images)
    tau = float(free.super_score.median()) + 1e-9
    save_by_hand(tmp_path / "half", tiny_data, tau_super=tau)
    answers = Classifier.load(UPath(tmp_path / "half")).predict(images)
    novel = len(tiny_data.superclasses)
    expected = torch.where(free.super_score >= tau, free.superclass, novel)
    assert torch.equal(answers.superclass, expected)
    assert 0 < int((answers.superclass == novel).sum()) < 20
    assert torch.equal(answers.subclass, free.subclass)


@pytest.mark.parametrize("num_images", [7, 50, 130])
@pytest.mark.parametrize("name", ["trial", "with_bank"])
def test_bits_of_an_answer_do_not_depend_on_the_others(
    request: pytest.FixtureRequest,
    tiny_data: Data,
    tiny_weights: Path,
    name: str,
    num_images: int,
) -> None:
    """So that a stream of blocks answers as all images at once."""
    classifier = Classifier.load(request.getfixturevalue(name), tiny_weights)
    all_at_once = classifier.predict(tiny_data.images)
    parts = [classifier.predict(images) for images in tiny_data.images.split(num_images)]

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    for name in Predictions.__dataclass_fields__:
        assert torch.equal(joined(name), getattr(all_at_once, name))


@pytest.mark.parametrize(
    ("changes", "passes"),
    [({}, 1), ({"sub_image_size": 48}, 2), ({"sub_fine_tune": "last_1"}, 2)],
)
def test_images_pass_a_backbone_that_both_branches_have_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: Data,
    tiny_weights: Path,
    changes: dict[str, Any],
    passes: int,
) -> None:
    config = tiny_config(architecture="two_models", fine_tune="frozen", **changes)
    train(config, tiny_data, silent, folder=UPath(tmp_path), weights=tiny_weights, note=silent)
    classifier = Classifier.load(UPath(tmp_path), tiny_weights)
    together = classifier.response(tiny_data.images[:40])
    passed: list[int] = []
    encode = BranchModel.encode

    def counted(model: BranchModel, x: torch.Tensor) -> torch.Tensor:
        passed.append(len(x))
        return encode(model, x)

    monkeypatch.setattr(BranchModel, "encode", counted)
    assert torch.equal(classifier.response(tiny_data.images[:40]).sub_logits, together.sub_logits)
    assert sum(passed) == 64 * passes
    with torch.inference_mode():  # by the subclass's own branch
        images = classifier._branches[1].prepare(tiny_data.images[:32])
        alone = classifier._branches[1](classifier._branches[1].encode(images))
    assert torch.equal(alone["sub"], together.sub_logits[:32])


def test_models_and_banks_are_on_the_device_that_is_asked_for(
    with_bank: Path, tiny_weights: Path
) -> None:
    classifier = Classifier.load(UPath(with_bank), tiny_weights, device="meta")
    tensors = [tensor for model in classifier._branches for tensor in model.state_dict().values()]
    tensors += [
        tensor for bank in classifier._banks if bank for tensor in bank.tensors(["rmds"]).values()
    ]
    assert any(classifier._banks)
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_classifier_takes_the_gpu_where_there_is_one(
    trial: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    move = BranchModel.to

    def to(model: BranchModel, *args: Any, **kwargs: Any) -> Any:
        asked.extend(each for each in args if isinstance(each, torch.device))
        return move(model) if args else move(model, **kwargs)

    monkeypatch.setattr(BranchModel, "to", to)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    Classifier.load(UPath(trial), tiny_weights)
    assert asked == [torch.device("cuda")]


@pytest.mark.parametrize("size", [20, 64, 100])
def test_images_of_any_size_are_answered(trial: Path, tiny_weights: Path, size: int) -> None:
    images = torch.zeros(3, size, size, 3, dtype=torch.uint8)
    answers = Classifier.load(UPath(trial), tiny_weights).predict(images)
    assert answers.superclass.shape == answers.sub_score.shape == (3,)
    assert answers.superclass.dtype == answers.subclass.dtype == torch.int64
    assert answers.super_score.dtype == answers.sub_score.dtype == torch.float64


# --- Files -------------------------------------------------------------------------------


def test_trial_stores_what_it_trained_and_a_refit_stores_all(
    trial: Path, tmp_path: Path, tiny_data: Data
) -> None:
    stored = safetensors.torch.load_file(trial / MODEL_FILE)
    assert stored
    assert not any(".frozen." in key for key in stored)
    assert any(".folds." in key for key in stored)
    save_by_hand(tmp_path, tiny_data, change=lambda branches: branches[0].add_share(0))
    stored = safetensors.torch.load_file(tmp_path / MODEL_FILE)
    assert any(".frozen." in key for key in stored)
    assert not any(".folds." in key for key in stored)


@pytest.mark.usefixtures("no_download")
def test_self_contained_classifier_needs_no_pretrained_weights(
    tmp_path: Path, tiny_data: Data
) -> None:
    save_by_hand(tmp_path, tiny_data)
    assert len(Classifier.load(UPath(tmp_path)).predict(tiny_data.images[:2]).subclass) == 2


def test_outputs_come_back_as_they_were(trial: Path, tiny_data: Data) -> None:
    outputs = load_outputs(UPath(trial))
    pools = make_pools(tiny_data, CONFIG)
    assert torch.equal(outputs.rows, pools.val)
    assert torch.equal(outputs.kind, pools.val_kind)
    assert torch.equal(outputs.in_part_a, pools.val_in_part_a)
    assert torch.equal(outputs.true_class, true_classes(tiny_data)[pools.val])
    assert torch.equal(outputs.super_target, pools.super_target[pools.val])
    assert torch.equal(outputs.sub_target, pools.sub_target[pools.val])
    assert outputs.super_logits.shape == (len(pools.val), len(tiny_data.superclasses) + 1)
    assert outputs.sub_logits.shape == (len(pools.val), len(pools.subclasses) + 1)


def test_older_classifier_in_the_folder_is_replaced(tmp_path: Path, tiny_data: Data) -> None:
    save_by_hand(tmp_path, tiny_data, tau_super=1.0)
    save_by_hand(tmp_path, tiny_data, tau_super=2.0)
    assert sorted(file.name for file in tmp_path.iterdir()) == [INFO_FILE, MODEL_FILE]
    assert Classifier.load(UPath(tmp_path)).rule.tau_super == 2.0


def test_moving_the_folder_changes_nothing(
    trial: Path, copied: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    before, after = (Classifier.load(UPath(folder), tiny_weights) for folder in (trial, copied))
    images = tiny_data.images[:20]
    assert torch.equal(before.predict(images).sub_score, after.predict(images).sub_score)
    assert str(trial) not in (trial / INFO_FILE).read_text()


# --- Banks -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_bank(
    tiny_data: Data, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a trial that scores by features; not to be changed."""
    folder = tmp_path_factory.mktemp("with_bank")
    config = replace(CONFIG, novelty_score="rmds", epochs=1)
    train(config, tiny_data, silent, folder=UPath(folder), weights=tiny_weights, note=silent)
    return folder


def bank_tensors(folder: Path) -> dict[str, torch.Tensor]:
    stored = safetensors.torch.load_file(folder / MODEL_FILE)
    return {key: tensor for key, tensor in stored.items() if ".bank." in key}


def test_bank_is_stored_only_where_features_score(
    trial: Path, with_bank: Path, tmp_path: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    names = ("mean_CD", "background_mean_D", "precision_DD", "background_precision_DD")
    assert bank_tensors(trial) == {}
    assert set(bank_tensors(with_bank)) == {f"0.bank.rmds.{name}" for name in names}
    config = tiny_config(
        architecture="two_models", fine_tune="frozen", epochs=0, sub_novelty_score="knn"
    )
    train(config, tiny_data, silent, folder=UPath(tmp_path), weights=tiny_weights, note=silent)
    assert set(bank_tensors(tmp_path)) == {
        f"1.bank.knn.{name}" for name in ("known_ND", "borrowed_MD")
    }


def test_bank_comes_back_bit_for_bit_and_scores_alike(
    with_bank: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    config = Classifier.load(UPath(with_bank), tiny_weights).config
    result = train(config, tiny_data, silent, weights=tiny_weights, note=silent)
    (bank,) = result.banks
    assert bank is not None
    stored = {key.removeprefix("0.bank."): t for key, t in bank_tensors(with_bank).items()}
    assert all(torch.equal(tensor, stored[key]) for key, tensor in bank.tensors(["rmds"]).items())
    width = stored["rmds.background_mean_D"].shape[0]
    features = torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    read = FeatureBank.from_tensors(stored, ["rmds"], width)
    assert torch.equal(*(each.scores(features, ["rmds"])["rmds"] for each in (read, bank)))


@pytest.mark.parametrize("content", [None, b"", b"half a file"])
def test_outputs_that_are_damaged_or_not_there_are_refused(
    copied: Path, content: bytes | None
) -> None:
    (copied / OUTPUTS_FILE).unlink()
    if content is not None:
        (copied / OUTPUTS_FILE).write_bytes(content)
    with pytest.raises(DataError, match=rf"{OUTPUTS_FILE} cannot be read: "):
        load_outputs(UPath(copied))


def test_what_folds_said_comes_back_as_it_was(tmp_path: Path) -> None:
    outputs = with_folds(make_outputs(), exact=("super",))
    save_outputs(UPath(tmp_path), outputs)
    loaded = load_outputs(UPath(tmp_path))
    assert len(loaded.folds) == 2
    for one, other in zip((outputs, *outputs.folds), (loaded, *loaded.folds), strict=True):
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, name)), name
    names = [(fold.superclass, fold.exact) for fold in loaded.folds]
    assert names == [(0, ("super",)), (1, ("super",))]


def test_outputs_of_version_0_1_are_read_with_what_they_did_not_say(copied: Path) -> None:
    """Not what each image shows; and its calibration half was what is now part A."""
    written = safetensors.torch.load((copied / OUTPUTS_FILE).read_bytes())
    del written["true_class"]
    written["is_calibration"] = half = written.pop("in_part_a")
    (copied / OUTPUTS_FILE).write_bytes(safetensors.torch.save(written))
    outputs = load_outputs(UPath(copied))
    assert outputs.true_class.tolist() == [-1] * len(outputs.rows)
    assert torch.equal(outputs.in_part_a, half)


@pytest.mark.parametrize("lost", ["all", "mean_CD"])
def test_scores_by_features_without_a_bank_are_refused(
    with_bank: Path, tmp_path: Path, tiny_weights: Path, lost: str
) -> None:
    folder = Path(shutil.copytree(with_bank, tmp_path / "trial"))
    stored = safetensors.torch.load_file(folder / MODEL_FILE)
    for key in bank_tensors(folder):
        if lost in ("all", key.removeprefix("0.bank.rmds.")):
            del stored[key]
    safetensors.torch.save_file(stored, folder / MODEL_FILE)
    with pytest.raises(
        WeightsError,
        match=rf"{MODEL_FILE} does not fit its {INFO_FILE}: its bank of features lacks ",
    ):
        Classifier.load(UPath(folder), tiny_weights)


@pytest.mark.usefixtures("whole_tables")
def test_table_of_every_score_is_written_at_the_end_of_a_trial(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    config = tiny_config(fine_tune="frozen")
    train(config, tiny_data, silent, folder=UPath(tmp_path), weights=tiny_weights, note=silent)
    outputs, table = load_outputs(UPath(tmp_path)), pd.read_csv(tmp_path / TABLE_FILE)
    for task in TASKS:
        assert available_scores(outputs, task) == NOVELTY_SCORES
        assert set(table.loc[table["task"] == task, "novelty_score"]) == set(NOVELTY_SCORES)


# --- Refusals ----------------------------------------------------------------------------


def test_other_frozen_weights_are_refused(trial: Path, tmp_path: Path) -> None:
    other = write_weights(tmp_path / "other.pth", seed=1)
    with pytest.raises(
        WeightsError,
        match=r"trained on weights of test_resnet with the fingerprint \w{16}, "
        r"but here they have \w{16}: pass --weights",
    ):
        Classifier.load(UPath(trial), other)


def test_weights_of_a_fully_trained_classifier_do_not_matter(
    tmp_path: Path, tiny_data: Data, tiny_weights: Path
) -> None:
    config = tiny_config(fine_tune="full", epochs=0)
    train(config, tiny_data, silent, folder=UPath(tmp_path), weights=tiny_weights, note=silent)
    other = write_weights(tmp_path / "other.pth", seed=1)
    answers = [
        Classifier.load(UPath(tmp_path), w).predict(tiny_data.images) for w in (tiny_weights, other)
    ]
    assert torch.equal(answers[0].sub_score, answers[1].sub_score)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\xff" * 1000])
def test_file_that_holds_no_tensors_is_refused(
    copied: Path, tiny_weights: Path, content: bytes
) -> None:
    (copied / MODEL_FILE).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{MODEL_FILE} cannot be read: "):
        Classifier.load(UPath(copied), tiny_weights)


def test_truncated_tensors_are_refused(copied: Path, tiny_weights: Path) -> None:
    file = copied / MODEL_FILE
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=rf"{MODEL_FILE} cannot be read: "):
        Classifier.load(UPath(copied), tiny_weights)


def test_absent_tensors_are_refused(copied: Path, tiny_weights: Path) -> None:
    (copied / MODEL_FILE).unlink()
    with pytest.raises(WeightsError, match=rf"{MODEL_FILE} cannot be read: .*No such file"):
        Classifier.load(UPath(copied), tiny_weights)


@pytest.mark.parametrize("self_contained", [False, True])
@pytest.mark.parametrize("damage", ["lost", "unknown", "of another shape"])
def test_tensors_that_do_not_fit_the_configuration_are_refused(
    copied: Path,
    tmp_path: Path,
    tiny_data: Data,
    tiny_weights: Path,
    damage: str,
    self_contained: bool,
) -> None:
    folder = tmp_path / "saved" if self_contained else copied
    if self_contained:
        save_by_hand(folder, tiny_data)
    tensors = safetensors.torch.load_file(folder / MODEL_FILE)
    if damage == "lost":
        del tensors["0.heads.sub.weight"]
    elif damage == "unknown":
        tensors["0.heads.sub.other"] = torch.zeros(1)
    else:
        tensors["0.heads.sub.weight"] = torch.zeros(2, 2)
    safetensors.torch.save_file(tensors, folder / MODEL_FILE)
    with pytest.raises(WeightsError, match=r"heads\.sub\.(weight|other)"):
        Classifier.load(UPath(folder), None if self_contained else tiny_weights)


def test_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            DataError, match=rf"{folder} holds no {INFO_FILE}: expected a trial's folder or a refit"
        ):
            Classifier.load(UPath(folder))


def test_file_in_place_of_the_folder_is_refused(copied: Path) -> None:
    with pytest.raises(DataError, match=f"holds no {INFO_FILE}"):
        Classifier.load(UPath(copied / OUTPUTS_FILE))


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe\x00"])
def test_damaged_information_is_refused(copied: Path, content: bytes) -> None:
    (copied / INFO_FILE).write_bytes(content)
    with pytest.raises(DataError, match=rf"{INFO_FILE} is damaged: "):
        Classifier.load(UPath(copied))


def test_classifier_of_a_later_version_is_refused_naming_both(copied: Path) -> None:
    info = json.loads((copied / INFO_FILE).read_text())
    later = info | {"schema": SCHEMA + 1, "version": "9.8.7"}
    (copied / INFO_FILE).write_text(json.dumps(later))
    with pytest.raises(SchemaError) as raised:
        Classifier.load(UPath(copied))
    assert str(raised.value) == (
        f"{copied / INFO_FILE} was written by noveltune 9.8.7 in schema {SCHEMA + 1}, and "
        f"noveltune {version()} here reads up to schema {SCHEMA}: use that version or a later one. "
        "Nothing was changed"
    )


@pytest.mark.parametrize("found", [0, -1, "2", 2.0, True, None])
def test_schema_that_is_no_number_is_damage(copied: Path, found: object) -> None:
    info = json.loads((copied / INFO_FILE).read_text())
    (copied / INFO_FILE).write_text(json.dumps(info | {"schema": found}))
    with pytest.raises(DataError, match=f"{INFO_FILE} is damaged: `schema` must be a whole number"):
        Classifier.load(UPath(copied))


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_information_that_is_not_an_object_is_refused(copied: Path, content: str) -> None:
    (copied / INFO_FILE).write_text(content)
    with pytest.raises(DataError, match=INFO_FILE):
        Classifier.load(UPath(copied))


def test_information_that_lacks_a_key_is_refused(copied: Path, tiny_weights: Path) -> None:
    whole = json.loads((copied / INFO_FILE).read_text())
    for key in whole:
        info = {k: v for k, v in whole.items() if k != key}
        (copied / INFO_FILE).write_text(json.dumps(info))
        if key in ("metrics", "promise", "version", "members"):  # for people; else one
            Classifier.load(UPath(copied), tiny_weights)
            continue
        with pytest.raises(DataError, match=rf"{INFO_FILE}.*{key}"):
            Classifier.load(UPath(copied), tiny_weights)
