"""The best by the metric, on a front and by means over the same seeds; what few seeds can say."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from results.ranking import (
    RESAMPLES,
    best_repeated,
    best_row,
    best_trial,
    interval,
    pareto_rows,
    ranked_originals,
    repeated,
    repeats_frame,
    running_best,
    whole,
)
from results.report import __main__ as report
from results.report.tables import print_tables
from tests.made_searches import Search
from tests.results.test_report import row_of

DIFFERENCES = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=12)


def frame(**columns: list[Any]) -> pd.DataFrame:
    """Return a table of trials that are COMPLETE unless `state` says otherwise."""
    size = len(next(iter(columns.values())))
    return pd.DataFrame({"number": range(size), "state": ["COMPLETE"] * size} | columns)


# --- The best ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "number"), [("score", 2), ("seen_sub", 2), ("ce_sub", 1)])
def test_best_row_follows_the_direction_of_the_metric(metric: str, number: int) -> None:
    best = best_row(frame(**{metric: [0.5, 0.1, 0.9]}), [metric])
    assert best is not None
    assert best["number"] == number


def test_best_row_is_the_first_of_equals() -> None:
    best = best_row(frame(score=[0.1, 0.9, 0.9]), ["score"])
    assert best is not None
    assert best["number"] == 1


@pytest.mark.parametrize(
    ("scores", "number"), [([None, 0.1, 0.9, 0.2], 2), ([None, None, None, None], 1)]
)
def test_best_row_of_a_front_has_a_score_if_any_has(
    scores: list[float | None], number: int
) -> None:
    trials = frame(score=scores, ce_sub=[0.5, 0.1, 0.9, 0.2], seen_sub=[0.1] * 4)
    best = best_row(trials, ["ce_sub", "seen_sub"])
    assert best is not None
    assert best["number"] == number


def test_best_row_is_complete() -> None:
    trials = frame(score=[0.9, 0.2, 0.1], state=["PRUNED", "FAIL", "COMPLETE"])
    best = best_row(trials, ["score"])
    assert best is not None
    assert best["number"] == 2


@pytest.mark.parametrize("metric", ["score", "ce_sub"])
def test_trial_without_the_value_is_never_the_best(metric: str) -> None:
    nan = float("nan")
    best = best_row(frame(**{metric: [nan, 0.5, nan]}), [metric])
    assert best is not None
    assert best["number"] == 1
    assert best_row(frame(**{metric: [nan, nan]}), [metric]) is None
    front = pareto_rows(
        frame(seen_sub=[nan, 0.5], unseen_sub=[0.9, 0.5]), ["seen_sub", "unseen_sub"]
    )
    assert [*front["number"]] == [1]


@pytest.mark.parametrize(
    ("metric", "expected"), [("score", [0.2, 0.2, 0.5]), ("ce_sub", [0.2, 0.1, 0.1])]
)
def test_running_best_follows_the_direction_of_the_metric(
    metric: str, expected: list[float]
) -> None:
    assert [*running_best(pd.Series([0.2, 0.1, 0.5]), metric)] == expected


def test_best_row_of_a_front_is_by_score() -> None:
    trials = frame(score=[0.1, 0.9, 0.5], seen_sub=[0.9, 0.5, 0.1], unseen_sub=[0.1, 0.5, 0.9])
    best = best_row(trials, ["seen_sub", "unseen_sub"])
    assert best is not None
    assert best["number"] == 1


@pytest.mark.parametrize("trials", [pd.DataFrame([]), frame(score=[0.9], state=["PRUNED"])])
def test_there_is_no_best_row_without_a_complete_trial(trials: pd.DataFrame) -> None:
    assert best_row(trials, ["score"]) is None


def is_dominated(row: np.ndarray, rows: np.ndarray) -> bool:
    """Say by pairs whether another row is no worse in every column and better in one."""
    for other in rows:
        no_worse = [other[k] >= row[k] for k in range(len(row))]
        better = [other[k] > row[k] for k in range(len(row))]
        if all(no_worse) and any(better):
            return True
    return False


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 3)] * 3, st.sampled_from(["COMPLETE", "PRUNED", "FAIL"])),
        min_size=1,
        max_size=12,
    )
)
def test_pareto_rows_are_those_that_no_other_one_beats(
    rows: list[tuple[int, int, int, str]],
) -> None:
    trials = frame(
        seen_sub=[row[0] / 3 for row in rows],
        unseen_sub=[row[1] / 3 for row in rows],
        ce_sub=[float(row[2]) for row in rows],
        state=[row[3] for row in rows],
    )
    complete = {n: (r[0], r[1], -r[2]) for n, r in enumerate(rows) if r[3] == "COMPLETE"}
    values = np.array([*complete.values()])
    expected = [n for n, row in complete.items() if not is_dominated(np.array(row), values)]
    front = pareto_rows(trials, ["seen_sub", "unseen_sub", "ce_sub"])
    assert [*front["number"]] == expected


# --- The interval --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4, 5, 10, 40])
def test_interval_is_scipys_paired_percentile_bootstrap(size: int) -> None:
    random = np.random.default_rng(size)
    ours, best = random.random(size), random.random(size)
    expected = stats.bootstrap(
        (ours, best),
        lambda x, y: np.mean(x - y),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert interval(ours - best) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(DIFFERENCES)
def test_interval_holds_the_mean_and_lies_in_the_range(differences: list[float]) -> None:
    low, high = interval(differences)
    slack = 1e-9
    assert min(differences) - slack <= low <= high <= max(differences) + slack
    # The tails of 2.5% cannot swallow the mean of so few: it lies in the middle of resamples.
    assert low - slack <= np.mean(differences) <= high + slack


@settings(deadline=None, max_examples=60)
@given(DIFFERENCES, st.floats(-2, 2), st.floats(0.1, 3))
def test_interval_moves_and_grows_with_the_differences(
    differences: list[float], shift: float, scale: float
) -> None:
    low, high = interval(differences)
    moved = interval(np.array(differences) * scale + shift)
    assert moved == pytest.approx((low * scale + shift, high * scale + shift), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=3))
def test_interval_of_two_or_three_seeds_is_their_range(differences: list[float]) -> None:
    expected = min(differences), max(differences)
    assert interval(differences) == pytest.approx(expected, abs=1e-12)


def test_range_of_three_seeds_holds_the_median_of_all_in_three_cases_of_four() -> None:
    draws = np.random.default_rng(0).exponential(size=(20_000, 3))
    median = np.log(2)
    held = (draws.min(axis=1) <= median) & (median <= draws.max(axis=1))
    assert held.mean() == pytest.approx(0.75, abs=0.02)


def test_interval_is_the_same_every_time() -> None:
    assert interval([0.1, 0.4, 0.2, 0.3]) == interval([0.1, 0.4, 0.2, 0.3])


@pytest.mark.parametrize("differences", [[], [0.1]])
def test_there_is_no_interval_of_fewer_than_two_seeds(differences: list[float]) -> None:
    assert np.isnan(interval(differences)).all()


# --- Configurations ------------------------------------------------------------------------------


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Three configurations in three trials; the first alone is the best, the second by mean."""
    search = Search(tmp_path)
    search.tell(lr=0.01, score=0.9)
    search.tell(lr=0.02, score=0.8)
    search.tell(lr=0.03, score=0.7)
    return search


def repeat(search: Search, number: int, seed: int, score: float, state: str = "COMPLETE") -> None:
    lr = (0.01, 0.02, 0.03)[number]
    search.tell(state, lr=lr, seed=seed, repeat_of=number, score=score)


@pytest.fixture
def finished(search: Search) -> Search:
    """The search with its repeats, two more seeds for the first two."""
    for seed, scores in ((1, (0.5, 0.7)), (2, (0.6, 0.85))):
        for number, score in enumerate(scores):
            repeat(search, number, seed, score)
    return search


def test_trials_that_differ_in_the_seed_alone_are_one_configuration(finished: Search) -> None:
    first, second = repeated(finished.trials)
    assert (first.number, second.number) == (0, 1)
    assert dict(first.values("score")) == {0: 0.9, 1: 0.5, 2: 0.6}
    assert dict(second.values("score")) == {0: 0.8, 1: 0.7, 2: 0.85}


def test_seeds_that_a_space_file_ran_itself_are_repeats_too(tmp_path: Path) -> None:
    search = Search(tmp_path)
    for seed, scores in enumerate(((0.9, 0.8), (0.5, 0.7))):
        for lr, score in zip((0.01, 0.02), scores, strict=True):
            search.tell(baseline=True, lr=lr, seed=seed, score=score)
    assert [each.number for each in repeated(search.trials)] == [0, 1]
    best = best_trial(search.trials, ["score"])
    assert best is not None
    assert best["number"] == 1


def test_search_without_repeats_has_none(search: Search) -> None:
    assert repeated(search.trials) == []
    assert best_repeated([], "score") is None
    best = best_trial(search.trials, ["score"])
    assert best is not None
    assert best["number"] == 0


def test_search_without_a_trial_has_no_best(tmp_path: Path) -> None:
    assert best_trial(Search(tmp_path).trials, ["score"]) is None


def test_best_is_by_mean_over_seeds_and_names_the_original(finished: Search) -> None:
    best = best_trial(finished.trials, ["score"])
    assert best is not None
    assert best["number"] == 1


def test_lucky_repeat_is_not_the_best_trial(search: Search) -> None:
    repeat(search, 2, 1, 0.99, "COMPLETE")
    search.tell("RUNNING", lr=0.01, seed=1, repeat_of=0)
    best = best_trial(search.trials, ["score"])
    assert best is not None
    assert best["number"] == 2  # the one that is whole, by its original
    assert best["score"] == 0.7


@pytest.mark.parametrize("state", ["FAIL", "RUNNING"])
def test_configuration_that_is_not_complete_with_every_seed_is_not_ranked(
    finished: Search, state: str
) -> None:
    repeat(finished, 2, 1, 0.99)
    repeat(finished, 2, 2, 0.99, state)
    configurations = repeated(finished.trials)
    assert [each.number for each in whole(configurations)] == [0, 1]
    frame = repeats_frame(finished.trials, ["score"], ())
    assert [*frame["trial"]] == [1, 0, 2]
    assert [*frame["is_whole"]] == [True, True, False]
    assert [*frame["seeds"]] == [3, 3, 2]
    # Compared over the seeds that both have: 0.7 - 0.8 and 0.99 - 0.7.
    assert frame["difference"].iloc[2] == pytest.approx((-0.1 + 0.29) / 2)


def test_means_over_more_seeds_are_not_ranked_with_means_over_fewer(finished: Search) -> None:
    repeat(finished, 0, 3, 0.6)
    best = best_repeated(repeated(finished.trials), "score")
    assert best is not None
    assert best.number == 0


def test_metric_to_minimise_is_ranked_by_the_lowest_mean(tmp_path: Path) -> None:
    search = Search(tmp_path, ("ce_sub",))
    for seed, values in enumerate(((0.5, 0.9), (1.5, 0.9))):
        for lr, value in zip((0.01, 0.02), values, strict=True):
            search.tell(lr=lr, seed=seed, ce_sub=value, repeat_of=None)
    frame = repeats_frame(search.trials, ["ce_sub"], ())
    assert [*frame["trial"]] == [1, 0]
    assert frame["difference"].iloc[1] == pytest.approx(0.1)


def test_front_without_scores_is_ranked_by_means_of_its_first_metric(tmp_path: Path) -> None:
    search = Search(tmp_path, ("ce_super", "ce_sub"))
    for lr, value in ((0.01, 0.5), (0.1, 0.2)):
        for seed in range(2):
            search.tell(lr=lr, seed=seed, ce_super=value, score=float("nan"),
                        repeat_of=None if seed == 0 else int(lr > 0.05) * 2)  # fmt: skip
    best = best_trial(search.trials, search.record.metrics)
    assert best is not None
    assert best["number"] == 2
    originals = ranked_originals(search.trials, "ce_super")
    assert originals == [2, 0]


def test_front_of_several_metrics_is_ranked_by_score(tmp_path: Path) -> None:
    search = Search(tmp_path, ("seen_sub", "unseen_sub"))
    for seed in (0, 1):
        search.tell(lr=0.01, seed=seed, score=0.4, seen_sub=0.9)
        search.tell(lr=0.02, seed=seed, score=0.6, seen_sub=0.1)
    best = best_trial(search.trials, search.record.metrics)
    assert best is not None
    assert best["number"] == 1


# --- Tables and the picture ----------------------------------------------------------------------


def test_frame_has_mean_range_and_paired_difference_of_every_metric(finished: Search) -> None:
    frame = repeats_frame(finished.trials, ["score"], ("seen_sub", "score")).set_index(
        ["trial", "metric"]
    )
    assert [*frame.index] == [(1, "score"), (1, "seen_sub"), (0, "score"), (0, "seen_sub")]
    best, other = frame.loc[(1, "score")], frame.loc[(0, "score")]
    assert (best["mean"], best["min"], best["max"]) == (pytest.approx(2.35 / 3), 0.7, 0.85)
    assert np.isnan(best["difference"])
    differences = [0.9 - 0.8, 0.5 - 0.7, 0.6 - 0.85]
    assert other["difference"] == pytest.approx(np.mean(differences))
    assert (other["low"], other["high"]) == pytest.approx(interval(differences))
    assert frame.loc[(0, "seen_sub"), "difference"] == 0


def test_printed_table_shows_mean_range_and_difference(finished: Search) -> None:
    text = finished.tables()
    _, _, table = text.partition("Repeats: means over seeds")
    assert row_of(table, 1).split()[1:6] == ["3", "0.783", "0.700", "to", "0.850"]
    words = row_of(table, 0).split()
    assert words[1:6] == ["3", "0.667", "0.500", "to", "0.900"]
    assert words[6:10] == ["-0.117", "-0.250", "to", "+0.100"]
    assert "Best by mean over 3 seeds: trial 00001, score 0.783, lr 0.02" in table
    assert "Best: trial 00000, score 0.900" in text
    assert "*" not in table


def test_narrow_terminal_has_the_configurations_below_the_table(finished: Search) -> None:
    console = Console(file=io.StringIO(), width=80, highlight=False, force_terminal=True,
                      color_system=None)  # fmt: skip
    print_tables(console, finished.trials, finished.record)
    assert isinstance(console.file, io.StringIO)
    _, _, table = console.file.getvalue().partition("Repeats: means over seeds")
    assert row_of(table, 1).split()[5:] == ["0.850"]
    assert "\n  00001: lr 0.02\n" in "\n".join(line.rstrip() for line in table.splitlines())


def test_printed_table_marks_what_is_not_ranked(finished: Search) -> None:
    repeat(finished, 2, 1, 0.99, "FAIL")
    _, _, table = finished.tables().partition("Repeats: means over seeds")
    assert row_of(table, 2).split()[1] == "1*"
    assert "* not complete with every seed, so not ranked" in table


def test_repeats_are_not_among_the_searchs_own_trials(finished: Search) -> None:
    repeat(finished, 2, 1, 0.99)
    own, _, _ = finished.tables().partition("Repeats: means over seeds")
    assert row_of(own, 7) == ""
    assert "Best: trial 00000, score 0.900" in own


def test_report_writes_the_repeats_as_a_table_and_a_picture(
    finished: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--name", finished.folder.name, "--storage", str(finished.folder.parent)]
    assert report.main(arguments) == 0
    assert f"wrote {finished.folder / 'repeats.csv'}\n" in capsys.readouterr().out
    assert (finished.folder / "report/repeats-2.svg").exists()
    table = pd.read_csv(finished.folder / "repeats.csv")
    pd.testing.assert_frame_equal(
        table[table["metric"] == "score"].reset_index(drop=True),
        repeats_frame(finished.trials, ["score"], ()),
    )
    trials = pd.read_csv(finished.folder / "trials.csv")
    assert trials["repeat_of"].tolist()[3:] == [0, 1, 0, 1]
    assert trials["repeat_of"][:3].isna().all()


def test_search_without_repeats_has_no_table_of_them(search: Search) -> None:
    assert "Repeats" not in search.tables()
