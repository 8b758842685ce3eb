"""Configurations are named by what varies among them, and by nothing that does not act."""

from results.naming import Names
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
    assert "α" in TrialConfig().describe()
    assert "α" not in TrialConfig(loss="cross_entropy").describe()


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


def test_a_single_configuration_and_seeds_alone_are_described() -> None:
    config = TrialConfig()
    assert names({}, {"seed": 1}) == [config.describe()] * 2
    assert Names([None]).name(None) == "no configuration"
