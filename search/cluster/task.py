"""A refit on a cluster: one Ray task, which goes on elsewhere where its node or process is gone."""

import math
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from upath import UPath

from results.record import SearchRecord
from search.cluster.connect import connected
from search.cluster.deaths import is_node_gone
from search.cluster.executor import Slots, make_slots
from search.cluster.messages import Job, Message, Note, OutOfMemory, Started, from_wire, to_wire
from search.cluster.nodes import Nodes, is_checked, prepared_nodes
from search.cluster.placement import shortage
from search.cluster.worker import UnfitNodeError, node_data, started
from search.retrain import Work
from trainable.data.dataset import Data, folder_for_images
from trainable.errors import TrialError, UserError

import ray  # isort: skip  (after search.cluster.settings, which sets what it reads)
from ray.exceptions import (  # isort: skip
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)


def on_cluster(
    work: Work,
    data: Data,
    note: Callable[[str], None],
    *,
    folder: UPath,
    record: SearchRecord,
    address: str,
    cpus_per_trial: float | None,
    gpus_per_trial: float | None,
) -> None:
    """Do the work of a refit where a trial of its search would be trained.

    Args:
        work: It goes on from what an earlier call of it kept.
        data: As the driver sees them.
        note: Called with lines for a person.
        folder: Of the search.
        record: Of the search.
        address: Of the cluster.
        cpus_per_trial: See `make_slots`.
        gpus_per_trial: See `make_slots`.

    Raises:
        ClusterError: No such cluster, or none that holds it.
        TrialError: It cannot go on.
        UserError: See `trainable.train`.
    """
    with (
        folder_for_images(Path(record.cache) if record.cache else None) as cache,
        connected(address, note=note) as cluster,
    ):
        slots = make_slots(
            cluster, concurrency=1, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial
        )
        if line := shortage(cluster, slots, 1):
            note(line)
        with prepared_nodes(folder, data, cache, note, is_kept=record.is_fast) as nodes:
            run_task(work, Job.of(record, folder, cache), slots, nodes, record.max_reruns, note)


def run_task(
    work: Work,
    job: Job,
    slots: Slots,
    nodes: Nodes,
    max_reruns: int,
    note: Callable[[str], None],
) -> None:
    """Do the work in a task of the cluster that this process is connected to, until it has ended.

    Args:
        work: See `on_cluster`.
        job: What the worker is given beside it.
        slots: What the task gets.
        nodes: Of the cluster: one that joined is checked when the task comes to it.
        max_reruns: How often it goes on where its process died by itself.
        note: Called with lines for a person.

    Raises:
        TrialError, UserError: See `on_cluster`.
    """
    gpus, deaths = slots.gpus_per_trial, 0
    while True:
        node = ""
        # Ray would count the deaths of nodes as those of processes.
        task: Any = _task.options(
            num_cpus=slots.cpus_per_trial, num_gpus=gpus, max_retries=0,
            label_selector=nodes.selector,
        )  # fmt: skip
        try:
            for said in task.remote(work, job, slots.cpus_per_trial, gpus):
                match from_wire(ray.get(said)):
                    case Started() as place:
                        node = place.node
                        note(f"trains on {place.host} ({place.device})")
                    case Note(line=line):
                        note(line)
                    case OutOfMemory(reason=reason):
                        if gpus >= 1:
                            raise TrialError(reason)
                        note("its share of a GPU is too small: it goes on with a whole one")
                        gpus = float(math.ceil(gpus))
                        break
            else:
                return
        except RayTaskError as error:
            if isinstance(error.cause, TrialError | UserError):
                raise error.cause from None
            if not isinstance(error.cause, UnfitNodeError):
                raise
            nodes.is_unfit(node)  # if it is not, the task may go back there now
        except (NodeDiedError, WorkerCrashedError, OutOfMemoryError) as error:
            if is_node_gone(error, node):
                note("its node is gone; it goes on from its checkpoint")
                continue
            deaths += 1
            if deaths > max_reruns:
                raise TrialError(f"its worker process died {deaths} times") from error
            note("its process died; it goes on from its checkpoint")


@ray.remote
def _task(work: Work, job: Job, cpus: float, gpus: float) -> Iterator[list[Any]]:
    """Give what is said meanwhile: first where it is, then each line."""
    said: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(_work, work, job, cpus, gpus, said.put)
        done.add_done_callback(lambda _: said.put(None))
        while (message := said.get()) is not None:
            yield to_wire(message)
    done.result()


def _work(work: Work, job: Job, cpus: float, gpus: float, say: Callable[[Message], None]) -> None:
    """Do the work in this process, as `worker.run_trial` trains a trial."""
    place = started(cpus, gpus)
    say(place)
    if not is_checked(place.node):
        raise UnfitNodeError(place.node)
    job.parts.use()
    data = node_data(job.data, job.novel, job.cache, job.fingerprint)
    try:
        work(data, lambda line: say(Note(line=line)))
    except torch.cuda.OutOfMemoryError as error:
        say(OutOfMemory(reason=str(error)))
