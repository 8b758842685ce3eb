"""The live view: what runs now, and a line for every trial that ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from results.ranking import sign
from results.trial import Trial, TrialState

_COLOURS = {TrialState.COMPLETE: "green", TrialState.PRUNED: "yellow", TrialState.FAIL: "red"}


class Progress:
    """Shows trials as they change. On a terminal the running ones are a table at the bottom."""

    def __init__(self, console: Console, *, num_trials: int, metric: str) -> None:
        self._console, self._num_trials, self._metric = console, num_trials, metric
        self._running: dict[int, Trial] = {}
        self._started_s: dict[int, float] = {}
        self._num_finished = 0
        self._best: Trial | None = None
        self._live: Live | None = None

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Keep the table on the screen while trials run."""
        if not self._console.is_terminal or self._console.quiet:
            yield
            return
        with Live(
            get_renderable=self._table, console=self._console, refresh_per_second=4, transient=True
        ) as self._live:
            yield
        self._live = None

    def update(self, trial: Trial) -> None:
        """Take note of a change; print a line if the trial ended."""
        self._started_s.setdefault(trial.number, time.monotonic())
        if not trial.is_finished:
            self._running[trial.number] = trial
            return
        was_running = self._running.pop(trial.number, None) is not None
        self._num_finished += 1
        is_candidate = trial.state is TrialState.COMPLETE and trial.repeat_of is None
        if is_candidate and (self._best is None or self._is_better(trial, self._best)):
            self._best = trial
        if was_running:
            self._console.print(self._line(trial))

    def _is_better(self, trial: Trial, other: Trial) -> bool:
        gain = trial.metrics[self._metric] - other.metrics[self._metric]
        return gain * sign(self._metric) > 0

    def _line(self, trial: Trial) -> Text:
        took_s = time.monotonic() - self._started_s[trial.number]
        line = Text(f"trial {trial.number:05d}  ")
        line.append(f"{trial.state:<8}", style=_COLOURS[trial.state])
        if self._metric in trial.metrics:
            line.append(f"  {self._metric} {trial.metrics[self._metric]:.3f}")
        if trial.config is not None:
            line.append(f"  {len(trial.epochs):>2}/{trial.config.epochs} epochs {took_s:5.0f} s  ")
            line.append(trial.config.describe(), style="dim")
        if trial.is_baseline:
            line.append("  (baseline)", style="dim")
        if trial.repeat_of is not None and trial.config is not None:
            line.append(
                f"  (repeat of {trial.repeat_of:05d}, seed {trial.config.seed})", style="dim"
            )
        if trial.reason:
            line.append(f"  {trial.reason}", style="red")
        return line

    def _table(self) -> Group:
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for column in ("trial", "epochs", "", self._metric, "configuration"):
            table.add_column(column, no_wrap=True)
        for number, trial in sorted(self._running.items()):
            if trial.config is None:
                continue
            done, total = len(trial.epochs), trial.config.epochs
            last = trial.epochs[-1].metrics if trial.epochs else {}
            value = f"{last[self._metric]:.3f}" if self._metric in last else ""
            table.add_row(
                f"{number:05d}",
                f"{done}/{total}",
                ProgressBar(total=max(total, 1), completed=done, width=20),
                value,
                trial.config.describe(),
            )
        best = ""
        if self._best is not None:
            best_value = self._best.metrics[self._metric]
            best = f", best {self._metric} {best_value:.3f} (trial {self._best.number:05d})"
        return Group(table, Text(f"{self._num_finished}/{self._num_trials} trials done{best}"))
