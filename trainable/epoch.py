"""Epochs of a trial: what was measured, kept apart from how training went on; which is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from trainable.novelty.metrics import METRICS

_NUMBER = "epoch"
_BOOKKEEPING = {
    "seconds": "epoch_s", "images_per_s": "images_per_s", "peak_bytes": "peak_bytes",
    "elapsed_s": "elapsed_s", "host_peak_bytes": "host_peak_bytes",
    "gpu_utilisation": "gpu_utilisation", "gpus": "gpus",
}  # fmt: skip
"""Fields, and the names they are stored under among the metrics."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What `train` reports of one epoch."""

    number: int
    """Counts from 1; 0 is an evaluation without training."""
    metrics: Mapping[str, float]
    """Measured: the training loss, what `metrics.evaluate` found, thresholds."""
    seconds: float | None = None
    """It took to train; null: nothing was trained, as for the two below."""
    images_per_s: float | None = None
    """Training images per second."""
    peak_bytes: int | None = None
    """Most of the GPU's memory reserved by this trial so far; null: on no GPU, or an earlier
    version."""
    elapsed_s: float | None = None
    """From the end of the epoch before, or the start of the trial: its evaluation and all else
    included; null: an earlier version."""
    host_peak_bytes: int | None = None
    """Most of the host's memory that the trial's process had so far; null: not known."""
    gpu_utilisation: float | None = None
    """Share of the time that the GPU was busy at the end of the epoch, with all that share it, 0 to
    1; null: on no GPU, or NVML does not answer."""
    gpus: float | None = None
    """Share of a GPU that it had; null: on none, or an earlier version."""

    @property
    def passed_s(self) -> float:
        """How long it took as far as that is known, its evaluation included."""
        return self.elapsed_s or self.seconds or 0.0

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Return the epoch that `to_dict` gave, or that an earlier version stored."""
        kept = {key: stored.get(name) for key, name in _BOOKKEEPING.items()}
        metrics = dict(stored)
        for name in (_NUMBER, *_BOOKKEEPING.values()):
            metrics.pop(name, None)
        return cls(number=int(stored[_NUMBER]), metrics=metrics, **kept)

    def to_dict(self) -> dict[str, Any]:
        """Return everything under one name each, ready for JSON."""
        kept = {name: getattr(self, key) for key, name in _BOOKKEEPING.items()}
        known = {name: value for name, value in kept.items() if value is not None}
        return {_NUMBER: self.number, **known, **self.metrics}


def best_epoch(epochs: Sequence[Epoch], metric: str = "score") -> Epoch:
    """Return the first epoch that is best by `metric`; where nothing was held out, the last one.

    Args:
        epochs: At least one.
        metric: One of `METRICS`. Its `METRIC_calibration` is looked at, which is no result; where
            an epoch lacks it (a search of before), that of the score.
    """
    for name in (metric, "score"):
        key, sign = f"{name}_calibration", -1.0 if METRICS.get(name) == "minimize" else 1.0
        if all(key in epoch.metrics for epoch in epochs):
            return max(epochs, key=lambda epoch: sign * epoch.metrics[key])
    return epochs[-1]
