"""Connect to Ray, see what the cluster has, and check every node before the first trial."""

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Ray reads these when it is imported or started: its own output and usage reports are off, the
# driver's signal handling is ours, and Tune's file loggers would repeat what the study holds.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU asked for, no GPU seen
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
os.environ.update(_ENVIRONMENT)

# One heap for all threads of a worker, see `trainable.memory`. Read when a process starts, and
# Ray's own threads have their heaps before any code of ours runs.
_WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402
from upath import UPath  # noqa: E402

from trainable.data import Data, find_data, load_data  # noqa: E402
from trainable.errors import DataError, UserError  # noqa: E402
from trainable.urls import hidden  # noqa: E402

# Ray keeps the driver's command line with its job, where every node can read it.
_command_line: Callable[[], str] = ray._private.utils.get_entrypoint_name
ray._private.utils.get_entrypoint_name = lambda: hidden(_command_line())

LOCAL_OBJECT_STORE_BYTES = 100 * 2**20
"""Images and features are memory-mapped files, so objects are small."""


class ClusterError(UserError):
    """A cluster that cannot be reached, or cannot run what was asked."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the nodes have together."""

    num_nodes: int
    cpus: float
    gpus: float


@contextmanager
def connected(address: str | None, *, num_cpus: int | None = None) -> Iterator[Cluster]:
    """Connect to the Ray cluster at `address`, or start one on this machine; disconnect at the end.

    Raises:
        ClusterError: No cluster answers there.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address is None:
            ray.init(
                address="local",  # never somebody else's cluster that happens to run here
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                runtime_env={"env_vars": _WORKER_ENVIRONMENT},
            )
        else:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": _WORKER_ENVIRONMENT},
            )
    except (ConnectionError, ValueError) as error:
        if address is None:
            raise
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there ({error})"
        ) from error
    try:
        resources = ray.cluster_resources()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        yield Cluster(
            num_nodes=len(nodes), cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0)
        )
    finally:
        ray.shutdown()


def check_storage(folder: UPath) -> None:
    """Check that every node sees the same `folder`, by a file written here and read there.

    Raises:
        ClusterError: A node does not.
    """
    others = _other_nodes()
    if not others:
        return
    word = uuid.uuid4().hex
    probe = folder / f".probe_{word}"
    probe.write_text(word)
    try:
        found = _on_each(others, _read, str(probe), timeout_s=60)
    finally:
        probe.unlink()
    # Nodes may share an address, so they are not told apart by it.
    blind = [
        node["NodeManagerAddress"] for node, text in zip(others, found, strict=True) if text != word
    ]
    if blind:
        raise ClusterError(
            f"--storage {folder.parent} is not the same folder on {', '.join(blind)}: "
            "pass a --storage that all nodes share"
        )


def ship_data(data: Data, cache: Path, note: Callable[[str], None]) -> Any:
    """Have every node decode the data; return what `receive_data` takes where one cannot.

    Null where every node sees the same data. Nodes that join later are taken to be like those
    that are there now.
    """
    others = _other_nodes()
    asked = (data.source, data.novel_source, cache, data.fingerprint)
    num_blind = _on_each(others, _has_data, *asked).count(False)
    if not num_blind:
        return None
    note(f"{num_blind} of {len(others) + 1} nodes do not see the data: they get them from here")
    return ray.put((replace(data, images=data.images[:0]), data.images.numpy()))


def forget_cache(cache: Path) -> None:
    """Delete a cache folder on every other node."""
    _on_each(_other_nodes(), _remove, cache)


def _other_nodes() -> list[dict[str, Any]]:
    here = ray.get_runtime_context().get_node_id()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]


def _on_each(
    nodes: list[dict[str, Any]], task: Any, *arguments: Any, timeout_s: float | None = None
) -> list[Any]:
    """Return what `task` returns on every node, where they run at the same time."""
    where = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    running = [task.options(scheduling_strategy=each).remote(*arguments) for each in where]
    results: list[Any] = ray.get(running, timeout=timeout_s)
    return results


@ray.remote(num_cpus=0)
def _has_data(source: str, novel: str, cache: Path, fingerprint: str) -> bool:
    try:
        data = find_data(source, novel, cache, fingerprint)
        data = data or load_data(source, novel, cache, note=lambda line: None)
    except DataError:
        return False
    return data.fingerprint == fingerprint


@ray.remote(num_cpus=0)
def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@ray.remote(num_cpus=0)
def _read(file: str) -> str | None:
    path = UPath(file)
    return path.read_text() if path.exists() else None
