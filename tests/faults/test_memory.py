"""What becomes of a trial for which its share of a GPU was too small; what workers reuse."""

import resource
import sys
import threading
from contextlib import nullcontext
from statistics import median

import pytest
import ray
import torch

from search.cluster.connect import connected
from tests.clusters import ray_cluster
from tests.faults import faulty
from tests.faults.conftest import SmallSearch
from trainable.memory import keep_freed_memory


@pytest.mark.slow
def test_a_trial_out_of_gpu_memory_is_tried_again_alone_with_a_whole_gpu(
    small_search: SmallSearch,
) -> None:
    """Ray takes our word for the GPU."""
    faults: dict[int, faulty.Fault] = dict.fromkeys((0, 2), faulty.record_share)
    faults |= {1: faulty.need_a_whole_gpu, 3: faulty.run_out_of_gpu_memory}
    lines: list[str] = []
    with ray_cluster(num_cpus=2, num_gpus=1) as cluster, connected(cluster.address):
        small_search.run(4, faults, concurrency=2, gpus_per_trial=0.5, note=lines.append)
    assert small_search.states() == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    assert "CUDA out of memory" in small_search.attributes(3)["reason"]
    for number in (1, 3):
        what = f"trial {number:05d}  out of GPU memory; it is tried again alone at the end"
        assert lines.count(what) == 1
    trials = small_search.folder / "trials"
    shares = [{file.name for file in (trials / f"{n:05d}").glob("share_*")} for n in range(4)]
    assert shares == [{"share_0.5"}, {"share_0.5", "share_1"}, {"share_0.5"}, set()]


def faults_of_large_blocks() -> list[int]:
    """Return the page faults of blocks of 128 MiB in threads, as Tune runs a process's trials."""
    keep_freed_memory()
    found: list[int] = []

    def allocate() -> None:
        for _ in range(16):  # until the heap has settled
            torch.ones(2**25)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(2**25)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    for _ in range(3):
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")
@pytest.mark.parametrize("joined", [False, True])
def test_workers_reuse_large_blocks_in_every_thread(joined: bool) -> None:
    """Ray's own threads have heaps already when our code begins."""
    with (
        ray_cluster(num_cpus=1) if joined else nullcontext() as cluster,
        connected(cluster.address if cluster else None),
    ):
        found = ray.get(ray.remote(faults_of_large_blocks).remote())
    pages = 2**27 // resource.getpagesize()
    # One of Ray's threads may take a piece of what is free, and the heap settles once more.
    assert median(found) < pages / 10
