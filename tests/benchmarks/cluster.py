"""Are the slots of a cluster busy, and is nothing lost when nodes go and another comes?

`python -m tests.benchmarks.cluster --nodes 8 --slots 64 --trials 512` runs one search, as a command
of its own, on that many Ray nodes in this machine. A trial is a real one of frozen features whose
loss has a term that waits: `--seconds` of a slot, and next to no CPU time. When a quarter of the
trials and three eighths of them have ended, a node is killed (of two nodes only the first time); at
half of them another joins.

A slot is busy from its trial's first step to its last one, by the worker's clock: building the
model, the last evaluation, the way to the driver and back, and what the driver does count as idle.
`utilisation` is over all slots of living nodes from the first trial's first step to the last
trial's; `utilisation_started` leaves out what a process takes to start, which is 64 imports of
torch on the cores of one machine here. The last line is one JSON object.

64 processes and 8 nodes take some 40 GB: on a machine with less, add swap and set
RAY_memory_monitor_refresh_ms=0, as Ray would end processes for want of memory.
"""

import argparse
import math
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import psutil
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from tests.benchmarks.common import built_in, finish, say
from tests.benchmarks.searches import OurSearch, our_search
from tests.clusters import ray_cluster

PART = '''"""A loss term that takes its time, and writes down when."""

import os
import time
from pathlib import Path

import ray
import torch

from trainable.parts import LOSSES


@LOSSES.register("takes_time", source="the benchmark")
def takes_time(step):
    """Nothing, after {step_s} s."""
    node = ray.get_runtime_context().get_node_id()
    with Path({folder!r}, f"{{node}}-{{os.getpid()}}").open("a") as file:
        print(step.config.lr, time.time(), file=file, flush=True)
        time.sleep({step_s})
        print(step.config.lr, time.time(), file=file, flush=True)
    return step.super_of_sub.new_zeros((), dtype=torch.float32)
'''
SPACE = '''"""Trials that wait; of two metrics, so that none is pruned."""

PARTS = ["takes_time.py"]
NUM_TRIALS = 1
EPOCHS = 1
METRIC = ("score", "auroc_sub")


def space(trial):
    return {
        "fine_tune": "frozen", "image_size": 32, "novel_images": 8, "feature_views": 1,
        "left_out": "none", "batch_size": 256, "loss": "cross_entropy+takes_time",
        "lr": trial.suggest_float("lr", 3e-4, 3e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True),
    }
'''


@dataclass(frozen=True)
class Busy:
    """One process trained one trial, from its first step to its last."""

    node: str
    process: str
    start_s: float
    end_s: float


@dataclass
class Lives:
    """When which node was there, by its id."""

    came_s: dict[str, float] = field(default_factory=dict)
    died_s: dict[str, float] = field(default_factory=dict)

    def until(self, node: str, end_s: float) -> float:
        """Return when a node died, or `end_s` if that comes first."""
        return min(end_s, self.died_s.get(node, end_s))


@dataclass
class Nodes:
    """The nodes of a cluster, which die and join as trials end."""

    cluster: Cluster
    slots: int
    """Of each node."""
    trials: int
    kills: int
    lives: Lives = field(default_factory=Lives)
    worker_bytes: list[int] = field(default_factory=list)
    """What each worker had for itself, when a quarter of the trials had ended."""

    def note(self, node: Any) -> None:
        """Write down that a node is there."""
        self.lives.came_s[node.node_id] = time.time()

    def add(self) -> None:
        self.note(self.cluster.add_node(**declared(self.slots)))

    def kill(self) -> None:
        """End a node's processes without a word."""
        node = next(iter(self.cluster.worker_nodes))
        self.lives.died_s[node.node_id] = time.time()
        self.cluster.remove_node(node, allow_graceful=False)

    def on_ended(self, ended: int) -> None:
        """Do what is due when so many trials have ended."""
        if ended == max(1, self.trials // 4):
            self.worker_bytes = _own_bytes_of_workers()
        deaths = (max(1, self.trials // 4), max(2, 3 * self.trials // 8))
        if ended in deaths[: self.kills]:
            say(f"  {ended} trials have ended: a node dies")
            self.kill()
        if ended == max(3, self.trials // 2):
            say(f"  {ended} trials have ended: a node joins")
            self.add()  # here: Ray starts nodes in the main thread alone


def declared(slots: int) -> dict[str, Any]:
    """Return what a node of so many slots has."""
    return {"num_cpus": slots, "object_store_memory": 100 * 2**20}


def main(argv: list[str] | None = None) -> None:
    """Run the search, and print what became of its trials and slots."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.cluster", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--nodes", type=int, default=8, help="at first; the search is on one that stays")
    add("--slots", type=int, default=64, help="trials at once, on all nodes")
    add("--trials", type=int, default=512)
    add("--seconds", type=float, default=150.0, help="that a trial waits")
    add("--epochs", type=int, default=2)
    args = parser.parse_args(argv)
    if args.nodes < 2 or args.slots % args.nodes:
        parser.error("--nodes must be 2 or more, and --slots a multiple of it")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, ExitStack() as running:
        scratch = Path(folder)
        space, times = _written(scratch, args.seconds / args.epochs)
        slots = args.slots // args.nodes
        cluster = running.enter_context(ray_cluster(**declared(slots)))
        nodes = Nodes(cluster, slots, args.trials, kills=min(2, args.nodes - 1))
        nodes.note(cluster.head_node)
        for _ in range(args.nodes - 1):
            nodes.add()
        say(f"{args.nodes} nodes of {slots} slots each, {args.trials} trials")
        most_used = running.enter_context(MostUsed())
        given = built_in(scratch / "data", images_per_subclass=4, novel_per_class=8)
        done = our_search(
            scratch / "search", given, space=space, trials=args.trials, epochs=args.epochs,
            slots=None, cache=scratch / "cache", arguments=["--address", cluster.address],
            environment=_token(), on_ended=nodes.on_ended,
        )  # fmt: skip
        result = _figures(busy_times(times, nodes.lives), nodes, done)
        result |= _lost(scratch / "search", args.trials)
    for name in ("utilisation", "utilisation_started", "lost", "duplicated"):
        say(f"{name}: {result[name]:.3g}")
    finish(
        {"benchmark": "cluster", "ratio": result["utilisation"]}
        | result
        | {
            "worker_bytes": round(mean(nodes.worker_bytes or [0])),
            "used_bytes": {"start": most_used.start_bytes, "most": most_used.most_bytes},
            "killed": len(nodes.lives.died_s),
            "joined": len(nodes.lives.came_s) - args.nodes,
        }
        | vars(args)
    )


def _written(scratch: Path, step_s: float) -> tuple[Path, Path]:
    """Write the space and its part; return the space's file and the folder of the times."""
    times = scratch / "times"
    times.mkdir()
    (scratch / "takes_time.py").write_text(PART.format(folder=str(times), step_s=step_s))
    space = scratch / "space.py"
    space.write_text(SPACE)
    return space, times


def busy_times(times: Path, lives: Lives) -> list[Busy]:
    """Return what the workers wrote; what was killed was busy until its node died."""
    found = []
    for file in times.iterdir():
        node = file.name.partition("-")[0]
        by_trial: dict[str, list[float]] = {}
        for line in file.read_text().splitlines():
            trial, at = line.split()
            by_trial.setdefault(trial, []).append(float(at))
        for at_s in by_trial.values():
            is_cut_off = len(at_s) % 2 and node in lives.died_s
            end_s = lives.until(node, math.inf if is_cut_off else at_s[-1])
            found.append(Busy(node, file.name, at_s[0], end_s))
    return found


def utilisation(busy: Sequence[Busy], lives: Lives, slots: int) -> tuple[float, float]:
    """Return the busy share of all slots from the first trial's start to the last one's.

    Args:
        busy: Of all trials.
        lives: Of all nodes.
        slots: Of each node.

    Returns:
        Of all slots, and of those whose process has begun its first trial.
    """
    first_s, last_s = (choose(each.start_s for each in busy) for choose in (min, max))
    busy_s = sum(max(0.0, min(each.end_s, last_s) - each.start_s) for each in busy)
    there_s = sum(
        slots * max(0.0, lives.until(node, last_s) - max(at, first_s))
        for node, at in lives.came_s.items()
    )
    began: dict[tuple[str, str], float] = {}
    for each in sorted(busy, key=lambda each: each.start_s):
        began.setdefault((each.node, each.process), each.start_s)
    started_s = sum(max(0.0, lives.until(node, last_s) - at) for (node, _), at in began.items())
    return busy_s / there_s, busy_s / started_s


def _figures(busy: Sequence[Busy], nodes: Nodes, done: OurSearch) -> dict[str, Any]:
    of_all, of_started = utilisation(busy, nodes.lives, nodes.slots)
    driver_s = [each_s - done.driver_s[0] for each_s in done.driver_s]  # without its own start
    return {
        "utilisation": of_all,
        "utilisation_started": of_started,
        "processes": len({each.process for each in busy}),
        "trials_s": done.trials_s,
        "s_per_trial": by_hundreds(done.ended_s),
        "driver_cpu_s_per_trial": by_hundreds(driver_s),
        "driver_bytes": {"start": done.driver_bytes[0], "end": done.driver_bytes[-1]},
    }


def by_hundreds(at_end_s: Sequence[float]) -> list[float]:
    """Return the seconds per trial of each hundred trials, and of what is left at the end."""
    marks = [0.0, *at_end_s]
    ends = [*range(100, len(at_end_s), 100), len(at_end_s)]
    starts = [0, *ends[:-1]]
    return [(marks[b] - marks[a]) / (b - a) for a, b in zip(starts, ends, strict=True)]


def _lost(folder: Path, trials: int) -> dict[str, int]:
    """Count trials that are missing or there twice, in the table and in MLflow."""
    (table,) = folder.glob("runs/*/trials.csv")
    numbers = Counter(pd.read_csv(table)["number"])
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = client.search_runs(experiments, max_results=1000, page_token=token or None)
        runs, token = runs + list(page), page.token or None
    shown = Counter(run.data.tags["trial"] for run in runs if run.data.tags["level"] == "trial")
    return {
        "lost": trials - len(numbers),
        "duplicated": sum(numbers.values()) - len(numbers),
        "mlflow_lost": trials - len(shown),
        "mlflow_duplicated": sum(shown.values()) - len(shown),
    }


def _own_bytes_of_workers() -> list[int]:
    """Return the memory that each process of a trial shares with no other."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.name().startswith("ray::Impl"):
                found.append(process.memory_full_info().uss)
    return found


class MostUsed:
    """The most memory that is in use on this machine meanwhile."""

    def __init__(self) -> None:
        self.start_bytes = self.most_bytes = psutil.virtual_memory().used
        self._done = threading.Event()
        self._watching = threading.Thread(target=self._watch)

    def __enter__(self) -> "MostUsed":
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watching.join()

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            self.most_bytes = max(self.most_bytes, psutil.virtual_memory().used)


def _token() -> dict[str, str]:
    """Return what the search joins the cluster with."""
    return {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}


if __name__ == "__main__":
    main()
