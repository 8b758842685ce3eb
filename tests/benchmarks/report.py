"""How long does a report take, and how large is its page, when a search has many trials?

`python -m tests.benchmarks.report --trials 20 200 2000` searches the built-in data with the full
ablation's space for as many trials as the first size says, and writes its report; then adds copies
of these trials to the study, one search's time later each time, with other learning rates and lower
values, up to the next size. Each report is a process of its own, as a user starts it. The last line
is one JSON object.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from results.trial import from_optuna, to_attributes
from search.study.storage import open_study
from tests.benchmarks.common import finish, say
from tests.benchmarks.searches import our_environment
from trainable.epoch import Epoch
from trainable.schema import SCHEMA

NAME = "report"


def main(argv: list[str] | None = None) -> None:
    """Write the report of a search at several sizes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks.{NAME}", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--trials", type=int, nargs="+", default=[20, 200, 2000], help="sizes, ascending"
    )
    args = parser.parse_args(argv)
    sizes = sorted(args.trials)
    by_trials: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        folder = Path(scratch)
        say(f"searching: {sizes[0]} trials")
        _run(
            folder, "search.run", "--space", "full_ablation", "--name", NAME,
            "--trials", str(sizes[0]), "--cache", "cache",
            "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}",
        )  # fmt: skip
        study = open_study(f"sqlite:///{folder / 'runs' / NAME / 'study.db'}", NAME)
        searched = study.get_trials(deepcopy=False)
        for size in sizes:
            study.add_trials([*_copies(searched, len(study.trials), size)])
            seconds = _run(folder, "results.report", "--name", NAME)
            page = folder / "runs" / NAME / "report" / "index.html"
            by_trials[size] = {"seconds": seconds, "page_bytes": page.stat().st_size}
            say(f"{size:>6} trials: {seconds:.1f} s, {page.stat().st_size:,} bytes")
    finish({"benchmark": NAME, "by_trials": by_trials})


def _copies(
    searched: list[optuna.trial.FrozenTrial], start: int, end: int
) -> Iterator[optuna.trial.FrozenTrial]:
    """Return trials number `start` to `end` - 1, like those that were searched, none as good."""
    began = min(t.datetime_start for t in searched if t.datetime_start)
    took = max(t.datetime_complete for t in searched if t.datetime_complete) - began
    for number in range(start, end):
        draw = random.Random(number)
        like, share = searched[number % len(searched)], draw.uniform(0.6, 0.99)
        trial = from_optuna(like, SCHEMA)
        assert trial.config is not None
        told = replace(
            trial,
            config=replace(trial.config, lr=draw.uniform(1e-4, 1e-1)),
            is_baseline=False,
            epochs=tuple(_lower(epoch, share) for epoch in trial.epochs),
            best=_lower(trial.best, share) if trial.best else None,
        )
        copy = optuna.trial.create_trial(
            state=like.state,
            values=[share * value for value in like.values] if like.values else None,
            params=like.params, distributions=like.distributions,
            user_attrs=to_attributes(told),
            intermediate_values={n: share * v for n, v in like.intermediate_values.items()},
        )  # fmt: skip
        later = took * (number // len(searched))
        copy.datetime_start = like.datetime_start and like.datetime_start + later
        copy.datetime_complete = like.datetime_complete and like.datetime_complete + later
        yield copy


def _lower(epoch: Epoch, share: float) -> Epoch:
    return replace(epoch, metrics={name: share * value for name, value in epoch.metrics.items()})


def _run(folder: Path, module: str, *arguments: str) -> float:
    """Run a command in `folder`, and return the seconds that it took."""
    start_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder, env=our_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return time.monotonic() - start_s


if __name__ == "__main__":
    main()
