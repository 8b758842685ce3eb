"""How sure is a rate? 95% intervals that resample classes: images of one class err alike.

What was found on labelled images has a confidence interval: what the same rate is over all such
classes. What is promised has a prediction interval: what as many other classes of each kind, and
one other superclass, would show.
"""

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
T_DRAWS = 100_000
"""Of which the quantiles of a t distribution are taken."""
SUPERCLASS_SPREAD, SPREAD_WORTH = 1.0, 3
"""How much superclasses are believed to differ before any was seen, as a standard deviation of the
logit of their rate (a mean of .90 means most are from .77 to .96), and how many superclasses that
belief is worth. Two or three of them say little about a fourth."""

Interval = tuple[float, float]


def resamples(
    stratum_N: npt.ArrayLike,
    class_N: npt.ArrayLike,
    *,
    num: int = RESAMPLES,
    seed: int = 0,
    few: int = FEW_CLASSES,
    of_others: bool = False,
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
        of_others: Draw from each sample once more, so that samples vary as what other classes show
            varies about what these did.
    """
    stratum_N, class_N = np.asarray(stratum_N), np.asarray(class_N)
    rng = np.random.default_rng(seed)
    weights_RN = np.zeros((num, len(class_N)), np.float32)
    for stratum, is_known in sorted(
        set(zip(stratum_N.tolist(), (class_N >= 0).tolist(), strict=True))
    ):
        inside_N = (stratum_N == stratum) & ((class_N >= 0) == is_known)
        classes = np.unique(class_N[inside_N])
        drawn = _drawn(rng, np.full(num, len(classes)), len(classes), twice=of_others)
        for place, each in enumerate(classes):
            images = np.flatnonzero(inside_N & (class_N == each))
            times_R = drawn[:, place]
            if len(classes) < few:
                times_R = times_R * len(images)
                weights_RN[:, images] = _drawn(rng, times_R, len(images), twice=of_others)
            else:
                weights_RN[:, images] = times_R[:, None]
    return weights_RN


def _drawn(
    rng: np.random.Generator, times_R: npt.NDArray[np.int64], num: int, *, twice: bool
) -> npt.NDArray[np.int64]:
    """Return how often each of `num` things is drawn with replacement: int64 (R, num).

    Twice: of one draw fewer, which makes up for few of them varying less about their own mean than
    about that of all (Rao and Wu, JASA, 1988).
    """
    shares = np.full(num, 1 / num)
    if not twice:
        return rng.multinomial(times_R, shares)
    first_R = np.maximum(times_R - 1, 1)
    return rng.multinomial(times_R, rng.multinomial(first_R, shares) / first_R[:, None])


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
    draws what one more superclass would show, see `_another_superclass`.

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
    found = combine(_another_superclass(rates, len(weights_RN)))
    return {name: percentiles(each) for name, each in found.items() if not _superclass_of(name)}


def _another_superclass(rates: dict[str, torch.Tensor], num: int) -> dict[str, torch.Tensor]:
    """Return rates in which each sample has the rate of a new superclass in place of those of what
    was left out, the same new one in all rates of what is novel.

    Logits of superclasses are normal, their variance is the scaled inverse chi-squared one of what
    was believed and what was seen, so the next one is of a t distribution (Gelman et al., Bayesian
    Data Analysis, 3rd edition, sections 2.6 and 3.3).
    """
    drawn = dict(rates)
    stems = {name.rpartition(".")[0] for name in rates if _superclass_of(name)}
    rank_R = (np.random.default_rng(1).permutation(num) + 0.5) / num
    for stem in sorted(stem for stem in stems if stem.startswith("unseen_")):
        names = sorted(name for name in rates if name.rpartition(".")[0] == stem)
        logit_RK = torch.stack([rates[name] for name in names], 1).clamp(0.005, 0.995).logit()
        freedom = SPREAD_WORTH + len(names) - 1
        seen_R = logit_RK.var(1, correction=0) * len(names)
        variance_R = (SPREAD_WORTH * SUPERCLASS_SPREAD**2 + seen_R) / freedom
        t_R = np.quantile(np.random.default_rng(2).standard_t(freedom, T_DRAWS), rank_R)
        off_R = torch.from_numpy(t_R) * (variance_R * (1 + 1 / len(names))).sqrt()
        another_R = (logit_RK.mean(1) + off_R).sigmoid()
        drawn |= dict.fromkeys(names, another_R)
    return drawn


def _superclass_of(name: str) -> str:
    """Return the number of the left-out superclass that a rate is of, or nothing."""
    last = name.rpartition(".")[2]
    return last if last.isdigit() else ""


def outputs_intervals(outputs: Outputs, answers: Answers) -> dict[str, Interval]:
    """Return within which the rates of `outputs`, answered by `answers`, are of other classes."""
    weights_RN = resamples(outputs.kind, outputs.true_class, of_others=True)
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
