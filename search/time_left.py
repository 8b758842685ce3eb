"""How long a search will go on: from the epochs that were measured, with what pruning saves."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean

from results.trial import Trial, TrialState


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a search's trials."""

    trials: Collection[Trial]
    """That have ended, or run now."""
    seconds: Mapping[int, float]
    """That each took so far, by number."""
    within: Mapping[int, float]
    """Epochs that running ones have done, as a fraction: 2.25 is a quarter of the third."""


def seconds_left(known: Known, *, num_pruned: int, num_whole: int, slots: int) -> float | None:
    """Return how many seconds the rest takes; null: no epoch was measured yet.

    A trial takes as long for an epoch as it did so far, a new one as the mean. What came before the
    first epoch is no part of that: the first trials compute features that all share, so a new one
    takes as long as the quickest did. Which part of its epochs a trial runs is the mean of those
    that ran at least as many.

    Args:
        known: The trials so far.
        num_pruned: Trials to come that may be pruned.
        num_whole: Trials to come that are not, baselines and repeats.
        slots: How many trials run at once.
    """
    measured = [each for each in known.trials if each.epochs and known.seconds.get(each.number)]
    setup = {trial.number: _setup_s(trial) for trial in measured}
    pace = {
        trial.number: max(0.0, known.seconds[trial.number] - setup[trial.number])
        / _done(trial, known)
        for trial in measured
    }
    if not pace:
        return None
    mean_pace = fmean(pace.values())
    shares = [
        len(trial.epochs) / trial.config.epochs
        for trial in known.trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and trial.config is not None
        and trial.config.epochs
        and _may_be_pruned(trial)
    ]
    alone = [
        _epochs_left(trial, known, shares) * pace.get(trial.number, mean_pace)
        for trial in known.trials
        if not trial.is_finished
    ]
    epochs = [max(1, trial.config.epochs) for trial in known.trials if trial.config is not None]
    whole_s = mean_pace * fmean(epochs)
    work_s = sum(alone) + whole_s * (num_whole + num_pruned * _expected(shares, 0.0))
    work_s += min(setup.values()) * (num_whole + num_pruned)
    return max([*alone, work_s / max(1, slots)])


def _setup_s(trial: Trial) -> float:
    """Return what a trial took before its first epoch: building models, features."""
    first, *others = trial.epochs
    usual_s = fmean(each.passed_s for each in others) if others else first.seconds
    return max(0.0, first.passed_s - (usual_s or first.passed_s))


def _may_be_pruned(trial: Trial) -> bool:
    return not trial.is_baseline and trial.repeat_of is None


def _done(trial: Trial, known: Known) -> float:
    """Return how many epochs a trial with one or more has done."""
    return max(known.within.get(trial.number, 0.0), len(trial.epochs), 1)


def _epochs_left(trial: Trial, known: Known, shares: list[float]) -> float:
    """Return how many epochs a running trial is expected to run on."""
    if trial.config is None:
        return 0.0
    epochs = max(1, trial.config.epochs)
    done = max(known.within.get(trial.number, 0.0), float(len(trial.epochs)))
    share = _expected(shares, done / epochs) if _may_be_pruned(trial) else 1.0
    return max(0.0, share * epochs - done)


def _expected(shares: list[float], least: float) -> float:
    """Return the mean share of those that ran at least so much; 1 where there are none."""
    return fmean([share for share in shares if share >= least] or [1.0])
