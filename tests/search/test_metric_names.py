"""MLflow shows metrics in groups, and the score before them."""

import pytest

from search.metric_names import grouped


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("score", "score"),
        ("seen_super", "super/seen_super"),
        ("tau_super", "super/tau_super"),
        ("unseen_sub_near", "sub/unseen_sub_near"),
        ("known_rejected95_sub", "sub/known_rejected95_sub"),
        ("score_calibrated", "both/score_calibrated"),
        ("score_calibration", "both/score_calibration"),
        ("hierarchy_area", "both/hierarchy_area"),
        ("train_loss", "training/train_loss"),
        ("epoch_s", "training/epoch_s"),
        ("part_a.seen_sub", "part_a/seen_sub"),
        ("interval.score.low", "interval/score.low"),
    ],
)
def test_metric_is_in_the_group_of_what_it_is_about(name: str, shown: str) -> None:
    assert grouped(name) == shown
