"""Whether a cluster holds as many trials as were asked for, and who takes the rest of it."""

from typing import TYPE_CHECKING

from search.cluster.connect import Cluster
from search.cluster.messages import MPS

if TYPE_CHECKING:
    from search.cluster.executor import Slots

_SHARES = {0.25: "quarter GPU", 0.5: "half GPU", 1.0: "GPU"}


def sharing(device: str) -> str:
    """Return what a GPU's name says of how it is shared beneath Ray; empty: it is not."""
    if "MIG" in device.split():
        return f"{device}: a slice of a GPU; the share of a trial is of the slice"
    if device.endswith(MPS):
        return f"{device}: NVIDIA's multi-process service runs, and trials compute side by side"
    return ""


def shortage(cluster: Cluster, slots: "Slots", asked: int | None) -> str:
    """Return a line where fewer trials can start now than were asked for; empty: as many.

    It is said at once, and the others wait: a search that was killed a moment ago may hold its
    slots still, and nodes may join. What no node could ever hold is refused, by `make_slots`.

    Args:
        cluster: With what is free on each node.
        slots: As it is cut up.
        asked: `--concurrency`; null: as many as all nodes hold when nothing else runs there.
    """
    cpus, gpus = slots.cpus_per_trial, slots.gpus_per_trial
    wanted = asked or sum(node.fits(cpus, gpus) for node in cluster.nodes)
    free = [node.free.fits(cpus, gpus) for node in cluster.nodes]
    if sum(free) >= wanted:
        return ""
    what = _SHARES.get(gpus, f"{gpus:g} GPU") if gpus else "CPU" if cpus == 1 else f"{cpus:g} CPU"
    beside = f" and {cpus:g} CPU" if gpus else ""
    some = [
        f"{n.address} has {n.free.cpus:g} of {n.cpus:g} CPU"
        + (f" and {n.free.gpus:g} of {n.gpus:g} GPU" if gpus else "")
        for n in cluster.nodes[:20]
    ]
    more = len(cluster.nodes) - len(some)
    return (
        f"{sum(map(bool, free))} of {len(free)} nodes has a free {what}{beside}: {', '.join(some)}"
        f"{f', and {more} more nodes' if more else ''}. {sum(free)} of {wanted} trials fit now; "
        "the others wait for what gets free"
    )
