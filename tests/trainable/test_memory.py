"""What happens to memory that is freed, and to threads that wait."""

import sys

import pytest

from tests.commands import ROOT, run

FAULTS = """
import resource, threading, torch
from trainable.memory import keep_freed_memory
if {is_kept}:
    keep_freed_memory()

def train():
    for _ in range(16):  # until the heap has settled
        torch.ones(2**24)  # 64 MiB, freed at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=train)  # as Tune runs a trial
thread.start()
thread.join()
"""
PAGES = 2**26 // 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")
def test_large_blocks_are_reused_instead_of_mapped_anew() -> None:
    faults = {
        is_kept: int(run(ROOT, "-c", FAULTS.format(is_kept=is_kept)).out)
        for is_kept in (False, True)
    }
    assert faults[True] < PAGES / 10
    assert faults[False] > 3 * PAGES  # else the system does it by itself, and ours is not needed


@pytest.mark.parametrize("package", ["trainable", "results", "search"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_give_way_unless_the_user_says_otherwise(
    package: str, given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP reads it once, when torch is imported: so before that."""
    code = f"import os, sys, {package}; assert 'torch' not in sys.modules"
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    done = run(ROOT, "-c", f"{code}; print(os.environ.get('GOMP_SPINCOUNT'))", **given)
    assert (done.code, done.out.strip()) == (0, str(expected)), done


PEAK = """
import torch
from trainable.memory import forget_host_peak, host_peak_bytes
block = torch.ones(2**26)  # 256 MiB
del block
high = host_peak_bytes()
forget_host_peak()
print(high - host_peak_bytes() >= 2**27)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells it")
def test_peak_of_the_host_is_that_of_one_trial_not_of_those_before_it() -> None:
    assert run(ROOT, "-c", PEAK).out == "True\n"
