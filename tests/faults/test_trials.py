"""What becomes of trials that die, raise, diverge, run out of memory or fill the disk."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from upath import UPath

from results.database import STORAGE_ERRORS
from results.record import trial_folder
from results.trial import Trial
from search.cluster import within
from search.cluster.executor import SearchStoppedError
from tests.disks import small_file_system
from tests.faults import faulty
from tests.faults.conftest import SmallSearch
from trainable.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_here")]


def test_faults_end_as_fail_with_their_reason_and_the_search_goes_on(
    small_search: SmallSearch,
) -> None:
    small_search.run(
        5,
        {1: faulty.raise_error, 2: faulty.make_loss_nan, 3: faulty.run_out_of_gpu_memory},
        concurrency=2,
    )
    assert small_search.states() == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    reasons = [small_search.attributes(number).get("reason", "") for number in range(5)]
    assert reasons[0] == reasons[4] == ""
    assert reasons[1] == "ZeroDivisionError: by the test"
    assert "the loss is nan in epoch 1" in reasons[2]
    assert "CUDA out of memory" in reasons[3]
    traceback = (small_search.folder / "trials" / "00001" / "error.txt").read_text()
    assert "raise_error" in traceback


def test_a_trial_whose_process_died_goes_on_from_its_checkpoint(small_search: SmallSearch) -> None:
    lines: list[str] = []
    study = small_search.run(2, {0: faulty.die_once}, note=lines.append)
    assert any("its process died" in line for line in lines)
    assert small_search.states() == ["COMPLETE", "COMPLETE"]
    epochs = study.trials[0].epochs
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    undisturbed = SmallSearch(
        small_search.folder.parent / "calm",
        small_search.data,
        small_search.cache,
        small_search.monkeypatch,
    ).run(1)
    for mine, other in zip(epochs, undisturbed.trials[0].epochs, strict=True):
        assert (mine.number, mine.metrics) == (other.number, other.metrics)


@pytest.mark.parametrize(("max_reruns", "said"), [(0, "1 times"), (2, "3 times")])
def test_a_trial_whose_process_always_dies_fails_after_as_many_reruns_as_asked(
    small_search: SmallSearch, max_reruns: int, said: str
) -> None:
    study = small_search.run(2, {0: faulty.die_always}, max_reruns=max_reruns)
    assert small_search.states() == ["FAIL", "COMPLETE"]
    deaths = list((small_search.folder / "trials" / "00000").glob("death_*"))
    assert len(deaths) == max_reruns + 1
    assert small_search.attributes(0)["reason"] == f"its worker process died {said}"
    assert (study.trials[0].reruns, study.trials[0].lost_nodes) == (max_reruns, 0)


def test_processes_start_side_by_side_and_one_trial_waits_where_as_many_run_as_fit(
    small_search: SmallSearch, tmp_path: Path
) -> None:
    running: set[int] = set()
    at_once: list[int] = []

    def watch(trial: Trial) -> None:
        (running.discard if trial.is_finished else running.add)(trial.number)
        at_once.append(len(running))
        if trial.number == 3:  # so trial 2 waits no longer
            (tmp_path / "go").touch()

    fault = faulty.AtStart(faulty.start_as_two, tmp_path)
    small_search.run(6, dict.fromkeys(range(2), fault), concurrency=None, observers=[watch])
    assert small_search.states() == ["COMPLETE"] * 6
    assert len(list(tmp_path.glob("process_*"))) == 2
    assert max(at_once) == 3, "two run, and one waits for room"
    first, second = (
        {file.name for file in trial_folder(small_search.folder, number).glob("process_*")}
        for number in range(2)
    )
    assert first != second, "the process that was free first took the trial that waited"


def test_a_trial_whose_process_dies_as_it_comes_from_another_trial_is_not_lost(
    small_search: SmallSearch, tmp_path: Path
) -> None:
    """Tune tells the scheduler of that twice, and gives the trial up."""
    study = small_search.run(3, {0: faulty.AtStart(faulty.die_when_reused_once, tmp_path)})
    assert (tmp_path / "died").exists()
    assert small_search.states() == ["COMPLETE"] * 3
    reruns = [trial.reruns for trial in study.trials.values()]
    assert sorted(reruns) == [0, 0, 1], "it died once"


def test_ten_failures_in_a_row_stop_the_search_with_the_commonest_reason(
    small_search: SmallSearch,
) -> None:
    faults: dict[int, faulty.Fault] = dict.fromkeys(range(1, 30), faulty.raise_error)
    faults[3] = faulty.make_loss_nan
    with pytest.raises(SearchStoppedError, match="10 trials in a row failed: ZeroDivisionError"):
        small_search.run(20, faults)
    assert small_search.states().count("FAIL") == 10


def test_a_failure_now_and_then_does_not_stop_the_search(small_search: SmallSearch) -> None:
    """Of twelve in all, more than may fail in a row, six and six do."""
    small_search.run(13, {number: faulty.raise_error for number in range(13) if number != 6})
    assert small_search.states() == ["FAIL"] * 6 + ["COMPLETE"] + ["FAIL"] * 6


KINDS = """
EPOCHS = 2
BASELINES = [{"fine_tune": fine_tune, "image_size": 32, "novel_images": 16, "lr": 1e-3}
             for fine_tune in ("frozen", "last_2", "full")]
"""


def test_a_slow_search_finds_the_same_stores_no_features_and_reuses_no_process(
    small_search: SmallSearch, tmp_path: Path
) -> None:
    found = []
    for name, is_fast, num_processes in (("fast", True, 1), ("slow", False, 3)):
        folder = UPath(tmp_path / name)
        search = replace(small_search, space=KINDS, folder=folder, cache=tmp_path / f"{name}_cache")
        study = search.run(3, dict.fromkeys(range(3), faulty.record_process), is_fast=is_fast)
        assert search.states() == ["COMPLETE"] * 3
        assert len({file.name for file in folder.rglob("process_*")}) == num_processes
        stored = {path.name for path in search.cache.iterdir()} - {"digests"}  # of older files only
        assert stored == ({"data", "features"} if is_fast else {"data"})
        trials = study.trials.values()
        found.append([[(epoch.number, epoch.metrics) for epoch in t.epochs] for t in trials])
    assert [len(epochs) for epochs in found[0]] == [2] * 3
    assert found[0] == found[1]


def test_a_database_that_goes_away_for_good_ends_the_search_with_its_own_error(
    small_search: SmallSearch,
) -> None:
    def damage(trial: Trial) -> None:
        if trial.epochs:
            (small_search.folder / "study.db").write_bytes(b"no database" * 10_000)

    with pytest.raises(STORAGE_ERRORS) as raised:
        small_search.run(2, observers=[damage])
    assert "file is not a database" in f"{raised.value} {raised.value.__cause__}"


def test_driver_reads_how_far_a_worker_is_within_an_epoch_and_what_a_dead_one_said(
    tmp_path: Path,
) -> None:
    search = UPath(tmp_path)

    def work(number: int, is_killed: bool) -> dict[int, float]:
        told = within.Told(str(trial_folder(search, number)))
        told.tell(0.5)
        early = within.read(search, [number])  # too early to tell
        told._next_s = 0
        told.tell(1.25)
        if not is_killed:
            told.end()
        return early

    remote = ray.remote(work)
    early = ray.get([remote.remote(number, number == 1) for number in range(2)])
    assert early == [{}, {}]
    assert within.read(search, range(3)) == {1: 1.25}
    within.forget([str(trial_folder(search, 1))])
    assert within.read(search, range(3)) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2.5 MiB: with the filler, room for one checkpoint."""
    with small_file_system(tmp_path / "disk", "2560k") as folder:
        yield folder


def test_a_full_disk_fails_the_trial_and_leaves_its_older_checkpoints_valid(
    small_search: SmallSearch, small_disk: Path
) -> None:
    trials = small_search.folder / "trials"
    trials.mkdir(parents=True)
    (trials / "00000").symlink_to(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(200_000))
    small_search.run(2)
    assert small_search.states() == ["FAIL", "COMPLETE"]
    assert "No space left on device" in small_search.attributes(0)["reason"]
    filler.unlink()
    lines: list[str] = []
    state = load_checkpoint(UPath(small_disk), lines.append)
    assert state is not None
    assert len(state["history"]) == len(list(small_disk.glob("checkpoint_*.pt")))
    assert lines == []
    assert not list(small_disk.glob(".checkpoint*")), "a torn file was left behind"
