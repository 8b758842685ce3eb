"""What is promised for a trial, and what having been chosen adds to it."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from upath import UPath

from results.promise import intervals_of, nested_choice, promise_of_trials, rates_text
from results.report.tables import print_promise, print_tables, write_tables
from results.terminal import plain_console
from search.outcome import summary
from tests.made_searches import Search


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Three trials: the first is the best by luck on part A, the second on both."""
    search = Search(tmp_path)
    for lr, (a, b) in ((0.01, (0.95, 0.60)), (0.02, (0.80, 0.78)), (0.03, (0.50, 0.79))):
        ends = {"interval.score.low": a - 0.1, "interval.score.high": a + 0.1}
        parts = {"part_a.score": a, "part_b.score": b}
        search.tell(lr=lr, metrics={"score": (a + b) / 2} | parts | ends)
    search.tell("PRUNED", lr=0.04, score=0.1)
    return search


def test_nested_choice_judges_each_partss_best_on_the_other(search: Search) -> None:
    # Part A chooses the first (.60 on B), part B the third (.50 on A).
    assert nested_choice(search.trials, "score") == pytest.approx((0.60 + 0.50) / 2)
    low = search.trials[["state", "repeat_of"]].assign(
        **{"part_a.ce_sub": [1.0, 2, 3, 4], "part_b.ce_sub": [7.0, 6, 5, 4]}
    )
    assert nested_choice(low, "ce_sub") == pytest.approx((7.0 + 3.0) / 2)  # the least is the best


def test_nested_choice_has_no_advantage_where_all_trials_are_equally_good() -> None:
    rng = np.random.default_rng(0)
    gains: list[float] = []
    nested: list[Any] = []
    for _ in range(200):
        a, b = rng.normal(0.8, 0.03, (2, 16))
        frame = pd.DataFrame({"part_a.score": a, "part_b.score": b, "state": "COMPLETE"})
        frame["repeat_of"] = None
        gains.append(((a + b) / 2).max())
        nested.append(nested_choice(frame, "score"))
    assert np.mean(gains) > 0.83
    assert np.mean(nested) == pytest.approx(0.8, abs=0.005)


def test_repeats_one_trial_and_trials_without_parts_have_no_nested_choice(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.tell(lr=0.01, score=0.7)
    search.tell(lr=0.02, score=0.8)
    assert nested_choice(search.trials, "score") is None
    assert intervals_of(search.trials.iloc[0]) == {}
    search.tell(lr=0.03, metrics={"part_a.score": 0.5, "part_b.score": 0.5})
    search.tell(lr=0.03, seed=1, repeat_of=2, metrics={"part_a.score": 0.9, "part_b.score": 0.9})
    assert nested_choice(search.trials, "score") is None
    assert nested_choice(search.trials, "auroc_sub") is None


def test_tables_and_json_say_how_sure_the_best_is_and_what_choosing_added(search: Search) -> None:
    printed = " ".join(search.tables().split())
    assert "score 0.790 (0.700-0.900), seen_super 0.500" in printed
    assert "best of 3 trials: promised score 0.790; by nested choice" in printed
    assert "the other judges) 0.550" in printed
    best = summary(search.record, UPath(search.folder), search.trials, 1.0)["best_trial"]
    assert best["intervals"] == {"score": pytest.approx([0.7, 0.9])}
    assert best["nested_choice"] == pytest.approx(0.55)
    write_tables(UPath(search.folder), search.trials, search.record)
    table = pd.read_csv(search.folder / "trials.csv")
    assert table["interval.score.low"].tolist()[:3] == pytest.approx([0.85, 0.7, 0.4])
    assert math.isnan(table["interval.score.low"][3])


def test_promise_is_printed_in_whole_words_within_the_terminal(search: Search) -> None:
    file = io.StringIO()
    print_tables(
        plain_console(file=file, width=80, force_terminal=True), search.trials, search.record
    )
    best, *promise = file.getvalue().rpartition("Best: ")[2].splitlines()
    assert max(map(len, (best, *promise))) <= 80
    assert [line[:2] for line in promise if "nested choice" in line or "judges)" in line] == [
        "  "
    ] * 2


def test_search_of_before_is_reported_without_intervals(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.tell(score=0.7)
    console = Console(file=io.StringIO(), width=200)
    print_promise(console, search.trials, search.trials.iloc[0], "score")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_promise_of_several_seeds_is_their_mean(search: Search) -> None:
    promise = promise_of_trials(search.trials.iloc[:2])
    assert promise["score"] == pytest.approx((0.775 + 0.79) / 2)
    assert intervals_of(promise) == {"score": pytest.approx((0.775, 0.975))}
    assert rates_text(promise, intervals_of(promise)).startswith("score 0.782 (0.775-0.975), seen")
    assert "interval.seen_super.low" not in promise
