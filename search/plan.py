"""What is asked: by the options of a new search, or by an earlier one and what changes now."""

import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from search.repeats import planned, retried
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
    keep_models: str | None = None
    """Whose models MLflow gets: all, none, or best_K."""
    resume: bool = False
    retry_failed: bool = False
    address: str | None = None
    concurrency: int | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | str | None = None
    """A number, or auto: by a pilot."""
    time_budget_s: float | None = None
    max_reruns: int | None = None
    repeat: int | None = None
    """Seeds of each configuration to be repeated, its first one included."""
    top: int | None = None
    """How many configurations to repeat; null: all that are complete."""
    dry_run: bool = False
    json: bool = False
    quiet: bool = False


def _as_it_is(value: Any) -> Any:
    return value


def _resolved(path: Path) -> str:
    return str(path.resolve())


def _source(option: str) -> Callable[[str], str]:
    """Return what makes a path one that still holds when the search is resumed elsewhere."""

    def absolute(source: str) -> str:
        try:
            return source if source in BUILT_IN_SOURCES else str(source_path(source).resolve())
        except UserError as error:  # an empty one
            raise SearchError(f"--{option}: {error}") from error

    return absolute


class Rule(NamedTuple):
    """What a resume may do with an option, and where the record keeps it."""

    on_resume: Literal["same", "changes", "now"]
    """Given again it must be the same; or it holds from now on; or it is about this command."""
    field: str = ""
    """Of `SearchRecord`; empty: it has none of its own."""
    kept: Callable[[Any], Any] = _as_it_is
    """Returns the value as the record keeps it."""


ON_RESUME: dict[str, Rule] = {
    # What makes trials comparable.
    "metric": Rule("same", "metrics", list),
    "seed": Rule("same", "seed"),
    # What is kept. `space` and `fixed` may change neither METRIC nor what is in PROTOCOL_KEYS;
    # `data` and `novel` must have the same content, wherever they are.
    "trials": Rule("changes", "num_trials"),
    "epochs": Rule("changes", "epochs"),
    "data": Rule("changes", "data", _source("data")),
    "novel": Rule("changes", "novel", _source("novel")),
    "weights": Rule("changes", "weights", _resolved),
    "cache": Rule("changes", "cache", _resolved),
    "study": Rule("changes", "study", absolute_url),
    "tracking_uri": Rule("changes", "tracking_uri", absolute_url),
    "experiment": Rule("changes", "experiment"),
    "keep_models": Rule("changes", "keep_models"),
    "max_reruns": Rule("changes", "max_reruns"),
    # Kept in another way: a copy of the file, one dict of all, no cache, the trials to repeat.
    "space": Rule("changes"), "fixed": Rule("changes"), "no_cache": Rule("changes"),
    "repeat": Rule("changes"), "retry_failed": Rule("changes"),
    # How this command runs, or which search it is about.
    "top": Rule("now"), "name": Rule("now"), "storage": Rule("now"), "resume": Rule("now"),
    "address": Rule("now"), "concurrency": Rule("now"), "cpus_per_trial": Rule("now"),
    "gpus_per_trial": Rule("now"), "time_budget_s": Rule("now"), "dry_run": Rule("now"),
    "json": Rule("now"), "quiet": Rule("now"),
}  # fmt: skip
"""What a resume may be given, option by option, and what is kept of it."""


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
        record = changed(load_record(folder), options)
        file = options.space or folder / record.space_file
    else:
        assert options.space is not None
        file = options.space
        name = options.name or free_name(file.stem, options.storage)
        folder = run_folder(name, options.storage)
        check_free(folder)
        record = new_record(options, name, tracking_uri)
    space = load_space(
        file,
        num_trials=record.num_trials or None,
        epochs=record.epochs,
        metric=record.metrics or None,
        fixed=record.fixed,
        seed=record.seed,
    )
    if options.resume:
        check_said(record, space)
        space = _with_trials_of_the_file(space, record, options)
    record = replace(
        record,
        num_trials=space.num_trials,
        metrics=list(space.metrics),
        said=said_by(space),
    )
    return record, space, folder


def settled(options: Options) -> Options:
    """Return the options of a command that whatever restarts it may repeat word by word.

    `--resume` with `--space` starts where there is no search to go on with: never started, or its
    start failed before the first trial and took back what it had made.
    """
    is_either = options.resume and options.space is not None and options.name is not None
    return replace(options, resume=False) if is_either and recorded(options) is None else options


def changed_space(folder: UPath, record: SearchRecord, space: Space) -> str:
    """Return a line where new trials follow another space than those of before; empty: the same.

    It may be wider, as long as `check_said` lets it judge alike; a command that is repeated by a
    machine should not change it unseen.
    """
    kept = folder / record.space_file
    if kept.exists() and kept.read_bytes() != space.source:
        return f"{space.file} is not the space file of before: new trials follow it as it is now"
    return ""


def _with_trials_of_the_file(space: Space, record: SearchRecord, options: Options) -> Space:
    """Return the space with its file's NUM_TRIALS if that was changed and none is asked for."""
    before, now = record.said.get("NUM_TRIALS"), space.planned_trials
    if options.trials is not None or None in (before, now) or now == before:
        return space
    assert now is not None
    return replace(space, num_trials=now)


def check_free(folder: UPath) -> None:
    """Refuse a folder that holds a search."""
    if (folder / RECORD_FILE).exists():
        raise SearchError(
            f"{folder} holds a search already: add --resume to go on with it, "
            "or pass another --name"
        )


def recorded(options: Options) -> bytes | None:
    """Return what the record says that a resume goes on from; null: a new search."""
    if not options.resume or options.name is None:
        return None
    file = run_folder(options.name, options.storage) / RECORD_FILE
    return file.read_bytes() if file.exists() else None


def check_still(folder: UPath, asked: bytes | None) -> None:
    """Refuse a start that another driver was faster than, since it was planned.

    Args:
        folder: Of the search.
        asked: What `recorded` gave then.
    """
    file = folder / RECORD_FILE
    if (file.read_bytes() if file.exists() else None) != asked:
        raise SearchError(
            f"{folder}: another driver started or went on with this search while this one "
            "started: repeat the command"
        )


def free_name(stem: str, storage: UPath | None) -> str:
    """Return a name for a search of the space file `stem` that no other one has."""
    stem = re.sub(r"[^\w.-]+", "-", stem).lstrip(".-") or "search"
    name, number = stem, 2
    while run_folder(name, storage).exists():
        name, number = f"{stem}-{number}", number + 1
    return name


def new_record(options: Options, name: str, tracking_uri: str) -> SearchRecord:
    """Return the record of a new search, less what its space file and its data say.

    Raises:
        SearchError: A source that is empty.
    """
    environment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    is_named = options.experiment or environment
    data = "synthetic" if options.data is None else options.data
    default: dict[str, Any] = {
        "num_trials": 0, "epochs": None, "metrics": [], "seed": 0, "weights": None, "study": None,
        "data": data, "tracking_uri": absolute_url(tracking_uri),
        "experiment": environment or EXPERIMENT,
    }  # fmt: skip
    kept = default | _given(options)
    if "novel" not in kept:
        kept["novel"] = _source("novel")(default_novel(data))
    if "cache" not in kept:
        kept["cache"] = _resolved(default_cache())
    return SearchRecord(
        **kept,
        id=uuid.uuid4().hex,
        name=name,
        fixed=options.fixed,
        data_fingerprint="",
        study_name=name,
        experiment_id=None if is_named else os.environ.get("MLFLOW_EXPERIMENT_ID"),
        version=version(),
        protocol=PROTOCOL,
    )


def _given(options: Options) -> dict[str, Any]:
    """Return what the record keeps of the options that were given, by its own names."""
    given = {
        rule.field: rule.kept(value)
        for name, rule in ON_RESUME.items()
        if rule.field and (value := getattr(options, name)) is not None
    }
    return given | ({"cache": None} if options.no_cache else {})


def changed(record: SearchRecord, options: Options) -> SearchRecord:
    """Return the record with a resume's changes.

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
    given = _given(options)
    if "epochs" in options.fixed:
        given.setdefault("epochs", None)  # the newest of both says
    for name, rule in ON_RESUME.items():
        if rule.on_resume == "same" and rule.field in given:
            before, now = getattr(record, rule.field), given[rule.field]
            if now != before:
                raise incomparable(f"--{name}", _shown(before), _shown(now))
    for key in PROTOCOL_KEYS:
        before = record.fixed.get(key, "not set")
        if key in options.fixed and options.fixed[key] != before:
            raise incomparable(f"--set {key}", before, options.fixed[key])
    record = record.reached(options.study, options.tracking_uri, options.experiment)
    return replace(record, **given, fixed=record.fixed | options.fixed)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def said_by(space: Space) -> dict[str, Any]:
    """Return what a space file says that a resume compares: see `SearchRecord.said`."""
    values = {key: {getattr(each, key) for each in space.samples} for key in PROTOCOL_KEYS}
    return {
        "METRIC": list(space.planned_metrics),
        "NUM_TRIALS": space.planned_trials,
        "PARTS": {"files": list(space.parts.files), "digests": space.parts.digests},
        **{key: found.pop() if len(found) == 1 else None for key, found in values.items()},
    }


def check_said(record: SearchRecord, space: Space) -> None:
    """Refuse a space file that would judge other than the finished trials were judged.

    A search that was judged in several ways from the start may go on so.
    """
    said, before = said_by(space), record.said.get("METRIC", record.metrics)
    if record.said and said["METRIC"] not in (before, record.metrics):
        raise incomparable(f"{space.file}: METRIC", _shown(before), _shown(said["METRIC"]))
    _check_parts(record, space)
    for key in PROTOCOL_KEYS:
        if (was := record.said.get(key)) is not None and said[key] != was:
            now = "several" if said[key] is None else said[key]
            raise incomparable(f"{space.file}: {key}", was, now)


def _check_parts(record: SearchRecord, space: Space) -> None:
    """Refuse other parts than the finished trials were made of."""
    before = record.said.get("PARTS", {}).get("digests", {})
    now = space.parts.digests
    for path in sorted({*before, *now}):
        if before.get(path) != now.get(path):
            what = "is new" if path not in before else "has changed"
            what = what if path in now else "is not named any more"
            raise SearchError(
                f"{space.file}: PARTS: {path} {what}: the finished trials would not be comparable. "
                "Resume with the parts as they were, or start a new search"
            )


def incomparable(what: str, before: Any, now: Any) -> SearchError:
    """Return the error of a change after which the finished trials could not be compared."""
    return SearchError(
        f"{what} was {before}, now it is {now}: the finished trials would not be comparable. "
        "Resume without the change, or start a new search"
    )


def with_repeats(
    record: SearchRecord, folder: UPath, options: Options, note: Callable[[str], None]
) -> SearchRecord:
    """Return the record with the trials that `--repeat` or `--retry-failed` asks for.

    Raises:
        RepeatError: The search is not there yet.
    """
    if options.retry_failed and options.resume:
        return replace(record, retries=retried(trials_frame(folder, record), record, note))
    if options.repeat is None:
        return record
    trials = trials_frame(folder, record)
    repeats = planned(trials, record, num_seeds=options.repeat, top=options.top)
    return replace(record, repeats=repeats)
