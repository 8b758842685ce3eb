"""One search from plan to outcome: the only place that knows all the parts."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from upath import UPath

from results.database import STORAGE_ERRORS
from results.history import trials_frame
from results.mlflow_store import default_uri
from results.record import RECORD_FILE, SearchRecord, study_url, trial_folder
from results.report.tables import write_tables
from results.terminal import plain_console
from search.cluster.connect import Cluster, connected
from search.cluster.executor import Job, SearchStoppedError, deadline_after, make_slots, run_trials
from search.cluster.joined import check_address
from search.cluster.nodes import check_packages, check_storage, forget_cache, ship_data
from search.cluster.packing import find_packing, pilots
from search.interrupts import Interrupts
from search.outcome import (
    describe_plan,
    describe_repeats,
    finish,
    introduce,
    resume_command,
    slots_line,
    summary,
)
from search.plan import Options, SearchError, check_free, plan, with_repeats
from search.preflight import check_data, check_samples
from search.progress import Progress
from search.space.space import Space
from search.start import New, taken_back
from search.study.lock import Check, LeaseLostError, only_driver
from search.study.storage import StudyError, create_study, open_study, with_distributions
from search.study.study import Study
from search.tracking import SearchInfo, Tracker
from trainable.checkpoint import drop_checkpoints
from trainable.data.dataset import Data, folder_for_images, load_data
from trainable.errors import reason_of
from trainable.urls import hidden, public


def run_search(options: Options) -> int:
    """Run or resume a search; return the exit code.

    Raises:
        UserError: A mistake in what was asked, found before the first trial.
    """
    start_s = time.monotonic()
    check_address(options.address)
    console = plain_console(quiet=options.quiet)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record, space, folder = plan(options, default_uri())
    with folder_for_images(Path(record.cache) if record.cache else None) as cache:
        return _search(options, record, space, folder, cache, console, start_s)


def _search(
    options: Options,
    record: SearchRecord,
    space: Space,
    folder: UPath,
    cache: Path,
    console: Console,
    start_s: float,
) -> int:
    data = load_data(record.data, record.novel, cache, note=console.print)
    record = check_data(record, data, options.resume, console.print)
    check_samples(space, data, record, console.print)
    introduce(console, record, space, data)
    if options.dry_run:
        describe_plan(console, space)
        describe_repeats(console, with_repeats(record, folder, options), folder)
        if options.json:
            print(json.dumps(summary(record, folder, None, time.monotonic() - start_s)))
        return 0
    url = study_url(folder, record)
    new = None if options.resume else New.of(folder, url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SearchError(f"--storage: a search cannot be kept there: {error}") from error
    try:
        if options.resume:
            study = open_study(url, record.study_name)
        else:
            study = create_study(url, record.study_name, space.metrics)
    except StudyError:
        if new:
            new.remove(only_empty=True)
        raise
    resume = resume_command(options, record)
    output = sys.stderr if options.json else sys.stdout
    try:
        with only_driver(folder, study) as check:
            if not options.resume:
                check_free(folder)  # another start may have been faster
            with taken_back(study, new), Interrupts(resume, output) as interrupts:
                record = with_repeats(record, folder, options)
                retold = with_distributions(study, space.distributions)
                record = replace(record, study_name=retold.study_name)
                space.save(folder, record.space_file)
                record.save(folder)
                outcome = _run(
                    options, record, retold, space, data, cache, folder, console, interrupts, check
                )
            return finish(options, record, folder, outcome, time.monotonic() - start_s)
    except STORAGE_ERRORS as error:
        reason = reason_of(error.__cause__ or error)  # Optuna's hold the database's
        lost = f"stopped: the study {url} cannot be used any more: {reason}"
        plain_console(stderr=True).print(hidden(lost))
        if (folder / RECORD_FILE).exists():
            print(resume, file=output, flush=True)
        return 1


def _run(
    options: Options,
    record: SearchRecord,
    optuna_study: optuna.Study,
    space: Space,
    data: Data,
    cache: Path,
    folder: UPath,
    console: Console,
    interrupts: Interrupts,
    check: Check,
) -> str:
    """Run the trials with everybody watching; return FINISHED, KILLED or FAILED."""
    info = SearchInfo(
        id=record.id, name=record.name, folder=folder, params=_params(record, data), tags=_tags(),
        experiment=record.experiment, experiment_id=record.experiment_id,
    )  # fmt: skip
    tracker = Tracker(record.tracking_uri, info, console.print)
    num_trials = space.num_trials + len(record.repeats)
    progress = Progress(console, num_trials=num_trials, metric=space.metrics[0])

    def clean_up(trial: Any) -> None:
        if trial.is_finished:
            drop_checkpoints(trial_folder(folder, trial.number))

    study = Study(
        optuna_study,
        space,
        seed=record.seed,
        observers=[progress.update, clean_up, tracker.update],
        repeats=record.repeats,
        check=check,
    )
    over_budget = deadline_after(options.time_budget_s)
    status = "FINISHED"
    try:
        with ExitStack() as running:
            cluster = None
            files = [folder / record.space_file, folder / RECORD_FILE]
            # Most of MLflow's start is waiting for the disk: Ray starts beside it.
            with ThreadPoolExecutor(1) as beside:
                started = beside.submit(tracker.start, data, files)
                if not study.is_done:
                    cluster = running.enter_context(connected(options.address, note=console.print))
                    interrupts.listen()
            started.result()
            for trial in study.trials.values():
                progress.update(trial)
                tracker.update(trial)
            if study.num_finished:
                console.print(f"{study.num_finished} of {num_trials} trials are finished already")
            if cluster is not None:
                check_packages()
                check_storage(folder)
                job = _job(record, folder, cache, ship_data(data, cache, console.print))
                slots = make_slots(
                    cluster,
                    concurrency=options.concurrency,
                    cpus_per_trial=options.cpus_per_trial,
                    gpus_per_trial=_gpus_per_trial(options, space, cluster, job, console.print),
                    may_grow=options.address is not None,
                )
                console.print(slots_line(slots))
                with progress.showing():
                    run_trials(
                        study,
                        job,
                        slots,
                        should_stop=lambda: interrupts.requested() or over_budget(),
                        note=console.print,
                    )
                if record.cache is None:
                    forget_cache(cache)
        if not study.is_done:
            status = "KILLED"
    except SearchStoppedError as stopped:
        plain_console(stderr=True).print(f"stopped: {stopped}")
        status = "FAILED"
    except LeaseLostError:
        raise  # what MLflow shows is the other driver's
    except BaseException as error:
        if not study.trials:
            tracker.take_back()
        is_failure = isinstance(error, Exception)
        tracker.close("FAILED" if is_failure else "KILLED", [], within_s=5)
        raise
    tables = write_tables(folder, trials_frame(folder, record), record)
    if not tracker.close(status, tables, within_s=5 if interrupts.requested() else 60):
        console.print(
            "MLflow has not got everything yet; this sends the rest: "
            + resume_command(options, record),
        )
    return status


def _gpus_per_trial(
    options: Options, space: Space, cluster: Cluster, job: Job, note: Callable[[str], None]
) -> float | None:
    if not isinstance(options.gpus_per_trial, str):
        return options.gpus_per_trial
    if not cluster.gpus:
        return 0.0
    # A cluster that cannot hold one trial is refused before the pilot.
    make_slots(cluster, concurrency=1, cpus_per_trial=options.cpus_per_trial, gpus_per_trial=1.0)
    most = cluster.trials_per_gpu(options.cpus_per_trial or 1.0)
    with pilots(job) as measure:
        return 1.0 / find_packing(space.samples, measure, most=most, note=note)


def _job(record: SearchRecord, folder: UPath, cache: Path, shipped: Any) -> Job:
    return Job(
        folder=folder.absolute(),
        data=record.data,
        novel=record.novel,
        fingerprint=record.data_fingerprint,
        cache=cache,
        shipped=shipped,
        metric=record.metrics[0],
        is_fast=record.cache is not None,
        weights=Path(record.weights) if record.weights else None,
    )


def _params(record: SearchRecord, data: Data) -> dict[str, Any]:
    keys = ("num_trials", "epochs", "seed", "data", "novel", "weights", "version")
    return {
        **{key: getattr(record, key) for key in keys},
        "study": record.study and public(record.study),
        "metric": ",".join(record.metrics),
        "fixed": json.dumps(record.fixed),
        "data_fingerprint": data.fingerprint,
    }


def _tags() -> dict[str, str]:
    """Return what says where a search came from."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        commit = git.stdout.strip() if git.returncode == 0 else "unknown"
    except OSError:
        commit = "unknown"  # no git here
    return {"git_commit": commit, "driver_host": os.uname().nodename}
