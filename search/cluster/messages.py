"""What driver and worker tell each other of a trial: a type for each kind, parsed on arrival."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from upath import UPath

from results.record import SearchRecord, trial_folder
from trainable.epoch import Epoch
from trainable.user_parts import UserParts, current_parts

MPS = " (MPS)"
"""Behind the name of a GPU whose processes share it by NVIDIA's multi-process service."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every trial of a search is given beside its configuration."""

    folder: UPath
    """`trials/NNNNN` go here."""
    data: str
    novel: str
    fingerprint: str
    """Of the data that the driver checked: trials train on no other."""
    cache: Path
    """Of decoded images, and of frozen features where the search is fast."""
    weights: Path | None
    metric: str = "score"
    """What a trial's best epoch is best by: the search's first metric."""
    is_fast: bool = True
    """As `SearchRecord.is_fast`; a process then serves one trial after another."""
    parts: UserParts = field(default_factory=UserParts)
    """The user's own parts."""

    @classmethod
    def of(cls, record: SearchRecord, folder: UPath, cache: Path) -> Self:
        """Return the job of a search, wherever its workers' working folder is."""
        return cls(
            folder=folder.absolute(),
            data=record.data,
            novel=record.novel,
            fingerprint=record.data_fingerprint,
            cache=cache,
            metric=record.metrics[0],
            is_fast=record.is_fast,
            weights=Path(record.weights) if record.weights else None,
            parts=current_parts(),
        )

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain values."""
        return vars(self) | {
            "folder": str(self.folder), "cache": str(self.cache), "parts": self.parts.to_dict(),
            "weights": str(self.weights) if self.weights else None,
        }  # fmt: skip

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """Return the job that `to_wire` gave."""
        values = dict(wire) | {
            "folder": UPath(wire["folder"]), "cache": Path(wire["cache"]),
            "weights": Path(wire["weights"]) if wire["weights"] else None,
            "parts": UserParts.from_dict(wire["parts"]),
        }  # fmt: skip
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the driver gives a worker: one trial of a job, and its share of a node."""

    job: Job
    number: int
    config: Mapping[str, Any]
    """As `TrialConfig.to_dict` gives it: it can be read once the job's parts are in use."""
    cpus: float
    gpus: float

    @property
    def folder(self) -> UPath:
        """Of the trial."""
        return trial_folder(self.job.folder, self.number)

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain values: they are the trial's configuration to Tune."""
        return vars(self) | {"job": self.job.to_wire(), "config": dict(self.config)}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """Return the assignment that `to_wire` gave."""
        return cls(**{**wire, "job": Job.from_wire(wire["job"])})


@dataclass(frozen=True, kw_only=True)
class Started:
    """The trial runs, here."""

    host: str
    device: str
    """Name of the GPU, or cpu."""
    node: str = ""
    """Ray's id of it: machines may share a name."""
    gpu: str = ""
    """Which of the node's GPUs, as Ray counts them; empty: none."""
    gpus: float = 0.0
    """Its share of that."""


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch; a trial that goes on from a checkpoint tells those before it again."""

    epoch: Epoch


@dataclass(frozen=True, kw_only=True)
class Note:
    """A line for a person."""

    line: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """All epochs are done."""

    best: Epoch
    """What counts, with intervals."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The trial raised."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """Its share of the GPU is too small."""

    reason: str


Message = Started | EpochDone | Note | Finished | Failed | OutOfMemory
_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Started, EpochDone, Note, Finished, Failed, OutOfMemory)
}


def to_wire(message: Message) -> list[Any]:
    """Return the message as plain values; a list, because Tune flattens dicts."""
    plain = {
        key: value.to_dict() if isinstance(value, Epoch) else value
        for key, value in vars(message).items()
    }
    return [type(message).__name__, plain]


def from_wire(wire: list[Any]) -> Message:
    """Return the message that `to_wire` gave.

    Raises:
        ValueError: It is of no kind known here.
    """
    name, plain = wire
    if name not in _KINDS:
        raise ValueError(f"a worker's message must be one of {', '.join(_KINDS)}, but is {name!r}")
    values: dict[str, Any] = {
        key: Epoch.of(value) if key in ("epoch", "best") else value for key, value in plain.items()
    }
    return _KINDS[name](**values)
