"""What driver and worker tell each other of a trial: a type for each kind, parsed on arrival."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from upath import UPath

from trainable.epoch import Epoch
from trainable.user_parts import UserParts


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the driver gives a worker: one trial, and all that it needs to run it."""

    number: int
    config: Mapping[str, Any]
    """As `TrialConfig.to_dict` gives it: it can be read once `parts` are in use."""
    folder: UPath
    """Of the trial."""
    data: str
    novel: str
    fingerprint: str
    """Of the data that the driver checked."""
    cache: Path
    weights: Path | None
    metric: str
    """What the best epoch is best by."""
    is_fast: bool
    """As `SearchRecord.is_fast`."""
    parts: UserParts
    cpus: float
    gpus: float

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain values: they are the trial's configuration to Tune."""
        return vars(self) | {
            "config": dict(self.config), "folder": str(self.folder), "cache": str(self.cache),
            "weights": str(self.weights) if self.weights else None, "parts": self.parts.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """Return the assignment that `to_wire` gave."""
        values = dict(wire) | {
            "folder": UPath(wire["folder"]), "cache": Path(wire["cache"]),
            "weights": Path(wire["weights"]) if wire["weights"] else None,
            "parts": UserParts.from_dict(wire["parts"]),
        }  # fmt: skip
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Started:
    """The trial runs, here."""

    host: str
    device: str
    """Name of the GPU, or cpu."""


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
