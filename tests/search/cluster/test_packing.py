"""As many trials share a GPU as give the most images per second within its memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from search.cluster.connect import Cluster, Node, connected
from search.cluster.messages import Job
from search.cluster.packing import PACKINGS, Sample, choose_packing, find_packing, kind_of, pilots
from search.cluster.worker import CONTEXT_BYTES
from tests.clusters import ray_cluster
from trainable.config import TrialConfig
from trainable.data.dataset import load_data

GIB = 2**30
FULL = TrialConfig(fine_tune="full")
FROZEN = TrialConfig(fine_tune="frozen")
RATES = {1: 100.0, 2: 190.0, 4: 300.0, 8: 310.0}


def samples(
    rates: Mapping[int, float], peak_gib: float = 1.0, device_gib: float = 80.0
) -> list[Sample]:
    return [
        Sample(
            num_packed=num_packed,
            images_per_s=images_per_s,
            peak_bytes=int(peak_gib * GIB),
            device_bytes=int(device_gib * GIB),
        )
        for num_packed, images_per_s in rates.items()
    ]


def test_fastest_packing_is_chosen() -> None:
    assert choose_packing({"a": samples(RATES)}, {"a": 1}) == (8, pytest.approx(3.1))
    slower = RATES | {8: 250.0}
    assert choose_packing({"a": samples(slower)}, {"a": 1}) == (4, pytest.approx(3.0))


def test_equally_fast_packings_take_the_smaller_one() -> None:
    assert choose_packing({"a": samples(dict.fromkeys(PACKINGS, 50.0))}, {"a": 1}) == (1, 1.0)


def test_packing_must_fit_into_memory_with_what_cuda_takes_for_itself() -> None:
    each = 1.1 * 1.0 + CONTEXT_BYTES / GIB
    for device_gib, best in ((8 * each + 0.1, 8), (8 * each - 0.1, 4), (1.0, 1)):
        measured = {"a": samples(RATES, device_gib=device_gib)}
        assert choose_packing(measured, {"a": 1})[0] == best


def test_packing_must_have_been_measured_for_every_kind() -> None:
    small, large = samples(RATES), samples({1: 100.0, 2: 150.0})
    assert choose_packing({"a": small, "b": large}, {"a": 9, "b": 1})[0] == 2
    assert choose_packing({"a": small, "b": []}, {"a": 9, "b": 1}) == (1, 1.0)


def test_kinds_count_as_often_as_they_are_met() -> None:
    measured = {"a": samples({1: 100.0, 2: 200.0}), "b": samples({1: 100.0, 2: 50.0})}
    assert choose_packing(measured, {"a": 9, "b": 1})[0] == 2
    assert choose_packing(measured, {"a": 1, "b": 9})[0] == 1


def test_kind_is_what_speed_and_memory_depend_on() -> None:
    assert kind_of(TrialConfig(lr=1e-2, alpha=0.5, seed=3)) == kind_of(TrialConfig())
    others: list[dict[str, Any]] = [
        {"backbone": "resnet18"}, {"image_size": 128}, {"fine_tune": "last_1"},
        {"batch_size": 32}, {"architecture": "two_models"}, {"compile": True},
        {"head": "cosine"}, {"sub_head": "cosine"}, {"loss": "cross_entropy"},
    ]  # fmt: skip
    assert len({kind_of(TrialConfig(**other)) for other in [{}, *others]}) == 1 + len(others)


class Pilot:
    """Gives measurements, and notes what was asked."""

    def __init__(self, rates: Mapping[TrialConfig, Mapping[int, float]], peak_gib: float) -> None:
        self.rates, self.peak_gib = rates, peak_gib
        self.asked: list[tuple[TrialConfig, int]] = []
        self.lines: list[str] = []

    def __call__(self, config: TrialConfig, num_packed: int) -> Sample | None:
        self.asked.append((config, num_packed))
        rates = self.rates[config]
        if num_packed not in rates:
            return None
        return samples({num_packed: rates[num_packed]}, self.peak_gib)[0]

    def find(self, *configs: TrialConfig, most: int = 99) -> int:
        return find_packing(configs, self, most=most, note=self.lines.append)


def test_every_kind_is_measured_once_at_every_packing_and_the_choice_is_said() -> None:
    pilot = Pilot({FULL: RATES, FROZEN: RATES}, peak_gib=2.0)
    assert pilot.find(FULL, FROZEN, FULL) == 8
    assert pilot.asked == [(config, n) for n in PACKINGS for config in (FULL, FROZEN)]
    assert pilot.lines == [
        "--gpus-per-trial auto: 8 at a time on a GPU, 3.1 times as many images per second as one "
        "alone; the largest of 2 kinds of trial takes 2.0 of 80.0 GiB"
    ]


def test_larger_packings_are_not_tried_once_one_was_slower() -> None:
    pilot = Pilot({FULL: {1: 100.0, 2: 90.0, 4: 900.0, 8: 900.0}}, peak_gib=1.0)
    assert pilot.find(FULL) == 1
    assert [num_packed for _, num_packed in pilot.asked] == [1, 2]


def test_packings_that_cannot_fit_are_not_tried() -> None:
    pilot = Pilot({FULL: RATES}, peak_gib=20.0)
    assert pilot.find(FULL) == 2
    assert [num_packed for _, num_packed in pilot.asked] == [1, 2]


def test_kind_out_of_memory_ends_the_pilot() -> None:
    pilot = Pilot({FULL: {1: 100.0, 2: 150.0}, FROZEN: RATES}, peak_gib=1.0)
    assert pilot.find(FULL, FROZEN) == 2
    assert pilot.asked[-1] == (FROZEN, 4)
    hopeless = Pilot({FULL: {}}, peak_gib=1.0)
    assert hopeless.find(FULL) == 1
    assert "no kind of trial was measured within its memory" in hopeless.lines[0]


def test_no_more_trials_are_packed_than_there_are_cpus_for() -> None:
    pilot = Pilot({FULL: RATES}, peak_gib=1.0)
    assert pilot.find(FULL, most=5) == 4
    assert pilot.find(FULL, most=0) == 1
    node = Node(address="a", cpus=0.6, gpus=1)
    assert Cluster((node,)).trials_per_gpu(0.1) == 6, "0.6 / 0.1 is 5.999..."


@pytest.mark.slow
def test_pilot_trains_every_kind_in_processes_of_their_own(data: Path, tmp_path: Path) -> None:
    """Ray takes our word for the GPU; the processes find none and train on the CPU."""
    novel = str(data / "novel_images")
    job = Job(
        folder=UPath(tmp_path),
        data=str(data),
        novel=novel,
        fingerprint=load_data(str(data), novel, tmp_path / "cache").fingerprint,
        cache=tmp_path / "cache",
        weights=None,
    )
    small = {"image_size": 32, "novel_images": 8, "batch_size": 16, "schedule": "one_cycle"}
    with (
        ray_cluster(num_cpus=1, num_gpus=1) as cluster,
        connected(cluster.address),
        pilots(job) as measure,
    ):
        for fine_tune, num_packed in (("full", 1), ("frozen", 2)):
            sample = measure(TrialConfig(fine_tune=fine_tune, **small), num_packed)
            assert sample is not None
            assert sample.num_packed == num_packed
            assert sample.images_per_s > 0
    # Digests are kept of files that were two seconds old when they were read.
    left = {path.name for path in (tmp_path / "cache").iterdir()} - {"digests"}
    assert left == {"data"}
