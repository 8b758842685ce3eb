"""Which configurations of a finished search run again, and with which seeds."""

from dataclasses import replace

import pandas as pd

from results.ranking import completed, ranked_originals, ranking_metric
from results.record import Repeat, SearchRecord
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
    own = asked[~asked["number"].isin([repeat.number for repeat in record.repeats])]
    num_ended = int((own["state"] != "RUNNING").sum())
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
                following = max(len(asked), *(each.number + 1 for each in repeats), 0)
                repeats.append(Repeat(number=following, trial=number, seed=config.seed))
    return repeats
