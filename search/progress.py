"""The live view: what runs now, and a line for every trial that ends."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from results.naming import Names
from results.ranking import sign
from results.terminal import GivesWay, HeardConsole, counted, duration, one_line, without_control
from results.trial import Trial, TrialState
from search.time_left import Known, seconds_left
from trainable.config import TrialConfig
from trainable.epoch import Epoch, best_epoch

HEARTBEAT_S = 60.0
"""Between two lines that say how far a search is, where no screen does."""
POLL_S = 1.0
"""Between two looks at how far running trials are within their epochs."""
WIDE = 110
"""Columns from which there is more than what a narrow terminal must show."""
LATEST_EPOCHS = 20
"""Of all trials, by which images per second are measured."""

_COLOURS = {TrialState.COMPLETE: "green", TrialState.PRUNED: "yellow", TrialState.FAIL: "red"}

Within = Callable[[Iterable[int]], Mapping[int, float]]
"""Returns how many epochs running trials have done, as fractions; of some, nothing is known."""


class Progress:
    """Shows trials as they change: a screen on a terminal, a line now and then elsewhere."""

    def __init__(
        self,
        console: Console,
        *,
        num_trials: int,
        metric: str,
        samples: Iterable[TrialConfig] = (),
        num_whole: int = 0,
        where: str = "",
    ) -> None:
        """Show nothing yet.

        Args:
            console: Where to.
            num_trials: There will be, repeats included.
            metric: What is best.
            samples: Configurations as the search may meet them: a name is what varies in them.
            num_whole: Of the trials, those that are not pruned: baselines and repeats.
            where: MLflow shows the search.
        """
        self._console, self._num_trials, self._metric = console, num_trials, metric
        self._names = Names(samples)
        self._num_whole, self._where = num_whole, where
        self._lock = threading.RLock()
        self._trials: dict[int, Trial] = {}
        self._running: dict[int, Trial] = {}
        self._began_s: dict[int, float] = {}
        """When a trial began in this run."""
        self._before_s: dict[int, float] = {}
        """What earlier runs of a trial took."""
        self._took_s: dict[int, float] = {}
        self._within: Mapping[int, float] = {}
        self._latest: deque[Epoch] = deque(maxlen=LATEST_EPOCHS)
        self._best: Trial | None = None
        self._start_s = time.monotonic()
        self._slots: int | None = None

    def known(self, trial: Trial) -> None:
        """Take note of a trial of an earlier run of the search."""
        with self._lock:
            took_s = trial.taken["passed_s"] or 0.0
            if trial.is_finished:
                self._trials[trial.number] = trial
                self._took_s[trial.number] = took_s
                self._note_best(trial)
            else:
                self._before_s[trial.number] = took_s

    def update(self, trial: Trial) -> None:
        """Take note of a change; print a line if the trial ended."""
        with self._lock:
            now_s = time.monotonic()
            self._began_s.setdefault(trial.number, now_s)
            before = self._trials.get(trial.number)
            known = len(before.epochs) if before else len(trial.epochs)
            self._latest.extend(trial.epochs[known:])
            self._trials[trial.number] = trial
            if not trial.is_finished:
                self._running[trial.number] = trial
                return
            self._took_s[trial.number] = self._seconds(trial.number)
            was_running = self._running.pop(trial.number, None) is not None
            self._note_best(trial)
        if was_running:
            self._console.print(self._line(trial))

    @contextmanager
    def showing(
        self,
        *,
        slots: int | None = None,
        within: Within = lambda numbers: {},
        heartbeat_s: float = HEARTBEAT_S,
    ) -> Iterator[None]:
        """Keep the screen up to date while trials run, or say now and then how far they are.

        Args:
            slots: How many trials run at once; null: as many as run.
            within: Tells how far they are within their epochs.
            heartbeat_s: Between two lines. Of a screen, or where all is quiet, they go to whoever
                listens to the console.
        """
        self._slots, self._start_s = slots, time.monotonic()
        is_screen = self._console.is_interactive and not self._console.quiet
        ended = threading.Event()

        def watch() -> None:
            next_s = time.monotonic() + heartbeat_s
            while not ended.wait(min(POLL_S, heartbeat_s)):
                if is_screen:
                    self._within = within([*self._running])
                if time.monotonic() >= next_s:
                    next_s = time.monotonic() + heartbeat_s
                    self._say_heartbeat(is_screen)

        watching = threading.Thread(target=watch, name="progress", daemon=True)
        watching.start()
        try:
            if not is_screen:
                yield
                return
            with Live(
                get_renderable=self._screen, console=self._console, refresh_per_second=4,
                transient=True, vertical_overflow="crop",
            ):  # fmt: skip
                yield
        finally:
            ended.set()
            watching.join(5)  # a cluster that is gone answers nothing

    def _say_heartbeat(self, is_screen: bool) -> None:
        line = self.heartbeat()
        if not is_screen:
            self._console.print(line)
        elif isinstance(self._console, HeardConsole) and self._console.listener is not None:
            self._console.listener(line)

    def heartbeat(self) -> str:
        """Return how far the search is, in one line."""
        with self._lock:
            parts = [f"{self._counts()} of {counted(self._num_trials, 'trial')}"]
            if self._best is not None:
                parts.append(self._best_text(self._best))
            return "; ".join([*parts, *self._pace()])

    def _counts(self) -> str:
        states = Counter(trial.state for trial in self._trials.values())
        return (
            f"{states[TrialState.COMPLETE]} done, {len(self._running)} running, "
            f"{states[TrialState.PRUNED]} pruned, {states[TrialState.FAIL]} failed"
        )

    def _best_text(self, best: Trial) -> str:
        return f"best {self._metric} {best.metrics[self._metric]:.3f}, trial {best.number:05d}"

    def _pace(self) -> list[str]:
        """Return images per second, the time that passed and the time that is left."""
        busy_s = sum(each.passed_s for each in self._latest)
        images = sum((e.images_per_s or 0) * (e.seconds or 0) for e in self._latest)
        speed = [f"{images / busy_s * len(self._running):,.0f} images/s"] if busy_s else []
        left_s = self._seconds_left()
        passed = f"{duration(max(1, time.monotonic() - self._start_s))} passed"
        if left_s is None:
            return [*speed, passed, "time left: after the first epoch"]
        return [*speed, passed, f"about {duration(max(1, left_s))} left"]

    def _seconds_left(self) -> float | None:
        seconds = self._took_s | {number: self._seconds(number) for number in self._running}
        asked = [*self._trials.values()]
        num_whole = self._num_whole - sum(
            each.is_baseline or each.repeat_of is not None for each in asked
        )
        to_come = max(0, self._num_trials - len(asked))
        num_whole = min(max(0, num_whole), to_come)
        return seconds_left(
            Known(trials=asked, seconds=seconds, within=self._within),
            num_whole=num_whole, num_pruned=to_come - num_whole,
            slots=self._slots or len(self._running),
        )  # fmt: skip

    def _seconds(self, number: int) -> float:
        """Return what a trial took so far, in all its runs."""
        return self._before_s.get(number, 0.0) + time.monotonic() - self._began_s[number]

    def _note_best(self, trial: Trial) -> None:
        if trial.state is not TrialState.COMPLETE or trial.repeat_of is not None:
            return
        if self._best is None or self._is_better(trial, self._best):
            self._best = trial

    def _is_better(self, trial: Trial, other: Trial) -> bool:
        gain = trial.metrics[self._metric] - other.metrics[self._metric]
        return gain * sign(self._metric) > 0

    def _line(self, trial: Trial) -> Text:
        line = Text(f"trial {trial.number:05d}  ")
        line.append(f"{trial.state:<8}", style=_COLOURS[trial.state])
        if self._metric in trial.metrics:
            line.append(f"  {self._metric} {trial.metrics[self._metric]:.3f}")
        if trial.config is not None:
            line.append(f"  {len(trial.epochs):>2}/{trial.config.epochs} epochs")
            line.append(f" {duration(self._took_s[trial.number]):>9}  ")
            line.append(self._name(trial.config), style="dim")
        if trial.is_baseline:
            line.append("  (baseline)", style="dim")
        if trial.repeat_of is not None and trial.config is not None:
            line.append(
                f"  (repeat of {trial.repeat_of:05d}, seed {trial.config.seed})", style="dim"
            )
        if trial.retry_of is not None:
            line.append(f"  (retry of {trial.retry_of:05d})", style="dim")
        if trial.reason:
            line.append(f"  {one_line(trial.reason)}", style="red")
        return line

    def _name(self, config: TrialConfig, first: Sequence[str] = ()) -> str:
        return without_control(self._names.name(config, first))

    def _screen(self) -> RenderableType:
        """Return what is at the bottom of a terminal: rows first, then how far all is."""
        with self._lock:
            return Group(self._table(), "", *self._footer())

    def _footer(self) -> list[RenderableType]:
        width = self._console.width
        num_ended = sum(trial.is_finished for trial in self._trials.values())
        counts = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2))
        counts.add_row(
            Text(f"{self._counts()} of {counted(self._num_trials, 'trial')}", style="bold"),
            ProgressBar(total=max(1, self._num_trials), completed=num_ended, width=30)
            if width >= WIDE
            else "",
        )
        lines: list[RenderableType] = [counts]
        if self._best is not None:
            assert self._best.config is not None
            lines.append(
                GivesWay(self._name(self._best.config), f"{self._best_text(self._best)}  ")
            )
        lines.append(Text("   ".join(self._pace())))
        if self._where:
            lines.append(Text(f"MLflow: {self._where}", style="dim", overflow="fold"))
        return lines

    def _table(self) -> Table:
        """Return a row for each running trial; only its configuration gives way to the width.

        It begins with what tells it from the others that run, as its end may be cut off.
        """
        is_wide = self._console.width >= WIDE
        table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim", expand=True)
        for column in ("trial", "", "epochs", self._metric, *["time"] * is_wide):
            table.add_column(column, no_wrap=True, justify="left" if column == "" else "right")
        table.add_column("configuration", no_wrap=True, overflow="ellipsis", ratio=1)
        room = max(1, self._console.height - 9)
        rows = sorted(self._running.items())
        told = self._names.telling(each.config for _, each in rows[:room] if each.config)
        for number, trial in rows[:room]:
            if trial.config is None:
                continue
            total, done = max(1, trial.config.epochs), float(len(trial.epochs))
            # A worker that died goes on from a checkpoint: what it said before is over.
            done = min(max(done, self._within.get(number, 0.0)), done + 1)
            table.add_row(
                f"{number:05d}",
                ProgressBar(total=total, completed=done, width=24 if is_wide else 12),
                self._epochs_text(trial, done),
                self._so_far(trial),
                *[duration(self._seconds(number))] * is_wide,
                GivesWay(self._name(trial.config, told)),
            )
        if len(rows) > room:
            table.add_row(f"+{len(rows) - room}", "", "", "", *[""] * is_wide, "more are running")
        return table

    def _epochs_text(self, trial: Trial, done: float) -> str:
        assert trial.config is not None
        if not trial.host and not trial.epochs:
            return "starting"
        tenths = f"{math.floor(done * 10) / 10:.1f}" if done % 1 else f"{done:.0f}"
        return f"{tenths}/{trial.config.epochs}"

    def _so_far(self, trial: Trial) -> str:
        """Return the metric of a running trial's best epoch so far, as its result will be."""
        if not trial.epochs:
            return "-"
        value = best_epoch(trial.epochs, self._metric).metrics.get(self._metric)
        return "-" if value is None else f"{value:.3f}"
