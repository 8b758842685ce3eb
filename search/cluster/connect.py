"""Connect to Ray, here or elsewhere, and see what the cluster has."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from search.cluster.joined import joined
from search.cluster.own import own_ray

import ray  # isort: skip  (after search.cluster.settings, which sets what it reads)
from ray._private.state import available_resources_per_node  # isort: skip
from ray._private.utils import get_num_cpus  # isort: skip


def times(share: float, whole: float) -> int:
    """Return how often `share` fits into `whole`; 0.1 fits ten times into 1."""
    return int(whole / share + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of a cluster, and what it has."""

    address: str
    cpus: float
    gpus: float
    taken_cpus: float = 0.0
    """By others, when it was looked at."""
    taken_gpus: float = 0.0

    @property
    def free(self) -> "Node":
        """What of it nobody had taken."""
        return replace(
            self, cpus=self.cpus - self.taken_cpus, gpus=self.gpus - self.taken_gpus,
            taken_cpus=0.0, taken_gpus=0.0,
        )  # fmt: skip

    def fits(self, cpus: float, gpus: float) -> int:
        """Return how many trials it holds; a share is of one device, what is left of it is lost.

        Of devices that are partly taken, what is free counts: Ray does not say of which it is.
        """
        by_cpus = times(cpus, self.cpus)
        if not gpus:
            return by_cpus
        whole = int(self.gpus + 1e-9)
        by_gpus = whole * times(gpus, 1.0) + times(gpus, max(0.0, self.gpus - whole))
        return min(by_cpus, by_gpus)


@dataclass(frozen=True)
class Cluster:
    """The nodes that are there; a trial is on one of them."""

    nodes: tuple[Node, ...]

    @property
    def gpus(self) -> float:
        """Of all nodes together."""
        return sum(node.gpus for node in self.nodes)

    def trials_per_gpu(self, cpus_per_trial: float) -> int:
        """Return how many trials have CPUs beside each GPU, on the node with the fewest for them.

        Nodes that hold no trial do not count; 0 where none does.
        """
        most = (times(cpus_per_trial, n.cpus / n.gpus) for n in self.nodes if n.gpus)
        return min((each for each in most if each), default=0)

    def __str__(self) -> str:
        shown = [f"{n.address} has {n.cpus:g} CPU and {n.gpus:g} GPU" for n in self.nodes[:20]]
        more = len(self.nodes) - len(shown)
        return ", ".join(shown) + (f", and {more} more nodes" if more else "")


def this_machine() -> Cluster:
    """Return what a cluster of our own here would have, without starting one."""
    cpus, gpus = get_num_cpus(), torch.cuda.device_count()
    return Cluster((Node(address="this machine", cpus=float(cpus), gpus=float(gpus)),))


@contextmanager
def connected(
    address: str | None, *, num_cpus: int | None = None, note: Callable[[str], None] = print
) -> Iterator[Cluster]:
    """Connect to the Ray cluster at `address`, or start one on this machine; disconnect at the end.

    One of our own takes only a token made for it, and is reached from this machine only.

    Args:
        address: Of the head node, HOST:PORT; or auto, for the cluster of this machine.
        num_cpus: Of a cluster of our own; null: all.
        note: Called with lines for a person.

    Raises:
        ClusterError: No cluster answers there, or it does not take our token.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    with own_ray(num_cpus, note) if address is None else joined(address, note):
        try:
            yield _cluster()
        finally:
            _disconnect()


def _disconnect() -> None:
    """End Ray while no thread can take one of its objects apart.

    One that is freed after Ray's worker is gone and before Ray knows it ends the process; garbage
    in a cycle is freed by whichever thread happens to collect it, MLflow's for one.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


def _cluster() -> Cluster:
    free = available_resources_per_node()
    nodes = (each for each in ray.nodes() if each["Alive"])
    return Cluster(tuple(_node(each, free.get(each["NodeID"])) for each in nodes))


def _node(found: dict[str, Any], free: dict[str, float] | None) -> Node:
    """Return a node; one that did not say yet what is free has just started."""
    has = found["Resources"]
    cpus, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    free = has if free is None else free
    return Node(
        address=found["NodeManagerAddress"], cpus=cpus, gpus=gpus,
        taken_cpus=cpus - free.get("CPU", 0.0), taken_gpus=gpus - free.get("GPU", 0.0),
    )  # fmt: skip
