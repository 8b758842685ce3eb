"""Which trial a refit takes, for how many epochs, and with which thresholds."""

from pathlib import Path
from typing import Any

import pytest

from search.refit import RefitError, _chosen, common_rule
from tests.results.test_report import Search
from trainable.novelty import Rule


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
    row = _chosen(search.trials, search.record, None)
    assert (row["number"], row["config"].seed, row["seeds"]) == (1, 0, [1, 4, 6])
    assert row["best_epoch"] == 4


def test_median_epoch_of_an_even_number_of_seeds_is_whole(search: Search) -> None:
    for number in (0, 1):
        search.tell(lr=0.01 * (number + 1), seed=3, repeat_of=number, score=0.5, epoch=3)
    row = _chosen(search.trials, search.record, None)
    assert row["best_epoch"] == 4  # of 2, 3, 4, 5


def test_trial_that_is_asked_for_is_refitted_as_it_was(search: Search) -> None:
    row = _chosen(search.trials, search.record, 1)
    assert (row["number"], row["seeds"], row["best_epoch"]) == (1, [1], 2)


def test_configuration_with_a_failed_seed_is_not_taken(search: Search) -> None:
    search.tell("FAIL", lr=0.02, seed=3, repeat_of=1)
    search.tell(lr=0.01, seed=3, repeat_of=0, score=0.1)
    assert _chosen(search.trials, search.record, None)["number"] == 0


def test_best_trial_is_taken_where_no_configuration_has_every_seed(search: Search) -> None:
    for number in (0, 1):
        search.tell("FAIL", lr=0.01 * (number + 1), seed=3, repeat_of=number)
    row = _chosen(search.trials, search.record, None)
    assert (row["number"], row["seeds"], row["best_epoch"]) == (0, [0], 9)


def test_search_without_a_complete_trial_is_refused(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.tell("FAIL")
    with pytest.raises(RefitError, match="no trial is COMPLETE"):
        _chosen(search.trials, search.record, None)
    with pytest.raises(RefitError, match="no COMPLETE trial 7"):
        _chosen(search.trials, search.record, 7)


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
