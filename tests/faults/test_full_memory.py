"""What becomes of a trial that Ray's host-memory monitor kills, which ends Tune's experiment.

It fills the memory up to what was left as it began: nothing else may run then.
"""

import psutil
import pytest

from search.cluster.connect import connected
from tests.faults import faulty
from tests.faults.conftest import SmallSearch

GIB = 2**30
HEADROOM_GIB = 6
"""What trials may use here: two workers with torch fit well, a glutton does not."""


@pytest.mark.slow
@pytest.mark.skipif(
    psutil.virtual_memory().available < 2 * HEADROOM_GIB * GIB,
    reason=f"needs {2 * HEADROOM_GIB} GiB of free memory",
)
def test_a_trial_killed_for_memory_is_tried_again_alone_and_then_fails(
    small_search: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    limit = memory.total - memory.available + HEADROOM_GIB * GIB
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit / memory.total:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    lines: list[str] = []
    with connected(None, num_cpus=2):
        small_search.run(4, {1: faulty.eat_memory}, concurrency=2, note=lines.append)
    assert small_search.states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "out of host memory, even alone" in small_search.attributes(1)["reason"]
    assert sum("go on one at a time" in line for line in lines) == 1
    meals = list((small_search.folder / "trials" / "00001").glob("meal_*"))
    assert len(meals) == 2
