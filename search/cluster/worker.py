"""What a worker process does with one trial: load the data once, train, report, never raise."""

import contextlib
import functools
import gc
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from search.cluster.messages import (
    MPS,
    Assignment,
    EpochDone,
    Failed,
    Finished,
    Message,
    Note,
    OutOfMemory,
    Started,
    to_wire,
)
from search.cluster.nodes import is_checked
from search.cluster.within import Told
from trainable.checkpoint import write_atomically
from trainable.config import TrialConfig
from trainable.data.dataset import Data, find_data, load_data
from trainable.epoch import Epoch
from trainable.errors import DataError, TrialError, UserError
from trainable.memory import (
    forget_host_peak,
    give_back_memory,
    host_peak_bytes,
    keep_freed_memory,
)
from trainable.train import Metrics, train

CONTEXT_BYTES = 600 * 2**20
"""What CUDA takes of a device for each process, beside what PyTorch counts."""


@functools.lru_cache(maxsize=1)
def node_data(source: str, novel: str, cache: Path, fingerprint: str) -> Data:
    """Map the data set once per process: actors serve many trials.

    Raises:
        DataError: This node has other data, or none.
    """
    data = find_data(source, novel, cache, fingerprint)
    data = data or load_data(source, novel, cache, note=_no_note)
    if data.fingerprint != fingerprint:
        raise DataError(f"{source} or {novel} on {os.uname().nodename} is not what was checked")
    return data


class UnfitNodeError(Exception):
    """The driver did not find that this node can run trials: it looks, and places it anew."""


def run_trial(wire: dict[str, Any]) -> None:
    """Train the trial that is assigned; send started, an epoch each, then the result or why it
    failed.

    `wire` is what `Assignment.to_wire` gave. Only the death of this process reaches Tune as a
    failure, which it retries; a trial that raises would raise again.

    Raises:
        UnfitNodeError: The driver found that this node joined and cannot run trials.
    """
    assigned = Assignment.from_wire(wire)
    job = assigned.job
    forget_host_peak()
    place = started(assigned.cpus, assigned.gpus)
    with contextlib.suppress(DataError):  # decoded now, a driver's check of this node is short
        node_data(job.data, job.novel, job.cache, job.fingerprint)
    # The driver looks at a node that it does not know before it lets this call return.
    _send(place)
    if not is_checked(place.node):
        raise UnfitNodeError(place.node)
    told = Told(str(assigned.folder))
    try:
        job.parts.use()
        # Only the metrics are kept: the models would outlive the cleaning below.
        metrics = train(
            TrialConfig.from_dict(assigned.config),
            node_data(job.data, job.novel, job.cache, job.fingerprint),
            _reporting(assigned.gpus),
            folder=assigned.folder,
            cache=job.cache,
            weights=job.weights,
            is_fast=job.is_fast,
            metric=job.metric,
            note=lambda line: _send(Note(line=line)),
            within=told.tell,
        ).metrics
        last: Message = Finished(best=Epoch.of(metrics))
    except torch.cuda.OutOfMemoryError as error:
        last = OutOfMemory(reason=str(error))  # the driver may have a larger share for it
    except (TrialError, UserError) as error:
        last = Failed(reason=str(error))
    except Exception as error:  # noqa: BLE001 (whatever it is, it is this trial's reason)
        with contextlib.suppress(OSError):  # the disk may be what failed
            write_atomically(assigned.folder / "error.txt", traceback.format_exc().encode())
        last = Failed(reason=f"{type(error).__name__}: {error}")
    finally:
        told.end()
        # The process lives on for the next trial.
        gc.collect()
        give_back_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    _send(last)


def started(cpus: float, gpus: float) -> Started:
    """Have this process take its share of the node and no more; return where it is."""
    _prepare_process()
    torch.set_num_threads(max(1, int(cpus)))
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA starts; this process never gets one
    elif torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(_memory_fraction(gpus))
    node, gpu = _placed()
    return Started(host=os.uname().nodename, device=_device(), node=node, gpu=gpu, gpus=gpus)


@functools.cache
def _prepare_process() -> None:
    """Keep freed memory, and spare what is imported from every later collection, which took longer
    than an empty trial.

    Not when this is imported, which the driver does too.
    """
    keep_freed_memory()
    gc.freeze()


def _memory_fraction(share: float) -> float:
    """Return how much of its device a process with `share` of a GPU may allocate, 0 to 1."""
    if share >= 1:
        return 1.0
    total_bytes = torch.cuda.get_device_properties().total_memory
    return max(share / 2, share - CONTEXT_BYTES / total_bytes)


def _send(message: Message) -> None:
    """Report to the driver."""
    tune.report({"event": to_wire(message)})


def _reporting(gpus: float) -> Callable[[Metrics], None]:
    """Return what sends each epoch, with its share of a GPU, and the time since the one before or
    since now.
    """
    before_s = time.perf_counter()

    def report(metrics: Metrics) -> None:
        nonlocal before_s
        now_s = time.perf_counter()
        epoch = replace(
            Epoch.of(metrics), elapsed_s=now_s - before_s, host_peak_bytes=host_peak_bytes(),
            gpu_utilisation=_utilisation(), gpus=gpus or None,
        )  # fmt: skip
        _send(EpochDone(epoch=epoch))
        before_s = now_s

    return report


def _placed() -> tuple[str, str]:
    """Return the node's id and which of its GPUs this process has, as Ray counts them."""
    context = ray.get_runtime_context()
    return context.get_node_id(), ",".join(map(str, context.get_accelerator_ids()["GPU"]))


def _device() -> str:
    """Return the name of the GPU, which says of which MIG slice it is; or cpu."""
    if not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name() + (MPS if has_mps() else "")


def has_mps() -> bool:
    """Return whether NVIDIA's multi-process service runs here, which has a pipe of this name."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()


def _utilisation() -> float | None:
    if not torch.cuda.is_available():
        return None
    try:
        return float(torch.cuda.utilization()) / 100
    except Exception:  # noqa: BLE001 (NVML's errors are its own; a figure for people ends no trial)
        return None


def _no_note(_line: str) -> None:
    """Drop lines for a person: the driver tells what a search shows."""
