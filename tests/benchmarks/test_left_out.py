"""Does the benchmark of left-out superclasses compare the two estimates of one model?"""

import json
from pathlib import Path

import pytest

from tests.benchmarks import left_out


@pytest.mark.slow
def test_left_out_says_what_both_estimates_promise_of_the_same_model(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data), "--seeds", "0", "1", "--fine-tune", "last_1"]
    sizes = ["--epochs", "1", "--image-size", "32", "--novel-images", "4", "--rejection", "0.2"]
    left_out.main([*arguments, *sizes])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = [row for row in result["rows"] if row["metric"] == "auroc_super_left_out"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert any(row["features"] != row["train"] for row in rows)
    for row in rows:
        assert row["optimism"] == row["features"] - row["train"]
    mean = result["mean"]["last_1"]["auroc_super_left_out"]["optimism"]
    assert mean == pytest.approx(sum(row["optimism"] for row in rows) / 2)
