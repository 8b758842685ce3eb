"""What a sampler can learn from: the trials' parameters as columns, kept while trials come and go.

Optuna's TPE walks over all trials for each group of parameters of each suggestion; here the walk is
done once for a trial, when it is asked for and when it ends. What comes out is the same, bit for
bit, which a test proves against Optuna's own: nothing here depends on the order of events.
"""

import copy
from bisect import insort
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import FrozenTrial, TrialState

from search.internals import allows, params_of, pruned_rank, split_trials

Rows = npt.NDArray[np.int64]
"""Numbers of trials, ascending."""


class Learnt:
    """The trials of a study that a sampler can learn from.

    Left out are those in `hidden`, and those without parameters: baselines outside the space, and
    what a resume with other choices left without any. TPE ranks all trials before it drops those
    that lack a parameter, so these would stand for its good ones, and count as random starts.
    """

    def __init__(
        self,
        study: optuna.Study,
        trials: Iterable[FrozenTrial] = (),
        *,
        hidden: Collection[int] = (),
    ) -> None:
        """Take in the trials there are.

        Args:
            study: Says the directions.
            trials: As it has them.
            hidden: Numbers of trials that are left out, beside those without parameters.
        """
        self._study, self._hidden = study, hidden
        directions = study.directions
        self._sign = -1.0 if directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1.0
        self._is_single = len(directions) == 1
        self._is_feasible = True
        self.finished: dict[int, FrozenTrial] = {}
        """Complete and pruned ones by number, without the user's attributes."""
        self._running: dict[int, FrozenTrial] = {}
        self._complete: list[tuple[float, int]] = []
        self._pruned: list[tuple[tuple[float, float], int]] = []
        self._first: dict[frozenset[str], FrozenTrial] = {}
        self._examples: list[FrozenTrial] | None = None
        self._columns: dict[str, npt.NDArray[np.float64]] = {}
        self._is_there = np.zeros(0, dtype=bool)
        # Those that run last: the others' parameters are known then.
        for trial in sorted(trials, key=lambda trial: not trial.state.is_finished()):
            self.put(trial)

    def put(self, trial: FrozenTrial) -> None:
        """Take in a trial as it is now: one that was asked for, or that has ended."""
        number = trial.number
        assert number not in self.finished, "a trial that has ended stays as it is"
        self._make_room(number)
        for column in self._columns.values():
            column[number] = np.nan
        self._is_there[number] = False
        self._running.pop(number, None)
        if number in self._hidden or not trial.params:
            return
        kept = copy.copy(trial)
        kept.user_attrs = {}  # most of its size
        if trial.state == TrialState.RUNNING:
            self._running[number] = kept
        elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._finish(kept)
        else:
            return
        self._is_there[number] = True
        self._fill(kept)

    def _make_room(self, number: int) -> None:
        size = len(self._is_there)
        if number >= size:
            more = max(number + 1, 2 * size) - size
            self._is_there = np.append(self._is_there, np.zeros(more, dtype=bool))
            for name, column in self._columns.items():
                self._columns[name] = np.append(column, np.full(more, np.nan))

    def _fill(self, trial: FrozenTrial) -> None:
        """Write a trial's parameters to its row: of a running one all that were drawn for it."""
        for name, value in params_of(trial).items():
            distribution = trial.distributions.get(name) or self._distribution(name)
            if distribution is None or not allows(distribution, value):
                continue  # a resume with other choices dropped it
            if name not in self._columns:
                self._columns[name] = np.full(len(self._is_there), np.nan)
            self._columns[name][trial.number] = distribution.to_internal_repr(value)

    def _distribution(self, name: str) -> optuna.distributions.BaseDistribution | None:
        """Return that of a parameter which was drawn and is not suggested: a finished trial's."""
        found = (each.distributions.get(name) for each in self._first.values())
        return next(filter(None, found), None)

    def _finish(self, trial: FrozenTrial) -> None:
        self.finished[trial.number] = trial
        names = frozenset(trial.params)
        if names not in self._first or trial.number < self._first[names].number:
            self._first[names] = trial
            self._examples = None
        self._is_feasible &= not any(value > 0 for value in trial.constraints.values())
        if not self._is_single:
            return
        if trial.state == TrialState.COMPLETE:
            assert trial.value is not None
            insort(self._complete, (self._sign * trial.value, trial.number))
        else:
            insort(self._pruned, (pruned_rank(trial, self._study), trial.number))

    def examples(self) -> list[FrozenTrial]:
        """Return finished trials, by number, that make the same groups of parameters as all do.

        They are the first of each set of parameters, less those that split no group and add none.
        """
        if self._examples is None:
            self._examples, groups = [], list[set[str]]()
            for trial in sorted(self._first.values(), key=lambda trial: trial.number):
                names = set(trial.params)
                parts = [part for group in groups for part in (group & names, group - names)]
                parts = [part for part in (*parts, names.difference(*groups)) if part]
                if parts != groups:
                    groups = parts
                    self._examples.append(trial)
        return self._examples

    def split(self, number: int, num_below: int) -> tuple[Rows, Rows]:
        """Return the good trials, and all others but `number`, as TPE tells them apart."""
        if self._is_single and self._is_feasible:
            good = [n for _, n in self._complete[:num_below]]
            good += [n for _, n in self._pruned[: num_below - len(good)]]
            is_above = self._is_there.copy()
            is_above[good] = False
            if number < len(is_above):
                is_above[number] = False
            return _rows(good), np.flatnonzero(is_above)
        trials = self.finished | self._running
        shown = [trials[n] for n in sorted(trials) if n != number]
        below, above = split_trials(self._study, shown, num_below)
        return _rows(trial.number for trial in below), _rows(trial.number for trial in above)

    def observations(self, rows: Rows, names: Iterable[str]) -> dict[str, npt.NDArray[np.float64]]:
        """Return the parameters of those trials that have all of `names`, by name."""
        absent = np.full(len(rows), np.nan)
        values = {
            name: self._columns[name][rows] if name in self._columns else absent for name in names
        }
        has_all = ~np.logical_or.reduce([np.isnan(each) for each in values.values()])
        return {name: each[has_all] for name, each in values.items()}


def _rows(numbers: Iterable[int]) -> Rows:
    return np.array(sorted(numbers), dtype=np.int64)
