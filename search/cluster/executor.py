"""Where and when trials run: Tune's adapters, resources per trial, and the fit."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, assert_never

import pyarrow.fs

from results.database import STORAGE_ERRORS
from results.record import MAX_RERUNS
from search.cluster.connect import Cluster
from search.cluster.deaths import error_of, is_node_gone, node_of
from search.cluster.messages import (
    Assignment,
    EpochDone,
    Failed,
    Finished,
    Job,
    Note,
    OutOfMemory,
    Started,
    from_wire,
)
from search.cluster.nodes import Nodes
from search.cluster.placement import sharing
from search.cluster.settings import ClusterError
from search.cluster.worker import run_trial
from search.study.lock import LeaseLostError
from search.study.study import Study
from trainable.checkpoint import remove_folder

from ray import tune  # isort: skip  (after search.cluster.settings, which sets what Ray reads)
from ray.exceptions import OutOfMemoryError  # isort: skip
from ray.tune.experiment import Trial as TuneTrial  # isort: skip
from ray.tune.schedulers import FIFOScheduler  # isort: skip
from ray.tune.search import Searcher  # isort: skip
from ray.util.placement_group import placement_group  # isort: skip

MAX_FAILURES_IN_A_ROW = 10
"""After as many, something is wrong with all of them."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How a cluster is cut up."""

    cpus_per_trial: float
    gpus_per_trial: float
    concurrency: int | None
    """Trials at once; null: what fits, also on nodes that join later."""
    max_reruns: int = MAX_RERUNS
    """How often a trial whose process died by itself goes on from its newest checkpoint."""


def make_slots(
    cluster: Cluster,
    *,
    concurrency: int | None,
    cpus_per_trial: float | None,
    gpus_per_trial: float | None,
    may_grow: bool = False,
) -> Slots:
    """Return how many trials run at once and what each gets; null means: choose.

    By default a trial has a whole GPU where there are any, else one CPU. A cluster that may grow
    is not limited to what fits now.

    Raises:
        ClusterError: No node of the cluster can hold one such trial.
    """
    gpus = gpus_per_trial if gpus_per_trial is not None else (1.0 if cluster.gpus else 0.0)
    if not 0 <= gpus <= 1:
        raise ClusterError(
            f"--gpus-per-trial must be 0 to 1, as a trial trains on one GPU, but got {gpus:g}"
        )
    cpus = cpus_per_trial if cpus_per_trial is not None else 1.0
    if not cpus > 0:
        raise ClusterError(f"--cpus-per-trial must be above 0, but got {cpus:g}")
    fit = sum(node.fits(cpus, gpus) for node in cluster.nodes)
    if fit < 1:
        raise ClusterError(
            f"a trial asks for {cpus:g} CPU and {gpus:g} GPU, but no node of the cluster has both: "
            f"{cluster}"
        )
    if not may_grow:
        concurrency = min(concurrency or fit, fit)
    return Slots(cpus_per_trial=cpus, gpus_per_trial=gpus, concurrency=concurrency)


class SearchStoppedError(Exception):
    """The search ended itself: too many failures in a row. The message says why."""


def run_trials(
    study: Study,
    job: Job,
    slots: Slots,
    nodes: Nodes,
    *,
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> None:
    """Run trials until the study has no more, or `should_stop` says so.

    Trials that were running then stay RUNNING in the study, to be resumed. When Ray's memory
    monitor kills a trial, which ends Tune's experiment, the trials that were running go on one
    at a time; a trial killed while alone fails. A trial for which its share of a GPU was too small
    waits for the others, and then goes on alone with a whole one.

    Raises:
        SearchStoppedError: Ten trials in a row failed.
        LeaseLostError: Another driver runs the search.
        STORAGE_ERRORS: The study's database went away, and did not come back in time.
    """
    scheduler = _StudyScheduler(study, nodes, note, slots.max_reruns)
    _OnFitNodes.nodes = nodes
    alone = replace(slots, concurrency=1, gpus_per_trial=float(math.ceil(slots.gpus_per_trial)))
    is_retrying = False
    while True:
        try:
            if is_retrying:
                _fit(study, job, alone, scheduler, should_stop, only_resumed=True)
                is_retrying = False
            _fit(study, job, slots, scheduler, should_stop)
            # Left are those set aside, and what Tune gives up: a trial whose process died while it
            # was handed on from another one.
            if not study.handed_out or should_stop() or scheduler.is_hopeless:
                break
        except Exception as error:
            if (lost := _behind(error, (LeaseLostError, *STORAGE_ERRORS))) is not None:
                raise lost from lost.__cause__
            if _behind(error, OutOfMemoryError) is None:
                raise
            if is_retrying:
                scheduler.fail(study.handed_out[-1], "out of host memory, even alone")
            else:
                note("the host is out of memory: the trials that ran go on one at a time")
        scheduler.set_aside.clear()
        study.hand_back()
        is_retrying = True
    if scheduler.is_hopeless:
        raise SearchStoppedError(
            f"{MAX_FAILURES_IN_A_ROW} trials in a row failed: {scheduler.commonest_reason}"
        )


def _behind(
    error: BaseException | None, kind: type[BaseException] | tuple[type[BaseException], ...]
) -> BaseException | None:
    """Return the error of a `kind` that is behind `error`: Tune wraps them in its own."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _fit(
    study: Study,
    job: Job,
    slots: Slots,
    scheduler: "_StudyScheduler",
    should_stop: Callable[[], bool],
    *,
    only_resumed: bool = False,
) -> None:
    """Run one Tune experiment; what it leaves on the disk is not needed afterwards."""
    scheduler.watch(has_limit=slots.concurrency is not None)
    scratch = job.folder / ".tune"
    is_local = isinstance(scratch, Path)
    remove_folder(scratch)  # a killed driver leaves it behind
    try:
        tune.Tuner(
            tune.with_resources(
                run_trial,
                _OnFitNodes([{"CPU": slots.cpus_per_trial, "GPU": slots.gpus_per_trial}]),
            ),
            tune_config=tune.TuneConfig(
                search_alg=_StudySearcher(study, job, slots, scheduler, only_resumed),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=slots.concurrency,
                reuse_actors=job.is_fast,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch.path,
                storage_filesystem=None
                if is_local
                else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(scratch.fs)),
                stop=_Stopper(lambda: should_stop() or scheduler.is_hopeless),
                failure_config=tune.FailureConfig(max_failures=-1),  # the scheduler counts
                verbose=0,
            ),
        ).fit()
    finally:
        remove_folder(scratch)


def _assignment(trial: Any) -> Assignment:
    """Return what Tune's `trial` runs."""
    return Assignment.from_wire(trial.config)


def _name(trial: Any) -> str:
    return f"{_assignment(trial).number:05d}"


class _OnFitNodes(tune.PlacementGroupFactory):
    """Room for a trial on any node but those that are of no use when it is asked for.

    Tune makes copies of it, so that what changes is the class's: a process runs one search.
    """

    nodes: ClassVar[Nodes]

    def to_placement_group(self) -> Any:
        """Return the placement group, as Tune asks for it."""
        selectors = [self.nodes.selector for _ in self.bundles]
        return placement_group(self.bundles, self.strategy, bundle_label_selector=selectors)


class _NotPickled:
    """Tune pickles its parts for a restore of its own, which we never do: the study resumes."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _StudySearcher(_NotPickled, Searcher):
    """Hands the study's trials to Tune, one when a slot is free."""

    def __init__(
        self,
        study: Study,
        job: Job,
        slots: Slots,
        scheduler: "_StudyScheduler",
        only_resumed: bool,
    ) -> None:
        super().__init__()
        self._study, self._job, self._slots = study, job, slots
        self._scheduler = scheduler
        self._only_resumed = only_resumed

    def suggest(self, trial_id: str) -> Any:
        if self._scheduler.is_one_waiting():
            return None
        while True:
            trial = self._study.next(only_resumed=self._only_resumed)
            if trial is None or self._scheduler.is_hopeless:
                return Searcher.FINISHED
            if trial.config is not None:
                break
            self._scheduler.count_failure(trial.reason)  # the space failed it
        return Assignment(
            job=self._job, number=trial.number, config=trial.config.to_dict(),
            cpus=self._slots.cpus_per_trial, gpus=self._slots.gpus_per_trial,
        ).to_wire()  # fmt: skip

    def on_trial_complete(self, trial_id: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the scheduler told the study already."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is the memory."""


class _StudyScheduler(_NotPickled, FIFOScheduler):
    """Tells the study what workers report, and Tune what the study decides."""

    def __init__(
        self, study: Study, nodes: Nodes, note: Callable[[str], None], max_reruns: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study, self._nodes, self._note = study, nodes, note
        self._max_reruns = max_reruns
        self._placed: dict[int, str] = {}
        """By trial: the id of the node that it trains on."""
        self._last_dead = ""
        """Ray's id of the process whose death was told last."""
        self._devices: set[str] = set()
        self._failures_in_a_row: list[str] = []
        self._controller: Any = None
        self._has_limit = True
        self.set_aside: set[int] = set()
        """Trials for which a share of a GPU was too small."""

    def watch(self, *, has_limit: bool) -> None:
        """Begin with another experiment of Tune."""
        self._controller, self._has_limit = None, has_limit

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """Choose the first trial that waits for room: the next process that gets free is for it.

        Tune by itself chooses the first that is not under way, so that one whose process starts
        leaves that process for the free one; and looks for it through all that have ended.
        """
        self._controller = tune_controller._tune_controller
        if not self._has_limit:
            self._controller.update_max_pending_trials(sys.maxsize)
        return min(self._waiting(), key=lambda trial: _assignment(trial).number, default=None)

    def is_one_waiting(self) -> bool:
        """Return whether a trial waits for room, so that none is to be suggested yet.

        Without a limit Tune by itself starts one process at a time, and a large cluster would take
        hours to fill; with one it suggests as many trials at once, for which a cluster may grow.
        """
        return not self._has_limit and bool(self._waiting())

    def _waiting(self) -> list[TuneTrial]:
        """Return the trials that wait for room; one whose process starts has it."""
        if self._controller is None:
            return []
        with_room = set(self._controller._actor_manager.live_actors)
        process_of = self._controller._trial_to_actor
        pending = self._controller._pending_trials
        return [trial for trial in pending if process_of.get(trial) not in with_room]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        assignment = _assignment(trial)
        number = assignment.number
        if self._study.trials[number].is_finished:
            return FIFOScheduler.CONTINUE  # Tune repeats the last report when a function returns
        match from_wire(result["event"]):
            case Started() as started:
                self._placed[number] = started.node
                if self._nodes.is_unfit(started.node):
                    return FIFOScheduler.CONTINUE  # to its end: the worker finds that it is
                if started.device not in self._devices and (line := sharing(started.device)):
                    self._note(line)
                self._devices.add(started.device)
                self._study.start(number, **vars(started))
            case EpochDone(epoch=epoch):
                if self._study.report(number, epoch):
                    self._failures_in_a_row.clear()
                    return FIFOScheduler.STOP
            case Finished(best=best):
                self._study.finish(number, best)
                self._failures_in_a_row.clear()
            case Failed(reason=reason):
                self.fail(number, reason)
            case OutOfMemory(reason=reason):
                self._set_aside(number, reason, has_share=0 < assignment.gpus < 1)
            case Note(line=line):
                self._note(f"trial {number:05d}  {line}")
            case other:
                assert_never(other)
        return FIFOScheduler.CONTINUE

    def _set_aside(self, number: int, reason: str, *, has_share: bool) -> None:
        """Have the trial tried again alone, if it had but a share of a GPU; else it fails."""
        if not has_share:
            self.fail(number, reason)
        elif number not in self.set_aside:
            self.set_aside.add(number)
            self._note(f"trial {number:05d}  out of GPU memory; it is tried again alone at the end")

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Have a trial whose process is gone go on, unless it died by itself too often.

        Tune has no limit here: it would count the nodes that went away.
        """
        number = _assignment(trial).number
        if self._study.trials[number].is_finished:
            return  # it died after its last report
        error = error_of(trial)
        dead = str(getattr(error, "actor_id", "") or "")
        if dead and dead == self._last_dead:
            return  # Tune tells twice of one that died on its way from another trial
        self._last_dead = dead
        # What Tune needs may be missing on a node, so that the trial's process never began.
        node = self._placed.pop(number, "") or node_of(error)
        if self._nodes.is_unfit(node):
            return  # it trained nothing there, and is placed elsewhere
        if is_node_gone(error, node):
            self._study.count_lost_node(number)
            self._note(f"trial {number:05d}  its node is gone; it goes on from its checkpoint")
        elif (reruns := self._study.trials[number].reruns) < self._max_reruns:
            self._study.count_rerun(number)
            self._note(f"trial {number:05d}  its process died; it goes on from its checkpoint")
        else:
            self.fail(number, f"its worker process died {reruns + 1} times")

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Stop a trial that has ended, and that Tune would run again."""
        if self._study.trials[_assignment(trial).number].is_finished:
            tune_controller.stop_trial(trial)

    def fail(self, number: int, reason: str) -> None:
        """Record a failure, and that it came after others."""
        self._study.fail(number, reason)
        self.count_failure(reason)

    def count_failure(self, reason: str) -> None:
        """Note that a trial failed after others; its failure is recorded already."""
        self._failures_in_a_row.append(reason)

    @property
    def is_hopeless(self) -> bool:
        return len(self._failures_in_a_row) >= MAX_FAILURES_IN_A_ROW

    @property
    def commonest_reason(self) -> str:
        return max(self._failures_in_a_row, key=self._failures_in_a_row.count)


class _Stopper(_NotPickled, tune.Stopper):
    """Ends the experiment between two events of Tune's loop."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._should_stop()


def deadline_after(budget_s: float | None) -> Callable[[], bool]:
    """Return a function that says whether `budget_s` seconds from now have passed."""
    if budget_s is None:
        return lambda: False
    end_s = time.monotonic() + budget_s
    return lambda: time.monotonic() >= end_s
