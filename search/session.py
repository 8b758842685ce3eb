"""One search from plan to outcome: the only place that knows all the parts."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna

from results.database import STORAGE_ERRORS
from results.history import trials_frame
from results.mlflow_store import default_uri
from results.record import RECORD_FILE, study_url
from results.report.tables import write_tables
from search.asked import Asked
from search.cluster.connect import Cluster, connected
from search.cluster.executor import SearchStoppedError, deadline_after, run_trials
from search.cluster.joined import check_address
from search.cluster.messages import Job
from search.cluster.nodes import prepared_nodes
from search.cluster.packing import slots_by_pilot
from search.cluster.placement import shortage
from search.cluster.within import read as read_within
from search.dry_run import describe
from search.interrupts import Interrupts
from search.log import SearchLog
from search.outcome import (
    draw_report,
    finish,
    introduce,
    looked_at,
    resumable,
    resume_command,
    shown_on,
    slots_line,
    without_study,
)
from search.plan import Options, changed_space, check_still, plan, recorded, settled, with_repeats
from search.preflight import check_data, check_samples
from search.progress import Progress
from search.start import check_place, study_of, taken_back
from search.study.lock import Check, LeaseLostError, only_driver
from search.study.storage import check_database, with_distributions
from search.study.study import Study
from search.tracking import Tracker, search_info
from trainable.data.dataset import folder_for_images, load_data


def run_search(options: Options) -> int:
    """Run or resume a search; return the exit code.

    Raises:
        UserError: A mistake in what was asked, found before the first trial.
    """
    start_s = time.monotonic()
    check_address(options.address)
    log = SearchLog()
    console = log.console(quiet=options.quiet)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_place(options.storage, options.name or "search")
    options = settled(options)
    planned_on = recorded(options)
    record, space, folder = plan(options, default_uri())
    url = study_url(folder, record)  # an object store needs one that is named
    if record.study:
        check_database(url)
    with (
        resumable(options, record, folder),
        folder_for_images(Path(record.cache) if record.cache else None) as cache,
    ):
        console.print("reading the images")
        data = load_data(record.data, record.novel, cache, note=console.print)
        record = check_data(record, data, options.resume, console.print)
        console.print("building each backbone once, as a check")
        check_samples(space, data, record, console.print)
        introduce(console, record, space, data)
        if options.resume and (line := changed_space(folder, record, space)):
            console.print(line)
        if options.dry_run:
            record = with_repeats(record, folder, options, console.print)
            return describe(options, record, space, folder, data, console, start_s)
        search = Asked(
            options=options, record=record, space=space, folder=folder,
            data=data, cache=cache, console=console, log=log, planned_on=planned_on,
        )  # fmt: skip
        with log.kept():
            return _run_alone(search, start_s)


def _run_alone(search: Asked, start_s: float) -> int:
    """Run the search as its only driver; a start that fails leaves nothing."""
    options, record, folder = search.options, search.record, search.folder
    study, new = study_of(folder, record, search.space.metrics, resume=options.resume)
    resume = resume_command(options, record)
    try:
        with only_driver(folder, study, search.console.print) as check:
            check_still(folder, search.planned_on)
            interrupts = Interrupts(resume, shown_on(options), search.console.print)
            with taken_back(study, new), interrupts:
                record = with_repeats(record, folder, options, search.console.print)
                retold = with_distributions(study, search.space.distributions, search.space.metrics)
                record = replace(record, study_name=retold.study_name)
                search.space.save(folder, record.space_file)
                record.save(folder)
                status, page = _run(replace(search, record=record), retold, interrupts, check)
            wall_s = time.monotonic() - start_s
            return finish(options, record, folder, status, page, wall_s, search.log)
    except STORAGE_ERRORS as error:
        return without_study(options, record, folder, error, search.log)


def _run(
    search: Asked, optuna_study: optuna.Study, interrupts: Interrupts, check: Check
) -> tuple[str, str]:
    """Run the trials with everybody watching; return FINISHED, KILLED or FAILED, and where MLflow
    shows them.
    """
    record, folder, console = search.record, search.folder, search.console
    info = search_info(record, folder, search.data, search.space.question)
    tracker = Tracker(record.tracking_uri, info, console.print)
    progress = search.progress()
    study = Study(
        optuna_study, search.space, seed=record.seed, repeats=record.repeats,
        retries=record.retries, check=check,
        observers=[progress.update, search.clean_up, tracker.update],
    )  # fmt: skip
    try:
        _run_trials(search, study, tracker, progress, interrupts)
        status = "FINISHED" if study.is_done else "KILLED"
    except SearchStoppedError as stopped:
        search.log.console(stderr=True).print(f"stopped: {stopped}")
        status = "FAILED"
    except LeaseLostError:
        tracker.abandon()  # what MLflow shows is the other driver's
        raise
    except BaseException as error:
        if not study.trials:
            tracker.take_back()
        tracker.close("FAILED" if isinstance(error, Exception) else "KILLED", [], within_s=5)
        raise
    tables = write_tables(folder, trials_frame(folder, record), record)
    console.print("waiting for MLflow to have everything")
    has_all = tracker.close(status, tables, is_hurried=interrupts.requested)
    if not has_all:
        resume = resume_command(search.options, record)
        console.print(f"MLflow has not got everything yet; this sends the rest: {resume}")
        if interrupts.requested() and status == "FINISHED":
            status = "KILLED"  # the same command sends it, and then exits 0
    if status == "FINISHED" and not interrupts.requested():
        draw_report(record, folder, console.print, is_sent=has_all)
    return status, tracker.page


def _run_trials(
    search: Asked, study: Study, tracker: Tracker, progress: Progress, interrupts: Interrupts
) -> None:
    """Start MLflow's part and Ray, and run what there is to run."""
    options, folder = search.options, search.folder
    over_budget = deadline_after(options.time_budget_s)
    with ExitStack() as running:
        cluster = None
        files = [folder / search.record.space_file, folder / RECORD_FILE]
        if not study.is_done:
            where = f"the cluster at {options.address}" if options.address else "workers here"
            search.console.print(f"starting {where}, and MLflow")
        # Most of MLflow's start is waiting for the disk: Ray starts beside it.
        with ThreadPoolExecutor(1) as beside:
            started = beside.submit(tracker.start, search.data, files)
            if not study.is_done:
                note = search.console.print
                cluster = running.enter_context(connected(options.address, note=note))
                interrupts.listen()
        started.result()
        is_server = search.record.tracking_uri.startswith("http")
        who = "MLflow" if is_server else looked_at(search.record)
        search.console.print(f"{who} shows the trials at {tracker.page}")
        for trial in study.trials.values():
            progress.known(trial)
            tracker.update(trial)
        if study.trials:
            search.log.open(folder)
        if study.num_finished:
            search.console.print(
                f"{study.num_finished} of {search.num_trials} trials are finished already"
            )
        if cluster is None:
            search.console.print("nothing was left to do: all that was asked for has ended")
        else:
            _run_on(
                cluster, search, study, progress, lambda: interrupts.requested() or over_budget()
            )


def _run_on(
    cluster: Cluster, search: Asked, study: Study, progress: Progress,
    should_stop: Callable[[], bool],
) -> None:  # fmt: skip
    """Check the nodes, give them the data, and run trials on them."""
    options, note = search.options, search.console.print
    is_kept, cache = search.record.is_fast, search.cache
    with prepared_nodes(search.folder, search.data, cache, note, is_kept=is_kept) as nodes:
        job = Job.of(search.record, search.folder, cache)
        slots = slots_by_pilot(
            cluster, job, search.space.samples, note,
            concurrency=options.concurrency, cpus_per_trial=options.cpus_per_trial,
            gpus_per_trial=options.gpus_per_trial, may_grow=options.address is not None,
        )  # fmt: skip
        slots = replace(slots, max_reruns=search.record.max_reruns)
        note(slots_line(slots))
        asked = options.concurrency if options.address else slots.concurrency
        if line := shortage(cluster, slots, asked):
            note(line)
        search.log.open(search.folder)
        within = partial(read_within, job.folder)
        with progress.showing(slots=slots.concurrency, within=within):
            run_trials(study, job, slots, nodes, should_stop=should_stop, note=note)
