"""The plan of repeats: the best of a finished search, each seed once, nothing twice."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from results.record import Repeat, Retry
from search.repeats import RepeatError, planned, retried
from tests.made_searches import record
from trainable.config import TrialConfig
from trainable.errors import ConfigError


def asked(num_trials: int, repeats: list[Repeat] | None = None, metric: str = "score") -> Any:
    return record(num_trials=num_trials, repeats=repeats or [], metrics=[metric])


def table(*rows: tuple[str, float, float, int]) -> pd.DataFrame:
    """Return trials given as state, score, learning rate and seed."""
    return pd.DataFrame(
        {
            "number": number,
            "state": state,
            "config": TrialConfig(lr=lr, seed=seed),
            "score": score,
            "ce_sub": score,
        }
        for number, (state, score, lr, seed) in enumerate(rows)
    )


SEARCH = [
    ("COMPLETE", 0.5, 0.1, 0),
    ("PRUNED", 0.9, 0.2, 0),
    ("COMPLETE", 0.8, 0.3, 0),
    ("FAIL", 0.9, 0.4, 0),
    ("COMPLETE", 0.6, 0.5, 0),
]


def pairs(repeats: list[Repeat]) -> list[tuple[int, int]]:
    return [(repeat.trial, repeat.seed) for repeat in repeats]


def test_best_complete_trials_get_the_seeds_after_their_own_seed_by_seed() -> None:
    repeats = planned(table(*SEARCH), asked(5), num_seeds=3, top=2)
    assert pairs(repeats) == [(2, 1), (4, 1), (2, 2), (4, 2)]
    assert [repeat.number for repeat in repeats] == [5, 6, 7, 8]


def test_metric_to_minimise_ranks_the_lowest_first() -> None:
    repeats = planned(table(*SEARCH), asked(5, metric="ce_sub"), num_seeds=2, top=2)
    assert pairs(repeats) == [(0, 1), (4, 1)]


@pytest.mark.parametrize("top", [None, 3, 99])
def test_top_all_takes_every_complete_trial_and_more_than_there_are_does_too(
    top: int | None,
) -> None:
    repeats = planned(table(*SEARCH), asked(5), num_seeds=2, top=top)
    assert pairs(repeats) == [(2, 1), (4, 1), (0, 1)]


def done(rows: list[tuple[str, float, float, int]], repeats: list[Repeat]) -> pd.DataFrame:
    """Return the trials after their repeats, which were all better than anything."""
    return table(*rows, *(("COMPLETE", 0.99, rows[each.trial][2], each.seed) for each in repeats))


def test_same_plan_again_adds_nothing_whatever_the_repeats_found() -> None:
    repeats = planned(table(*SEARCH), asked(5), num_seeds=3, top=2)
    for trials in (table(*SEARCH), done(SEARCH, repeats[:2]), done(SEARCH, repeats)):
        assert planned(trials, asked(5, repeats), num_seeds=3, top=2) == repeats


def test_more_seeds_or_configurations_add_what_is_missing() -> None:
    repeats = planned(table(*SEARCH), asked(5), num_seeds=2, top=2)
    more = planned(done(SEARCH, repeats), asked(5, repeats), num_seeds=3, top=3)
    assert more[:2] == repeats
    assert pairs(more[2:]) == [(0, 1), (2, 2), (4, 2), (0, 2)]
    assert [repeat.number for repeat in more[2:]] == [7, 8, 9, 10]


def test_fewer_seeds_or_configurations_take_nothing_back() -> None:
    repeats = planned(table(*SEARCH), asked(5), num_seeds=4, top=3)
    fewer = planned(done(SEARCH, repeats), asked(5, repeats), num_seeds=2, top=1)
    assert fewer == repeats


def test_repeats_that_were_not_started_yet_keep_their_numbers() -> None:
    repeats = planned(table(*SEARCH), asked(5), num_seeds=2, top=2)
    more = planned(done(SEARCH, repeats[:1]), asked(5, repeats), num_seeds=2, top=3)
    assert [repeat.number for repeat in more] == [5, 6, 7]


def test_search_extended_after_repeats_numbers_new_ones_after_all() -> None:
    repeats = planned(table(*SEARCH), asked(5), num_seeds=2, top=1)
    longer = pd.concat([done(SEARCH, repeats), table(("COMPLETE", 0.7, 0.9, 0))])
    longer["number"] = range(7)
    more = planned(longer, asked(6, repeats), num_seeds=2, top=2)
    assert more == [*repeats, Repeat(number=7, trial=6, seed=1)]


def test_seeds_that_the_space_file_ran_itself_are_not_run_again() -> None:
    rows = [("COMPLETE", 0.5, lr, seed) for seed in (0, 1) for lr in (0.1, 0.2)]
    repeats = planned(table(*rows), asked(4), num_seeds=3, top=None)
    assert pairs(repeats) == [(0, 2), (1, 2)]


def test_unfinished_search_is_refused_with_the_command_that_finishes_it() -> None:
    trials = table(*SEARCH, ("RUNNING", 0.0, 0.6, 0))
    with pytest.raises(
        RepeatError,
        match=r"asked: 5 of 6 trials are finished.*python -m search\.run --resume --name asked$",
    ):
        planned(trials, asked(6), num_seeds=3, top=2)


def test_unfinished_repeats_do_not_count_as_the_searchs_trials() -> None:
    repeats = planned(table(*SEARCH), asked(5), num_seeds=2, top=2)
    with pytest.raises(RepeatError, match="5 of 7 trials are finished"):
        planned(done(SEARCH, repeats), asked(7, repeats), num_seeds=3, top=2)


def test_search_without_a_complete_trial_is_refused() -> None:
    with pytest.raises(RepeatError, match="no trial is COMPLETE"):
        planned(table(("FAIL", 0.1, 0.1, 0)), asked(1), num_seeds=3, top=2)


def test_seed_beyond_what_a_configuration_takes_is_refused() -> None:
    trials = table(("COMPLETE", 0.1, 0.1, 2**31 - 1))
    with pytest.raises(ConfigError, match="seed"):
        planned(trials, asked(1), num_seeds=2, top=1)


def test_every_failed_trial_is_retried_once_and_a_failed_retry_in_its_turn() -> None:
    said: list[str] = []
    rows = [*SEARCH, ("FAIL", 0.0, 0.6, 0), ("RUNNING", 0.0, 0.7, 0)]
    trials = table(*rows)
    trials.at[5, "config"] = None
    trials["reason"] = "the space gave none"
    retries = retried(trials, asked(9), said.append)
    assert retries == [Retry(number=7, trial=3)]
    assert said == [
        "trial 00005 has no configuration to run again: the space gave none",
        "1 failed trials run again",
    ]
    search = replace(asked(9), retries=retries)
    assert retried(trials, search, said.append) == retries
    assert said[-1] == "no failed trial is left to run again"
    again = table(*rows, ("FAIL", 0.0, 0.4, 0))
    again.at[5, "config"] = None
    again["reason"] = ""
    assert retried(again, search, said.append) == [*retries, Retry(number=8, trial=7)]


def test_repeats_come_after_retries_and_a_retry_stands_for_no_trial_that_was_asked_for() -> None:
    retries = [Retry(number=5, trial=3)]
    trials = table(*SEARCH, ("COMPLETE", 0.95, 0.4, 0))
    search = replace(asked(5), retries=retries)
    assert planned(trials, search, num_seeds=2, top=1) == [Repeat(number=6, trial=5, seed=1)]
    with pytest.raises(RepeatError, match="5 of 6 trials are finished"):
        planned(trials, replace(search, num_trials=6), num_seeds=2, top=1)


def test_retry_of_a_repeat_ranks_no_configuration() -> None:
    """Another seed's score is no trial's own."""
    search = replace(
        asked(5, [Repeat(number=5, trial=4, seed=1)]),
        retries=[Retry(number=6, trial=5), Retry(number=7, trial=6)],
    )
    own = [*SEARCH[:4], ("COMPLETE", 0.7, 0.5, 0)]
    of_4 = [("FAIL", 0.0, 0.5, 1), ("FAIL", 0.0, 0.5, 1), ("COMPLETE", 0.99, 0.5, 1)]
    repeats = planned(table(*own, *of_4), search, num_seeds=2, top=1)
    assert pairs(repeats) == [(4, 1), (2, 1)]
