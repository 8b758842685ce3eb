"""A cluster is cut into slots that it can really hold."""

import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher
from upath import UPath

from search.cluster.connect import Cluster, Node
from search.cluster.executor import (
    Slots,
    _StudyScheduler,
    _StudySearcher,
    deadline_after,
    make_slots,
)
from search.cluster.messages import Job
from search.cluster.placement import sharing, shortage
from search.cluster.settings import ClusterError
from search.cluster.worker import has_mps
from search.space.space import load_space
from search.study.study import Study


def cluster(*nodes: tuple[float, float]) -> Cluster:
    """A cluster of nodes with so many CPUs and GPUs each."""
    return Cluster(
        tuple(
            Node(address=f"10.0.0.{number}", cpus=cpus, gpus=gpus)
            for number, (cpus, gpus) in enumerate(nodes, start=1)
        )
    )


def slots(
    cpus: float = 8,
    gpus: float = 0,
    *more: tuple[float, float],
    concurrency: int | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    may_grow: bool = False,
) -> Slots:
    """Cut a cluster of a node with so many CPUs and GPUs, and `more`; the rest is chosen."""
    return make_slots(
        cluster((cpus, gpus), *more),
        concurrency=concurrency,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        may_grow=may_grow,
    )


def test_trial_gets_one_cpu_where_there_is_no_gpu() -> None:
    assert slots(cpus=8) == Slots(cpus_per_trial=1, gpus_per_trial=0, concurrency=8)


def test_trial_gets_a_whole_gpu_where_there_are_any() -> None:
    assert slots(cpus=8, gpus=2) == Slots(cpus_per_trial=1, gpus_per_trial=1, concurrency=2)


def test_no_gpu_can_be_asked_for_where_there_are_some() -> None:
    assert slots(cpus=8, gpus=2, gpus_per_trial=0).concurrency == 8


@pytest.mark.parametrize(
    ("share", "fit"),
    [(1.0, 2), (0.5, 4), (0.25, 8), (0.3, 6), (0.2, 10), (0.1, 20), (0.05, 40), (0.7, 2)],
)
def test_share_of_a_gpu_fits_a_whole_number_of_times_into_each(share: float, fit: int) -> None:
    assert slots(cpus=64, gpus=2, gpus_per_trial=share).concurrency == fit


@pytest.mark.parametrize(
    ("each", "fit"), [(2.0, 4), (3.0, 2), (8.0, 1), (0.5, 16), (0.1, 80), (0.8, 10)]
)
def test_cpus_for_a_trial(each: float, fit: int) -> None:
    assert slots(cpus=8, cpus_per_trial=each).concurrency == fit


def test_scarcer_resource_decides() -> None:
    assert slots(cpus=3, gpus=2, gpus_per_trial=0.25).concurrency == 3
    assert slots(cpus=16, gpus=2, gpus_per_trial=0.25).concurrency == 8


def test_concurrency_can_be_lowered_but_not_raised_above_what_fits() -> None:
    assert slots(cpus=8, concurrency=3).concurrency == 3
    assert slots(cpus=8, concurrency=99).concurrency == 8


def test_cluster_that_may_grow_is_not_limited_to_what_fits_now() -> None:
    assert slots(cpus=2, may_grow=True).concurrency is None
    assert slots(cpus=2, may_grow=True, concurrency=9).concurrency == 9


def test_trial_that_needs_more_cpus_than_there_are_is_refused() -> None:
    with pytest.raises(ClusterError) as raised:
        slots(cpus=2, cpus_per_trial=4)
    assert str(raised.value) == (
        "a trial asks for 4 CPU and 0 GPU, but no node of the cluster has both: "
        "10.0.0.1 has 2 CPU and 0 GPU"
    )


@pytest.mark.parametrize("may_grow", [False, True])
def test_trial_that_only_several_nodes_could_hold_together_is_refused(may_grow: bool) -> None:
    with pytest.raises(ClusterError) as raised:
        slots(1, 0, (1, 0), cpus_per_trial=2, may_grow=may_grow)
    assert str(raised.value) == (
        "a trial asks for 2 CPU and 0 GPU, but no node of the cluster has both: "
        "10.0.0.1 has 1 CPU and 0 GPU, 10.0.0.2 has 1 CPU and 0 GPU"
    )


def test_cpus_of_one_node_and_gpu_of_another_hold_no_trial() -> None:
    with pytest.raises(ClusterError, match=r"has 8 CPU and 0 GPU, 10\.0\.0\.2 has 1 CPU and 1 GPU"):
        slots(8, 0, (1, 1), cpus_per_trial=2, gpus_per_trial=0.5)


def test_what_fits_is_counted_on_each_node() -> None:
    assert slots(3, 0, (3, 0), cpus_per_trial=2).concurrency == 2  # of six CPUs two are left over
    assert slots(8, 1, (2, 2), (64, 0), gpus_per_trial=0.25).concurrency == 4 + 2


def taken(*nodes: tuple[float, float, float, float]) -> Cluster:
    """A cluster of nodes with so many CPUs and GPUs, and so many of them taken by others."""
    return Cluster(
        tuple(
            Node(address=f"n{n}", cpus=cpus, gpus=gpus, taken_cpus=by_cpus, taken_gpus=by_gpus)
            for n, (cpus, gpus, by_cpus, by_gpus) in enumerate(nodes, start=1)
        )
    )


def test_fewer_slots_than_asked_for_are_said_with_who_has_what() -> None:
    quarter = Slots(cpus_per_trial=1, gpus_per_trial=0.25, concurrency=None)
    full = taken((8, 2, 2, 2), (4, 1, 4, 0.5))
    assert shortage(full, quarter, None) == (
        "0 of 2 nodes has a free quarter GPU and 1 CPU: n1 has 6 of 8 CPU and 0 of 2 GPU, n2 has "
        "0 of 4 CPU and 0.5 of 1 GPU. 0 of 12 trials fit now; the others wait for what gets free"
    )
    half = taken((8, 2, 2, 2), (4, 1, 1, 0.5))
    assert shortage(half, quarter, 3).startswith("1 of 2 nodes has a free quarter GPU and 1 CPU: ")
    assert shortage(half, quarter, 3).endswith("2 of 3 trials fit now; the others wait for what "
                                               "gets free")  # fmt: skip
    assert shortage(half, quarter, 2) == ""
    cpus = Slots(cpus_per_trial=2, gpus_per_trial=0, concurrency=2)
    assert shortage(taken((4, 0, 0, 0)), cpus, None) == ""
    assert shortage(taken((4, 0, 0, 0)), cpus, 9).startswith(
        "1 of 1 nodes has a free 2 CPU: n1 has 4 of 4 CPU. 2 of 9 trials fit now"
    )


def test_slices_and_the_multi_process_service_are_said_and_a_whole_gpu_is_not() -> None:
    assert sharing("NVIDIA A100-SXM4-40GB MIG 1g.5gb").endswith("is of the slice")
    assert "multi-process service runs" in sharing("NVIDIA A100-SXM4-40GB (MPS)")
    assert sharing("NVIDIA A100-SXM4-40GB") == sharing("cpu") == ""


def test_multi_process_service_is_known_by_its_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not has_mps()
    (tmp_path / "control").touch()
    assert has_mps()


def test_nodes_of_a_large_cluster_are_not_all_listed() -> None:
    with pytest.raises(ClusterError, match=r"10\.0\.0\.20 has 1 CPU and 0 GPU, and 5 more nodes$"):
        slots(1, 0, *[(1.0, 0.0)] * 24, cpus_per_trial=2)


def test_trials_on_each_gpu_are_limited_by_the_cpus_of_its_own_node() -> None:
    assert cluster((2, 1), (96, 0)).trials_per_gpu(1) == 2
    assert cluster((16, 2), (4, 1)).trials_per_gpu(1) == 4
    assert cluster((16, 2), (1, 1)).trials_per_gpu(2) == 4  # no trial can be on the second
    assert cluster((1, 1), (96, 0)).trials_per_gpu(2) == 0


def test_gpu_where_there_is_none_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"1 CPU and 0\.5 GPU, .* has 8 CPU and 0 GPU$"):
        slots(cpus=8, gpus_per_trial=0.5)


@pytest.mark.parametrize("gpus", [2.0, 1.5, -0.5, float("nan")])
def test_trial_has_one_gpu_at_most(gpus: float) -> None:
    with pytest.raises(ClusterError, match="must be 0 to 1, as a trial trains on one GPU, but got"):
        slots(cpus=8, gpus=4, gpus_per_trial=gpus)


@pytest.mark.parametrize("cpus", [0.0, -1.0, float("nan")])
def test_cpus_must_be_above_zero(cpus: float) -> None:
    with pytest.raises(ClusterError, match="--cpus-per-trial must be above 0, but got"):
        slots(cpus_per_trial=cpus)


def test_budget_has_no_end_where_none_is_given() -> None:
    assert not deadline_after(None)()


def test_budget_ends_when_it_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    is_over = deadline_after(60.0)
    now_s = 1059.9
    assert not is_over()
    now_s = 1060.0
    assert is_over()


def test_ten_configurations_in_a_row_that_the_space_does_not_give_end_the_search(
    tmp_path: Path,
) -> None:
    """The eleventh is not asked for; a trial that ran in between starts the count anew."""
    file = tmp_path / "asked.py"
    file.write_text(
        "NUM_TRIALS = 99\nEPOCHS = 1\ndef space(trial):\n"
        "    if type(trial._trial.study.sampler).__name__ == 'RandomSampler':\n"
        "        return {}  # a dry trial\n"
        "    if trial.number != 3:\n        raise KeyError('rare')\n    return {}\n"
    )
    study = Study(optuna.create_study(), load_space(UPath(file)), seed=0, observers=[])
    nodes: Any = None
    scheduler = _StudyScheduler(study, nodes, note=print, max_reruns=2)
    job = Job(
        folder=UPath(tmp_path), data="", novel="", fingerprint="", cache=tmp_path, weights=None
    )
    searcher = _StudySearcher(study, job, slots(), scheduler, only_resumed=False)
    assert searcher.suggest("first")["number"] == 3
    study.fail(3, "as well")
    scheduler._failures_in_a_row.clear()
    assert searcher.suggest("second") == Searcher.FINISHED
    assert scheduler.is_hopeless
    assert "KeyError in line 7: 'rare'" in scheduler.commonest_reason
    assert 13 <= len(study.trials) <= 15
