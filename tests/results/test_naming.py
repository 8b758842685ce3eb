"""Configurations are named by what varies among them, and by nothing that does not act."""

import pytest

from results.naming import Names, described
from trainable.config import TrialConfig
from trainable.user_parts import UserParts


def names(*configs: dict[str, object]) -> list[str]:
    made = [TrialConfig.from_dict(each) for each in configs]
    naming = Names(made)
    return [naming.name(each) for each in made]


def test_what_all_have_in_common_is_not_named() -> None:
    assert names({"lr": 0.01, "image_size": 32}, {"lr": 0.1, "image_size": 32}) == [
        "lr 0.01",
        "lr 0.1",
    ]


def test_what_an_architecture_brings_alone_is_not_named() -> None:
    # α and T are 0.1 and 1 wherever they act: they say no more than the architecture.
    found = names({"architecture": "two_heads"}, {"architecture": "two_models"})
    assert found == ["two_heads", "two_models"]
    with_alphas = names(
        {"architecture": "two_models"}, {"alpha": 0.2}, {"alpha": 0.3}, {"alpha": 0.0}
    )
    assert with_alphas == ["two_models", "two_heads, α 0.2", "two_heads, α 0.3", "two_heads, α 0"]


def test_what_the_loss_does_not_ask_for_is_not_named() -> None:
    found = names({}, {"loss": "cross_entropy"}, {"loss": "cross_entropy", "alpha": 0.5})
    assert found == ["loss cross_entropy+interaction", "loss cross_entropy", "loss cross_entropy"]
    assert "α" in described(TrialConfig())
    assert "α" not in described(TrialConfig(loss="cross_entropy"))


def test_weight_and_temperature_are_named_where_a_users_term_may_ask_for_them() -> None:
    term = "from trainable.parts import LOSSES\nLOSSES.register('mine', source='x')(super)\n"
    two = {"architecture": "two_models", "loss": "cross_entropy+mine"}
    try:
        UserParts(files=("mine.py",), sources={"mine.py": term}).use()
        assert names({**two}, {**two, "alpha": 0.5}) == ["α 0.1", "α 0.5"]
    finally:
        UserParts().use()


def test_a_key_that_differs_between_tasks_is_named_for_the_task_that_varies() -> None:
    two = {"architecture": "two_models"}
    assert names({**two}, {**two, "sub_head": "cosine"}) == ["sub linear head", "sub cosine head"]
    assert names({**two, "head": "linear"}, {**two, "head": "cosine"}) == [
        "linear head",
        "cosine head",
    ]


def test_a_bound_that_some_lack_is_named() -> None:
    assert names({}, {"known_rejection_sub": 0.1})[1] == "known rejection sub 0.1"


def test_outlier_exposure_of_blends_is_named_without_borrowed_images() -> None:
    alone = {"novel_images": 0, "near_novel": 0.3}
    found = names({**alone, "outlier_exposure": 0.5}, {**alone, "outlier_exposure": 0.0})
    assert found == ["outlier exposure 0.5", "outlier exposure 0"]


def test_a_single_configuration_and_seeds_alone_are_described() -> None:
    assert names({}, {"seed": 1}) == [described(TrialConfig())] * 2
    assert Names([None]).name(None) == "no configuration"


def test_what_both_tasks_have_alike_is_named_once_though_it_differs_elsewhere() -> None:
    two = {"architecture": "two_models"}
    apart = {**two, "super_lr": 0.1, "sub_lr": 0.2}
    found = names(apart, {**two, "lr": 0.1}, {**two, "lr": 0.2})
    assert found == ["super lr 0.1, sub lr 0.2", "lr 0.1", "lr 0.2"]


def test_what_tells_the_ones_that_are_shown_comes_first() -> None:
    made = [
        TrialConfig.from_dict(each)
        for each in ({"lr": 0.1}, {"lr": 0.2, "head": "cosine"}, {"lr": 0.3, "head": "cosine"})
    ]
    naming = Names(made)
    told = naming.telling(made[1:])
    assert told == ("lr",)
    assert naming.name(made[1], told) == "lr 0.2, cosine head"
    assert naming.name(made[1]) == "cosine head, lr 0.2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.01}, "lr 0.01"),
        ({"backbone": "resnet18"}, "resnet18"),
        ({"sub_head": "cosine"}, "super linear head, sub cosine head"),
        ({"fine_tune": "frozen"}, "frozen"),
        ({"image_size": 128}, "128 px"),
        ({"alpha": 0.5}, "α 0.5"),
        ({"temperature": 2.0}, "T 2"),
        ({"novel_images": 0}, "0 borrowed"),
        ({"architecture": "two_models"}, "two_models"),
    ],
)
def test_a_configuration_alone_is_described_in_the_same_words(
    change: dict[str, object], said: str
) -> None:
    text = described(TrialConfig.from_dict(change))
    assert said in text
    assert text != described(TrialConfig())
    assert text.startswith(str(change.get("architecture", "two_heads")))
