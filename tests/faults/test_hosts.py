"""Plain hosts with addresses of their own; one is cut off, and comes back."""

import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest

from tests.commands import DEADLINE_S, ROOT
from tests.faults.chaos import NOT_COMPARED
from tests.held import held_search
from tests.hosts import ADDRESSES, Hosts, two_hosts
from tests.outsider import outsider

TRIALS, EPOCHS = 4, 3
HEAD = f"{ADDRESSES['left']}:6379"
COUNT = f"""
import sys, time, ray
ray.init(address="{HEAD}", log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) != int(sys.argv[1]):
    time.sleep(0.2)
"""
UNDER_WAY = """
SELECT count(*) FROM trials JOIN trial_user_attributes AS host USING (trial_id)
WHERE state = 'RUNNING' AND host.key = 'host' AND host.value_json = ? AND EXISTS (
    SELECT 1 FROM trial_user_attributes AS epoch
    WHERE epoch.trial_id = trials.trial_id AND epoch.key LIKE '%epoch%'
)
"""


class Search:
    """A search of trials that its space names: held and on a host or, without one, on this
    machine.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        mlflow: Callable[[Path], Path],
        environment: dict[str, str],
        hosts: Hosts | None = None,
    ) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder / "log"
        self.held = held_search(folder, trials=TRIALS, epochs=EPOCHS)
        if hosts is not None:
            self.held.hold.touch()
        words = [
            sys.executable, "-m", "search.run", "--resume", "--space", "space.py", "--name", "it",
            "--data", str(data), "--novel", str(data / "novel_images"), "--cache", "cache",
            "--tracking-uri", f"sqlite:///{mlflow(folder)}", "--storage", str(folder / "runs"),
        ]  # fmt: skip
        if hosts is not None:
            words = hosts.on("left", *words, "--address", HEAD)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words, cwd=folder, env=environment, stdout=log, stderr=log
            )

    def wait_for_trial_on(self, host: str) -> None:
        """Return when a trial is under way there, and has an epoch.

        Raises:
            AssertionError: The search ended before, or the deadline passed.
        """
        end_s = time.monotonic() + DEADLINE_S
        while not self._trains_on(host):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.1)

    def _trains_on(self, host: str) -> bool:
        file = self.folder / "runs/it/study.db"
        if not file.exists():
            return False
        with closing(sqlite3.connect(file)) as database, suppress(sqlite3.OperationalError):
            return bool(database.execute(UNDER_WAY, (f'"{host}"',)).fetchone()[0])
        return False  # it is being made

    def table(self, *, lost_nodes: int) -> pd.DataFrame:
        """Return its trials by their learning rate, without what the order and the hosts change."""
        assert self.process.wait(DEADLINE_S) == 0, self.log.read_text()
        table = pd.read_csv(self.folder / "runs/it/trials.csv")
        assert list(table["epochs"]) == [EPOCHS] * TRIALS
        assert table["lost_nodes"].sum() == lost_nodes
        changes = [name for name in (*NOT_COMPARED, "number") if name in table]
        return table.drop(columns=changes).sort_values("lr").reset_index(drop=True)


@contextmanager
def ray_on(hosts: Hosts, host: str, log: Path, environment: dict[str, str]) -> Iterator[
    subprocess.Popen[bytes]
]:  # fmt: skip
    where = ["--head", "--port=6379", "--include-dashboard=false"]
    if host != "left":
        where = [f"--address={HEAD}"]
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1",
             f"--node-ip-address={ADDRESSES[host]}", *where]  # fmt: skip
    with log.open("a") as said:
        process = subprocess.Popen(
            hosts.on(host, *words), env=environment, stdout=said, stderr=said
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


@pytest.mark.slow
def test_host_that_is_cut_off_and_comes_back_changes_nothing_in_the_table(
    tmp_path: Path, data: Path, make_mlflow: Callable[[Path], Path]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = outsider(
        home, PYTHONPATH=str(ROOT), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_USAGE_STATS_ENABLED="0", RAY_health_check_period_ms="1000",
        RAY_health_check_timeout_ms="5000", RAY_health_check_failure_threshold="3",
        RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",
    )  # fmt: skip
    del environment["RAY_NUM_REDIS_GET_RETRIES"]
    with two_hosts() as hosts, ExitStack() as running:

        def await_nodes(number: int) -> None:
            asked = hosts.on("left", sys.executable, "-c", COUNT, str(number))
            subprocess.run(asked, env=environment, check=True, timeout=DEADLINE_S)

        def started(host: str) -> subprocess.Popen[bytes]:
            log = tmp_path / f"{host}.log"
            return running.enter_context(ray_on(hosts, host, log, environment))

        started("left")
        await_nodes(1)
        right = started("right")
        await_nodes(2)
        cut = Search(tmp_path / "cut", data, make_mlflow, environment, hosts)
        running.callback(cut.process.kill)
        cut.wait_for_trial_on("right")
        hosts.plug(is_in=False)
        calm = Search(tmp_path / "calm", data, make_mlflow, environment)
        running.callback(calm.process.kill)
        await_nodes(1)
        cut.held.hold.unlink()
        assert cut.process.poll() is None, cut.log.read_text()
        hosts.plug(is_in=True)
        right.wait(DEADLINE_S)  # it hears that it was given up; what watches over it starts it anew
        started("right")
        await_nodes(2)
        pd.testing.assert_frame_equal(cut.table(lost_nodes=1), calm.table(lost_nodes=0))
