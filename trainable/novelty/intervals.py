"""How sure is a rate? 95% intervals that resample classes: images of one class err alike."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from trainable.novelty.metrics import MAIN, combined, judgements
from trainable.novelty.thresholds import Answers, Outputs

RESAMPLES = 999
CONFIDENCE = 0.95
FEW_CLASSES = 8
"""Of fewer classes the images are resampled too: whole classes would say little but their range."""

Interval = tuple[float, float]


def resamples(
    stratum_N: npt.ArrayLike,
    class_N: npt.ArrayLike,
    *,
    num: int = RESAMPLES,
    seed: int = 0,
    few: int = FEW_CLASSES,
) -> npt.NDArray[np.float32]:
    """Return how often each image is in each bootstrap sample: float32 (num, N).

    Every stratum is resampled on its own: its classes with replacement, whole (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, section 3.8); of fewer than `few`, their images
    too. A single class is resampled by image, and so are, apart from the others, images of which
    nobody knows the class (-1).

    Args:
        stratum_N: int, the kind of image; each keeps its number of classes.
        class_N: int, classes count within a stratum.
        num: Samples.
        seed: The same gives the same samples.
        few: Below it images are resampled within classes.
    """
    stratum_N, class_N = np.asarray(stratum_N), np.asarray(class_N)
    rng = np.random.default_rng(seed)
    weights_RN = np.zeros((num, len(class_N)), np.float32)
    for stratum, is_known in sorted(
        set(zip(stratum_N.tolist(), (class_N >= 0).tolist(), strict=True))
    ):
        inside_N = (stratum_N == stratum) & ((class_N >= 0) == is_known)
        classes = np.unique(class_N[inside_N])
        drawn = rng.multinomial(len(classes), np.full(len(classes), 1 / len(classes)), num)
        for place, each in enumerate(classes):
            images = np.flatnonzero(inside_N & (class_N == each))
            times_R = drawn[:, place]
            if len(classes) < few:
                shares = np.full(len(images), 1 / len(images))
                weights_RN[:, images] = rng.multinomial(times_R * len(images), shares)
            else:
                weights_RN[:, images] = times_R[:, None]
    return weights_RN


def percentiles(values_R: npt.ArrayLike) -> Interval:
    """Return the middle 95% of what the samples gave; NaN where none of them gave anything."""
    values = np.asarray(values_R, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def rate_intervals(
    judged: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    weights_RN: npt.NDArray[np.float32],
    combine: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]] = combined,
) -> dict[str, Interval]:
    """Return the interval of each rate, and of what follows from them, by name.

    Rates of left-out superclasses (`NAME.0`, `NAME.1`, ...) are no result of their own: each sample
    draws with replacement which superclasses their means are over.

    Args:
        judged: As `metrics.judgements` gives it.
        weights_RN: As `resamples` gives it.
        combine: What makes the other metrics of the rates.
    """
    rates = {}
    for name, (over, counts) in judged.items():
        if not over.any():
            continue
        of_all_R = weights_RN[:, over.numpy()].sum(1, dtype=np.float64)
        hits_R = weights_RN[:, (over & counts).numpy()].sum(1, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            rates[name] = torch.from_numpy(hits_R / of_all_R)
    found = combine(_superclasses_drawn(rates, len(weights_RN)))
    return {name: percentiles(each) for name, each in found.items() if not _superclass_of(name)}


def _superclasses_drawn(rates: dict[str, torch.Tensor], num: int) -> dict[str, torch.Tensor]:
    """Return rates in which each sample has drawn its superclasses, the same ones in all rates."""
    superclasses = sorted({each for name in rates if (each := _superclass_of(name))})
    if not superclasses:
        return rates
    shape = num, len(superclasses)
    drawn_RK = np.random.default_rng(1).integers(len(superclasses), size=shape)
    drawn = dict(rates)
    for stem in {name.rpartition(".")[0] for name in rates if _superclass_of(name)}:
        names = [f"{stem}.{each}" for each in superclasses if f"{stem}.{each}" in rates]
        of_all_RK = torch.stack([rates[name] for name in names], 1)
        for place, name in enumerate(names):
            which_R1 = torch.from_numpy(drawn_RK[:, place, None] % len(names))
            drawn[name] = of_all_RK.gather(1, which_R1)[:, 0]
    return drawn


def _superclass_of(name: str) -> str:
    """Return the number of the left-out superclass that a rate is of, or nothing."""
    last = name.rpartition(".")[2]
    return last if last.isdigit() else ""


def outputs_intervals(outputs: Outputs, answers: Answers) -> dict[str, Interval]:
    """Return the intervals of the rates of `outputs` when answered by `answers`."""
    weights_RN = resamples(outputs.kind, outputs.true_class)
    return rate_intervals(judgements(outputs, answers), weights_RN)


def flat(intervals: Mapping[str, Interval], names: Sequence[str] = MAIN) -> dict[str, float]:
    """Return intervals as metrics: `interval.NAME.low` and `interval.NAME.high`."""
    return {
        f"interval.{name}.{end}": value
        for name in names
        if name in intervals and not np.isnan(intervals[name]).any()
        for end, value in zip(("low", "high"), intervals[name], strict=True)
    }


def interval_of(metrics: Mapping[str, float], name: str) -> Interval | None:
    """Return what `flat` stored for a metric, or None where a trial has no interval."""
    ends = [metrics.get(f"interval.{name}.{end}") for end in ("low", "high")]
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
