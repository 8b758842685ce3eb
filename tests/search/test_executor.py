"""A cluster is cut into slots that it can really hold."""

import time

import pytest

from search.cluster import Cluster, ClusterError
from search.executor import Slots, deadline_after, make_slots


def slots(
    cpus: float = 8,
    gpus: float = 0,
    *,
    concurrency: int | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    may_grow: bool = False,
) -> Slots:
    """Cut a cluster with so many CPUs and GPUs; what is not given is chosen."""
    return make_slots(
        Cluster(num_nodes=1, cpus=cpus, gpus=gpus),
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


@pytest.mark.parametrize(("each", "fit"), [(2.0, 2), (3.0, 1), (4.0, 1)])
def test_several_gpus_for_a_trial(each: float, fit: int) -> None:
    assert slots(cpus=64, gpus=4, gpus_per_trial=each).concurrency == fit


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
        "a trial asks for 4 CPU and 0 GPU, but the cluster has 2 CPU and 0 GPU"
    )


def test_gpu_where_there_is_none_is_refused() -> None:
    with pytest.raises(
        ClusterError, match=r"1 CPU and 0\.5 GPU, but the cluster has 8 CPU and 0 GPU"
    ):
        slots(cpus=8, gpus_per_trial=0.5)


def test_gpus_above_one_must_be_whole() -> None:
    with pytest.raises(ClusterError) as raised:
        slots(cpus=8, gpus=4, gpus_per_trial=1.5)
    assert str(raised.value) == "--gpus-per-trial above 1 must be a whole number, but got 1.5"


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
