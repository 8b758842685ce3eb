"""What is said of a search as it goes on is what all its finished trials amount to."""

import random

import pytest

from results.trial import Trial, TrialState
from search.standing import NUM_SHOWN, Standing
from trainable.config import TrialConfig
from trainable.epoch import Epoch


def trial(number: int, value: float | None, **changes: object) -> Trial:
    values = {"state": TrialState.COMPLETE, "repeat_of": None} | changes
    best = None if value is None else Epoch(number=1, metrics={"score": value, "ce_sub": value})
    return Trial(number=number, config=TrialConfig(), is_baseline=False, best=best, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("metric", ["score", "ce_sub"])
def test_best_by_number_is_that_of_the_trials_in_order_whenever_they_finish(
    seed: int, metric: str
) -> None:
    rng = random.Random(seed)
    values = [rng.choice([None, round(rng.random(), 1), float("nan")]) for _ in range(40)]
    states = [TrialState.FAIL if value is None else TrialState.COMPLETE for value in values]
    trials = [trial(n, value, state=states[n]) for n, value in enumerate(values)]
    standing, sent = Standing((metric,)), dict[int, float]()
    order = rng.sample(trials, len(trials))
    for each in order:
        assert standing.add(each)
        assert not standing.add(each)
        found = standing.best_by_number({*sent})
        assert not found.keys() & sent.keys()
        sent |= found
    better = max if metric == "score" else min
    known: list[float] = []
    expected = {}
    for number, value in enumerate(values):
        known += [value] if value is not None and value == value else []
        if known:
            expected[number] = better(known)
    assert sent == expected
    whole = [t for t in trials if t.metrics.get(metric, float("nan")) == t.metrics.get(metric)]
    sign = -1 if metric == "score" else 1
    ranked = sorted(whole, key=lambda t: (sign * t.metrics[metric], t.number))
    assert standing.best == ranked[:NUM_SHOWN]


def test_failed_trial_that_ran_again_is_counted_once() -> None:
    standing = Standing(("score",))
    standing.add(trial(0, None, state=TrialState.FAIL))
    standing.add(trial(1, None, state=TrialState.FAIL))
    standing.add(trial(2, 0.5, retry_of=1))
    tags = standing.tags("Which?")
    assert (tags["trials_complete"], tags["trials_fail"]) == ("1", "1")


def test_repeats_and_pruned_trials_are_counted_and_not_ranked() -> None:
    standing = Standing(("seen_sub", "unseen_sub"))
    standing.add(trial(0, 0.1))
    standing.add(trial(1, 0.9, state=TrialState.PRUNED))
    standing.add(trial(2, 0.8, repeat_of=0))
    assert [each.number for each in standing.best] == [0]
    tags = standing.tags("Which?")
    assert (tags["trials_complete"], tags["trials_pruned"], tags["trials_fail"]) == ("2", "1", "0")
    assert tags["best_trial"] == "0"
    assert "| 0 | 0.100 | two_heads" in tags["mlflow.note.content"]
    assert "| trial&nbsp; | score&nbsp; | configuration |" in tags["mlflow.note.content"]
