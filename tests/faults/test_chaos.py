"""The short form of the chaos command: kills, resumes, and nothing lost."""

import json

import pytest

from tests.faults import chaos


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_again_and_again_ends_as_an_undisturbed_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert chaos.main(["--kills", "3", "--trials", "6", "--seed", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["trials"] == result["mlflow_runs"] == 6
    assert result["mlflow_parents"] == 1
    assert (result["lost"], result["duplicated"], result["zombies"]) == (0, 0, 0)
    assert result["equal"] is True
    assert result["kills"] >= 2
    assert result["repeated_epochs"] <= result["kills"]
