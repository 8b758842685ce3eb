"""Trials that fail in chosen ways: what a worker runs instead of `search.cluster.worker.run_trial`.

The number of a trial says what happens to it; a marker file in its folder says that it already
has. Everything else is the real thing.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import ray
import torch
from ray.tune.trainable.function_trainable import FunctionTrainable

from search.cluster.messages import Assignment
from search.cluster.worker import run_trial
from trainable.trainer import Trainer

Fault = Callable[[Trainer, int, Path], object]
REAL_EPOCH = Trainer.train_epoch
MEETING_LIMIT_S = 300.0


def _once(marker: Path) -> bool:
    if marker.exists():
        return False
    marker.touch()
    return True


def die_once(_trainer: Trainer, epoch: int, folder: Path) -> None:
    if epoch == 2 and _once(folder / "died"):
        os.kill(os.getpid(), signal.SIGKILL)


def die_always(_trainer: Trainer, epoch: int, folder: Path) -> None:
    (folder / f"death_{len(list(folder.glob('death_*')))}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def raise_error(_trainer: Trainer, epoch: int, _folder: Path) -> None:
    raise ZeroDivisionError("by the test")


def run_out_of_gpu_memory(_trainer: Trainer, epoch: int, _folder: Path) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def record_share(_trainer: Trainer, epoch: int, folder: Path) -> float:
    """Leave the trial's share of a GPU behind, and return it."""
    share = float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))
    (folder / f"share_{share:g}").touch()
    return share


def need_a_whole_gpu(trainer: Trainer, epoch: int, folder: Path) -> None:
    if record_share(trainer, epoch, folder) < 1:
        run_out_of_gpu_memory(trainer, epoch, folder)


def make_loss_nan(trainer: Trainer, epoch: int, _folder: Path) -> None:
    with torch.no_grad():
        for model in trainer.branches:
            for parameter in model.heads.parameters():
                parameter.fill_(torch.nan)


def eat_memory(_trainer: Trainer, epoch: int, folder: Path) -> None:
    """Fill the host until Ray's memory monitor ends this process."""
    (folder / f"meal_{len(list(folder.glob('meal_*')))}").touch()
    hoard = []
    for _ in range(400):
        hoard.append(torch.ones(2**23))  # 32 MiB
    raise AssertionError("nothing stopped it")


def record_process(_trainer: Trainer, epoch: int, folder: Path) -> None:
    (folder / f"process_{os.getpid()}").touch()


def meet(_trainer: Trainer, epoch: int, folder: Path, *, nodes: tuple[int, ...]) -> None:
    """Leave the node's id behind; wait until trials were on `nodes[epoch - 1]` nodes, in all."""
    (folder / f"node_{ray.get_runtime_context().get_node_id()}").touch()
    at_least = nodes[epoch - 1]
    _wait_for(lambda: len({file.name for file in folder.parent.glob("*/node_*")}) >= at_least)


class AtStart:
    """No fault, but each process that is sent it does something as it starts.

    A trial that it befalls leaves behind which process it is in.
    """

    def __init__(self, do: Callable[[Path], None], folder: Path) -> None:
        """Do `do(folder)`."""
        self._sent = (do, folder, os.getpid())

    def __call__(self, trainer: Trainer, epoch: int, folder: Path) -> None:
        record_process(trainer, epoch, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, self._sent


def _arrived(do: Callable[[Path], None], folder: Path, driver: int) -> AtStart:
    if os.getpid() != driver:
        do(folder)
    return AtStart(do, folder)


def start_as_two(folder: Path) -> None:
    """Wait until another process starts, too; the second of them for a file `go` as well."""
    own = str(os.getpid())
    (folder / f"process_{own}").touch()
    _wait_for(lambda: len(list(folder.glob("process_*"))) > 1)
    with contextlib.suppress(FileExistsError), (folder / "first").open("x") as file:
        file.write(own)
    if (folder / "first").read_text() != own:
        _wait_for((folder / "go").exists)


def die_when_reused_once(folder: Path) -> None:
    """Have the first process die that is given another trial, before it begins with that."""
    reset: Any = FunctionTrainable.reset_config

    def die(*given: Any) -> object:
        if _once(folder / "died"):
            os.kill(os.getpid(), signal.SIGKILL)
        return reset(*given)

    FunctionTrainable.reset_config = die  # type: ignore[method-assign]


def _wait_for(event: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MEETING_LIMIT_S
    while not event():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.05)


def wait_for(_trainer: Trainer, epoch: int, folder: Path, *, marker: str) -> None:
    """Go on once there is a file of that name beside the trials' folders."""
    deadline = time.monotonic() + MEETING_LIMIT_S
    while not (folder.parent / marker).exists():
        assert time.monotonic() < deadline, f"nobody wrote {marker}"
        time.sleep(0.05)


def with_faults(faults: Mapping[int, Fault]) -> Callable[[dict[str, Any]], None]:
    """Return a trainable that befalls trial N with `faults[N]` at the start of every epoch."""

    def trial(wire: dict[str, Any]) -> None:
        assigned = Assignment.from_wire(wire)
        fault = faults.get(assigned.number)
        if fault is None:
            run_trial(wire)
            return
        folder = Path(str(assigned.folder))
        folder.mkdir(parents=True, exist_ok=True)

        def train_epoch(trainer: Trainer, epoch: int, *said: Any) -> dict[str, float]:
            fault(trainer, epoch, folder)
            return REAL_EPOCH(trainer, epoch, *said)

        with mock.patch.object(Trainer, "train_epoch", train_epoch):
            run_trial(wire)

    return trial
