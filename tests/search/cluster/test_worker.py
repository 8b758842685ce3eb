"""What a worker process says of a trial, and what it keeps of it."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from upath import UPath

from search.cluster import worker
from search.cluster.messages import (
    Assignment,
    Failed,
    Finished,
    Job,
    Message,
    OutOfMemory,
    Started,
)
from trainable.config import TrialConfig
from trainable.epoch import Epoch
from trainable.errors import TrialError

MIB = 2**20


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """What the worker sends, without Tune."""
    sent: list[Message] = []
    monkeypatch.setattr(worker, "_send", sent.append)
    monkeypatch.setattr(worker, "node_data", lambda *args: None)
    monkeypatch.setattr(worker, "_placed", lambda: ("here", ""))  # as Ray says
    monkeypatch.setattr(worker, "is_checked", lambda node: True)  # likewise
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)  # of this process
    monkeypatch.setattr(worker, "_prepare_process", lambda: None)  # likewise
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return sent


@pytest.fixture
def wire(tmp_path: Path) -> dict[str, Any]:
    job = Job(
        folder=UPath(tmp_path), data="", novel="", fingerprint="", cache=tmp_path, weights=None
    )
    config = TrialConfig().to_dict()
    return Assignment(job=job, number=0, config=config, cpus=1.0, gpus=0.0).to_wire()


def fragmented() -> list[bytes]:
    """Fill 200 MiB in small blocks and free all but the last, which keeps the heap from shrinking.

    Beside torch's own tensors, these are what glibc does not give back by itself.
    """
    blocks = [bytes(bytearray(64 * 1024)) for _ in range(3200)]
    return blocks[-1:]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="of Linux's memory")
def test_freed_memory_goes_back_to_the_system_after_each_trial(
    events: list[Message], wire: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, used = [], []

    def train(*_: Any, **__: Any) -> Any:
        kept.append(fragmented())
        used.append(psutil.Process().memory_info().rss)
        return SimpleNamespace(metrics={"epoch": 1, "score": 0.5})

    monkeypatch.setattr(worker, "train", train)
    trial = threading.Thread(target=worker.run_trial, args=(wire,))  # as Tune runs it
    trial.start()
    trial.join()
    assert events[-1] == Finished(best=Epoch(number=1, metrics={"score": 0.5}))
    assert used[0] - psutil.Process().memory_info().rss > 150 * MIB


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (torch.cuda.OutOfMemoryError("20 GiB"), OutOfMemory(reason="20 GiB")),
        (TrialError("the loss is nan"), Failed(reason="the loss is nan")),
        (ZeroDivisionError("by nothing"), Failed(reason="ZeroDivisionError: by nothing")),
    ],
)
def test_trial_that_raises_says_why(
    events: list[Message],
    wire: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    event: Message,
) -> None:
    def train(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(worker, "train", train)
    worker.run_trial(wire)
    assert isinstance(events[0], Started)
    assert events[1:] == [event]


def test_gpu_that_does_not_say_how_busy_it_is_ends_no_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NVMLError(Exception):
        """Like pynvml's, which is of no family of Python's own."""

    def refuse() -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 40)
    assert worker._utilisation() == 0.4
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert worker._utilisation() is None
