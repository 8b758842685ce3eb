"""What is asked: by the options of a new search, or by an earlier one and what changes now."""

import os
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from upath import UPath

from results.history import trials_frame
from results.record import (
    EXPERIMENT,
    RECORD_FILE,
    SearchRecord,
    absolute_url,
    load_record,
    run_folder,
)
from search.repeats import planned
from search.space.space import Space, load_space
from trainable.data.dataset import default_cache
from trainable.data.sources import source_path
from trainable.data.splits import PROTOCOL
from trainable.errors import UserError
from trainable.schema import version
from trainable.train import default_novel

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


def plan(options: Options, tracking_uri: str) -> tuple[SearchRecord, Space, UPath]:
    """Return what is asked: of a new search, or of an earlier one with the changes given now.

    Args:
        options: The command line.
        tracking_uri: Of the MLflow that a new search is shown in unless told otherwise.

    Raises:
        UserError: What is asked cannot be, or would make finished trials incomparable.
    """
    if options.resume:
        assert options.name is not None
        folder = run_folder(options.name, options.storage)
        record = _changed(load_record(folder), options)
        file = options.space or folder / record.space_file
    else:
        assert options.space is not None
        file = options.space
        name = options.name or free_name(file.stem, options.storage)
        folder = run_folder(name, options.storage)
        check_free(folder)
        record = _new_record(options, name, tracking_uri)
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


def check_free(folder: UPath) -> None:
    if (folder / RECORD_FILE).exists():
        raise SearchError(
            f"{folder} holds a search already: add --resume to go on with it, "
            "or pass another --name"
        )


def free_name(stem: str, storage: UPath | None) -> str:
    """Return a name for a search of the space file `stem` that no other one has."""
    stem = re.sub(r"[^\w.-]+", "-", stem).lstrip(".-") or "search"
    name, number = stem, 2
    while run_folder(name, storage).exists():
        name, number = f"{stem}-{number}", number + 1
    return name


def _new_record(options: Options, name: str, tracking_uri: str) -> SearchRecord:
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
        tracking_uri=absolute_url(options.tracking_uri or tracking_uri),
        experiment=options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT,
        experiment_id=_experiment_id(options),
        version=version(),
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
            raise incomparable(f"--{name}", _shown(kept[name]), _shown(given))
    for key in PROTOCOL_KEYS:
        before = record.fixed.get(key, "not set")
        if key in options.fixed and options.fixed[key] != before:
            raise incomparable(f"--set {key}", before, options.fixed[key])
    record = record.reached(options.study, options.tracking_uri, options.experiment)
    changes: dict[str, Any] = {"fixed": record.fixed | options.fixed}
    if options.epochs is not None or "epochs" in options.fixed:
        changes["epochs"] = options.epochs  # the newest of both says
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
        raise incomparable(f"{space.file}: METRIC", _shown(before), _shown(said["METRIC"]))
    for key in PROTOCOL_KEYS:
        if (was := record.said.get(key)) is not None and said[key] != was:
            now = "several" if said[key] is None else said[key]
            raise incomparable(f"{space.file}: {key}", was, now)


def incomparable(what: str, before: Any, now: Any) -> SearchError:
    return SearchError(
        f"{what} was {before}, now it is {now}: the finished trials would not be comparable. "
        "Resume without the change, or start a new search"
    )


def with_repeats(record: SearchRecord, folder: UPath, options: Options) -> SearchRecord:
    if options.repeat is None:
        return record
    trials = trials_frame(folder, record)
    repeats = planned(trials, record, num_seeds=options.repeat, top=options.top)
    return replace(record, repeats=repeats)
