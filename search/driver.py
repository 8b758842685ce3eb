"""One search from the first check to the last line: the only place that knows all the parts."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import optuna
import pandas as pd
from rich.console import Console
from rich.text import Text
from sqlalchemy import make_url
from upath import UPath

from results.load import (
    EXPERIMENT,
    RECORD_FILE,
    SearchRecord,
    absolute_url,
    load_record,
    run_folder,
    study_url,
    trial_folder,
    trials_frame,
)
from results.mlflow_store import default_uri
from results.promise import intervals_of, nested_choice
from results.repeats import best_trial
from results.report import print_tables, write_tables
from results.terminal import plain_console
from search.cluster.connect import (
    Cluster,
    check_address,
    check_packages,
    check_storage,
    connected,
    forget_cache,
    ship_data,
)
from search.cluster.executor import (
    Job,
    SearchStoppedError,
    Slots,
    deadline_after,
    make_slots,
    run_trials,
)
from search.cluster.packing import find_packing, pilots
from search.interrupts import INTERRUPTED, Interrupts
from search.progress import Progress
from search.repeats import planned
from search.space import NEEDS, Space, describe, load_space
from search.study.lock import Check, LeaseLostError, only_driver
from search.study.storage import STORAGE_ERRORS
from search.study.study import Study, StudyError, create_study, open_study, with_distributions
from search.tracking import SearchInfo, Tracker
from trainable.checkpoint import drop_checkpoints
from trainable.config import TrialConfig
from trainable.data.dataset import Data, default_cache, folder_for_images, load_data, same_data
from trainable.data.sources import source_path
from trainable.data.splits import PROTOCOL, PSEUDO_NOVEL, SECOND, make_pools
from trainable.errors import UserError
from trainable.model import backbones
from trainable.novelty.metrics import METRICS
from trainable.train import default_novel, left_out_lines, novel_shortage
from trainable.urls import public

PROTOCOL_KEYS = (
    "seed", "val_fraction", "pseudo_novel_fraction", "second_pseudo_novel_fraction", "left_out",
)  # fmt: skip
"""Keys that decide which images judge: a resume may not change them, by --set or a space file."""

ON_RESUME: dict[str, Literal["same", "changes", "now"]] = {
    # What makes trials comparable: given again it must be the same.
    "metric": "same", "seed": "same",
    # Holds from now on, and is kept. `space` and `fixed` may change neither METRIC nor what is in
    # PROTOCOL_KEYS; `data` and `novel` must have the same content, wherever they are.
    "space": "changes", "trials": "changes", "epochs": "changes", "fixed": "changes",
    "data": "changes", "novel": "changes", "weights": "changes", "cache": "changes",
    "no_cache": "changes", "study": "changes", "tracking_uri": "changes",
    "experiment": "changes", "repeat": "changes",
    # How this command runs, or which search it is about.
    "top": "now", "name": "now", "storage": "now", "resume": "now", "address": "now",
    "concurrency": "now", "cpus_per_trial": "now", "gpus_per_trial": "now",
    "time_budget_s": "now", "dry_run": "now", "json": "now", "quiet": "now",
}  # fmt: skip
"""What a resume may be given, option by option."""
BUILT_IN_SOURCES = ("synthetic", "cifar100")


class SearchError(UserError):
    """A search that cannot be started or resumed as asked."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed; null means not given."""

    space: UPath | None = None
    trials: int | None = None
    epochs: int | None = None
    metric: tuple[str, ...] | None = None
    fixed: dict[str, Any]
    seed: int | None = None
    data: str | None = None
    novel: str | None = None
    weights: Path | None = None
    cache: Path | None = None
    no_cache: bool = False
    name: str | None = None
    storage: UPath | None = None
    study: str | None = None
    tracking_uri: str | None = None
    experiment: str | None = None
    resume: bool = False
    address: str | None = None
    concurrency: int | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | str | None = None
    """A number, or auto: by a pilot."""
    time_budget_s: float | None = None
    repeat: int | None = None
    """Seeds of each configuration to be repeated, its first one included."""
    top: int | None = None
    """How many configurations to repeat; null: all that are complete."""
    dry_run: bool = False
    json: bool = False
    quiet: bool = False


def run_search(options: Options) -> int:
    """Run or resume a search; return the exit code.

    Raises:
        UserError: A mistake in what was asked, found before the first trial.
    """
    start_s = time.monotonic()
    check_address(options.address)
    console = plain_console(quiet=options.quiet)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record, space, folder = _plan(options)
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
    record = _with_data(record, data, options.resume, console.print)
    _check_samples(space, data, record, console.print)
    _introduce(console, record, space, data)
    if options.dry_run:
        _describe(console, space)
        _describe_repeats(console, _with_repeats(record, folder, options), folder)
        if options.json:
            print(json.dumps(_summary(record, folder, None, time.monotonic() - start_s)))
        return 0
    url = study_url(folder, record)
    new = None if options.resume else _New.of(folder, url)
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
    resume = _resume_command(options, record)
    with only_driver(folder, study) as check:
        if not options.resume:
            _check_free(folder)  # another start may have been faster
        with (
            _taken_back(study, new),
            Interrupts(resume, sys.stderr if options.json else sys.stdout) as interrupts,
        ):
            record = _with_repeats(record, folder, options)
            retold = with_distributions(study, space.distributions)
            record = replace(record, study_name=retold.study_name)
            space.save(folder, record.space_file)
            record.save(folder)
            outcome = _run(
                options, record, retold, space, data, cache, folder, console, interrupts, check
            )
        return _finish(options, record, folder, outcome, time.monotonic() - start_s)


@dataclass(frozen=True, kw_only=True)
class _New:
    """What a start makes; null: it was there before."""

    database: Path | None
    folder: UPath
    is_folder_new: bool
    searches: UPath | None
    """Folder of all searches."""

    @classmethod
    def of(cls, folder: UPath, url: str) -> Self:
        """Look before the start."""
        file = make_url(url).database if url.startswith("sqlite") else None
        return cls(
            database=Path(file) if file and not Path(file).exists() else None,
            folder=folder,
            is_folder_new=not folder.exists(),
            searches=None if folder.parent.exists() else folder.parent,
        )

    def remove(self, *, only_empty: bool = False) -> None:
        """Remove it, or what of it holds nothing."""
        with contextlib.suppress(OSError):
            if self.database and not (only_empty and self.database.stat().st_size):
                self.database.unlink()
        with contextlib.suppress(OSError):
            if not self.is_folder_new:
                if not only_empty:
                    (self.folder / RECORD_FILE).unlink(missing_ok=True)
            elif only_empty:
                self.folder.rmdir()
            else:
                self.folder.fs.rm(self.folder.path, recursive=True)
        with contextlib.suppress(OSError):
            if self.searches:
                self.searches.rmdir()  # unless others are there by now


@contextmanager
def _taken_back(study: optuna.Study, new: _New | None) -> Iterator[None]:
    """Have a start that fails before its first trial leave nothing: the corrected command is then
    a new search. A resume makes nothing new.
    """
    try:
        yield
    except LeaseLostError:
        raise
    except BaseException:
        with contextlib.suppress(*STORAGE_ERRORS):
            if new and not study.get_trials(deepcopy=False):
                optuna.delete_study(study_name=study.study_name, storage=study._storage)
                if optuna.get_all_study_names(study._storage):  # of a start beside this one
                    new = replace(new, database=None)
                new.remove()
        raise


def _plan(options: Options) -> tuple[SearchRecord, Space, UPath]:
    """Return what is asked: of a new search, or of an earlier one with the changes given now."""
    if options.resume:
        assert options.name is not None
        folder = run_folder(options.name, options.storage)
        record = _changed(load_record(folder), options)
        file = options.space or folder / record.space_file
    else:
        assert options.space is not None
        file = options.space
        name = options.name or _free_name(file.stem, options.storage)
        folder = run_folder(name, options.storage)
        _check_free(folder)
        record = _new_record(options, name)
    space = load_space(
        file,
        num_trials=options.trials or record.num_trials or None,
        epochs=record.epochs,
        metric=record.metrics or None,
        fixed=record.fixed,
        seed=record.seed,
    )
    if options.resume:
        _check_said(record, space)
        before, now = record.said.get("NUM_TRIALS"), space.planned_trials
        if options.trials is None and before is not None and now not in (None, before):
            assert now is not None
            space = replace(space, num_trials=now)  # the file was changed
    record = replace(
        record,
        num_trials=space.num_trials,
        metrics=list(space.metrics),
        said=_said(space),
    )
    return record, space, folder


def _check_free(folder: UPath) -> None:
    if (folder / RECORD_FILE).exists():
        raise SearchError(
            f"{folder} holds a search already: add --resume to go on with it, "
            "or pass another --name"
        )


def _free_name(stem: str, storage: UPath | None) -> str:
    stem = re.sub(r"[^\w.-]+", "-", stem).lstrip(".-") or "search"
    name, number = stem, 2
    while run_folder(name, storage).exists():
        name, number = f"{stem}-{number}", number + 1
    return name


def _new_record(options: Options, name: str) -> SearchRecord:
    data = "synthetic" if options.data is None else options.data
    return SearchRecord(
        id=uuid.uuid4().hex,
        name=name,
        num_trials=options.trials or 0,
        epochs=options.epochs,
        metrics=list(options.metric or ()),
        fixed=options.fixed,
        seed=options.seed or 0,
        data=_absolute("data", data),
        novel=_absolute("novel", default_novel(data) if options.novel is None else options.novel),
        data_fingerprint="",
        weights=str(options.weights.resolve()) if options.weights else None,
        cache=None if options.no_cache else str((options.cache or default_cache()).resolve()),
        study=absolute_url(options.study) if options.study else None,
        study_name=name,
        tracking_uri=absolute_url(options.tracking_uri or default_uri()),
        experiment=options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT,
        experiment_id=_experiment_id(options),
        version=metadata.version("noveltune"),
        protocol=PROTOCOL,
    )


def _experiment_id(options: Options) -> str | None:
    """Return MLFLOW_EXPERIMENT_ID, unless an experiment is named."""
    is_named = options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    return None if is_named else os.environ.get("MLFLOW_EXPERIMENT_ID")


def _absolute(option: str, source: str) -> str:
    """Return a path that still holds when the search is resumed from another folder.

    Raises:
        SearchError: An empty one.
    """
    try:
        return source if source in BUILT_IN_SOURCES else str(source_path(source).resolve())
    except UserError as error:
        raise SearchError(f"--{option}: {error}") from error


def _changed(record: SearchRecord, options: Options) -> SearchRecord:
    """Return the record with this resume's changes.

    Raises:
        SearchError: A change that would make finished trials incomparable.
    """
    if record.protocol != PROTOCOL:
        raise SearchError(
            f"{record.name}: its trials were judged by validation protocol {record.protocol}, and "
            f"this version judges by protocol {PROTOCOL}, other images by other rates: they would "
            "not be comparable. It can still be reported, refitted and predicted with; to search "
            "on, start a new search"
        )
    kept = {"metric": tuple(record.metrics), "seed": record.seed}
    for name in (name for name, rule in ON_RESUME.items() if rule == "same"):
        if (given := getattr(options, name)) not in (None, kept[name]):
            raise _incomparable(f"--{name}", _shown(kept[name]), _shown(given))
    for key in PROTOCOL_KEYS:
        before = record.fixed.get(key, "not set")
        if key in options.fixed and options.fixed[key] != before:
            raise _incomparable(f"--set {key}", before, options.fixed[key])
    record = record.reached(options.study, options.tracking_uri, options.experiment)
    changes: dict[str, Any] = {"fixed": record.fixed | options.fixed}
    if options.epochs is not None:
        changes["epochs"] = options.epochs
    for key in ("data", "novel"):
        if (value := getattr(options, key)) is not None:
            changes[key] = _absolute(key, value)
    for key in ("weights", "cache"):
        if (value := getattr(options, key)) is not None:
            changes[key] = str(value.resolve())
    if options.no_cache:
        changes["cache"] = None
    return replace(record, **changes)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _said(space: Space) -> dict[str, Any]:
    """Return what a space file says that a resume compares: see `SearchRecord.said`."""
    values = {key: {getattr(each, key) for each in space.samples} for key in PROTOCOL_KEYS}
    return {
        "METRIC": list(space.planned_metrics),
        "NUM_TRIALS": space.planned_trials,
        **{key: found.pop() if len(found) == 1 else None for key, found in values.items()},
    }


def _check_said(record: SearchRecord, space: Space) -> None:
    """Refuse a space file that would judge other than the finished trials were judged.

    A search that was judged in several ways from the start may go on so.
    """
    said, before = _said(space), record.said.get("METRIC", record.metrics)
    if record.said and said["METRIC"] not in (before, record.metrics):
        raise _incomparable(f"{space.file}: METRIC", _shown(before), _shown(said["METRIC"]))
    for key in PROTOCOL_KEYS:
        if (was := record.said.get(key)) is not None and said[key] != was:
            now = "several" if said[key] is None else said[key]
            raise _incomparable(f"{space.file}: {key}", was, now)


def _incomparable(what: str, before: Any, now: Any) -> SearchError:
    return SearchError(
        f"{what} was {before}, now it is {now}: the finished trials would not be comparable. "
        "Resume without the change, or start a new search"
    )


def _with_data(
    record: SearchRecord, data: Data, resume: bool, note: Callable[[str], None]
) -> SearchRecord:
    if resume and not same_data(record.data_fingerprint, data.fingerprint, note):
        raise _incomparable("the data's fingerprint", record.data_fingerprint, data.fingerprint)
    return replace(record, data_fingerprint=data.fingerprint)


def _with_repeats(record: SearchRecord, folder: UPath, options: Options) -> SearchRecord:
    if options.repeat is None:
        return record
    trials = trials_frame(folder, record)
    repeats = planned(trials, record, num_seeds=options.repeat, top=options.top)
    return replace(record, repeats=repeats)


def _check_samples(
    space: Space, data: Data, record: SearchRecord, note: Callable[[str], None]
) -> None:
    """Build every backbone and pool that the dry trials met, so that no trial fails on them.

    Downloads weights that are not there yet.
    """
    weights = Path(record.weights) if record.weights else None
    branches = {branch for config in space.samples for branch in config.branches()}
    for name, size, fine_tune in sorted(
        {(b.backbone, b.image_size, b.fine_tune) for b in branches}
    ):
        backbone = backbones.build(name, size, weights, fine_tune=fine_tune)
        backbones.boundary(fine_tune, len(backbone.stages))
    most = max(space.samples, key=lambda config: config.novel_images)
    if shortage := novel_shortage(most, make_pools(data, most)):
        note(shortage)
    for line in left_out_lines(space.samples, data):
        note(line)
    for metric in space.metrics:
        _check_metric(space, metric, data, note)
    for name in space.unused:
        note(f"parameter {name} changes no configuration: it only costs the sampler trials")


def _check_metric(space: Space, metric: str, data: Data, note: Callable[[str], None]) -> None:
    """Refuse a metric over held-out subclasses where these data have too few to hold out."""
    if (key := NEEDS.get(metric)) is None:
        return
    kind = SECOND if key.startswith("second") else PSEUDO_NOVEL
    by_protocol = {tuple(getattr(c, k) for k in PROTOCOL_KEYS): c for c in space.samples}
    has_any = [
        bool((pools.val_kind == kind).any())
        for pools in (make_pools(data, config) for config in by_protocol.values())
    ]
    if not any(has_any):
        raise SearchError(
            f"{metric} is over subclasses that `{key}` holds out, and of the "
            f"{len(data.subclasses)} here it holds out none: raise it, or take another metric"
        )
    if not all(has_any):
        note(f"trials whose `{key}` holds out no subclass will fail, as they have no {metric}")


def _introduce(console: Console, record: SearchRecord, space: Space, data: Data) -> None:
    console.print(Text.assemble((record.name, "bold"), f": {space.question}"))
    borrowed = len(data.images) - data.num_known
    classes = f" in {len(data.borrowed_classes)} classes" if data.borrowed_classes else ""
    console.print(
        f"{data.num_known:,} images in {len(data.superclasses)} superclasses and "
        f"{len(data.subclasses)} subclasses; {borrowed:,} borrowed{classes}"
    )
    console.print(f"images from {record.data}; borrowed from {record.novel}")


def _describe(console: Console, space: Space) -> None:
    """Say what would run."""
    console.print(f"{space.num_trials} trials by {', '.join(space.metrics)}")
    for number, baseline in enumerate(space.baselines[: space.num_trials]):
        console.print(f"baseline {number}: {TrialConfig.from_dict(baseline).describe()}")
    for name, distribution in space.distributions.items():
        console.print(f"{name}: {describe(distribution)}")
    for name, value in space.fixed.items():
        console.print(f"{name}: fixed to {value}")


def _describe_repeats(console: Console, record: SearchRecord, folder: UPath) -> None:
    if not record.repeats:
        return
    trials = trials_frame(folder, record)
    configs = dict(zip(trials["number"], trials["config"], strict=True))
    states = dict(zip(trials["number"], trials["state"], strict=True))
    for repeat in record.repeats:
        console.print(
            f"repeat {repeat.number}: trial {repeat.trial} with seed {repeat.seed} "
            f"({states.get(repeat.number, 'to run')}), {configs[repeat.trial].describe()}"
        )


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
                console.print(_slots_line(slots))
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
    except BaseException:
        tracker.close("KILLED", [], within_s=5)
        raise
    tables = write_tables(folder, trials_frame(folder, record), record)
    if not tracker.close(status, tables, within_s=5 if interrupts.requested() else 60):
        console.print(
            "MLflow has not got everything yet; this sends the rest: "
            + _resume_command(options, record),
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


def _slots_line(slots: Slots) -> str:
    gpus = f" and {slots.gpus_per_trial:g} GPU" if slots.gpus_per_trial else ""
    if slots.concurrency is None:
        at_once = "as many trials as fit"
    else:
        at_once = "one trial" if slots.concurrency == 1 else f"{slots.concurrency} trials"
    return f"{at_once} at a time, each with {slots.cpus_per_trial:g} CPU{gpus}"


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


def _finish(
    options: Options, record: SearchRecord, folder: UPath, status: str, wall_s: float
) -> int:
    """Print the tables and what to do next; return the exit code."""
    console = plain_console()
    trials = trials_frame(folder, record)
    best = best_trial(trials, record.metrics)
    if not options.json or not options.quiet:
        print_tables(console, trials, record)
    resume = _resume_command(options, record)
    where = f" --storage {shlex.quote(str(options.storage))}" if options.storage else ""
    uri = public(record.tracking_uri)
    is_default = record.tracking_uri == default_uri()
    store = "" if is_default else f" --backend-store-uri {shlex.quote(uri)}"
    if status == "FINISHED" and best is not None and not options.quiet:
        console.print(
            "Next:\n"
            f"  python -m results.report --name {record.name}{where}\n"
            f"  python -m search.refit --name {record.name}{where}\n"
            + (f"  {uri} in a browser" if uri.startswith("http") else f"  mlflow ui{store}"),
        )
        if record.passwords_to_type:
            console.print(record.passwords_to_type)
    if options.json:
        print(json.dumps(_summary(record, folder, trials, wall_s)), flush=True)
    if status == "KILLED":
        print(resume, file=sys.stderr if options.json else sys.stdout, flush=True)
        return INTERRUPTED
    return 0 if best is not None and status == "FINISHED" else 1


def _summary(
    record: SearchRecord, folder: UPath, trials: pd.DataFrame | None, wall_s: float
) -> dict[str, Any]:
    """Return what --json prints; without trials, what a search would be."""
    best = None if trials is None else best_trial(trials, record.metrics)
    counts: dict[Any, int] = {} if trials is None else dict(trials["state"].value_counts())
    described = (
        best
        if best is None
        else {
            "number": int(best["number"]),
            "config": best["config"].to_dict(),
            "metrics": {name: best[name] for name in METRICS if best[name] == best[name]},
            "intervals": {name: list(ends) for name, ends in intervals_of(best).items()},
            "nested_choice": None if trials is None else nested_choice(trials, record.metrics[0]),
        }
    )
    return {
        "name": record.name,
        "trials": {str(state): int(count) for state, count in counts.items()},
        "best_trial": described,
        "paths": {
            "run": str(folder),
            "trials": str(folder / "trials.csv"),
            "study": public(study_url(folder, record)),
            "tracking_uri": public(record.tracking_uri),
        },
        "wall_s": round(wall_s, 1),
    }


def _resume_command(options: Options, record: SearchRecord) -> str:
    """Return the command that goes on with the search as it was run now, as the last line."""
    command = ["python", "-m", "search.run", "--resume", "--name", record.name]
    for flag in ("storage", "address", "concurrency", "cpus_per_trial", "gpus_per_trial"):
        if (value := getattr(options, flag)) is not None:
            value = value.absolute() if flag == "storage" else value
            command += [f"--{flag.replace('_', '-')}", str(value)]
    return "\n".join(filter(None, [record.passwords_to_type, shlex.join(command)]))
