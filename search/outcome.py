"""What a person or a script is told: what would run, what came of it, what to do next."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pandas as pd
from rich.console import Console
from rich.text import Text
from upath import UPath

from results.history import ran_again, trials_frame
from results.mlflow_store import default_uri
from results.promise import intervals_of, nested_choice
from results.ranking import best_trial
from results.record import RECORD_FILE, SearchRecord, study_url
from results.report.material import Search
from results.report.sent import send
from results.report.tables import print_tables
from results.terminal import counted
from results.trial import TrialState
from search.cluster.executor import Slots
from search.log import SearchLog
from search.plan import Options
from search.space.space import Space
from trainable.data.dataset import Data
from trainable.errors import reason_of, typed
from trainable.interrupted import INTERRUPTED
from trainable.novelty.metrics import METRICS
from trainable.urls import hidden, public


def introduce(console: Console, record: SearchRecord, space: Space, data: Data) -> None:
    """Say which search this is, and on which data."""
    console.print(Text.assemble((record.name, "bold"), f": {space.question}"))
    borrowed = len(data.images) - data.num_known
    num = len(data.borrowed_classes)
    classes = f" in {counted(num, 'class')}" if num else ""
    console.print(
        f"{counted(data.num_known, 'image')} in {counted(len(data.superclasses), 'superclass')} "
        f"and {counted(len(data.subclasses), 'subclass')}; {borrowed:,} borrowed{classes}"
    )
    console.print(f"images from {record.data}; borrowed from {record.novel}")


def slots_line(slots: Slots) -> str:
    """Return how many trials run at once, and what each has."""
    gpus = f" and {slots.gpus_per_trial:g} GPU" if slots.gpus_per_trial else ""
    if slots.concurrency is None:
        at_once = "as many trials as fit"
    else:
        at_once = "one trial" if slots.concurrency == 1 else f"{slots.concurrency} trials"
    return f"{at_once} at a time, each with {slots.cpus_per_trial:g} CPU{gpus}"


def draw_report(
    record: SearchRecord, folder: UPath, note: Callable[[str], None], *, is_sent: bool
) -> None:
    """Draw the report of a search that is done, and have MLflow show it; `note` tells of both."""
    from results.report.page import write_page  # late: a search needs nothing that draws before

    note("drawing the report")
    try:
        files = write_page([Search(folder, record)])
    except Exception as error:  # noqa: BLE001 (whatever it is, all that it is drawn from is kept)
        again = f"{typed('results.report')} --name {record.name}"
        note(f"{folder / 'report'} is not written ({reason_of(error)}); this does it: {again}")
        return
    note(f"wrote {files[0]}")
    if is_sent:
        note(send(record, files))


def finish(
    options: Options,
    record: SearchRecord,
    folder: UPath,
    status: str,
    page: str,
    wall_s: float,
    log: SearchLog,
) -> int:
    """Print the tables and what to do next, with MLflow's `page` of it; return the exit code."""
    console = log.console()
    trials = trials_frame(folder, record)
    best = best_trial(trials, record.metrics)
    if not options.json or not options.quiet:
        print_tables(console, trials, record, running="interrupted")
        if line := _interrupted_line(trials):
            console.print(line)
    resume = resume_command(options, record)
    where = f" --storage {shlex.quote(str(options.storage))}" if options.storage else ""
    if status == "FINISHED" and best is not None and not options.quiet:
        console.print(
            "Next:\n"
            f"  {typed('results.report')} --name {record.name}{where}\n"
            f"  {typed('search.refit')} --name {record.name}{where}\n"
            f"  {looked_at(record)}\n  {page}",
        )
        if record.passwords_to_type:
            console.print(record.passwords_to_type)
    if options.json:
        print(json.dumps(summary(record, folder, trials, wall_s)), flush=True)
    if status == "KILLED":
        log.console(stderr=options.json).print(resume)
        return INTERRUPTED
    return 0 if best is not None and status == "FINISHED" else 1


def looked_at(record: SearchRecord) -> str:
    """Return where MLflow shows a search: an address, or the command that opens one."""
    uri = public(record.tracking_uri)
    if uri.startswith("http"):
        return f"{uri} in a browser"
    is_default = record.tracking_uri == default_uri()
    return "mlflow ui" + ("" if is_default else f" --backend-store-uri {shlex.quote(uri)}")


def _interrupted_line(trials: pd.DataFrame) -> str:
    """Return which trials were running, and what becomes of them; empty: none."""
    running = trials[trials["state"] == TrialState.RUNNING]
    shown = [
        f"{row['number']:05d}"
        + (f" ({row['epochs_trained']} of {row['config'].epochs} epochs)" if row["config"] else "")
        for _, row in running.iterrows()
    ]
    if not shown:
        return ""
    return f"interrupted, a resume goes on with them: {', '.join(shown)}"


def without_study(
    options: Options, record: SearchRecord, folder: UPath, error: BaseException, log: SearchLog
) -> int:
    """Say that the study's database is away for good, and what goes on; return the exit code."""
    url = study_url(folder, record)
    reason = reason_of(error.__cause__ or error)  # Optuna's hold the database's
    lost = f"stopped: the study {url} cannot be used any more: {reason}"
    log.console(stderr=True).print(hidden(lost))
    if (folder / RECORD_FILE).exists():
        log.console(stderr=options.json).print(resume_command(options, record))
    return 1


def shown_on(options: Options) -> TextIO:
    """Return where a person reads: with --json, standard output is a script's."""
    return sys.stderr if options.json else sys.stdout


def summary(
    record: SearchRecord, folder: UPath, trials: pd.DataFrame | None, wall_s: float
) -> dict[str, Any]:
    """Return what --json prints; without trials, what a search would be."""
    best = None if trials is None else best_trial(trials, record.metrics)
    counts: dict[Any, int] = {}
    num_past = 0
    if trials is not None:
        is_past = ran_again(trials)
        counts, num_past = dict(trials[~is_past]["state"].value_counts()), int(is_past.sum())
    described = (
        best
        if best is None
        else {
            "number": int(best["number"]),
            "config": best["config"].to_dict(),
            "metrics": {name: best[name] for name in METRICS if best[name] == best[name]},
            "intervals": {name: list(ends) for name, ends in intervals_of(best).items()},
            "nested_choice": None if trials is None else nested_choice(trials, record.metrics[0]),
        }
    )
    return {
        "name": record.name,
        "trials": {str(state): int(count) for state, count in counts.items()},
        "ran_again": num_past,
        "best_trial": described,
        "paths": {
            "run": str(folder),
            "trials": str(folder / "trials.csv"),
            "study": public(study_url(folder, record)),
            "tracking_uri": public(record.tracking_uri),
        },
        "wall_s": round(wall_s, 1),
    }


@contextmanager
def resumable(options: Options, record: SearchRecord, folder: UPath) -> Iterator[None]:
    """Have a KeyboardInterrupt say how to go on, where there is a search to go on with."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if (folder / RECORD_FILE).exists():
            raise KeyboardInterrupt(resume_command(options, record)) from stopped
        raise


def resume_command(options: Options, record: SearchRecord) -> str:
    """Return the command that goes on with the search as it was run now, as the last line."""
    command = [*typed("search.run").split(), "--resume", "--name", record.name]
    for flag in ("storage", "address", "concurrency", "cpus_per_trial", "gpus_per_trial"):
        if (value := getattr(options, flag)) is not None:
            value = value.absolute() if flag == "storage" else value
            command += [f"--{flag.replace('_', '-')}", str(value)]
    return "\n".join(filter(None, [record.passwords_to_type, shlex.join(command)]))
