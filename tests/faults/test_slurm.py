"""The batch script for Slurm goes on with its search after it was stopped, by itself."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from search.interrupts import ANSWER
from tests.held import held_search
from tests.slurm import slurm

SCRIPT = Path(__file__).parents[2] / "docs/cluster/slurm.sbatch"
NODE = ("--cpus-per-task=1", "--gpus-per-node=0")
TRIALS, EPOCHS = 4, 2


@pytest.mark.slow
def test_search_on_two_nodes_that_slurm_terminates_is_requeued_and_finished(
    tmp_path: Path,
    data: Path,
    make_mlflow: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = tmp_path / "searches"
    for name, value in {
        "STORAGE": searches, "STUDY": f"sqlite:///{tmp_path}/study.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{make_mlflow(tmp_path)}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    held = held_search(tmp_path, trials=TRIALS, epochs=EPOCHS)
    held.hold.touch()
    search = ["--space", str(held.space), "--name", "small", "--gpus-per-trial", "0",
              "--data", str(data), "--novel", str(data / "novel_images")]  # fmt: skip
    with slurm(tmp_path) as cluster:
        job = cluster.command("sbatch", "--parsable", *NODE, str(SCRIPT), *search).strip()
        log = tmp_path / f"noveltune-{job}.log"

        def is_under_way() -> bool:
            assert cluster.job(job)["JobState"] in ("PENDING", "RUNNING"), cluster.logs()
            return any(searches.glob("small/trials/*/checkpoint_*.pt"))

        def has_started_again() -> bool:
            now = cluster.job(job)
            assert now["JobState"] != "FAILED", cluster.logs()
            return now["Restarts"] == "1" and now["JobState"] == "RUNNING"

        cluster.wait_for(is_under_way)
        cluster.command("scancel", "--signal=TERM", "--batch", job)  # as --signal=B:TERM@60 does
        cluster.wait_for(lambda: ANSWER in log.read_text())
        held.hold.unlink()
        cluster.wait_for(lambda: cluster.job(job)["JobState"] == "PENDING")
        # Not two minutes after it was put back; but in the same second a node takes what starts
        # for what was killed there.
        cluster.command("scontrol", "update", f"JobId={job}", "StartTime=now+5")
        cluster.wait_for(has_started_again)
        cluster.wait_for(lambda: cluster.job(job)["JobState"] not in ("RUNNING", "COMPLETING"))
        end, said = cluster.job(job), log.read_text()
        assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), cluster.logs()
    assert said.count("stopped; back into the queue") == 1, said
    assert re.search(r"^small: \d trials \(.*\d interrupted", said, re.MULTILINE), said
    assert "Traceback" not in said
    trials = pd.read_csv(searches / "small/trials.csv")
    assert list(trials["epochs"]) == [EPOCHS] * TRIALS
