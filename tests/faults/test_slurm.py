"""The batch script for Slurm goes on with its search after it was stopped, by itself."""

import re
from pathlib import Path

import pandas as pd
import pytest

from tests.slurm import slurm

SCRIPT = Path(__file__).parents[2] / "docs/cluster/slurm.sbatch"


@pytest.mark.slow
def test_search_on_two_nodes_that_slurm_terminates_is_requeued_and_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "STORAGE": tmp_path / "searches", "STUDY": f"sqlite:///{tmp_path}/study.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    with slurm(tmp_path) as cluster:
        node = ["--cpus-per-task=1", "--gpus-per-node=0"]
        search = ["--space", "smoke", "--name", "small", "--gpus-per-trial", "0"]
        search += ["--trials", "6", "--epochs", "4"]
        said = cluster.command("sbatch", "--parsable", *node, str(SCRIPT), *search)
        job = said.strip()

        def is_under_way() -> bool:
            assert cluster.job(job)["JobState"] in ("PENDING", "RUNNING"), cluster.logs()
            return any(tmp_path.glob("searches/small/trials/*/checkpoint_*.pt"))

        def has_started_again() -> bool:
            """Have the job start now, and not two minutes after it was put back."""
            now = cluster.job(job)
            assert now["JobState"] != "FAILED", cluster.logs()
            if now["JobState"] == "PENDING":
                cluster.command("scontrol", "update", f"JobId={job}", "StartTime=now")
            return now["Restarts"] == "1" and now["JobState"] == "RUNNING"

        cluster.wait_for(is_under_way)
        cluster.command("scancel", "--signal=TERM", "--batch", job)  # as --signal=B:TERM@60 does
        cluster.wait_for(has_started_again)
        cluster.wait_for(lambda: cluster.job(job)["JobState"] not in ("RUNNING", "COMPLETING"))
        end = cluster.job(job)
        log = (tmp_path / f"noveltune-{job}.log").read_text()
        assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), cluster.logs()
    assert log.count("stopped; back into the queue") == 1, log
    assert re.search(r"^small: \d trials \(.*\d interrupted", log, re.MULTILINE), log
    assert "Traceback" not in log
    trials = pd.read_csv(tmp_path / "searches/small/trials.csv")
    assert list(trials["epochs"]) == [4] * 6
