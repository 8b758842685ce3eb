"""Ray ends while other threads of ours go on."""

import pytest

from tests.commands import ROOT, run

PROGRAM = """
import gc, linecache, sys, threading
from search.cluster.connect import connected
import ray

has_ended = threading.Event()

def collect_as_ray_ends():
    main = threading.main_thread().ident
    while not has_ended.is_set():
        frame = sys._current_frames()[main]
        if frame.f_code.co_name == "shutdown":
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            if "shutdown_driver" in line:
                print("ending", flush=True)
                gc.collect()
                return

with connected(None, num_cpus=1):
    cycle = [ray.put(1)]
    cycle.append(cycle)
    gc.disable()
    del cycle
    thread = threading.Thread(target=collect_as_ray_ends)
    thread.start()
has_ended.set()
thread.join()
print("gone on")
"""


@pytest.mark.slow
def test_garbage_that_another_thread_collects_as_ray_ends_does_not_end_the_process() -> None:
    for _ in range(5):  # on a busy machine the thread may not run at that moment
        done = run(ROOT, "-c", PROGRAM)
        if "ending" in done.out:
            break
    assert done.out.split("\n")[-3:] == ["ending", "gone on", ""], done
    assert done.code == 0
