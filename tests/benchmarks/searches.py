"""Our search and the plain one, each as a command of its own, and when they did what."""

import contextlib
import itertools
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil

from tests.benchmarks.common import ROOT, Sources, say
from tests.benchmarks.plain_trial import Spec

_ENDED = re.compile(r"trial \d{5}  (COMPLETE|PRUNED|FAIL)")


@dataclass(frozen=True)
class OurSearch:
    """When a search of ours did what."""

    wall_s: float
    """The whole command, from its start to its exit."""
    trials_s: float
    """From the first trial's start, before there is a worker, to the last one's end."""
    ended_s: list[float]
    """When each trial ended, in seconds since the first one's start; ascending."""
    driver_s: list[float]
    """CPU seconds that the driver had used when it said that each trial ended."""
    driver_bytes: list[int]
    """Memory that the driver had then."""
    cpu_s: float
    """CPU seconds of the driver, Ray and the workers until the last trial's end."""


def our_search(
    folder: Path,
    given: Sources,
    *,
    space: Path,
    trials: int,
    epochs: int,
    slots: int | None,
    cache: Path,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    on_ended: Callable[[int], object] = lambda ended: None,
) -> OurSearch:
    """Run `python -m search.run` in `folder`, with one core per trial.

    Args:
        slots: Trials at once; null: as many as fit.
        environment: What it has beside, such as the token of a cluster.
        on_ended: Called with the number of trials that have ended, after each.

    Raises:
        RuntimeError: Not every trial ran to its end.
    """
    folder.mkdir(parents=True)
    command = [
        sys.executable, "-m", "search.run", "--space", str(space), "--json", "--name", "search",
        "--data", str(given.data), "--novel", str(given.novel), "--cache", str(cache),
        "--trials", str(trials), "--epochs", str(epochs),
        *(["--concurrency", str(slots)] if slots else []),
        "--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}", *arguments,
    ]  # fmt: skip
    own = our_environment() | dict(environment or {})
    driver_s, driver_bytes, cpu_s = [], [], 0.0
    start_s, last = time.monotonic(), ""
    with subprocess.Popen(
        command, cwd=folder, env=own, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if _ENDED.match(line):
                driver = psutil.Process(process.pid)
                driver_s.append(driver.cpu_times().user + driver.cpu_times().system)
                driver_bytes.append(driver.memory_info().rss)
                on_ended(len(driver_s))
                if len(driver_s) == trials:
                    cpu_s = _cpu_s(driver)
            if line.startswith("trial "):
                say(f"  {line.rstrip()[:100]}")
            last = line
    wall_s = time.monotonic() - start_s
    summary = json.loads(last) if last.startswith("{") else {}
    if process.returncode or summary["trials"] != {"COMPLETE": trials}:
        raise RuntimeError(f"our search ended with {process.returncode}: {last}")
    study = optuna.load_study(study_name="search", storage=summary["paths"]["study"])
    starts = [t.datetime_start for t in study.trials if t.datetime_start is not None]
    ends = sorted(t.datetime_complete for t in study.trials if t.datetime_complete is not None)
    ended_s = [(end - min(starts)).total_seconds() for end in ends]
    return OurSearch(wall_s, ended_s[-1], ended_s, driver_s, driver_bytes, cpu_s)


def plain_search(folder: Path, spec: Spec) -> dict[str, Any]:
    """Run the plain search in a process of its own; return what `plain.search` returns."""
    folder.mkdir(parents=True)
    spec_file, out, log = folder / "spec.json", folder / "out.json", folder / "log"
    spec_file.write_text(json.dumps(asdict(spec)))
    command = [sys.executable, "-m", "tests.benchmarks.plain"]
    with log.open("w") as log_file:
        code = subprocess.run(
            [*command, "--spec", str(spec_file), "--out", str(out)],
            cwd=folder, env=our_environment(), stdout=log_file, stderr=log_file, check=False,
        ).returncode  # fmt: skip
    if code:
        raise RuntimeError(f"the plain search ended with {code}:\n{log.read_text()[-4000:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def plain_starts_s(result: dict[str, Any], slots: int) -> list[float]:
    """Return how long each slot took from one trial's end to the next one's first batch, in s.

    A slot's first trial, which may wait for Ray's first worker, is left out.
    """
    ready = sorted(trial["ready_s"][0] for trial in result["trials"])
    ended = sorted(trial["now_s"][-1] for trial in result["trials"])
    return [r - e for r, e in zip(ready[slots:], ended, strict=False)]


def plain_epochs_s(result: dict[str, Any], clock: str = "") -> list[float]:
    """Return how long each epoch took, in seconds: on the wall, or of the CPU (`cpu_`)."""
    epochs = []
    for trial in result["trials"]:
        stamps = [trial[f"ready_{clock}s"][0], *trial[f"now_{clock}s"]]
        epochs += [b - a for a, b in itertools.pairwise(stamps)]
    return epochs


def _cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and of all that it started and that still runs."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def our_environment() -> dict[str, str]:
    """Return this process's environment without what an import of ours told Ray and Tune.

    A token, so that Ray writes none into the home directory.
    """
    given = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    given |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return given | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
