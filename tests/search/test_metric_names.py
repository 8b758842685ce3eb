"""MLflow shows metrics in groups, and the score before them."""

import pytest

from search.metric_names import grouped, place


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("score", "score"),
        ("seen_super", "super/seen_super"),
        ("tau_super", "super/tau_super"),
        ("unseen_sub_near", "sub/unseen_sub_near"),
        ("known_rejected95_sub", "sub/known_rejected95_sub"),
        ("score_calibrated", "two_levels/score_calibrated"),
        ("score_calibration", "two_levels/score_calibration"),
        ("hierarchy_area", "two_levels/hierarchy_area"),
        ("train_loss", "training/train_loss"),
        ("epoch_s", "training/epoch_s"),
        ("part_a.seen_sub", "validation_parts/part_a.seen_sub"),
        ("unseen_super_left_out.0", "super/unseen_super_left_out.0"),
        ("interval.score.low", "validation_parts/interval.score.low"),
    ],
)
def test_metric_is_in_the_group_of_what_it_is_about(name: str, shown: str) -> None:
    assert grouped(name) == shown


def test_a_table_begins_with_the_score_and_the_rates_of_each_level() -> None:
    names = ("train_loss", "hierarchy_area", "part_a.score", "tau_sub", "seen_sub", "ce_super",
             "unseen_super", "seen_super", "score")  # fmt: skip
    assert sorted([grouped(name) for name in names] + ["chosen/score"], key=place) == [
        "score", "super/seen_super", "super/unseen_super", "super/ce_super", "sub/seen_sub",
        "sub/tau_sub", "chosen/score", "two_levels/hierarchy_area", "training/train_loss",
        "validation_parts/part_a.score",
    ]  # fmt: skip
