"""One trial as it stands, and the one codec between it and Optuna's attributes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, overload

import optuna

from trainable.config import TrialConfig
from trainable.epoch import Epoch
from trainable.schema import CONFIG_STEPS, SCHEMA, Step, upgraded

_EPOCH = "epoch_"
_PLACED = "placed"
_TAKEN = "taken"


class _StoredEpochs(Sequence[Epoch]):
    """Epochs that are made of what is stored when they are asked for, each time anew.

    Of a finished trial few ever are.
    """

    def __init__(
        self,
        attributes: Mapping[str, Any],
        keys: Sequence[str],
        taken: Mapping[str, float | None] | None,
    ) -> None:
        """Hold what is stored.

        Args:
            attributes: Of the trial.
            keys: Its epochs among them, in order.
            taken: What was written of them as `Trial.taken` when the trial ended; null: nothing.
        """
        self._attributes, self._keys, self.taken = attributes, keys, taken

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Epoch: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Epoch]: ...

    def __getitem__(self, index: int | slice) -> Epoch | Sequence[Epoch]:
        if isinstance(index, slice):
            return tuple(map(self._epoch, self._keys[index]))
        return self._epoch(self._keys[index])

    def _epoch(self, key: str) -> Epoch:
        return Epoch.of({"epoch": key[len(_EPOCH) :], **self._attributes[key]})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class TrialState(StrEnum):
    """Where a trial stands, by Optuna's names.

        WAITING --asked--> RUNNING --all its epochs--> COMPLETE
                           |  ^  |--stopped at a rung--> PRUNED
                           |  |  `--it raised, or its result is not finite--> FAIL
                           `--' its driver or worker is gone: it goes on from its checkpoint

    A trial that has ended stays as it is: `--retry-failed` runs a failed one again as a new trial
    that names it.
    """

    WAITING = "WAITING"
    """A baseline's parameters that a killed driver did not get to ask for."""
    RUNNING = "RUNNING"
    """Handed out, now or by a driver that is gone."""
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"

    @property
    def is_finished(self) -> bool:
        """Whether it will not run again."""
        return self in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial as it stands. Its number is its identity everywhere."""

    number: int
    config: TrialConfig | None
    """Null: the space gave none, and `reason` says why."""
    state: TrialState
    is_baseline: bool
    repeat_of: int | None = None
    """Number of the trial whose configuration it has, with another seed; null: of none."""
    retry_of: int | None = None
    """Number of the failed trial that it runs again, as it was; null: of none."""
    epochs: Sequence[Epoch] = ()
    """In order."""
    best: Epoch | None = None
    """What counts as its result; null: it is not COMPLETE or PRUNED."""
    reason: str = ""
    """Why it failed."""
    host: str = ""
    """Machine that ran it last."""
    device: str = ""
    """Name of the GPU, or cpu."""
    node: str = ""
    """Ray's id of that machine."""
    gpu: str = ""
    """Which of its GPUs, as Ray counts them; empty: none."""
    gpus: float = 0.0
    """Its share of that."""
    reruns: int = 0
    """How often its process died by itself, and it went on."""
    lost_nodes: int = 0
    """How often its node went away, and it went on elsewhere: no failure of the trial."""

    @property
    def is_finished(self) -> bool:
        """Whether it will not run again."""
        return self.state.is_finished

    @property
    def taken(self) -> Mapping[str, float | None]:
        """What its epochs took together: what `usage` shows of it, and `passed_s`, the seconds that
        they took as far as that is known.
        """
        stored = self.epochs.taken if isinstance(self.epochs, _StoredEpochs) else None
        return _taken(self.epochs) if stored is None else stored

    @property
    def usage(self) -> dict[str, Any]:
        """What it ran on and took, by the names in `USAGE`: it differs from run to run."""
        taken = dict(self.taken)
        del taken["passed_s"]
        return {
            "host": self.host, "node": self.node, "device": self.device, "gpu": self.gpu,
            "gpus": self.gpus, "reruns": self.reruns, "lost_nodes": self.lost_nodes, **taken,
        }  # fmt: skip

    @property
    def metrics(self) -> Mapping[str, float]:
        """Measurements of the best epoch; empty without one."""
        return self.best.metrics if self.best else {}


def _taken(epochs: Sequence[Epoch]) -> dict[str, float | None]:
    epochs = [*epochs]  # each is decoded once
    timed = [(e.images_per_s, e.seconds) for e in epochs if e.images_per_s and e.seconds]
    busy_s = sum(seconds for _, seconds in timed)
    busy = [each.gpu_utilisation for each in epochs if each.gpu_utilisation is not None]
    gpu_s = sum((each.gpus or 0.0) * (each.elapsed_s or 0.0) for each in epochs)
    return {
        "passed_s": sum(each.passed_s for each in epochs),
        "images_per_s": sum(a * s for a, s in timed) / busy_s if busy_s else None,
        "peak_bytes": max((e.peak_bytes for e in epochs if e.peak_bytes), default=None),
        "host_peak_bytes": max(
            (e.host_peak_bytes for e in epochs if e.host_peak_bytes), default=None
        ),
        "gpu_utilisation": sum(busy) / len(busy) if busy else None,
        "gpu_hours": gpu_s / 3600 if gpu_s else None,
    }


USAGE = tuple(Trial(number=0, config=None, state=TrialState.RUNNING, is_baseline=False).usage)
"""Columns of a trial's `usage`: reruns and lost nodes, images per second, peak memory of device and
host in bytes, utilisation of the GPU (0 to 1), hours of a whole GPU."""


def to_attributes(trial: Trial) -> dict[str, Any]:
    """Return a trial as Optuna's user attributes. A stored epoch is a recorded one: they come last.

    What is not said here is Optuna's own: number, state, values and parameters.
    """
    attributes: dict[str, Any] = {}
    if trial.is_baseline:
        attributes["baseline"] = True
    if trial.repeat_of is not None:
        attributes["repeat_of"] = trial.repeat_of
    if trial.retry_of is not None:
        attributes["retry_of"] = trial.retry_of
    if trial.config is not None:
        attributes["config"] = trial.config.to_dict()
    if trial.host:
        placed = {"node": trial.node, "gpu": trial.gpu, "gpus": trial.gpus}
        attributes |= {"host": trial.host, "device": trial.device, _PLACED: placed}
    counts = {"reruns": trial.reruns, "lost_nodes": trial.lost_nodes}
    attributes |= {key: count for key, count in counts.items() if count}
    if trial.is_finished:
        attributes["metrics"] = trial.best.to_dict() if trial.best else {}
        if trial.epochs:
            attributes[_TAKEN] = dict(trial.taken)
    if trial.reason:
        attributes["reason"] = trial.reason
    return attributes | {f"{_EPOCH}{each.number:05d}": each.to_dict() for each in trial.epochs}


def from_optuna(frozen: optuna.trial.FrozenTrial, schema: int) -> Trial:
    """Return the trial that Optuna holds.

    Args:
        frozen: As read.
        schema: Of its study, see `trainable.schema`.

    Raises:
        ConfigError: Its configuration is none.
    """
    attributes: Mapping[str, Any] = frozen.user_attrs
    if schema < SCHEMA:
        attributes = upgraded(attributes, schema, TRIAL_STEPS)
    state = TrialState(frozen.state.name)
    stored = sorted(key for key in attributes if key.startswith(_EPOCH))
    metrics = attributes.get("metrics")
    taken = attributes.get(_TAKEN) if state.is_finished else None
    return Trial(
        number=frozen.number,
        config=TrialConfig.from_dict(attributes["config"]) if "config" in attributes else None,
        state=state,
        is_baseline=bool(attributes.get("baseline", False)),
        repeat_of=attributes.get("repeat_of"),
        retry_of=attributes.get("retry_of"),
        epochs=_StoredEpochs(attributes, stored, taken),
        best=Epoch.of({"epoch": len(stored)} | metrics) if metrics else None,
        # A driver that was killed before it told a failure may have left one.
        reason=attributes.get("reason", "") if state is TrialState.FAIL else "",
        host=attributes.get("host", ""),
        device=attributes.get("device", ""),
        **attributes.get(_PLACED, {}),
        reruns=attributes.get("reruns", 0),
        lost_nodes=attributes.get("lost_nodes", 0),
    )


def _to_2(attributes: dict[str, Any]) -> dict[str, Any]:
    if "config" not in attributes:
        return attributes
    return attributes | {"config": upgraded(attributes["config"], 1, CONFIG_STEPS[:1])}


TRIAL_STEPS: tuple[Step, ...] = (_to_2,)
"""Of a trial's attributes in the study."""
