"""How many trials share a GPU: a short pilot of each kind of trial, and the choice that follows."""

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from search.cluster.connect import Cluster
from search.cluster.executor import Slots, make_slots
from search.cluster.messages import Job
from search.cluster.worker import CONTEXT_BYTES, node_data
from trainable.config import TrialConfig
from trainable.data.splits import make_pools
from trainable.trainer import Trainer

PACKINGS = (1, 2, 4, 8)
"""Trials on one GPU that are compared."""
PILOT_S = 2.0
"""How long each kind trains at each packing, after a warm-up."""
PILOT_STEPS = 16
"""Optimizer steps in a pilot's epoch."""
MEMORY_MARGIN = 1.1
"""A long trial's memory over a pilot's: it is cut into more pieces."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What some trials of one kind did at the same time on one GPU."""

    num_packed: int
    images_per_s: float
    """Of all of them together."""
    peak_bytes: int
    """Of the largest process, without CUDA's own."""
    device_bytes: int

    def fits(self, num_packed: int) -> bool:
        """Return whether so many of this kind fit on the device."""
        each = self.peak_bytes * MEMORY_MARGIN + CONTEXT_BYTES
        return num_packed * each <= self.device_bytes


Measure = Callable[[TrialConfig, int], Sample | None]
"""Trains so many trials of a configuration at once; null: they are out of memory."""


def kind_of(config: TrialConfig) -> str:
    """Return what a trial's speed and memory depend on."""
    branches = [
        f"{b.backbone} {b.fine_tune} {'+'.join(b.heads)} {b.image_size} px"
        for b in config.branches()
    ]
    compiled = ", compiled" if config.compile else ""
    return f"{' and '.join(branches)}, {config.loss}, batch {config.batch_size}{compiled}"


def choose_packing(
    samples: Mapping[str, Sequence[Sample]], weights: Mapping[str, int]
) -> tuple[int, float]:
    """Return how many trials share a GPU, and how much faster that is than one alone.

    It is the packing with the least time for one image of every kind, each as often as it was
    met, among those at which every kind was measured and fits into memory; one where none does.

    Args:
        samples: By kind, at rising packings.
        weights: By kind.
    """
    seconds: dict[int, float] = {}
    for num_packed in PACKINGS:
        each = {
            kind: next((s for s in measured if s.num_packed == num_packed), None)
            for kind, measured in samples.items()
        }
        if all(s is not None and s.images_per_s > 0 and s.fits(num_packed) for s in each.values()):
            seconds[num_packed] = sum(weights[k] / s.images_per_s for k, s in each.items() if s)
    if not seconds:
        return 1, 1.0
    best = min(seconds, key=lambda num_packed: (seconds[num_packed], num_packed))
    return best, seconds.get(1, seconds[best]) / seconds[best]


def slots_by_pilot(
    cluster: Cluster,
    job: Job,
    samples: Sequence[TrialConfig],
    note: Callable[[str], None],
    *,
    concurrency: int | None,
    cpus_per_trial: float | None,
    gpus_per_trial: float | str | None,
    may_grow: bool,
) -> Slots:
    """Return what `make_slots` does; with auto for `gpus_per_trial`, by a pilot of `samples`.

    Raises:
        ClusterError: No node can hold one trial.
    """
    if isinstance(gpus_per_trial, str):
        gpus_per_trial = _gpus_by_pilot(cluster, cpus_per_trial, job, samples, note)
    return make_slots(
        cluster,
        concurrency=concurrency,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        may_grow=may_grow,
    )


def _gpus_by_pilot(
    cluster: Cluster,
    cpus_per_trial: float | None,
    job: Job,
    samples: Sequence[TrialConfig],
    note: Callable[[str], None],
) -> float:
    """Return the share of a GPU for each trial, by a short pilot; 0 where there are no GPUs.

    Raises:
        ClusterError: No node can hold one trial.
    """
    if not cluster.gpus:
        return 0.0
    # A cluster that cannot hold one trial is refused before the pilot.
    make_slots(cluster, concurrency=1, cpus_per_trial=cpus_per_trial, gpus_per_trial=1.0)
    most = cluster.trials_per_gpu(cpus_per_trial or 1.0)
    with pilots(job) as measure:
        return 1.0 / find_packing(samples, measure, most=most, note=note)


def find_packing(
    configs: Sequence[TrialConfig], measure: Measure, *, most: int, note: Callable[[str], None]
) -> int:
    """Return how many trials share a GPU, by a pilot of each kind; say which, and why.

    Larger packings are not tried once a kind does not fit, or all together became slower.

    Args:
        configs: What the search may meet.
        measure: The pilot.
        most: Trials on one GPU for which there are CPUs.
        note: Called with lines for a person.
    """
    kinds = {kind_of(config): config for config in configs}
    weights = Counter(map(kind_of, configs))
    samples: dict[str, list[Sample]] = {kind: [] for kind in kinds}
    for num_packed in (n for n in PACKINGS if n <= max(1, most)):
        if not all(sample.fits(num_packed) for each in samples.values() for sample in each):
            break
        measured = [measure(config, num_packed) for config in kinds.values()]
        for kind, sample in zip(kinds, measured, strict=True):
            if sample is not None:
                samples[kind].append(sample)
        if None in measured or choose_packing(samples, weights)[0] < num_packed:
            break
    best, gain = choose_packing(samples, weights)
    largest = max((s for each in samples.values() for s in each), key=lambda s: s.peak_bytes,
                  default=None)  # fmt: skip
    memory = (
        f"the largest of {len(kinds)} kinds of trial takes {largest.peak_bytes / GIB:.1f} of "
        f"{largest.device_bytes / GIB:.1f} GiB"
        if largest
        else "no kind of trial was measured within its memory"
    )
    note(f"--gpus-per-trial auto: {best} at a time on a GPU, {gain:.1f} times as many images per "
         f"second as one alone; {memory}")  # fmt: skip
    return best


@contextmanager
def pilots(job: Job) -> Iterator[Measure]:
    """Give a `Measure` that trains in processes on one GPU of the cluster."""
    group = placement_group([{"GPU": 1}])
    remote_pilot: Any = ray.remote(_Pilot)
    where = PlacementGroupSchedulingStrategy(group)
    options = {"num_cpus": 0, "num_gpus": 1 / max(PACKINGS), "scheduling_strategy": where}
    crew: list[Any] = []

    def measure(config: TrialConfig, num_packed: int) -> Sample | None:
        while len(crew) < num_packed:
            crew.append(remote_pilot.options(**options).remote(job))
        here = crew[:num_packed]
        devices = ray.get([pilot.prepare.remote(config.to_dict()) for pilot in here])
        if None in devices:
            return None
        measured = ray.get([pilot.train.remote(PILOT_S) for pilot in here])
        if None in measured:
            return None
        return Sample(
            num_packed=num_packed,
            images_per_s=sum(images_per_s for images_per_s, _ in measured),
            peak_bytes=max(peak_bytes for _, peak_bytes in measured),
            device_bytes=devices[0],
        )

    try:
        yield measure
    finally:
        for pilot in crew:
            ray.kill(pilot)
        remove_placement_group(group)


class _Pilot:
    """A process that trains a configuration on a few images, as a trial would."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)
        self._job = job
        self._trainer: Trainer | None = None

    def prepare(self, values: dict[str, Any]) -> int | None:
        """Build the models and train an epoch; return the device's bytes, null if they are short.

        Nothing here may end a search: learning rates are tiny, and there is no schedule to run out.
        """
        self._trainer = None
        gc.collect()
        has_gpu = torch.cuda.is_available()
        if has_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        job = self._job
        job.parts.use()
        rates = {k: 1e-8 for k, v in values.items() if k.endswith("lr") and v is not None}
        config = TrialConfig.from_dict(values | rates | {"schedule": "constant"})
        data = node_data(job.data, job.novel, job.cache, job.fingerprint)
        pools = make_pools(data, config)
        pools = replace(
            pools, train=pools.train[: PILOT_STEPS * config.batch_size], val=pools.val[:512]
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._trainer = Trainer(
                    config, data, pools,
                    cache=Path(folder), weights=job.weights, is_fast=job.is_fast,
                    note=lambda line: None,
                )  # fmt: skip
                self._trainer.train_epoch(1)
                self._trainer.outputs()
        except torch.cuda.OutOfMemoryError:
            return None
        return torch.cuda.get_device_properties().total_memory if has_gpu else 0

    def train(self, seconds: float) -> tuple[float, int] | None:
        """Return images per second over so many seconds, and the most bytes taken so far."""
        assert self._trainer is not None
        start_s, epoch = time.perf_counter(), 1
        try:
            while (passed_s := time.perf_counter() - start_s) < seconds:
                epoch += 1
                self._trainer.train_epoch(epoch)
        except torch.cuda.OutOfMemoryError:
            return None
        images = (epoch - 1) * len(self._trainer.pools.train)
        return images / passed_s, torch.cuda.max_memory_reserved()
