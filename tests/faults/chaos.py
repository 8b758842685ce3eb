"""Does a search survive its driver being killed again and again?

``python -m tests.faults.chaos --kills 20 --trials 48 --seed 1`` kills the driver with SIGKILL at
seeded random moments (and now and then a worker process, too), resumes each time, and compares
the end with an undisturbed search of the same seed. The last line is one JSON object.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from mlflow import MlflowClient

from results.trial import USAGE
from tests.commands import Command, Done
from trainable.data import synthetic

SPACE = '''"""Small trials of every fine-tuning mode, for fault tests."""

NUM_TRIALS = 24
EPOCHS = 4
BASELINES = [{"architecture": "two_models", "image_size": 32, "fine_tune": "last_2", "lr": 1e-3}]


def space(trial):
    return {
        "architecture": trial.suggest_categorical("architecture", ["two_heads", "two_models"]),
        "fine_tune": trial.suggest_categorical("fine_tune", ["full", "frozen", "last_1"]),
        "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        "image_size": 32,
        "novel_images": 20,
    }
'''
RUN_LIMIT_S = 600
"""A driver that has not ended by then hangs."""
EVERY_NTH_IN_STARTUP = 4
"""Every fourth kill comes in the driver's first seconds, the others while trials run."""
NOT_COMPARED = (*USAGE, "epoch_s")


class Search:
    """One search in a folder of its own, as a user runs it."""

    def __init__(self, folder: Path, *, trials: int, seed: int) -> None:
        self.folder, self.run = folder, folder / "runs" / "search"
        folder.mkdir()
        space = folder / "space.py"
        space.write_text(SPACE)
        data = folder.parent / "data"
        self._common = ["--storage", str(folder / "runs"), "--name", "search", "--concurrency", "1"]
        self._first = [
            "--space", str(space), "--data", str(data), "--novel", str(data / "novel_images"),
            "--cache", str(folder.parent / "cache"), "--trials", str(trials), "--seed", str(seed),
            "--tracking-uri", self.tracking_uri,
        ]  # fmt: skip

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def start(self) -> Command:
        """Start the driver: a new search, or a resume once there is something to resume."""
        exists = (self.run / "search.json").exists()
        arguments = ["--resume"] if exists else self._first
        return Command(self.folder, "-m", "search.run", *self._common, *arguments)

    def finish(self) -> Done:
        with self.start() as command:
            return command.ended()

    def checkpoints(self) -> set[tuple[str, int]]:
        """Return the name and time of every checkpoint that there is now."""
        found = set()
        for file in self.run.glob("trials/*/checkpoint_*.pt"):
            try:
                found.add((f"{file.parent.name}/{file.name[:16]}", file.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        return found

    def table(self) -> pd.DataFrame:
        table = pd.read_csv(self.run / "trials.csv").sort_values("number").reset_index(drop=True)
        return table.drop(columns=[c for c in NOT_COMPARED if c in table])


def main(argv: list[str] | None = None) -> int:
    """Run both searches, compare them, and print the JSON line; return 0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        root = Path(scratch)
        synthetic.write(root / "data", images_per_subclass=6, novel_per_class=12, test_per_class=1)
        calm = Search(root / "calm", trials=args.trials, seed=args.seed)
        if (done := calm.finish()).code != 0:
            raise RuntimeError(f"the undisturbed search: {done}")
        chaotic = Search(root / "chaotic", trials=args.trials, seed=args.seed)
        kills, worker_kills, seen = _torment(chaotic, random.Random(args.seed), args.kills)
        result = _compare(calm, chaotic, args.trials)
        result |= {"kills": kills, "worker_kills": worker_kills, "repeated_epochs": _repeated(seen)}
        bad = result["lost"] or result["duplicated"] or result["zombies"] or not result["equal"]
        if bad:
            print((chaotic.run / "search.log").read_text()[-4000:], file=sys.stderr)
    print(json.dumps(result))
    return 1 if bad else 0


def _torment(
    search: Search, rng: random.Random, kills: int
) -> tuple[int, int, set[tuple[str, int]]]:
    """Kill the driver `kills` times, or until it is done; then let it finish."""
    seen: set[tuple[str, int]] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.update(search.checkpoints())

    watcher = threading.Thread(target=watch)
    watcher.start()
    drivers: list[Command] = []
    killed = worker_kills = 0
    try:
        while killed < kills:
            drivers.append(search.start())
            driver = drivers[-1].process
            if killed % EVERY_NTH_IN_STARTUP:
                _wait_for_work(driver, search)
                time.sleep(rng.uniform(0.0, 3.0))
                if rng.random() < 0.25:
                    worker_kills += _kill_worker(driver)
                    time.sleep(rng.uniform(0.0, 2.0))
            else:
                time.sleep(rng.uniform(0.0, 12.0))
            if driver.poll() is not None:
                break
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            killed += 1
            print(f"kill {killed}", file=sys.stderr, flush=True)
        if (last := search.finish()).code != 0:
            print(f"the last resume: {last}", file=sys.stderr)
    finally:
        for each in drivers:  # not before: what a killed driver leaves has to end by itself
            each.clean_up()
        done.set()
        watcher.join()
    return killed, worker_kills, seen


def _wait_for_work(driver: subprocess.Popen[str], search: Search) -> None:
    """Wait until this driver's trials write a checkpoint, or it ends."""
    before, deadline = search.checkpoints(), time.monotonic() + RUN_LIMIT_S
    while driver.poll() is None and not search.checkpoints() - before:
        if time.monotonic() > deadline:
            raise TimeoutError("no trial made progress")
        time.sleep(0.05)


def _kill_worker(driver: subprocess.Popen[str]) -> int:
    """Kill the driver's Ray worker that runs a trial, if there is one; return how many."""
    try:
        descendants = psutil.Process(driver.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for process in descendants:
        try:
            if process.name().startswith("ray::ImplicitFunc"):
                process.kill()
                return 1
        except psutil.NoSuchProcess:
            continue
    return 0


def _compare(calm: Search, chaotic: Search, trials: int) -> dict[str, object]:
    """Count what is there after the storm, and hold it against the undisturbed search."""
    expected, found = calm.table(), chaotic.table()
    numbers = Counter(found["number"])
    client = MlflowClient(tracking_uri=chaotic.tracking_uri)
    experiment = client.get_experiment_by_name("noveltune")
    runs = list(client.search_runs([experiment.experiment_id], max_results=10_000))
    children = [run for run in runs if run.data.tags["level"] == "trial"]
    epochs_trained: dict[Any, Any] = found.set_index("number")["epochs_trained"].to_dict()
    epochs_right = all(
        [metric.step for metric in client.get_metric_history(run.info.run_id, "score")]
        == list(range(1, int(epochs_trained[number]) + 1))
        for run in children
        for number in [int(run.data.tags["trial"])]
    )
    finished = int(found["state"].isin(["COMPLETE", "PRUNED", "FAIL"]).sum())
    return {
        "trials": finished,
        "lost": trials - finished,
        "duplicated": sum(count - 1 for count in numbers.values()),
        "mlflow_runs": len(children),
        "mlflow_parents": len(runs) - len(children),
        "mlflow_epochs_right": epochs_right,
        "zombies": sum(run.info.status == "RUNNING" for run in runs)
        + int((found["state"] == "RUNNING").sum()),
        "equal": expected.equals(found)
        and epochs_right
        and sorted(int(run.data.tags["trial"]) for run in children) == list(range(trials)),
    }


def _repeated(seen: set[tuple[str, int]]) -> int:
    """Return how many epochs wrote their checkpoint more than once."""
    return sum(count - 1 for count in Counter(name for name, _ in seen).values())


if __name__ == "__main__":
    sys.exit(main())
