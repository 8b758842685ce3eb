"""What a worker tells the driver of its trial: a type for each kind, parsed once on arrival."""

from dataclasses import dataclass
from typing import Any

from trainable.epoch import Epoch


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
