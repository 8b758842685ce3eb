"""Trials that share GPUs: as many on each device as its share allows, on each node what it has."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from search.cluster.connect import connected
from tests.clusters import ray_cluster
from tests.faults.conftest import SmallSearch

pytestmark = pytest.mark.slow
AT_ONCE = 5 + 2
LIMIT_S = 300.0


def occupy(wire: dict[str, Any]) -> None:
    """Hold a slot, as a trial does, until as many do as fit; leave behind which, and how long."""
    context = ray.get_runtime_context()
    where = {
        "node": context.get_node_id(),
        "gpu": ",".join(context.get_accelerator_ids()["GPU"]),
        "gpus": context.get_assigned_resources()["GPU"],
    }
    tune.report({"event": ["Started", {"host": "here", "device": "declared", **where}]})
    folder, start_s = Path(wire["job"]["folder"]), time.monotonic()
    (folder / f"started_{wire['number']}").touch()
    while len([*folder.glob("started_*")]) < AT_ONCE:
        assert time.monotonic() < start_s + LIMIT_S, "fewer trials ran at once than fit"
        time.sleep(0.02)
    held = {**where, "start_s": start_s, "end_s": time.monotonic()}
    (folder / f"held_{wire['number']}.json").write_text(json.dumps(held))
    tune.report({"event": ["Finished", {"best": {"epoch": 1, "score": 0.5}}]})


def test_a_quarter_of_a_gpu_is_four_trials_on_each_and_unequal_nodes_are_filled(
    small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs beside five CPUs, and one beside two: declared, as Ray takes one's word for them."""
    monkeypatch.setattr("tests.faults.conftest.with_faults", lambda faults: occupy)
    num_trials = AT_ONCE + 1  # the last one waits for a slot
    with ray_cluster(num_cpus=0) as cluster:
        nodes = [cluster.add_node(num_cpus=5, num_gpus=2), cluster.add_node(num_cpus=2, num_gpus=1)]
        with connected(cluster.address) as found:
            assert sum(node.fits(1, 0.25) for node in found.nodes) == AT_ONCE
            study = small_search.run(num_trials, concurrency=None, gpus_per_trial=0.25)
    assert small_search.states() == ["COMPLETE"] * num_trials
    held = [json.loads(file.read_text()) for file in small_search.folder.glob("held_*.json")]
    assert len(held) == num_trials
    for each in held:
        together = [o for o in held if o["start_s"] <= each["start_s"] < o["end_s"]]
        by_device = Counter((other["node"], other["gpu"]) for other in together)
        assert max(by_device.values()) <= 4, by_device
        assert len(together) <= AT_ONCE
    first = sorted(held, key=lambda each: float(each["start_s"]))[:AT_ONCE]
    by_node = Counter(each["node"] for each in first)
    assert by_node == {nodes[0].node_id: 5, nodes[1].node_id: 2}
    assert {each["gpus"] for each in held} == {0.25}
    recorded = {(trial.node, trial.gpu, trial.gpus) for trial in study.trials.values()}
    assert recorded == {(each["node"], each["gpu"], each["gpus"]) for each in held}
