"""Several machines: one that dies costs time only, one that joins is used, all see one storage."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from ray._private.services import node_ip_address_from_perspective  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from upath import UPath

from results.trial import Trial
from search.cluster import nodes
from search.cluster.connect import connected
from search.cluster.nodes import check_packages, check_storage, other_nodes
from search.cluster.settings import ClusterError
from tests.clusters import ray_cluster
from tests.faults import faulty
from tests.faults.conftest import SmallSearch

pytestmark = pytest.mark.slow
JOIN_LIMIT_S = 240
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A head node of one CPU.

    Not on the loopback interface, where `ray start` refuses to look for one.
    """
    address = node_ip_address_from_perspective()
    with ray_cluster(num_cpus=1, node_ip_address=address) as cluster:
        yield cluster


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The head alone; tests add real raylet processes to it, which go with the test."""
    yield head
    for node in [*head.worker_nodes]:
        head.remove_node(node)
    head.wait_for_nodes(JOIN_LIMIT_S)


def test_a_dead_node_costs_only_time_and_a_joining_node_is_used(
    small_search: SmallSearch, cluster: Cluster
) -> None:
    doomed = cluster.add_node(num_cpus=1)
    joined: list[str] = []
    progress: dict[int, int] = {}

    def swap_nodes(trial: Trial) -> None:
        """Once two trials run, kill one's node hard and let another join."""
        progress[trial.number] = len(trial.epochs)
        if not joined and sum(epochs > 0 for epochs in progress.values()) >= 2:
            cluster.remove_node(doomed, allow_graceful=False)
            joined.append(cluster.add_node(num_cpus=1).node_id)

    trials = 4
    meet = partial(faulty.meet, nodes=(2, 3, 3))  # so both are under way when one node dies
    faults = dict.fromkeys(range(trials), meet)
    with connected(cluster.address):
        study = small_search.run(
            trials, faults, concurrency=None, observers=[swap_nodes], max_reruns=0
        )
    assert joined, "the nodes were never swapped"
    assert small_search.states() == ["COMPLETE"] * trials
    for trial in study.trials.values():
        assert [epoch.number for epoch in trial.epochs] == [1, 2, 3]
    counts = [(trial.reruns, trial.lost_nodes) for trial in study.trials.values()]
    assert sorted(counts) == [(0, 0)] * (trials - 1) + [(0, 1)], "no failure of the trial's own"
    used = {file.name.removeprefix("node_") for file in small_search.folder.rglob("node_*")}
    assert joined[0] in used


def test_a_node_that_goes_away_while_it_is_checked_is_said_once_and_left_out(
    small_search: SmallSearch, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed, lines = cluster.add_node(num_cpus=1), list[str]()

    def check(others: list[dict[str, Any]], timeout_s: float | None = None) -> None:
        """Have it go once it is listed, and before it is asked anything."""
        if doomed in cluster.worker_nodes:
            cluster.remove_node(doomed)
        check_packages(others, timeout_s)

    monkeypatch.setattr(nodes, "check_packages", check)
    with connected(cluster.address):
        search = small_search.run(1, note=lines.append)
    assert [line.partition(" ")[2] for line in lines] == [
        "gets no trials, until Ray is started there anew: it went away while it was checked"
    ]
    assert small_search.states() == ["COMPLETE"]
    assert search.trials[0].node != doomed.node_id


@contextmanager
def node_without(
    cluster: Cluster, *folders: Path, changed: Mapping[Path, Path] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start another node, to which each of `folders` is empty and its own.

    Args:
        cluster: That it joins.
        folders: Hidden from it.
        changed: By file, what it has instead.
    """
    if shutil.which("unshare") is None or _cannot_unshare():
        pytest.skip("a mount namespace of one's own needs root")
    ray_command = Path(sys.executable).parent / "ray"
    mounts = [f"mount -t tmpfs tmpfs {folder}" for folder in folders]
    mounts += [f"mount --bind {other} {file}" for file, other in (changed or {}).items()]
    start = f"exec {ray_command} start --block --address {cluster.address} --num-cpus 1"
    start += " --min-worker-port=0 --max-worker-port=0"  # no other test's Ray has the same
    command = ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, start])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as node:
        try:
            yield node
        finally:
            node.terminate()
            node.wait(JOIN_LIMIT_S)


@contextmanager
def joined_by_node_without(
    cluster: Cluster, *folders: Path, changed: Mapping[Path, Path] | None = None
) -> Iterator[None]:
    """Connect, when a second node has joined that lacks what `node_without` says."""
    with node_without(cluster, *folders, changed=changed) as node, connected(cluster.address):
        deadline = time.monotonic() + JOIN_LIMIT_S
        while len(other_nodes()) < 1:
            assert time.monotonic() < deadline, "the second node did not join"
            assert node.poll() is None
            time.sleep(0.2)
        yield


def test_storage_that_another_node_does_not_see_is_refused(
    tmp_path: Path, cluster: Cluster
) -> None:
    storage = tmp_path / "runs" / "search"
    storage.mkdir(parents=True)
    with joined_by_node_without(cluster, storage.parent):
        check_packages(other_nodes())  # now each node has a worker
        with pytest.raises(ClusterError, match=r"not the same folder on .*all nodes share"):
            check_storage(UPath(storage), other_nodes())
    assert list(storage.iterdir()) == []


def test_node_with_other_files_of_this_package_is_named(tmp_path: Path, cluster: Cluster) -> None:
    ours, theirs = ROOT / "trainable" / "errors.py", tmp_path / "errors.py"
    theirs.write_bytes(ours.read_bytes() + b"# of yesterday\n")
    with joined_by_node_without(cluster, changed={ours: theirs}):
        with pytest.raises(ClusterError) as raised:
            check_packages(other_nodes())
        address = getattr(cluster.head_node, "node_ip_address")  # noqa: B009 - of no type
    version = r"noveltune \S+ \([0-9a-f]{8}\)"
    found = re.fullmatch(
        rf"every node must have what this one has, ({version}), but {re.escape(address)} has "
        rf"({version}): install the project there from the same files",
        str(raised.value),
    )
    assert found is not None, raised.value
    assert found[1] != found[2]


def test_node_without_this_package_is_named(cluster: Cluster) -> None:
    origin = metadata.distribution("noveltune").read_text("direct_url.json") or "{}"
    installed = Path(json.loads(origin).get("url", ROOT.as_uri()).removeprefix("file://"))
    hidden = {folder / "search" for folder in (ROOT, installed)}
    with (
        joined_by_node_without(cluster, *hidden),
        pytest.raises(ClusterError, match=r"has ModuleNotFoundError: No module named 'search"),
    ):
        check_packages(other_nodes())


def test_node_that_joins_without_the_data_gets_them_from_the_driver(
    small_search: SmallSearch, cluster: Cluster, tmp_path: Path
) -> None:
    search = replace(small_search, cache=tmp_path / "cache")
    search.cache.mkdir()
    lines: list[str] = []
    meet = partial(faulty.meet, nodes=(2, 2, 2))
    with ExitStack() as joining, connected(cluster.address):
        study = search.run(
            2, {0: meet, 1: meet}, concurrency=None, max_reruns=0, note=lines.append,
            observers=[once_it_runs(joining, node_without(cluster, search.data, search.cache))],
        )  # fmt: skip
    assert "sending the data to 1 of 2 nodes, where they are not" in lines
    assert search.states() == ["COMPLETE"] * 2
    assert len({file.name for file in search.folder.rglob("node_*")}) == 2
    assert [trial.reruns + trial.lost_nodes for trial in study.trials.values()] == [0, 0]


def test_nodes_that_join_and_cannot_run_trials_are_said_once_and_get_none(
    small_search: SmallSearch, cluster: Cluster, tmp_path: Path
) -> None:
    """A trial waits here until another was placed on both, and that one then runs here."""
    search, said = small_search, list[str]()
    search.folder.mkdir(parents=True)
    ours, theirs = ROOT / "trainable" / "errors.py", tmp_path / "errors.py"
    theirs.write_bytes(ours.read_bytes() + b"# of yesterday\n")

    def note(line: str) -> None:
        if " gets no trials" in line:
            said.append(line)
        if len(said) == 2:
            (search.folder / "trials" / "said").touch()

    with ExitStack() as joining, connected(cluster.address):
        without_storage = node_without(cluster, Path(str(search.folder)))
        of_yesterday = node_without(cluster, changed={ours: theirs})
        study = search.run(
            3, {0: partial(faulty.wait_for, marker="said")},
            concurrency=None, max_reruns=0, note=note,
            observers=[once_it_runs(joining, without_storage, of_yesterday)],
        )  # fmt: skip
    reasons = sorted(line.partition(" until Ray is started there anew: ")[2][:9] for line in said)
    assert reasons == ["--storage", "every nod"], said
    assert search.states() == ["COMPLETE"] * 3
    assert len({trial.node for trial in study.trials.values()}) == 1
    assert [trial.reruns + trial.lost_nodes for trial in study.trials.values()] == [0, 0, 0]


def once_it_runs(
    stack: ExitStack, *nodes: AbstractContextManager[object]
) -> Callable[[Trial], None]:
    """Return an observer that starts nodes when a trial trains, and returns when all have joined.

    One after the other: of two that were started at once at one address, one did not join.
    """
    waiting = list(nodes)

    def start(trial: Trial) -> None:
        while trial.node and waiting:
            num_others, deadline = len(other_nodes()), time.monotonic() + JOIN_LIMIT_S
            stack.enter_context(waiting.pop())
            while len(other_nodes()) == num_others:
                assert time.monotonic() < deadline, "the node did not join"
                time.sleep(0.2)

    return start


def test_storage_and_package_that_every_node_has_are_accepted(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add_node(num_cpus=1)
    with connected(cluster.address):
        assert len(other_nodes()) == 1
        check_packages(other_nodes())
        monkeypatch.chdir(tmp_path)
        check_storage(UPath("."), other_nodes())  # to a worker, another folder
    assert list(tmp_path.iterdir()) == []


def _cannot_unshare() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0
