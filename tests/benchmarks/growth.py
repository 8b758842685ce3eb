"""What does one event of a search cost when thousands of trials are finished?

`python -m tests.benchmarks.growth --trials 10000` makes a study of the full ablation's space in
SQLite, with finished trials as `Study` stores them, stops at a hundredth and a tenth of them, and
measures at each size: what opening it for a resume takes, CPU seconds per suggestion while 64
trials run, per start, epoch and end of a trial, with the SQL statements and commits of each, the
table of all trials, and the front of two metrics. Every measurement is on a copy of the file,
opened anew. Ray, MLflow and training have no part in it. The last line is one JSON object; its
ratio is a suggestion's cost at the last size to that at the first.
"""

import argparse
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from rich.console import Console
from upath import UPath

from results.history import INTERVALS, RATES_OF_PARTS, trials_frame
from results.ranking import pareto_rows
from results.record import SearchRecord
from results.trial import Trial, TrialState, to_attributes
from search.internals import engine_of
from search.progress import Progress
from search.space.space import Space, load_space
from search.standing import Standing
from search.study.storage import create_study, open_study, with_distributions
from search.study.study import Study
from tests.benchmarks.common import ROOT, finish, say
from trainable.epoch import Epoch
from trainable.novelty.metrics import METRICS

NAME = "growth"
EPOCHS = 5
RUNNING = 64
"""Trials that are handed out while suggestions are measured."""
FRONT = ["seen_sub", "unseen_sub"]


def main(argv: list[str] | None = None) -> None:
    """Grow a study, and measure it at three sizes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.growth", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--trials", type=int, default=10_000, help="finished ones at the last size")
    add("--asks", type=int, default=16, help="suggestions measured at each size")
    args = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sizes = sorted({max(1, args.trials // 100), max(1, args.trials // 10), args.trials})
    num_asked = args.trials + RUNNING + args.asks
    space = load_space(
        UPath(ROOT / "spaces" / "full_ablation.py"), num_trials=num_asked, epochs=EPOCHS
    )
    measured: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        grown = UPath(folder) / NAME
        grown.mkdir()
        create_study(_url(grown), NAME, space.metrics)
        made = 0
        for size in sizes:
            say(f"making {size - made} trials")
            open_study(_url(grown), NAME).add_trials(_finished(space, made, size))
            made = size
            measured[size] = _measured(grown, space, args.asks)
            for line in _lines(measured[size]):
                say(f"{size:>6} trials: {line}")
    ask_s = [measured[size]["ask"]["cpu_s"] for size in sizes]
    finish(
        {
            "benchmark": NAME,
            "ratio": ask_s[-1] / max(ask_s[0], 1e-9),
            "by_trials": measured,
            "epochs": EPOCHS,
            "running": RUNNING,
            "asks": args.asks,
        }
    )


def _url(folder: UPath) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def _finished(space: Space, start: int, end: int) -> Iterator[optuna.trial.FrozenTrial]:
    """Return finished trials by number: of ten, six ran to their end, three were pruned, one
    failed.
    """
    sampler = optuna.samplers.RandomSampler(seed=start)
    asked = optuna.create_study(sampler=sampler)
    for number in range(start, end):
        trial = asked.ask()
        config = space.ask(trial)
        draw = random.Random(number)
        state = TrialState(
            "PRUNED" if number % 10 < 3 else "FAIL" if number % 10 == 3 else "COMPLETE"
        )
        num_epochs = {"PRUNED": 1, "FAIL": 0}.get(state.value, EPOCHS)
        epochs = tuple(epoch_of(draw, n + 1) for n in range(num_epochs))
        told = Trial(
            number=number, config=config, state=state, is_baseline=False, epochs=epochs,
            best=epochs[-1] if epochs else None, host="node", device="cpu",
            reason="" if epochs else "by the benchmark",
        )  # fmt: skip
        values = {epoch.number: epoch.metrics["score"] for epoch in epochs}
        made = optuna.trial.create_trial(
            state=optuna.trial.TrialState[state],
            value=values[EPOCHS] if state is TrialState.COMPLETE else None,
            params=trial.params, distributions=trial.distributions,
            user_attrs=to_attributes(told), intermediate_values=values,
        )  # fmt: skip
        made.datetime_start = made.datetime_complete = datetime.now()
        yield made


def epoch_of(draw: random.Random, number: int) -> Epoch:
    """Return an epoch with as many figures as a trial reports."""
    names = (*METRICS, *INTERVALS, *RATES_OF_PARTS, "train_loss", "tau_super", "tau_sub")
    metrics = {name: draw.random() for name in (*names, "score_calibration")}
    return Epoch(number=number, metrics=metrics, seconds=1.0, images_per_s=100.0, elapsed_s=2.0)


def _measured(grown: UPath, space: Space, num_asks: int) -> dict[str, Any]:
    """Return what events cost with the trials there are."""
    events = Events()
    with _copied(grown) as folder:
        opened = events.once("resume", lambda: _resumed(folder, space))
        events.count_in(opened)
        for _ in range(RUNNING):
            opened.next()
        asked = [events.once("ask", opened.next) for _ in range(num_asks)]
        draw = random.Random(0)
        for trial in filter(None, asked):
            number = trial.number
            events.once("start", partial(opened.start, number, host="node", device="cpu"))
            # The first decides at a rung, the second decides nothing.
            for n in (1, 2):
                if not opened.trials[number].is_finished:
                    report = partial(opened.report, number, epoch_of(draw, n))
                    events.once(f"report_{n}", report)
            if not opened.trials[number].is_finished:
                events.once("tell", partial(opened.finish, number, epoch_of(draw, EPOCHS)))
    with _copied(grown) as folder:
        frame = events.once("table", lambda: trials_frame(folder, _record(space)))
    events.once("front", lambda: pareto_rows(frame, FRONT))
    return events.means()


def _resumed(folder: UPath, space: Space) -> Study:
    """Do what a session does between opening its study and the first suggestion."""
    study = with_distributions(open_study(_url(folder), NAME), space.distributions, space.metrics)
    progress = Progress(
        Console(quiet=True), num_trials=space.num_trials, metric="score", samples=space.samples
    )
    standing = Standing(space.metrics)
    resumed = Study(study, space, seed=0, observers=[progress.update])
    for trial in resumed.trials.values():
        progress.known(trial)
        standing.add(trial)
    return resumed


def _record(space: Space) -> SearchRecord:
    return SearchRecord(
        id="growth", name=NAME, num_trials=space.num_trials, epochs=EPOCHS,
        metrics=[*space.metrics], fixed={}, seed=0, data="synthetic", novel="synthetic",
        data_fingerprint="", weights=None, cache=None, study=None, study_name=NAME,
        tracking_uri="", version="",
    )  # fmt: skip


@contextmanager
def _copied(grown: UPath) -> Iterator[UPath]:
    """Give a copy of the search's folder."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        shutil.copytree(str(grown), Path(scratch) / NAME)
        yield UPath(scratch) / NAME


class Events:
    """CPU time, SQL statements and commits of each kind of event."""

    def __init__(self) -> None:
        self._cpu_s: dict[str, list[float]] = {}
        self._sql: dict[str, Counter[str]] = {}
        self._counts: Counter[str] = Counter()

    def count_in(self, study: Study) -> None:
        """Count what is sent to the study's database from now on."""
        engine = engine_of(study._study)
        assert engine is not None

        @sa.event.listens_for(engine, "before_cursor_execute")
        def _statement(*_: Any) -> None:
            self._counts["statements"] += 1

        @sa.event.listens_for(engine, "commit")
        def _commit(*_: Any) -> None:
            self._counts["commits"] += 1

    def once(self, kind: str, event: Callable[[], Any]) -> Any:
        """Do one event, and return what it returns."""
        before, start_s = Counter(self._counts), time.process_time()
        result = event()
        self._cpu_s.setdefault(kind, []).append(time.process_time() - start_s)
        self._sql.setdefault(kind, Counter()).update(self._counts - before)
        return result

    def means(self) -> dict[str, Any]:
        """Return the mean of each kind: CPU seconds, statements and commits of one event."""
        return {
            kind: {
                "cpu_s": math.fsum(times) / len(times),
                **{name: count / len(times) for name, count in self._sql[kind].items()},
            }
            for kind, times in self._cpu_s.items()
        }


def _lines(means: dict[str, Any]) -> Iterator[str]:
    for kind, cost in means.items():
        sql = ", ".join(
            f"{cost[name]:.1f} {name}" for name in ("statements", "commits") if name in cost
        )
        yield f"{kind:<9}{cost['cpu_s']:8.4f} CPU s{sql and '; ' + sql}"


if __name__ == "__main__":
    main()
