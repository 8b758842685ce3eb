"""How a search stands, as its MLflow run shows it: counts, the best trials, the best so far."""

from bisect import insort
from collections import Counter

from results.naming import Names
from results.ranking import sign
from results.trial import Trial, TrialState

DESCRIPTION = "mlflow.note.content"
"""Tag of a run: what its page says of it, and lets people write."""
NUM_SHOWN = 10
"""Best trials in the description's table."""
_IN_TABLE = ("seen_super", "unseen_super", "seen_sub", "unseen_sub")


class Standing:
    """What finished trials amount to, each counted once, in whatever order they finish.

    Its cost for one more trial does not grow with their number.
    """

    def __init__(self, metrics: tuple[str, ...], num_kept: int = 0) -> None:
        """Start without a trial.

        Args:
            metrics: That the search optimises.
            num_kept: How many of the best are asked for, if more than are shown.
        """
        self.metric = metrics[0] if len(metrics) == 1 else "score"
        self.best: list[Trial] = []
        """Complete ones, best first; repeats are none of them."""
        self.counts: Counter[TrialState] = Counter()
        self._num_best = max(num_kept, NUM_SHOWN)
        self._values: dict[int, float | None] = {}
        self._steps: dict[int, float] = {}
        self._next = 0

    def add(self, trial: Trial) -> bool:
        """Count a finished trial; return whether it is new."""
        if trial.number in self._values:
            return False
        self.counts[trial.state] += 1
        if trial.retry_of is not None:  # the failed one is history by now
            self.counts[TrialState.FAIL] -= 1
        value = trial.metrics.get(self.metric)
        is_ranked = trial.state is TrialState.COMPLETE and trial.repeat_of is None
        is_ranked = is_ranked and value is not None and value == value
        self._values[trial.number] = value if is_ranked else None
        if is_ranked:
            insort(self.best, trial, key=lambda t: (-t.metrics[self.metric] * self._sign, t.number))
            del self.best[self._num_best :]
        self._go_on()
        return True

    @property
    def _sign(self) -> float:
        return sign(self.metric)

    def _go_on(self) -> None:
        best = self._steps.get(self._next - 1)
        while self._next in self._values:
            value = self._values[self._next]
            if value is not None and (best is None or value * self._sign > best * self._sign):
                best = value
            if best is not None:
                self._steps[self._next] = best
            self._next += 1

    def best_by_number(self, sent: set[int]) -> dict[int, float]:
        """Return the best value up to each trial's number, of those that are not `sent`.

        A number is there once all up to it are finished, so that it never changes again.
        """
        # From the newest back: what is sent is sent up to some number.
        found: dict[int, float] = {}
        for number in range(self._next - 1, -1, -1):
            if number in sent:
                break
            if number in self._steps:
                found[number] = self._steps[number]
        return dict(sorted(found.items()))

    def tags(self, question: str) -> dict[str, str]:
        """Return the tags of the search's run: its best trial, counts, and a description."""
        counts = {
            f"trials_{state.value.lower()}": str(self.counts[state])
            for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        }
        best = {"best_trial": str(self.best[0].number)} if self.best else {}
        return {**counts, **best, DESCRIPTION: self._description(question)}

    def _description(self, question: str) -> str:
        said = ", ".join(
            f"{self.counts[state]} {state.value.lower()}"
            for state in TrialState
            if self.counts[state]
        )
        lines = [question, "", f"Trials: {said or 'none yet'}."]
        if self.best:
            names = [self.metric, *(name for name in _IN_TABLE if name != self.metric)]
            names = [name for name in names if name in self.best[0].metrics]
            # MLflow's pages set columns without room between them; a head is the widest of its own.
            heads = "".join(f"| {head}&nbsp; " for head in ("trial", *names))
            lines += ["", f"{heads}| configuration |"]
            lines.append(f"|{'---|' * (len(names) + 2)}")
            naming = Names(trial.config for trial in self.best[:NUM_SHOWN])
            lines += [_row(trial, names, naming) for trial in self.best[:NUM_SHOWN]]
        return "\n".join(lines)


def _row(trial: Trial, names: list[str], naming: Names) -> str:
    values = (trial.metrics.get(name) for name in names)
    numbers = " | ".join("" if value is None else f"{value:.3f}" for value in values)
    name = naming.name(trial.config).replace("|", "\\|")
    return f"| {trial.number} | {numbers} | {name} |"
