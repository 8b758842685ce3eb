"""A refit on a cluster costs time only when its node or its process goes, and ends the same."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from upath import UPath

from results.record import SearchRecord
from search.cluster.connect import connected
from search.cluster.executor import Slots
from search.cluster.messages import Job
from search.cluster.nodes import Nodes
from search.cluster.settings import ClusterError
from search.cluster.task import on_cluster, run_task
from search.retrain import Choice, Place, Work, here, retrain
from tests.clusters import ray_cluster
from tests.faults import faulty
from tests.made_searches import record
from tests.trainable.tiny import silent, tiny_config, write_weights
from trainable.classifier import read_info
from trainable.data.dataset import Data, load_data
from trainable.errors import TrialError
from trainable.novelty.rule import Rule
from trainable.out_of_fold import Rejected
from trainable.trainer import Trainer

pytestmark = pytest.mark.slow
LIMIT_S = 300.0


class Refit:
    """A refit of three epochs of a frozen trial, on tiny data."""

    def __init__(self, folder: Path, data: Path, cache: Path) -> None:
        novel, self.cache = str(data / "novel_images"), cache
        self.folder, self.data = UPath(folder / "asked"), load_data(str(data), novel, cache)
        self.folder.mkdir()
        self.record = record(
            data=str(data), novel=novel, data_fingerprint=self.data.fingerprint, cache=str(cache),
            weights=str(write_weights(folder / "weights.pt")),
        )  # fmt: skip
        num = len(self.data.superclasses)
        self.choice = Choice(
            trial=0, epochs=3, num_subclasses=len(self.data.subclasses), promise={},
            config=tiny_config(novel_images=16, fine_tune="frozen", epochs=3),
            rejected=Rejected(0.2, (0.2,) * num, 0.2),
            rule=Rule(
                super_score="msp", sub_score="msp", tau_super=0.5, tau_sub=(0.5,) * num,
                couple_novel=False, restrict_sub=False,
            ),
        )  # fmt: skip

    def run(self, name: str, where: Place, note: Callable[[str], None]) -> dict[str, Any]:
        """Train into a folder of that name; return what it leaves, but for the time it took."""
        target = self.folder / name
        retrain(self.choice, self.record, self.data, target, note, where=where)
        info = read_info(target)
        for key in ("epoch_s", "images_per_s"):
            del info["metrics"][key]
        return {"info": info, "weights": (target / "model.safetensors").read_bytes()}

    def on(self, cluster: Cluster, *, gpus: float | None = None, **changes: Any) -> Place:
        """Return what does work on the cluster, for a record with these changes."""
        asked: SearchRecord = replace(self.record, **changes)
        return partial(
            on_cluster, folder=self.folder, record=asked, address=cluster.address,
            cpus_per_trial=None, gpus_per_trial=gpus,
        )  # fmt: skip


@pytest.fixture
def refit(tmp_path: Path, data: Path, tiny_cache: Path) -> Refit:
    return Refit(tmp_path, data, tiny_cache)


def stuck_in_the_third_epoch(
    work: Work, folder: Path, data: Data, note: Callable[[str], None]
) -> None:
    """Do the work, and once wait in it for what ends this process."""

    def train_epoch(trainer: Trainer, epoch: int, *said: Any) -> dict[str, float]:
        node = ray.get_runtime_context().get_node_id()
        (folder / f"epoch_{epoch}_{node}").touch()
        if epoch == 3 and len(list(folder.glob("epoch_3_*"))) == 1:
            time.sleep(LIMIT_S)
            raise AssertionError("its node is still there")
        return faulty.REAL_EPOCH(trainer, epoch, *said)

    with mock.patch.object(Trainer, "train_epoch", train_epoch):
        work(data, note)


def test_refit_whose_node_dies_goes_on_elsewhere_and_ends_as_an_undisturbed_one(
    refit: Refit, tmp_path: Path
) -> None:
    torch.set_num_threads(1)  # as the task, which has one CPU
    calm = refit.run("calm", here, silent)
    lines: list[str] = []

    def kill_its_node(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 2/3") and lines.count(line) == 1:
            end_s = time.monotonic() + LIMIT_S
            while not (stuck := list(tmp_path.glob("epoch_3_*"))):
                assert time.monotonic() < end_s, "it did not come to its third epoch"
                time.sleep(0.02)
            (doomed,) = (node for node in nodes if stuck[0].name.endswith(node.node_id))
            cluster.remove_node(doomed, allow_graceful=False)

    def where(work: Work, data: Data, note: Callable[[str], None]) -> None:
        stuck = partial(stuck_in_the_third_epoch, work, tmp_path)
        place = refit.on(cluster, max_reruns=0)
        place(stuck, data, note)

    with ray_cluster(num_cpus=0) as cluster:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        disturbed = refit.run("disturbed", where, kill_its_node)
    assert lines.count("its node is gone; it goes on from its checkpoint") == 1, lines
    assert sum(line.startswith("trains on ") for line in lines) == 2
    epochs = sorted(file.name.split("_")[1] for file in tmp_path.glob("epoch_*"))
    assert epochs == ["1", "2", "3", "3"], "the first two were trained once, the third on two nodes"
    assert disturbed == calm


def meet_a_mishap(folder: Path, data: Data, note: Callable[[str], None]) -> None:
    """Fail, and from then on die."""
    assert len(data.images)
    number = len(list(folder.glob("mishap_*")))
    (folder / f"mishap_{number}").touch()
    if number == 0:
        raise TrialError("the loss is nan in epoch 1: lower lr")
    note(f"mishap {number}")
    os.kill(os.getpid(), signal.SIGKILL)


def test_refit_whose_process_dies_goes_on_as_often_as_a_trial_and_fails_by_its_own_reason(
    refit: Refit, tmp_path: Path
) -> None:
    mishap, lines = partial(meet_a_mishap, tmp_path), list[str]()
    slots = Slots(cpus_per_trial=1, gpus_per_trial=0, concurrency=1)
    job = Job.of(refit.record, refit.folder, refit.cache)
    with ray_cluster(num_cpus=1) as cluster:
        with connected(cluster.address):
            # Of a node that joined meanwhile they do not know either.
            nodes = Nodes(refit.folder, refit.data, refit.cache, lines.append)
            with pytest.raises(TrialError, match=r"^the loss is nan in epoch 1: lower lr$"):
                run_task(mishap, job, slots, nodes, 1, lines.append)
            # What a process said just before its death may be lost, so it is counted here.
            assert sum(line.startswith("trains on ") for line in lines) == 2, "looked at once"
            with pytest.raises(TrialError, match=r"^its worker process died 2 times$"):
                run_task(mishap, job, slots, nodes, 1, lines.append)
        assert len(list(tmp_path.glob("mishap_*"))) == 3
        assert lines.count("its process died; it goes on from its checkpoint") == 1
        asked = "a trial asks for 1 CPU and 0.5 GPU, but no node of the cluster has both"
        with pytest.raises(ClusterError, match=asked):
            refit.run("refused", refit.on(cluster, gpus=0.5), silent)
    assert not (refit.folder / "refused").exists()


def note_its_share(folder: Path, data: Data, note: Callable[[str], None]) -> None:
    """Write down what Ray gave this process, and which devices it sees."""
    context = ray.get_runtime_context()
    seen = {
        "resources": context.get_assigned_resources(),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "node": context.get_node_id(),
    }
    (folder / "share.json").write_text(json.dumps(seen))


def test_refit_takes_a_trials_share_of_a_gpu(refit: Refit, tmp_path: Path) -> None:
    """Of the node that has one, not of the one with more CPUs."""
    slots = Slots(cpus_per_trial=1, gpus_per_trial=0.25, concurrency=1)
    job = Job.of(refit.record, refit.folder, refit.cache)
    with ray_cluster(num_cpus=4) as cluster:
        node = cluster.add_node(num_cpus=1, num_gpus=2)
        with connected(cluster.address):
            nodes = Nodes(refit.folder, refit.data, refit.cache, silent)
            run_task(partial(note_its_share, tmp_path), job, slots, nodes, 1, silent)
    share = json.loads((tmp_path / "share.json").read_text())
    assert share["resources"] == {"CPU": 1.0, "GPU": 0.25}
    assert share["devices"] in ("0", "1"), "one of the two"
    assert share["node"] == node.node_id
