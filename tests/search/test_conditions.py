"""The condition under which a parameter exists is told from what a space suggests."""

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from upath import UPath

from search.dry_run import MANY_DRY_TRIALS
from search.shipped import space_file
from search.space.conditions import conditions
from search.space.dry_trials import asked
from search.space.space import load_space


def found(space: Any) -> dict[str, str]:
    """Return the conditions in a space of plain values."""
    distributions: dict[str, BaseDistribution] = {}
    dry = asked(space, MANY_DRY_TRIALS, distributions)
    return conditions([params for params, _ in dry], distributions)


def test_condition_is_of_one_parameter_of_two_or_of_none() -> None:
    def space(trial: optuna.Trial) -> Any:
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        number = trial.suggest_int("number", 0, 3)
        share = trial.suggest_float("share", 0, 1)
        if kind != "a":
            trial.suggest_float("not_a", 0, 1)
        if number:
            trial.suggest_float("of_number", 0, 1)
        if kind == "b" and number == 2:
            trial.suggest_float("both", 0, 1)
        if share > 0.5:
            trial.suggest_float("of_share", 0, 1)

    told = found(space)
    number = told.pop("of_share")
    assert told == {
        "kind": "", "number": "", "share": "", "not_a": "kind b or c",
        "of_number": "number 1 or 2 or 3", "both": "kind b and number 2",
    }  # fmt: skip
    assert number.endswith("of 200 dry trials")


def test_conditions_of_the_shipped_ablation_are_those_that_its_file_writes() -> None:
    told = found(load_space(UPath(space_file(UPath("full_ablation")))).configure)
    assert told["architecture"] == told["novel_images"] == ""
    assert told["outlier_exposure"] == "novel_images 1000 or 5000"
    assert told["alpha"] == told["temperature"] == "architecture two_heads"
    assert told["super_fine_tune"] == "architecture two_models"
    assert told["super_lr_frozen"] == "super_fine_tune frozen"
    assert told["thresholds_of_msp"] == "novelty_score msp"
    assert told["tau_sub"] == "thresholds_of_msp fixed"


@pytest.mark.parametrize("number", [0, 1])
def test_parameter_that_is_always_there_has_no_condition(number: int) -> None:
    def space(trial: optuna.Trial) -> Any:
        for each in range(number):
            trial.suggest_float(f"x{each}", 0, 1)

    assert found(space) == {f"x{each}": "" for each in range(number)}
