"""A config is valid or says which key to change."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainable.config import (
    BRANCH_KEYS,
    HEAD_KEYS,
    OPTIMIZERS,
    SCHEDULES,
    TrialConfig,
    parse_settings,
)
from trainable.errors import ConfigError
from trainable.parts import AUGMENTS, HEADS, SCORES
from trainable.reference import markdown
from trainable.train import main as train_command
from trainable.user_parts import UserParts

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_page_of_the_config_is_not_stale() -> None:
    page = PAGE.read_text()
    assert page == markdown(), "python -m trainable.reference > docs/config.md"


def test_part_that_is_registered_is_a_choice_and_is_helped_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "@HEADS.register('mine', source='ours')\ndef mine(n, m):\n    'Mine.'\n"
    source = f"from trainable.parts import HEADS\n{text}"
    try:
        UserParts(files=("mine.py",), sources={"mine.py": source}).use()
        assert TrialConfig(sub_head="mine").of("sub", "head") == "mine"
        with pytest.raises(SystemExit):
            train_command(["--help"])
        assert "head: linear, cosine, mine" in " ".join(capsys.readouterr().out.split())
        assert "| `mine` | Mine. | ours |" in markdown()
    finally:
        UserParts().use()


def test_loss_terms_are_named_one_by_one() -> None:
    assert TrialConfig(loss="cross_entropy").loss_terms() == ["cross_entropy"]
    known = "cross_entropy, class_balanced, interaction"
    with pytest.raises(ConfigError, match=f"`loss` must be one of {known}, but"):
        TrialConfig(loss="cross_entropy+interactoin")
    with pytest.raises(ConfigError, match=r"`loss` names 'interaction' twice, in .*: drop one"):
        TrialConfig(loss="interaction+cross_entropy+interaction")


def test_loss_that_teaches_nothing_is_refused() -> None:
    TrialConfig(loss="interaction")
    with pytest.raises(ConfigError, match="alone teaches nothing, as alpha is 0: write cross_entr"):
        TrialConfig(loss="interaction", alpha=0)
    with pytest.raises(ConfigError, match="as two_models has no branch with both: write cross"):
        TrialConfig(loss="interaction", architecture="two_models")


# --- Keys, types and ranges -------------------------------------------------------------------


def test_defaults_are_the_papers_approach_a() -> None:
    config = TrialConfig()
    assert config.architecture == "two_heads"
    assert (config.head, config.fine_tune) == ("linear", "full")
    assert (config.image_size, config.novel_images) == (64, 5000)
    assert (config.lr, config.weight_decay) == (1e-4, 1e-4)
    assert (config.batch_size, config.epochs) == (64, 15)
    assert (config.optimizer, config.schedule) == ("adam", "constant")
    assert (config.alpha, config.temperature, config.novelty_score) == (0.1, 1.0, "msp")
    assert (config.tau_super, config.tau_sub, config.couple_novel) == (None, None, False)
    assert (config.pseudo_novel_fraction, config.val_fraction) == (0.15, 0.10)
    assert config.augment == "flip_rotate"
    assert (config.label_smoothing, config.mixup, config.outlier_exposure) == (0.0, 0.0, 0.0)
    assert (config.ema, config.match_resolution) == (0.0, 0.0)
    assert (config.known_rejection_super, config.known_rejection_sub) == (None, None)
    assert (config.tau_sub_per_superclass, config.restrict_sub) == (False, False)
    assert config.second_pseudo_novel_fraction == 0.0


@pytest.mark.parametrize(
    ("typo", "meant"), [("alhpa", "alpha"), ("sub_heads", "sub_head"), ("Epochs", "epochs")]
)
def test_unknown_key_is_refused_with_the_nearest_one(typo: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^unknown key '{typo}' \(did you mean '{meant}'\?\)$"):
        TrialConfig.from_dict({typo: 1})


def test_unknown_key_near_no_other_is_refused_and_the_list_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^unknown key 'dropout' \(docs/config\.md has all\)$"):
        TrialConfig.from_dict({"dropout": 0.5})


@pytest.mark.parametrize("key", ["lr", "alpha", "tau_super", "sub_head_lr"])
def test_int_serves_as_a_float(key: str) -> None:
    config = TrialConfig.from_dict({"architecture": "two_models", key: 1})
    value = getattr(config, key)
    assert value == 1.0
    assert type(value) is float


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epochs", True, "int"),
        ("epochs", 15.0, "int"),
        ("epochs", "15", "int"),
        ("epochs", None, "int"),
        ("seed", np.int64(3), "int"),
        ("lr", True, "float"),
        ("lr", "1e-4", "float"),
        ("lr", None, "float"),
        ("tau_sub", "calibrated", "float or null"),
        ("tau_sub", False, "float or null"),
        ("couple_novel", 1, "bool"),
        ("couple_novel", "true", "bool"),
        ("head", None, "str"),
        ("fine_tune", 3, "str"),
        ("sub_head", 3, "str or null"),
        ("sub_image_size", 64.0, "int or null"),
    ],
)
def test_value_of_another_type_is_refused(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^`{key}` must be {expected}, but got "):
        TrialConfig(**{key: value})


RANGES: list[tuple[str, float, float]] = [
    ("image_size", 32, 224),
    ("novel_images", 0, 10**9),
    ("lr", 1e-8, 10.0),
    ("head_lr", 1e-8, 10.0),
    ("weight_decay", 0.0, 10.0),
    ("batch_size", 2, 65536),
    ("epochs", 0, 99_999),
    ("alpha", 0.0, 1000.0),
    ("temperature", 0.01, 1000.0),
    ("pseudo_novel_fraction", 0.0, 0.5),
    ("val_fraction", 0.001, 0.5),
    ("second_pseudo_novel_fraction", 0.0, 0.5),
    ("label_smoothing", 0.0, 0.5),
    ("mixup", 0.0, 10.0),
    ("outlier_exposure", 0.0, 10.0),
    ("ema", 0.0, 0.9999),
    ("layer_decay", 0.1, 1.0),
    ("max_norm", 0.0, 1e6),
    ("match_resolution", 0.0, 1.0),
    ("known_rejection_super", 0.001, 0.5),
    ("known_rejection_sub", 0.001, 0.5),
    ("feature_views", 1, 32),
    ("seed", 0, 2**31 - 1),
]


def next_beyond(value: float, towards: float) -> float:
    if isinstance(value, int):
        return value + (1 if towards > 0 else -1)
    return math.nextafter(value, towards)


@pytest.mark.parametrize(("key", "low", "high"), RANGES)
def test_both_ends_of_a_range_are_allowed(key: str, low: float, high: float) -> None:
    assert getattr(TrialConfig(**{key: low}), key) == low
    assert getattr(TrialConfig(**{key: high}), key) == high


@pytest.mark.parametrize(("key", "low", "high"), RANGES)
def test_value_below_the_range_is_refused(key: str, low: float, high: float) -> None:
    below = next_beyond(low, -math.inf)
    with pytest.raises(ConfigError, match=f"{key} <= .* must hold, but got {below}$"):
        TrialConfig(**{key: below})


@pytest.mark.parametrize(
    ("key", "low", "high"), [each for each in RANGES if each[0] != "novel_images"]
)
def test_value_above_the_range_is_refused(key: str, low: float, high: float) -> None:
    above = next_beyond(high, math.inf)
    with pytest.raises(
        ConfigError, match=f"{key} <= .* must hold, but got {re.escape(str(above))}$"
    ):
        TrialConfig(**{key: above})


@pytest.mark.parametrize("key", [key for key, low, _ in RANGES if isinstance(low, float)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_that_is_not_finite_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key} <= .* must hold, but got {value}"):
        TrialConfig(**{key: value})


@pytest.mark.parametrize("key", ["tau_super", "tau_sub"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tau_that_is_not_finite_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^`{key}` must be a finite number or null, but got"):
        TrialConfig(**{key: value})


@pytest.mark.parametrize("task", ["super", "sub"])
def test_threshold_both_fixed_and_chosen_is_refused(task: str) -> None:
    with pytest.raises(
        ConfigError,
        match=f"^`tau_{task}` fixes the threshold, and known_rejection_{task} chooses it: drop one",
    ):
        TrialConfig(**{f"tau_{task}": 0.5, f"known_rejection_{task}": 0.1})
    with pytest.raises(
        ConfigError,
        match=f"^`tau_{task}` fixes the threshold, and novelty_score best chooses it: drop one$",
    ):
        TrialConfig(**{f"tau_{task}": 0.5, f"{task}_novelty_score": "best"})
    other = "sub" if task == "super" else "super"
    TrialConfig(**{f"tau_{task}": 0.5, f"known_rejection_{other}": 0.1})


@pytest.mark.parametrize("key", ["novelty_score", "super_novelty_score", "sub_novelty_score"])
def test_distance_to_borrowed_images_without_any_is_refused(key: str) -> None:
    with pytest.raises(
        ConfigError,
        match=f"^`{key}` knn_difference .* but novel_images is 0: take another",
    ):
        TrialConfig(**{key: "knn_difference", "novel_images": 0})
    TrialConfig(**{key: "knn_difference", "novel_images": 1})
    TrialConfig(**{key: "best", "novel_images": 0})


def test_distance_to_borrowed_images_is_of_the_branch_that_has_some() -> None:
    own = {"architecture": "two_models", "novel_images": 0, "super_novel_images": 9}
    TrialConfig(super_novelty_score="knn_difference", **own)
    with pytest.raises(ConfigError, match=r"knn_difference needs .* but novel_images is 0"):
        TrialConfig(sub_novelty_score="knn_difference", **own)
    with pytest.raises(ConfigError, match="but super_novel_images is 0"):
        TrialConfig(novelty_score="knn_difference", architecture="two_models", super_novel_images=0)


@pytest.mark.parametrize("value", [-3.5, 0.0, 0.99, 40.0])
def test_tau_of_any_size_is_allowed_as_scores_differ_in_scale(value: float) -> None:
    assert TrialConfig(tau_super=value, tau_sub=value).tau_sub == value


@pytest.mark.parametrize(
    ("key", "wrong", "meant"),
    [
        ("architecture", "two_head", "two_heads"),
        ("head", "cosin", "cosine"),
        ("novelty_score", "max_logits", "max_logit"),
        ("novelty_score", "knn_diference", "knn_difference"),
        ("novelty_score", "bests", "best"),
        ("schedule", "cosin", "cosine"),
        ("augment", "strongest", "strong"),
        ("optimizer", "adan", "adam"),
        ("schedule", "onecycle", "one_cycle"),
        ("augment", "flip-rotate", "flip_rotate"),
    ],
)
def test_misspelt_choice_is_refused_with_the_nearest_one(key: str, wrong: str, meant: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{key}` must be one of .*, but got '{wrong}' \(did you mean '{meant}'"
    ):
        TrialConfig(**{key: wrong})


@pytest.mark.parametrize("value", ["full", "frozen", "last_1", "last_99"])
def test_fine_tuning_mode_is_allowed(value: str) -> None:
    assert TrialConfig(fine_tune=value).fine_tune == value


@pytest.mark.parametrize(
    "value", ["Full", "last", "last_", "last_0", "last_100", "last_1 ", "last_-1"]
)
def test_other_fine_tuning_mode_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=f"must be full, frozen or last_N .* but got '{value}'"):
        TrialConfig(fine_tune=value)


# --- Overrides and branches -------------------------------------------------------------------

OVERRIDES = {
    "backbone": "resnet18",
    "image_size": 96,
    "fine_tune": "frozen",
    "lr": 0.01,
    "head_lr": 0.02,
    "head": "cosine",
    "novelty_score": "energy",
    "novel_images": 7,
    "weight_decay": 0.5,
    "label_smoothing": 0.2,
    "mixup": 0.3,
    "ema": 0.9,
    "augment": "none",
    "match_resolution": 0.4,
    "feature_views": 5,
    "layer_decay": 0.7,
    "max_norm": 2.0,
    "epochs": 7,
}


def test_every_key_that_can_be_overridden_is_tested() -> None:
    assert {*BRANCH_KEYS, *HEAD_KEYS} == set(OVERRIDES)


@pytest.mark.parametrize(("super_epochs", "sub_epochs", "longest"), [(3, 4, 4), (16, None, 16)])
def test_epochs_that_are_not_those_of_the_longer_branch_are_refused(
    super_epochs: int, sub_epochs: int | None, longest: int
) -> None:
    own = {"super_epochs": super_epochs, "sub_epochs": sub_epochs}
    with pytest.raises(ConfigError, match=f"but got 15, with .*: set epochs={longest}$"):
        TrialConfig(architecture="two_models", **own)
    config = TrialConfig(architecture="two_models", epochs=longest, **own)
    assert config.of("super", "epochs") == super_epochs


@pytest.mark.parametrize("task", ["super", "sub"])
@pytest.mark.parametrize("key", BRANCH_KEYS)
def test_branch_override_without_two_models_is_refused(task: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^`{task}_{key}` needs architecture 'two_models'"):
        TrialConfig(**{f"{task}_{key}": OVERRIDES[key]})


@pytest.mark.parametrize("task", ["super", "sub"])
@pytest.mark.parametrize("key", OVERRIDES)
def test_override_holds_for_its_own_task_alone(task: Any, key: str) -> None:
    config = TrialConfig(architecture="two_models", **{f"{task}_{key}": OVERRIDES[key]})
    other: Any = "sub" if task == "super" else "super"
    assert config.of(task, key) == OVERRIDES[key]
    assert config.of(other, key) == getattr(TrialConfig(), key)


@pytest.mark.parametrize("key", HEAD_KEYS)
def test_head_override_holds_in_a_shared_branch_too(key: str) -> None:
    config = TrialConfig(architecture="two_heads", **{f"sub_{key}": OVERRIDES[key]})
    assert config.of("sub", key) == OVERRIDES[key]
    assert config.of("super", key) == getattr(TrialConfig(), key)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sub_head", "round", "`sub_head` must be one of linear, cosine, but got 'round'"),
        ("sub_novelty_score", "entropy", "`sub_novelty_score` must be one of"),
        ("sub_image_size", 16, "`32 <= sub_image_size <= 224` must hold, but got 16"),
        ("super_lr", 0.0, "super_lr <= 10` must hold, but got 0.0"),
        ("super_head_lr", math.nan, "super_head_lr <= 10` must hold, but got nan"),
        ("super_fine_tune", "half", "`super_fine_tune` must be full, frozen or last_N"),
    ],
)
def test_bad_override_is_refused_by_its_own_name(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrialConfig(architecture="two_models", **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 20.0), ("head_lr", 0.0), ("image_size", 5), ("head", "round"), ("fine_tune", "half")],
)
def test_bad_shared_value_is_refused_by_the_name_that_was_given(key: str, value: Any) -> None:
    """`super_lr` may not even be set in this architecture, so no message should name it."""
    with pytest.raises(ConfigError, match=rf"[` ]{key}[` ]"):
        TrialConfig(**{key: value})


def test_two_heads_are_one_branch_with_both_tasks() -> None:
    (branch,) = TrialConfig(lr=0.01, sub_head="cosine", image_size=128).branches()
    assert branch.tasks == ("super", "sub")
    assert branch.heads == ("linear", "cosine")
    assert (branch.backbone, branch.image_size) == ("efficientnet_lite0", 128)
    assert (branch.fine_tune, branch.lr, branch.head_lr) == ("full", 0.01, 0.01)


def test_two_models_are_a_branch_for_each_task() -> None:
    config = TrialConfig(
        architecture="two_models",
        lr=0.001,
        super_fine_tune="frozen",
        super_lr=0.01,
        super_image_size=128,
        sub_backbone="resnet50",
        sub_head="cosine",
    )
    first, second = config.branches()
    assert (first.tasks, second.tasks) == (("super",), ("sub",))
    assert (first.heads, second.heads) == (("linear",), ("cosine",))
    assert (first.backbone, second.backbone) == ("efficientnet_lite0", "resnet50")
    assert (first.fine_tune, second.fine_tune) == ("frozen", "full")
    assert (first.image_size, second.image_size) == (128, 64)
    assert (first.lr, second.lr) == (0.01, 0.001)


def test_heads_learn_at_the_rate_of_their_branch_unless_told() -> None:
    config = TrialConfig(architecture="two_models", lr=0.1, sub_lr=0.2)
    assert [branch.head_lr for branch in config.branches()] == [0.1, 0.2]
    config = TrialConfig(architecture="two_models", lr=0.1, sub_lr=0.2, head_lr=0.3)
    assert [branch.head_lr for branch in config.branches()] == [0.3, 0.3]
    config = TrialConfig(architecture="two_models", lr=0.1, head_lr=0.3, sub_head_lr=0.4)
    assert [branch.head_lr for branch in config.branches()] == [0.3, 0.4]


# --- Round trips and text ---------------------------------------------------------------------


def choice(key: str, *values: str) -> dict[str, st.SearchStrategy[Any]]:
    return {key: st.sampled_from(values)}


SHARED: dict[str, st.SearchStrategy[Any]] = {
    **choice("backbone", "efficientnet_lite0", "resnet18", "vit_b_16"),
    **choice("head", *HEADS),
    **choice("fine_tune", "full", "frozen", "last_2"),
    **choice("novelty_score", *SCORES),
    "image_size": st.integers(32, 224),
    "lr": st.floats(1e-8, 10),
    "head_lr": st.none() | st.floats(1e-8, 10),
    **choice("augment", *AUGMENTS),
    **{key: st.floats(0, 0.5) for key in ("label_smoothing", "mixup", "ema", "match_resolution")},
    **{key: st.floats(0.1, 1) for key in ("layer_decay", "max_norm")},
    "weight_decay": st.floats(0, 10),
    "novel_images": st.integers(1, 10**6),
    "feature_views": st.integers(1, 32),
}
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    **choice("optimizer", *OPTIMIZERS),
    **choice("schedule", *SCHEDULES),
    **{key: st.none() | st.floats(-50, 50) for key in ("tau_super", "tau_sub")},
    "alpha": st.floats(0, 1000),
    "temperature": st.floats(0.01, 1000),
    "couple_novel": st.booleans(),
    "compile": st.booleans(),
    "seed": st.integers(0, 2**31 - 1),
}


@st.composite
def configs(draw: st.DrawFn) -> TrialConfig:
    optional = SHARED | OTHERS
    architecture = draw(st.sampled_from(["two_heads", "two_models"]))
    keys = SHARED if architecture == "two_models" else {key: SHARED[key] for key in HEAD_KEYS}
    for task in ("super", "sub"):
        optional = optional | {f"{task}_{key}": values for key, values in keys.items()}
    values = draw(st.fixed_dictionaries({}, optional=optional))
    return TrialConfig(architecture=architecture, **values)


@given(configs())
@settings(deadline=None, max_examples=50)
def test_dict_and_json_give_the_same_config_back(config: TrialConfig) -> None:
    values = config.to_dict()
    again = TrialConfig.from_dict(dict(reversed(values.items())))
    assert again == config
    assert [*again.to_dict()] == [*values]
    assert TrialConfig.from_dict(json.loads(json.dumps(values))) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("epochs=3", 3),
        ("lr=1e-3", 0.001),
        ("couple_novel=true", True),
        ("tau_sub=null", None),
        ("head=cosine", "cosine"),
        ('head="cosine"', "cosine"),
        ("backbone=hf_hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18.a1_in1k"),
        ("backbone=a=b", "a=b"),
        ("backbone=", ""),
    ],
)
def test_setting_is_json_or_else_the_bare_string(text: str, value: Any) -> None:
    (parsed,) = parse_settings([text]).values()
    assert parsed == value
    assert type(parsed) is type(value)


def test_setting_may_be_repeated_but_not_contradicted() -> None:
    assert parse_settings(["lr=1", "epochs=2", "lr=1"]) == {"lr": 1, "epochs": 2}
    with pytest.raises(ConfigError, match="--set lr=1 and --set lr=3 contradict each other"):
        parse_settings(["lr=1", "epochs=2", "lr=3"])


def test_no_settings_are_no_values() -> None:
    assert parse_settings([]) == {}


def test_setting_without_equals_sign_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--set takes KEY=VALUE, but got 'couple_novel'$"):
        parse_settings(["lr=1", "couple_novel"])


def test_setting_of_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        ConfigError, match=r"^--set epoch=3: unknown key 'epoch' \(did you mean 'epochs'\?\)$"
    ):
        parse_settings(["epoch=3"])


@pytest.mark.parametrize("text", ["lr=NaN", "lr=Infinity", "lr=1e999"])
def test_setting_that_is_no_finite_number_does_not_become_a_config(text: str) -> None:
    with pytest.raises(ConfigError, match="lr <= 10` must hold, but got"):
        TrialConfig.from_dict(parse_settings([text]))


@pytest.mark.parametrize(
    "changes",
    [
        {"super_novel_images": 0, "sub_novelty_score": "knn_difference"},
        {"sub_novel_images": 0, "super_novelty_score": "knn_difference+max_logit"},
    ],
)
def test_a_branch_without_borrowed_images_goes_with_one_that_needs_them(
    changes: dict[str, Any],
) -> None:
    config = TrialConfig(architecture="two_models", novel_images=1000, **changes)
    own = [config.for_branch(branch).novel_images for branch in config.branches()]
    assert sorted(own) == [0, 1000]
