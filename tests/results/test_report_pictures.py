"""What the pictures of a report say: computed from the figures, and true at the edges."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from results.history import frame_of
from results.report import (
    anatomy,
    answer,
    confusion,
    course,
    curves,
    deltas,
    drawing,
    importance,
    overview,
    sheets,
    thresholds,
)
from tests.made_searches import Search, add, leave_outputs
from tests.trainable.made_outputs import make_outputs, with_folds
from trainable.config import Task, TrialConfig
from trainable.data.splits import LEFT_OUT
from trainable.novelty.hierarchy import hierarchy_area
from trainable.novelty.metrics import accuracies
from trainable.novelty.rule import Rule, decide
from trainable.novelty.thresholds import Answers, Outputs, PartRules, choose_rule


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path / "asked")


# --- Choices -------------------------------------------------------------------------------------


def test_a_choice_is_judged_by_pairs_that_differ_in_nothing_else(search: Search) -> None:
    for seed in range(5):
        search.tell(lr=1e-3, seed=seed, score=0.4 + seed / 50)
        search.tell(architecture="two_models", seed=seed, score=0.45 + seed / 50 + seed / 1000)
    search.tell(architecture="two_models", lr=0.1, score=0.99)  # a pair of no other
    row = deltas.delta_frame(search.read()).set_index("key").loc["architecture"]
    assert row["num"] == 5
    assert row["is_paired"]
    assert row["difference"] == pytest.approx(0.052)
    assert 0.05 <= row["low"] < 0.052 < row["high"] <= 0.054
    picture = deltas.deltas(search.read())
    assert picture is not None
    assert "architecture: two_heads → two_models (+5.2 points)" in picture.caption


def test_a_choice_without_pairs_is_judged_by_means_and_called_a_hint(search: Search) -> None:
    for number in range(8):
        search.tell(lr=10 ** (-3 + number / 8), score=0.5 + number / 100,
                    architecture=("two_heads", "two_models")[number % 2])  # fmt: skip
    (row,) = deltas.delta_frame(search.read()).to_dict("records")
    assert not row["is_paired"]
    assert row["difference"] == pytest.approx(0.01)
    picture = deltas.deltas(search.read())
    assert picture is not None
    assert "No interval excludes zero" in picture.caption
    assert "a hint, no proof" in picture.caption


def test_importance_is_not_hidden_by_good_baselines_outside_the_space(search: Search) -> None:
    for number in range(5):
        search.tell(baseline=True, score=0.9 + number / 100)
    for number in range(20):
        architecture = ("two_heads", "two_models")[number % 2]
        search.tell(architecture=architecture, lr=10 ** (-4 + number / 8), score=number / 25)
    assert importance.importances(search.read())["lr"] > 0.5


def test_trials_that_are_all_equal_and_few_have_what_pictures_they_can(search: Search) -> None:
    search.tell(score=0.5)
    one = {picture.name for picture in overview.pictures(search.read())}
    assert one == {"tradeoff", "history", "learning"}
    for _ in range(6):
        search.tell(score=0.5)
    assert one <= {picture.name for picture in overview.pictures(search.read())}


def test_a_search_of_several_objectives_is_ordered_by_score(tmp_path: Path) -> None:
    search = Search(tmp_path, ("seen_sub", "unseen_sub"))
    for number in range(6):
        search.tell(lr=10 ** (-3 + number / 4), seen_sub=number / 6, unseen_sub=1 - number / 6,
                    score=number / 10)  # fmt: skip
    pictures = {picture.name: picture for picture in overview.pictures(search.read())}
    assert "importance" in pictures
    assert "6 trials are beaten by none in both" in pictures["tradeoff"].caption
    search.tell(lr=0.09, seen_sub=0.1, unseen_sub=0.1, score=0.9)
    what, *_ = answer.sentences(search.read())
    assert what.startswith("The best of 7 complete trials is trial 6 ")
    assert what.endswith("none beats trials 0, 1, 2, 3, 4, 5.")
    rows = answer.main_rows(search.read())
    assert {row.trial: row.role for row in rows}.items() >= {6: "best", 0: "front"}.items()
    assert len(rows) == 7


def test_a_long_front_leaves_baselines_in_the_main_table(tmp_path: Path) -> None:
    search = Search(tmp_path, ("seen_sub", "unseen_sub"))
    search.tell(baseline=True, seen_sub=0.0, unseen_sub=0.0, score=0.1)
    for number in range(20):
        search.tell(lr=(number + 2) / 1000, seen_sub=number / 20, unseen_sub=1 - number / 20,
                    score=0.2 + number / 100)  # fmt: skip
    rows = answer.main_rows(search.read())
    assert len(rows) == answer.ROWS_MAX
    assert (rows[-1].trial, rows[-1].role) == (0, "baseline")
    assert {row.role for row in rows[:-1]} == {"best", "front"}


def test_a_front_without_scores_is_ordered_by_its_first_metric(tmp_path: Path) -> None:
    search = Search(tmp_path, ("ce_super", "ce_sub"))
    for number in range(5):
        search.tell(lr=10 ** (-3 + number / 4), ce_super=number / 6, ce_sub=1 - number / 6,
                    score=float("nan"))  # fmt: skip
    assert search.read().metric == "ce_super"
    what, *_ = answer.sentences(search.read())
    assert "trial 0 (lr 0.001), with a ce super of 0.000" in what
    assert course.history(search.read()) is not None
    assert answer.main_rows(search.read())


def test_a_trial_without_the_metric_is_in_no_picture_of_it(search: Search) -> None:
    for number in range(6):
        architecture = ("two_heads", "two_models")[number % 2]
        search.tell(lr=10 ** (number / 4 - 3), architecture=architecture, score=0.1 + number / 10)
    search.tell(lr=0.1, score=0.0)
    found = search.read()
    found.everything.loc[6, "score"] = float("nan")
    pictures = {picture.name: picture for picture in overview.pictures(found)}
    assert "The best was found by trial 5" in pictures["history"].caption
    assert len(pictures["parallel"].table) == 6
    assert "over 6 complete trials" in pictures["importance"].caption


# --- Time ----------------------------------------------------------------------------------------


def test_slots_are_filled_and_a_pause_before_a_resume_is_no_time(search: Search) -> None:
    add(search, 0, 10, 0.1)
    add(search, 0, 4, 0.2)
    add(search, 5, 9, 0.3)
    add(search, 0, 6, 0.25, hours=5)
    times = search.read().times.set_index("number")
    assert times["slot"].tolist() == [0, 1, 1, 0]
    assert times["start_s"].tolist() == [0, 0, 5, 10]
    assert times["end_s"].tolist() == [10, 4, 9, 16]
    frame = course.best_so_far(search.read())
    assert frame["number"].tolist() == [1, 2, 0, 3]  # as they ended
    assert frame["best"].tolist() == [0.2, 0.3, 0.3, 0.3]
    picture = course.history(search.read())
    assert picture is not None
    by_trial, by_clock = (
        np.asarray(figure.axes[0].lines[0].get_ydata()) for figure in picture.figures
    )
    assert [*by_trial] == [0.1, 0.2, 0.3, 0.3]
    assert [*by_clock] == [0.2, 0.3, 0.3, 0.3]


# --- Thresholds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("couple", [False, True])
def test_a_threshold_gives_what_the_rule_gives_by_it(couple: bool) -> None:
    outputs = make_outputs(num=400)
    rule = choose_rule(outputs, TrialConfig(couple_novel=couple))
    expected = accuracies(outputs, Answers(*decide(outputs, rule)))
    for task in ("super", "sub"):
        taus, rates = thresholds.sweep(outputs, task, rule)
        own = rule.tau_super if task == "super" else rule.tau_sub[0]
        at = int(np.abs(taus - own).argmin())
        assert taus[at] == pytest.approx(own)
        assert rates["seen right"][at] == pytest.approx(expected[f"seen_{task}"])
        assert rates["unseen called novel"][at] == pytest.approx(expected[f"unseen_{task}"])
        rejected = expected[f"known_rejected_{task}"]
        assert rates["known called novel"][at] == pytest.approx(rejected)


def test_a_slider_belongs_to_its_picture_where_a_task_has_none(
    monkeypatch: pytest.MonkeyPatch, search: Search
) -> None:
    search.tell()
    leave_outputs(search, 0, make_outputs(num=400))
    best = search.read().anatomy
    assert best is not None
    whole = thresholds.sweep

    def only_sub(outputs: Outputs, task: Task, rule: Rule) -> Any:
        taus, rates = whole(outputs, task, rule)
        return taus, (rates if task == "sub" else {})

    monkeypatch.setattr(thresholds, "sweep", only_sub)
    picture = thresholds.thresholds(best)
    assert picture is not None
    assert len(picture.figures) == 1
    assert [*picture.slider] == [0]
    assert picture.slider[0]["label"] == "τ of the subclass"


def test_a_left_out_superclass_is_judged_where_as_many_known_images_are_rejected() -> None:
    outputs = with_folds(make_outputs(num=400))
    rule = choose_rule(outputs, TrialConfig())
    taus, rates = thresholds.sweep(outputs, "super", rule)
    assert rates["unseen called novel"][0] <= rates["unseen called novel"][-1]
    at = len(taus) // 2
    known = outputs.is_known("super")
    scores = thresholds.accepted(outputs, "super", rule, rule.tau_super)
    share = float((scores[known] < taus[at]).double().mean())
    found = []
    for fold in outputs.folds:
        of_fold = thresholds.accepted(fold, "super", rule, rule.tau_super)
        ranked = of_fold[fold.is_known("super")].sort().values
        tau = ranked[min(round(share * len(ranked)), len(ranked) - 1)]
        found.append(float((of_fold[fold.kind == LEFT_OUT] < tau).double().mean()))
    assert rates["unseen called novel"][at] == pytest.approx(np.mean(found))


# --- Answers -------------------------------------------------------------------------------------


def test_confusion_and_subclass_table_agree_with_the_metrics(search: Search) -> None:
    outputs = with_folds(make_outputs(num=400))
    search.tell(score=0.6)
    leave_outputs(search, 0, outputs)
    best = search.read().anatomy
    assert best is not None
    with drawing.style():
        cells = drawing.inline(drawing.svg(confusion.confusion(best).figures[0]), "a")
    colours = ("fill: var(--known); fill-opacity", "fill: var(--ink); fill-opacity")
    assert all(colour in cells for colour in colours), "a dark page could not show them"
    frames = confusion.confusion_frames(best)
    rates = accuracies(outputs, PartRules.choose(outputs, best.config).answers(outputs))
    left_out = frames["super"].filter(like="left out", axis=0)
    found = (left_out["novel"] / left_out.sum(axis=1)).mean()
    assert found == pytest.approx(rates["unseen_super_left_out"])
    seen = confusion.subclass_frame(best).query("kind == 'seen'")
    right = np.average(seen["right"], weights=seen["images"])
    assert right == pytest.approx(rates["seen_sub"])
    wrong = sheets.wrong_frame(best, search.read())
    assert len(wrong.query("level == 'subclass' and not is_novel")) == pytest.approx(
        (1 - right) * seen["images"].sum()
    )
    assert wrong["margin"].is_monotonic_decreasing


def test_a_share_above_zero_is_not_shown_as_none() -> None:
    frame = pd.DataFrame([[499, 1, 0], [0, 300, 200]], index=pd.Index(["a", "b"], name="shows"),
                         columns=["a", "b", "novel"])  # fmt: skip
    with drawing.style():
        picture = confusion.confusion_of({"super": frame}, "a model", {})
    assert picture.caption == "Most often taken for one wrong class: a → b (<1% of 500 images)."
    assert [text.get_text() for text in picture.figures[0].axes[0].texts] == [
        "100",
        "<1",
        "60",
        "40",
    ]


def test_more_classes_than_can_be_named_are_shown_by_superclass() -> None:
    names = [f"class {number}" for number in range(50)]
    superclass = {name: ("a", "b")[place % 2] for place, name in enumerate(names)}
    superclass |= {"class 50, held out": "b"}
    rows = [*names, "class 50, held out", "borrowed"]
    frame = pd.DataFrame(1, index=pd.Index(rows, name="shows"), columns=[*names, "novel"])
    with drawing.style():
        picture = confusion.confusion_of({"sub": frame}, "a model", superclass)
        (axes,) = picture.figures[0].axes
        drawing.laid_out(picture.figures[0])
    assert [each.get_text() for each in axes.get_yticklabels()] == ["a", "b", "b, held out"]
    assert [each.get_text() for each in axes.get_xticklabels()] == ["a", "b", "novel"]
    assert axes.get_yticks()[:2].tolist() == [12.0, 37.0]


def test_choices_that_complete_trials_share_have_no_axis(search: Search) -> None:
    for number in range(6):
        head = ("linear", "cosine")[number % 2]
        search.tell(lr=10 ** (-3 + number / 8), head=head, score=number / 10)
    search.tell("PRUNED", architecture="two_models", score=0.1)
    picture = importance.parallel(search.read())
    assert picture is not None
    labels = [each.get_text() for each in picture.figures[0].axes[0].get_xticklabels()]
    assert {*labels} == {"lr", "head", "score"}


def test_a_search_without_novel_images_has_no_picture_against_them(search: Search) -> None:
    missing = dict.fromkeys(("unseen_super", "unseen_sub"), float("nan"))
    search.tell(lr=0.01, metrics={"score": 0.6} | missing)
    assert overview.tradeoff(search.read()) is None
    assert {each.name for each in overview.pictures(search.read())} >= {"history", "learning"}


def test_curve_is_drawn_of_trials_whose_outputs_are_there(search: Search) -> None:
    search.tell(baseline=True, score=0.4)
    search.tell(score=0.6)
    search.tell(baseline=True, score=0.5)
    outputs = make_outputs()
    leave_outputs(search, 1, outputs)  # the baselines' were not copied
    picture = curves.hierarchy(search.read())
    assert picture is not None
    assert set(picture.table["trial"]) == {1}
    area = hierarchy_area(outputs, choose_rule(outputs, TrialConfig()))
    assert f"Trial 1 has the largest area, {100 * area:.1f}%" in picture.caption


def test_best_trial_without_outputs_leaves_a_line(search: Search) -> None:
    search.tell(score=0.4)
    assert anatomy.pictures(search.read()) == []
    (line,) = anatomy.remarks(search.read())
    assert "holds no validation outputs" in line


def test_images_that_are_not_at_hand_leave_a_line_and_their_rows(search: Search) -> None:
    search.tell(score=0.4)
    leave_outputs(search, 0, make_outputs())
    names = {picture.name for picture in anatomy.pictures(search.read())}
    assert {"thresholds", "roc", "precision", "reliability", "confusion"} <= names
    assert "mistakes" not in names
    (line,) = anatomy.remarks(search.read())
    assert "Images are not shown" in line


def test_sheet_says_to_which_level_a_known_image_was_called_novel() -> None:
    row = {"row": 0, "shows": "wren", "answer": "novel", "margin": 1.0, "is_novel": False}
    frame = pd.DataFrame([row | {"level": "subclass"}, row | {"row": 1, "level": "superclass"},
                          row | {"row": 2, "level": "superclass"}])  # fmt: skip
    with drawing.style():
        picture, none = sheets.sheets_of(frame, lambda row: np.zeros((8, 8, 3), np.uint8))
    assert none is None
    assert picture is not None
    labels = [axes.get_xlabel() for axes in picture.figures[0].axes]
    assert labels == ["wren\n→ novel subclass", *["wren\n→ novel superclass"] * 2]
    assert picture.caption.endswith("The most frequent: wren called novel superclass, 2 times.")


def test_scores_that_are_all_equal_can_be_drawn(search: Search) -> None:
    outputs = make_outputs()
    flat: dict[str, Any] = {
        name: torch.zeros_like(getattr(outputs, name)) for name in ("super_logits", "sub_logits")
    }

    search.tell(score=0.4)
    leave_outputs(search, 0, replace(outputs, **flat))
    assert anatomy.pictures(search.read())


# --- The answer ----------------------------------------------------------------------------------


def test_three_sentences_say_what_by_how_much_and_how_sure(search: Search) -> None:
    search.tell(baseline=True, score=0.40)
    ends = {"interval.score.low": 0.42, "interval.score.high": 0.55}
    search.tell(lr=0.01, metrics={"score": 0.50} | ends)
    search.tell(lr=0.1, score=0.47)
    what, how_much, how_sure = answer.sentences(search.read())
    assert what == "The best of 3 complete trials is trial 1 (lr 0.01), with a score of 50.0%."
    assert "+10.0 points against the best baseline, trial 0" in how_much
    assert "+3.0 points against the next best trial, trial 2" in how_much
    assert "42.0% to 55.0%" in how_sure
    assert "--resume --name asked --repeat 6" in how_sure


def test_best_trial_that_is_a_baseline_is_compared_with_the_next_one(search: Search) -> None:
    search.tell(baseline=True, score=0.6)
    search.tell(lr=0.01, baseline=True, score=0.5)
    _, how_much, _ = answer.sentences(search.read())
    assert how_much == (
        "With one seed each, that is +10.0 points against the next best baseline, trial 1."
    )
    assert [row.role for row in answer.main_rows(search.read())] == ["best, baseline", "baseline"]


def test_fewer_borrowed_images_than_asked_are_told_below_the_table(search: Search) -> None:
    search.tell(keys={"novel_images": 1000}, novel_images_used=1000)
    assert "were there to train on" not in answer.protocol_note(search.read())
    search.tell(keys={"novel_images": 5000}, novel_images_used=3600)
    note = answer.protocol_note(search.read())
    assert note.endswith("Where 5,000 borrowed images are asked, 3,600 were there to train on.")


def test_trials_that_are_all_alike_have_no_front_from_one_end_to_the_other(search: Search) -> None:
    search.tell()
    what, *_ = answer.sentences(search.read())
    assert what.startswith("The only complete trial is trial 0 ")
    search.tell(lr=0.01)
    picture = overview.tradeoff(search.read())
    assert picture is not None
    assert "For the subclass 2 trials are alike in both, and beaten by none." in picture.caption


def test_with_seeds_the_answer_is_by_mean_and_paired(search: Search) -> None:
    search.tell(lr=0.01, score=0.50)
    search.tell(lr=0.1, score=0.52)
    for seed, (a, b) in enumerate(((0.60, 0.50), (0.62, 0.51)), 1):
        search.tell(lr=0.01, seed=seed, repeat_of=0, score=a)
        search.tell(lr=0.1, seed=seed, repeat_of=1, score=b)
    what, how_much, how_sure = answer.sentences(search.read())
    assert "is trial 0 (lr 0.01), with a mean score of 57.3% (50.0% to 62.0%)" in what
    assert "trial 1 (lr 0.1), differs by -6.3 points" in how_much
    assert "its seeds alone differ by 12.0 points" in how_sure
    (first, *_) = answer.main_rows(search.read())
    assert (first.trial, first.seeds, first.is_best) == (0, 3, True)
    assert first.values["score"] == pytest.approx((1.72 / 3, 0.5, 0.62))


@pytest.mark.parametrize("num_seeds", [3, 6])
def test_few_seeds_prove_no_difference_however_much_they_agree(
    search: Search, num_seeds: int
) -> None:
    for lr, score in ((0.01, 0.5), (0.1, 0.4)):
        search.tell(lr=lr, score=score)
    for seed in range(1, num_seeds):
        for trial, (lr, score) in enumerate(((0.01, 0.5), (0.1, 0.4))):
            search.tell(lr=lr, seed=seed, repeat_of=trial, score=score + seed / 100)
    _, how_much, _ = answer.sentences(search.read())
    picture = overview.repeats(search.read())
    assert picture is not None
    assert picture.caption.startswith("Intervals of 1 of 1 differences to the best mean exclude ")
    few = f"{num_seeds} seeds are too few to prove that"
    assert (few in how_much) == (few in picture.caption) == (num_seeds < 6)
    assert ("more than luck" in how_much) == (num_seeds == 6)


def test_searches_that_end_alike_are_not_ranked(tmp_path: Path) -> None:
    found = []
    for name, score in (("one", 0.8), ("other", 0.80001)):
        found.append(Search(tmp_path / name))
        found[-1].tell(score=score)
    picture = overview.side_by_side([each.read() for each in found])
    assert picture is not None
    assert picture.caption == "asked and asked end alike."


def test_a_metric_that_is_no_fraction_is_no_percent(tmp_path: Path) -> None:
    search = Search(tmp_path, ("ce_sub",))
    search.tell(lr=0.01, ce_sub=1.25)
    search.tell(lr=0.1, ce_sub=0.75)
    what, how_much, _ = answer.sentences(search.read())
    assert "trial 1" in what
    assert "0.750." in what
    assert "-0.500 against" in how_much


def test_searches_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    first, other = Search(tmp_path / "a"), Search(tmp_path / "b", ("ce_sub",))
    other.record = replace(other.record, data_fingerprint="other")
    lines = answer.differences([first.read(), other.read()])
    assert len(lines) == 2
    assert "data fingerprints differ" in lines[0]
    assert "another metric" in lines[1]


def test_what_varies_between_searches_alone_is_named_beside_each_other(tmp_path: Path) -> None:
    first, other = Search(tmp_path / "a"), Search(tmp_path / "b")
    first.tell(lr=0.01, score=0.5)
    other.tell(lr=0.1, score=0.6)
    frame = answer.comparison([first.read(), other.read()])
    assert frame["configuration"].tolist() == ["lr 0.01", "lr 0.1"]
    assert frame["score"].tolist() == [0.5, 0.6]
    picture = overview.side_by_side([first.read(), other.read()])
    assert picture is not None
    assert picture.caption == "asked ends highest, +10.0 points against asked."


def test_searches_by_other_metrics_are_not_on_one_axis(tmp_path: Path) -> None:
    first, other = Search(tmp_path / "a"), Search(tmp_path / "b", ("ce_sub",))
    first.tell(score=0.5)
    other.tell(ce_sub=1.2)
    assert overview.side_by_side([first.read(), other.read()]) is None


def test_a_search_without_any_value_of_a_rate_is_compared(tmp_path: Path) -> None:
    first, other = Search(tmp_path / "a"), Search(tmp_path / "b")
    first.tell(score=0.5)
    other.tell(score=0.6)
    read = other.read()
    read._trials = [replace(each, best=replace(each.best, metrics={"score": 0.6}))
                    for each in read._trials if each.best]  # fmt: skip
    read.everything = frame_of(read._trials)
    assert answer.comparison([first.read(), read])["seen_super"].isna().tolist() == [False, True]


# --- Drawing -------------------------------------------------------------------------------------


def test_a_label_is_left_out_where_it_would_be_over_another() -> None:
    with drawing.style():
        _, axes = drawing.panel("Labels")
        axes.scatter([0, 1], [0, 1])
        crowd = [(0.5, 0.5)] * 9
        left_out = drawing.label_points(axes, crowd, [f"label {n}" for n in range(9)])
    assert left_out == 5  # there are four places beside a point
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_a_label_is_beside_the_points_and_not_over_them() -> None:
    with drawing.style():
        _, axes = drawing.panel("Labels")
        axes.scatter([0, 0.5, 0.52, 1], [0, 0.5, 0.52, 1])
        assert drawing.label_points(axes, [(0.5, 0.5)], ["12"]) == 0
    (text,) = axes.texts
    points = axes.transData.transform([(0.5, 0.5), (0.52, 0.52)])
    assert text.get_window_extent().padded(6).count_contains(points) == 0


def test_title_of_a_wide_picture_is_whole_on_a_phone() -> None:
    with drawing.style():
        figure, _ = drawing.panel("what each class was answered " * 3, width=2 * drawing.WIDTH)
        drawing.laid_out(figure)
    (title,) = (text for text in figure.texts if text.get_text())
    assert title.get_window_extent().x1 / figure.dpi * 96 <= 370, "CSS pixels"


def test_a_row_is_as_high_as_its_label() -> None:
    labels = drawing.room(["a name that takes a number of lines " * 3] * 6, 30, 5)
    assert labels[0].count("\n") == 3
    with drawing.style():
        figure, axes = drawing.rows_panel("Rows", labels, 0.3)
        axes.set_xlabel("x")
        drawing.laid_out(figure)
    boxes = [each.get_window_extent() for each in axes.get_yticklabels()]
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_labels_end_between_words_and_long_words_behind_a_sign() -> None:
    assert drawing.room(["super by knn_difference+rmds+max_logit"], 15, 5) == [
        "super by\nknn_difference+\nrmds+max_logit"
    ]
    assert drawing.room(["great grey owl, great gray owl, Strix nebulosa"], 24, 1) == [
        "great grey owl, great …"
    ]
    assert drawing.room(["Llanfairpwllgwyngyllgogerych"], 12, 1) == ["Llanfairpwl…"]
    assert drawing.room([""], 12) == [""]
    assert drawing.room(["→ timm/vit_base_patch16_clip_384.openai"], 30, 3) == [
        "→\ntimm/vit_base_patch16_clip_\n384.openai"
    ]
    assert drawing.room(["→ timm/vit_base_patch16_clip_quickgelu_384.openai"], 12, 2)[0][-1] == "…"


def test_long_choices_are_told_apart_beside_what_they_change(search: Search) -> None:
    backbones = ("efficientnet_lite0+efficientnet_lite2", "timm/convnextv2_base.fcmae_ft_in22k_384",
                 "timm/vit_base_patch16_clip_quickgelu_384.openai")  # fmt: skip
    for lr, backbone in itertools.product((1e-3, 1e-2), backbones):
        search.tell(lr=lr, keys={"backbone": backbone, "novel_images": int(1e5 * lr)})
    picture = deltas.deltas(search.read())
    assert picture is not None
    labels = [text.get_text().replace("\n", "") for text in
              picture.figures[0].axes[0].get_yticklabels()]  # fmt: skip
    assert all(any(backbone in label for label in labels) for backbone in backbones)
    assert any(label.startswith("borrowed images: 100 →") for label in labels)


def test_a_single_epoch_is_no_fraction_of_one(search: Search) -> None:
    for number in range(4):
        search.tell(score=number / 10)
    picture = course.learning(search.read())
    assert picture is not None
    with drawing.style():
        figure = drawing.laid_out(picture.figures[0])
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks
    assert all(each.isdigit() for each in ticks)
    assert not any("pruned" in text.get_text() for text in figure.legends[0].get_texts())


def test_choices_with_the_same_beginning_are_told_apart(search: Search) -> None:
    """As labels of parallel coordinates, and of configurations with several seeds."""
    values = ("knn_difference", "knn_difference+rmds", "knn_difference+rmds+max_logit")
    for seed, (number, value) in itertools.product(range(2), enumerate(values)):
        for lr in (1e-3, 1e-2):
            search.tell(
                lr=lr, seed=seed, repeat_of=2 * number + (lr > 1e-3) if seed else None,
                keys={"novelty_score": value, "novel_images": 1000}, score=0.5 + number / 10 + lr,
            )  # fmt: skip
    pictures = {picture.name: picture for picture in overview.pictures(search.read())}
    written = [
        text.get_text().replace("\n", "") for text in pictures["parallel"].figures[0].axes[0].texts
    ]
    assert {*values} <= {*written}
    labels = [text.get_text() for text in pictures["repeats"].figures[0].axes[0].get_yticklabels()]
    assert len({label.partition(":")[2] for label in labels}) == len(labels) == 6


def test_what_is_rounded_to_nothing_has_no_sign() -> None:
    assert drawing.number("score", -0.0001, signed=True) == "0.0 points"
    assert drawing.number("score", 0.0006, signed=True) == "+0.1 points"
    assert drawing.number("ce_sub", -0.0001) == "0.000"
    assert drawing.between("score", -0.0001, 0.02, signed=True) == "0.0 to +2.0 points"


def test_inlined_pictures_share_no_id_and_take_the_pages_colours() -> None:
    with drawing.style():
        figure, axes = drawing.panel("A & <b>")
        axes.plot([0, 1], [0, 1], color=drawing.KNOWN)
        svg = drawing.svg(figure)
    a, b = drawing.inline(svg, "a"), drawing.inline(svg, "b")
    ids = pd.Series([part.partition('"')[0] for part in f"{a}{b}".split(' id="')[1:]])
    assert ids.str.startswith(("a-", "b-")).all()
    assert "var(--known)" in a
    assert drawing.KNOWN in svg.decode()
    assert drawing.KNOWN not in a
