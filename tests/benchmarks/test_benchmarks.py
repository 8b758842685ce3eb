"""Does every benchmark run to its last line? How long things take is no test's business."""

import contextlib
import importlib.metadata
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.benchmarks import (
    cluster,
    frozen_search,
    full_epoch,
    gpu,
    growth,
    report,
    sampler,
    scale,
    trial_overhead,
)
from tests.benchmarks.common import ROOT, Sources
from tests.benchmarks.plain_trial import Spec
from tests.benchmarks.searches import (
    OurSearch,
    our_search,
    plain_epochs_s,
    plain_search,
    plain_starts_s,
)
from tests.commands import run
from tests.made_searches import Search

LOST = ("lost", "duplicated")


def last_line(said: "str | pytest.CaptureFixture[str]") -> dict[str, Any]:
    text = said if isinstance(said, str) else said.readouterr().out
    result = json.loads(text.splitlines()[-1])
    assert result["machine"]["cores"] >= 1
    assert result["ratio"] > 0
    return dict(result)


@pytest.fixture(scope="session")
def tiny(data: Path) -> list[str]:
    return ["--data", str(data), "--image-size", "32"]


@dataclass(frozen=True)
class Searched:
    """A search of ours and a plain one, which the benchmark of frozen backbones ran."""

    ours: OurSearch
    plain: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def searched(tiny: list[str]) -> Searched:
    found: dict[str, Any] = {}

    def noted(name: str, search: Any) -> Any:
        return lambda *args, **options: found.setdefault(name, search(*args, **options))

    arguments = ["--slots", "1", "--trials", "3", "--epochs", "2", "--plain-epochs", "1"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(frozen_search, "our_search", noted("ours", our_search))
        patch.setattr(frozen_search, "plain_search", noted("plain", plain_search))
        frozen_search.main([*tiny, *arguments])
    return Searched(**found, said=said.getvalue())


@pytest.fixture
def asked(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What other benchmarks ask for (side, trials, epochs): all get the searches that there are.

    To run each of their own takes minutes.
    """
    asked: list[tuple[str, int, int]] = []

    def ours(_folder: Path, _given: Sources, *, trials: int, epochs: int, **_: Any) -> OurSearch:
        asked.append(("ours", trials, epochs))
        return searched.ours

    def plain(_folder: Path, spec: Spec) -> dict[str, Any]:
        asked.append(("plain", spec.trials, spec.epochs))
        return searched.plain

    for module in (trial_overhead, scale):
        monkeypatch.setattr(module, "our_search", create_autospec(our_search, side_effect=ours))
    monkeypatch.setattr(
        trial_overhead, "plain_search", create_autospec(plain_search, side_effect=plain)
    )
    return asked


@pytest.mark.slow
def test_frozen_search_extrapolates_the_plain_side_and_says_so(searched: Searched) -> None:
    result = last_line(searched.said)
    assert result["extrapolated"] is True
    assert (result["trials"], result["epochs"]) == (3, 2)
    assert (result["plain_trials_run"], result["plain_epochs_run"]) == (2, 1)
    start_s, epoch_s = result["plain_start_s"]["min"], result["plain_epoch_s"]["min"]
    assert result["plain_s"] == pytest.approx(3 * (start_s + 2 * epoch_s))
    assert result["ratio"] == pytest.approx(result["plain_s"] / result["ours_s"])
    start_s, epoch_s = result["plain_start_cpu_s"], result["plain_epoch_cpu_s"]["min"]
    assert result["plain_cpu_s"] == pytest.approx(3 * (start_s + 2 * epoch_s))
    assert result["ratio_cpu"] == pytest.approx(result["plain_cpu_s"] / result["ours_cpu_s"])


def test_full_epoch_counts_the_images_of_both_sides(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    full_epoch.main([*tiny, "--repeats", "1", "--images", "16", "--workers", "0"])
    result = last_line(capsys)
    assert result["train_images"] == 16
    assert {side: len(rates) for side, rates in result["all_images_per_s"].items()} == {
        "ours": 1,
        "plain": 1,
    }
    assert result["ratio"] == result["images_per_s"]["ours"] / result["images_per_s"]["plain"]


@pytest.mark.slow
def test_trial_overhead_compares_what_empty_trials_take_on_each_side(
    asked: list[tuple[str, int, int]], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trial_overhead.main([*tiny, "--slots", "1", "--trials", "3"])
    assert asked == [("ours", 3, 0), ("plain", 3, 0)]
    result = last_line(capsys)
    assert result["trials"] == 3
    assert set(result["per_trial_s"]) == set(result["steady_s"]) == {"ours", "plain"}


@pytest.mark.slow
def test_scale_reports_every_size_and_the_drivers_time(
    asked: list[tuple[str, int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scale, "IMAGES_PER_SUBCLASS", 4)
    monkeypatch.setattr(scale, "NOVEL_PER_CLASS", 8)
    scale.main(
        ["--factors", "1", "--trials", "3", "--epochs", "2", "--empty-trials", "3",
         "--repetitions", "1", "--image-size", "32", "--slots", "1"]
    )  # fmt: skip
    assert asked == [("ours", 3, 2), ("ours", 3, 0)]
    result = last_line(capsys)
    assert result["empty_trials"] == 3
    assert list(result["wall_s_by_images"]) == ["1"]
    assert list(result["wall_s_by_trials"]) == ["3"]
    (growth,) = result["driver_cpu"]
    assert growth["trials"] == 1
    assert result["ratio"] == pytest.approx(growth["ratio"])


@pytest.mark.slow
def test_cluster_loses_no_trial_when_a_node_dies_and_one_joins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.main(["--nodes", "2", "--slots", "2", "--trials", "6", "--seconds", "0.2"])
    result = last_line(capsys)
    assert (result["killed"], result["joined"]) == (1, 1)
    assert [result[f"{where}{what}"] for where in ("", "mlflow_") for what in LOST] == [0] * 4
    assert 0 < result["utilisation"] <= 1
    assert 0 < result["utilisation_started"] <= 1
    assert min(result["driver_bytes"].values()) > 0
    assert result["worker_bytes"] > 0
    assert len(result["s_per_trial"]) == len(result["driver_cpu_s_per_trial"]) == 1


def test_a_slot_counts_from_its_nodes_start_to_its_death(tmp_path: Path) -> None:
    """One slot each: the first is there to the end, the second dies at 8 s, another comes at 12."""
    (tmp_path / "a-1").write_text("p 0\np 4\np 5\np 9\nq 10\nq 15\nr 20\nr 25\n")
    (tmp_path / "b-1").write_text("s 2\ns 4\nt 5\n")  # killed in its second trial
    (tmp_path / "c-1").write_text("t 15\nt 20\n")
    lives = cluster.Lives({"a": -5.0, "b": -3.0, "c": 12.0}, {"b": 8.0})
    busy = cluster.busy_times(tmp_path, lives)
    assert sorted((each.start_s, each.end_s) for each in busy) == [
        (0, 9), (2, 4), (5, 8), (10, 15), (15, 20), (20, 25)
    ]  # fmt: skip
    of_all, of_started = cluster.utilisation(busy, lives, slots=1)
    assert of_all == pytest.approx((9 + 2 + 3 + 5 + 5) / (20 + 8 + 8))
    assert of_started == pytest.approx((9 + 2 + 3 + 5 + 5) / (20 + (8 - 2) + (20 - 15)))


def test_seconds_of_each_hundred_are_those_between_its_ends() -> None:
    at_end_s = [float(n) for n in range(1, 101)] + [100.0 + 2 * n for n in range(1, 51)]
    assert cluster.by_hundreds(at_end_s) == [1.0, 2.0]


def test_a_plain_start_lies_between_the_end_of_a_trial_and_the_next_in_its_slot() -> None:
    trials = [
        {"ready_s": [5.0], "now_s": [7.0, 9.0]},
        {"ready_s": [6.0], "now_s": [8.5, 10.0]},
        {"ready_s": [12.0], "now_s": [14.0]},
        {"ready_s": [14.5], "now_s": [16.0]},
    ]
    assert plain_starts_s({"trials": trials}, slots=2) == [3.0, 4.5]
    assert plain_epochs_s({"trials": trials}) == [2.0, 2.0, 2.5, 1.5, 2.0, 1.5]


def test_growth_compares_the_last_fifth_with_the_first_after_one_trial() -> None:
    at_end_s = [9.0, *(10.0 + n for n in range(5)), *(14.0 + 2 * n for n in range(1, 6))]
    growth = scale._growth(at_end_s)
    assert growth == {"trials": 2, "first_s": 1.0, "last_s": 2.0, "ratio": 2.0}


def test_growth_measures_every_event_and_writes_each_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(growth, "RUNNING", 2)
    growth.main(["--trials", "20", "--asks", "3"])
    by_trials = last_line(capsys)["by_trials"]
    assert [*by_trials] == ["1", "2", "20"]
    for costs in by_trials.values():
        assert costs.keys() >= {"resume", "ask", "start", "report_1", "tell", "table", "front"}
        commits = {event: cost.get("commits") for event, cost in costs.items()}
        assert commits["start"] == 1
        assert commits["ask"] < 10, "one for each parameter"


def test_sampler_runs_every_side_and_counts_who_won(capsys: pytest.CaptureFixture[str]) -> None:
    sampler.main(["--seeds", "1", "--trials", "7"])
    result = last_line(capsys)
    assert set(result["mean"]) == {"ours", "random", "visible"}
    assert result["searches"] == len(result["means"]) == 3
    assert all(0 <= won <= 3 for won in result["wins"].values())
    assert all(0 < value < 1 for value in result["mean"].values())


# --- On a machine that has a GPU and little else -----------------------------------------


def packages_beside(*names: str) -> list[str]:
    """Return what can be imported here and is no part of `names` nor of what they depend on."""
    needed: set[str] = set()
    todo = [canonicalize_name(name) for name in names]
    while todo:
        needed.add(name := todo.pop())
        try:
            requirements = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        asked = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
        todo += {canonicalize_name(r.name) for r in asked} - needed
    return [
        package
        for package, owners in importlib.metadata.packages_distributions().items()
        if needed.isdisjoint(map(canonicalize_name, owners)) and package != "trainable"
    ]


@pytest.mark.slow
def test_gpu_benchmark_needs_only_torch_torchvision_and_timm() -> None:
    absent = {*packages_beside("torch", "torchvision", "timm"), "search", "results", "spaces"}
    assert {"ray", "optuna", "mlflow", "pandas", "upath", "psutil", "rich"} <= absent
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(absent)}))\n"
    code += "from tests.benchmarks import gpu; sys.exit(gpu.main(['--toy']))"
    done = run(ROOT, "-c", code)
    assert done.code == 0, done
    result = json.loads(done.last_line)
    assert (result["toy"], result["not_measured"]) == (True, {})
    assert result["machine"]["torch"] == torch.__version__
    assert "gpu" in result["machine"]
    sides = result["one_trial"]["test_resnet"]
    assert sides["ratio"] == sides["ours_images_per_s"] / sides["plain_images_per_s"]
    assert set(result["one_trial"]) == {"test_resnet", "efficientnet_lite0"}
    rates = result["packed"]["images_per_s"]
    assert result["packed"]["ratio_by_processes"]["2"] == rates["2"] / rates["1"]
    (row,) = result["matrix"]["training"]
    expected = row["images_per_s"] * row["gflops_per_image"] / 1e3
    assert row["bf16_fraction"] * result["matrix"]["bf16_tflops_per_s"] == pytest.approx(expected)
    assert result["prediction"]["images_per_s"] > 0
    assert set(result["streamed"]["images_per_s"]) == {"resident", "streamed"}
    assert result["precision"]["float32_less_bf16"]["score"] == 0  # a CPU computes in float32


def test_gpu_benchmark_keeps_what_it_measured_and_says_why_the_rest_is_null(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(bench: gpu.Bench) -> dict[str, Any]:
        raise torch.cuda.OutOfMemoryError("too big")

    sections = {"one_trial": (fails, 0), "packed": (lambda bench: {"ratio": 2.0}, 0)}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)
    assert gpu.main(["--toy"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["one_trial"], result["packed"], result["ratio"]) == (None, {"ratio": 2.0}, None)
    assert result["not_measured"] == {"one_trial": "OutOfMemoryError: too big"}
    assert gpu.main(["--toy", "--minutes", "0"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["packed"] is None
    assert "see --minutes" in result["not_measured"]["packed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_gpu_benchmark_without_a_card_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "a CUDA card is needed" in capsys.readouterr().out


def test_copies_of_trials_are_read_as_trials_and_none_is_as_good(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.tell(baseline=True, score=0.5)
    search.tell("PRUNED", score=0.4)
    searched = search.study.get_trials()
    search.study.add_trials([*report._copies(searched, 2, 6)])
    trials = search.trials
    assert [*trials["state"]] == ["COMPLETE", "PRUNED"] * 3
    assert [*trials["baseline"]] == [True] + [False] * 5
    assert trials["score"][2:].max() < 0.5
    assert trials["lr"][2:].nunique() == 4
