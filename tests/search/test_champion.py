"""The alias `champion` moves only to a better version that was judged alike."""

import re

import pytest

from search.champion import Verdict, champion_line, verdict

TAGS = {"protocol": "2", "data_fingerprint": "v3-abc", "metric": "score", "score": "0.8"}


@pytest.mark.parametrize(
    ("changes", "moves", "reason"),
    [
        ({"score": "0.81"}, True, "better: score 0.8100 against 0.8000"),
        ({}, False, "not better: score 0.8000 against 0.8000"),
        ({"score": "0.7"}, False, "not better: score 0.7000 against"),
        ({"score": "nan"}, False, "not better"),
        ({"score": "0.9", "protocol": "3"}, False, "by validation protocol 2, this one by .* 3"),
        ({"score": "0.9", "data_fingerprint": "v3-d"}, False, "on data v3-abc, this one on .* v3-"),
        ({"score": "0.9", "data_fingerprint": ""}, True, "better"),
        ({"metric": "seen_sub", "seen_sub": "0.9"}, False, "that says no seen_sub"),
    ],
)
def test_champion_moves_only_to_a_better_one_that_was_judged_alike(
    changes: dict[str, str], moves: bool, reason: str
) -> None:
    found = verdict(TAGS | changes, TAGS)
    assert found.moves == moves
    assert re.search(reason, found.reason)


def test_metric_of_which_less_is_better_is_compared_so() -> None:
    now = TAGS | {"metric": "ce_sub", "ce_sub": "0.5"}
    assert verdict(now | {"ce_sub": "0.4"}, now).moves
    assert not verdict(now | {"ce_sub": "0.6"}, now).moves


def test_version_of_before_these_tags_stays_until_somebody_moves_it() -> None:
    found = verdict(TAGS, {})
    assert found == Verdict(
        False,
        "that was judged in a way that it does not say, this one by validation protocol 2: "
        "they do not compare",
    )
    assert champion_line("birds", "2", "1", found).endswith(
        "mlflow.MlflowClient().set_registered_model_alias('birds', 'champion', '2')"
    )
