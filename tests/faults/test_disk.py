"""What becomes of a trial whose disk fills up while it writes a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from upath import UPath

from tests.disks import small_file_system
from tests.faults.conftest import SmallSearch
from trainable.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2.5 MiB: with the filler, room for one checkpoint."""
    with small_file_system(tmp_path / "disk", "2560k") as folder:
        yield folder


@pytest.mark.usefixtures("ray_here")
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
