"""Which trials run again: the best with other seeds, and the failed as they were."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from results.ranking import completed, ranked_originals, ranking_metric
from results.record import Repeat, Retry, SearchRecord
from trainable.errors import UserError, typed


class RepeatError(UserError):
    """A search whose trials cannot be repeated yet, or at all."""


def planned(
    trials: pd.DataFrame, record: SearchRecord, *, num_seeds: int, top: int | None
) -> list[Repeat]:
    """Return the record's repeats and those that are missing for what is asked now.

    A configuration's seeds count from its first trial's, which is one of them. The plan goes
    seed by seed, so that whatever is done of it compares as many configurations as it can.

    Args:
        trials: Of the search, as `results.history.trials_frame` gives them.
        record: Of the search.
        num_seeds: How many each configuration shall have, those it has included.
        top: How many configurations, the best of the search first; null: all that are complete.

    Raises:
        RepeatError: The search has trials to run, or none of them is COMPLETE.
        ConfigError: A seed beyond what a configuration takes.
    """
    asked = trials[trials["state"] != "WAITING"]
    repeated = {repeat.number for repeat in record.repeats}
    for retry in record.retries:  # in order, so that one of another is one of the repeat, too
        if retry.trial in repeated:
            repeated.add(retry.number)
    own = asked[~asked["number"].isin(repeated)]
    retries = [retry.number for retry in record.retries]
    num_ended = int(((own["state"] != "RUNNING") & ~own["number"].isin(retries)).sum())
    if num_ended < record.num_trials:
        raise RepeatError(
            f"{record.name}: {num_ended} of {record.num_trials} trials are finished, and --repeat "
            f"ranks all: first run {typed('search.run')} --resume --name {record.name}"
        )
    originals = ranked_originals(completed(own), ranking_metric(record.metrics, own))
    if not originals:
        raise RepeatError(f"{record.name}: no trial is COMPLETE, so there is nothing to repeat")
    configs = dict(zip(asked["number"], asked["config"], strict=True))
    there = set(completed(own)["config"])
    there |= {replace(configs[each.trial], seed=each.seed) for each in record.repeats}
    repeats = list(record.repeats)
    for offset in range(num_seeds):
        for number in originals[:top]:
            config = replace(configs[number], seed=configs[number].seed + offset)
            if config not in there:
                following = _following(trials, record.retries, repeats)
                repeats.append(Repeat(number=following, trial=number, seed=config.seed))
    return repeats


def retried(trials: pd.DataFrame, record: SearchRecord, note: Callable[[str], None]) -> list[Retry]:
    """Return the record's retries and those of the trials that failed and did not run again yet.

    Optuna never changes how a trial ended, and neither do we: what failed stays as it is, with its
    reason, its folder and its MLflow run, and a new trial of the same configuration and parameters
    names it. So a number means one run for ever, the sampler learns from the new trial as it would
    have from the first one, and the trials that were asked for are as many as before. A retry that
    fails may be retried in its turn.

    Args:
        trials: Of the search, as `results.history.trials_frame` gives them.
        record: Of the search.
        note: Called with lines for a person.
    """
    retries = list(record.retries)
    failed = trials[trials["state"] == "FAIL"]
    failed = failed[~failed["number"].isin([retry.trial for retry in retries])]
    for _, row in failed.iterrows():
        if row["config"] is None:
            note(f"trial {row['number']:05d} has no configuration to run again: {row['reason']}")
        else:
            number = _following(trials, retries, record.repeats)
            retries.append(Retry(number=number, trial=int(row["number"])))
    num = len(retries) - len(record.retries)
    note(f"{num} failed trials run again" if num else "no failed trial is left to run again")
    return retries


def _following(trials: pd.DataFrame, retries: Sequence[Retry], repeats: Sequence[Repeat]) -> int:
    """Return the first number that no trial has or is planned to have."""
    planned = {each.number for each in retries} | {each.number for each in repeats}
    return max(len(trials), max(planned, default=-1) + 1)
