"""What was asked of a search: its record, and where everything that it leaves lies."""

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from upath import UPath

from trainable.checkpoint import write_atomically
from trainable.errors import UserError
from trainable.schema import SCHEMA, schema_of, upgraded
from trainable.urls import public

RECORD_FILE = "search.json"
DEFAULT_STORAGE = UPath("runs")
EXPERIMENT = "noveltune"
"""Of MLflow, unless told otherwise."""
KEEP_MODELS = "best_3"
"""Whose models MLflow gets, unless told otherwise; the search's folder has all of them."""


MAX_RERUNS = 2
"""How often a trial whose process died by itself goes on, unless told otherwise."""


class RunError(UserError):
    """A search that is not there, or whose files are damaged."""


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A finished trial's configuration to be run again with another seed."""

    number: int
    """Of the new trial."""
    trial: int
    """Number of the original one."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Retry:
    """A failed trial to be run again, as it was."""

    number: int
    """Of the new trial."""
    trial: int
    """Number of the failed one."""


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """What was asked of a search: with the study and the trials' folders, all a resume needs."""

    id: str
    """Unique, also on its MLflow runs."""
    name: str
    num_trials: int
    """Repeats not counted."""
    epochs: int | None
    """Over the space file's and what it returns; null: as the file says."""
    metrics: list[str]
    fixed: dict[str, Any]
    """Keys set for every trial."""
    seed: int
    data: str
    novel: str
    data_fingerprint: str
    weights: str | None
    cache: str | None
    """Folder of decoded images and frozen features; null: none, so that it is not `is_fast`."""
    study: str | None
    """URL of its database; null: study.db in the search's folder, wherever that is moved."""
    study_name: str
    """In that database; a resume with other choices moves the trials to a study of a new name."""
    tracking_uri: str
    """Of MLflow."""
    version: str
    """Of noveltune."""
    space_file: str = "space.py"
    """Copy of the space file in the search's folder."""
    said: dict[str, Any] = field(default_factory=dict)
    """What the space file said of METRIC, NUM_TRIALS and which images judge; null: several."""
    repeats: list[Repeat] = field(default_factory=list)
    """In the order of their numbers."""
    protocol: int = 1
    """Which images judge, see `trainable.data.splits.PROTOCOL`; version 0.1 wrote none."""
    schema: int = SCHEMA
    """How this is stored, see `trainable.schema.SCHEMA`."""
    experiment: str = EXPERIMENT
    """Of MLflow, by name."""
    experiment_id: str | None = None
    """By MLflow's number, in place of the name."""
    keep_models: str = KEEP_MODELS
    """Whose models MLflow gets, too: all, none, or best_K."""
    retries: list[Retry] = field(default_factory=list)
    max_reruns: int = MAX_RERUNS
    """How often a trial whose process died by itself goes on; nodes that went away do not count."""

    @property
    def is_fast(self) -> bool:
        """Whether trials may take the paths that save time; `--no-cache` says no.

        Then none is taken that could change a result: stored features, bf16 and TF32, processes
        that serve several trials.
        """
        return self.cache is not None

    def save(self, folder: UPath) -> None:
        """Write the record into the search's folder, less the passwords in its URLs."""
        kept = asdict(self) | {"study": self.study and public(self.study)}
        kept["tracking_uri"] = public(self.tracking_uri)
        write_atomically(folder / RECORD_FILE, json.dumps(kept, indent=2).encode())

    def reached(
        self, study: str | None, tracking_uri: str | None, experiment: str | None = None
    ) -> "SearchRecord":
        """Return the record with its stores where they are now, or with the passwords to them.

        Args:
            study: As typed; null: where it was.
            tracking_uri: As typed; null: where it was, by MLFLOW_TRACKING_URI if that is the same.
            experiment: As typed; null: the one it had.
        """
        if tracking_uri is None:
            environment = absolute_url(os.environ.get("MLFLOW_TRACKING_URI", ""))
            if public(environment) == public(self.tracking_uri):
                tracking_uri = environment
        return replace(
            self,
            study=absolute_url(study) if study else self.study,
            tracking_uri=absolute_url(tracking_uri) if tracking_uri else self.tracking_uri,
            experiment=experiment or self.experiment,
            experiment_id=None if experiment else self.experiment_id,
        )

    @property
    def passwords_to_type(self) -> str:
        """What a later command must be given because it is not stored; usually nothing."""
        lacking = []
        if self.study and self.study != public(self.study):
            lacking.append(
                "--study URL with its password"
                + (", or PGPASSWORD" if self.study.startswith("postgres") else "")
            )
        if self.tracking_uri != public(self.tracking_uri):
            is_http = self.tracking_uri.startswith("http")
            names = "USERNAME and _PASSWORD" if is_http else "URI"
            lacking.append(f"--tracking-uri URI with its password, or MLFLOW_TRACKING_{names}")
        return f"passwords are not stored: add {'; '.join(lacking)}" if lacking else ""


def absolute_url(url: str) -> str:
    """Return the URL of a store, so that it names the same SQLite file from every folder."""
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:)([^?]+)(\?.*)?", url)
    return (
        url
        if match is None
        else f"{match[1]}{Path(os.path.expanduser(match[2])).resolve()}{match[3] or ''}"  # noqa: PTH111 - Path raises on ~nobody
    )


def run_folder(name: str, storage: UPath | None) -> UPath:
    """Return where the search `name` is kept: below a folder, or a URI such as s3://BUCKET/PATH."""
    return (storage or DEFAULT_STORAGE) / name


def trial_folder(folder: UPath, number: int) -> UPath:
    """Return where trial `number` of a search keeps checkpoints, best model and outputs."""
    return folder / "trials" / f"{number:05d}"


def study_url(folder: UPath, record: SearchRecord) -> str:
    """Return the URL of the search's study.

    Raises:
        RunError: None was given, and the search's folder is no place for SQLite.
    """
    if record.study:
        return record.study
    if not isinstance(folder, Path):
        raise RunError(
            f"--storage {folder.parent} holds files, but SQLite needs a disk: add --study URL, "
            "for example postgresql://USER@HOST/DATABASE"
        )
    return f"sqlite:///{(folder / 'study.db').resolve()}"


def password_hint(url: str) -> str:
    """Return what to do where a database may miss the password that is not stored, or nothing."""
    if "@" not in url or url != public(url):
        return ""
    environment = " or set PGPASSWORD" if url.startswith("postgres") else ""
    return f". Passwords are not stored: pass --study URL with it{environment}"


def _to_2(values: dict[str, Any]) -> dict[str, Any]:
    added = {"protocol": 1, "said": {}, "repeats": [], "experiment": EXPERIMENT}
    return added | {"experiment_id": None} | values | {"schema": 2}


_STEPS = (_to_2,)


def load_record(folder: UPath) -> SearchRecord:
    """Return the record in `folder`.

    Raises:
        RunError: There is none, or it is damaged.
        SchemaError: A later version wrote it.
    """
    file = folder / RECORD_FILE
    try:
        stored = json.loads(file.read_text())
        if not isinstance(stored, dict):
            raise TypeError(f"expected an object, but got {stored!r:.80}")
        values = upgraded(stored, schema_of(stored, str(file)), _STEPS)
        record = SearchRecord(**values)
        return replace(
            record,
            repeats=[Repeat(**each) for each in record.repeats],  # type: ignore[arg-type]
            retries=[Retry(**each) for each in record.retries],  # type: ignore[arg-type]
        )
    except FileNotFoundError:
        others = sorted(path.parent.name for path in folder.parent.glob(f"*/{RECORD_FILE}"))
        known = (
            f"there are: {', '.join(others)}"
            if others
            else f"there is none in {folder.parent}: work where it ran, or pass --storage"
        )
        raise RunError(f"{folder}: no search of that name; {known}") from None
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{file} is damaged ({error}); nothing was changed. Restore it, or start a new search"
        ) from error
