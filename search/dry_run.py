"""--dry-run: what would be searched, where, and about what it would cost."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntDistribution,
)
from rich.console import Console
from rich.table import Table
from upath import UPath

from results.history import trials_frame
from results.naming import Names
from results.record import SearchRecord
from results.terminal import counted, duration
from results.trial import TrialState
from search.cluster.connect import Cluster, connected, this_machine
from search.cluster.executor import Slots, make_slots
from search.estimate import estimate
from search.outcome import slots_line, summary
from search.plan import Options
from search.space.conditions import conditions
from search.space.dry_trials import asked
from search.space.file import time_limit
from search.space.space import Space
from search.space.suggestions import described
from trainable.config import TrialConfig
from trainable.data.dataset import Data

MANY_DRY_TRIALS = 200
"""By which conditions and shares of variants are told."""
_ENDED = [state.value for state in TrialState if state.is_finished]
SAMPLES = 3
"""Configurations that are shown."""


def describe(
    options: Options,
    record: SearchRecord,
    space: Space,
    folder: UPath,
    data: Data,
    console: Console,
    start_s: float,
) -> int:
    """Say what would run; return the exit code.

    Raises:
        ClusterError: It could not run on that cluster.
    """
    if console.quiet:
        with _cluster(options, console) as cluster:
            _slots(options, cluster)
    else:
        distributions: dict[str, BaseDistribution] = {}
        met = _met(space, distributions)
        configs = [config for _, config in met]
        names = Names([*_baselines(space), *configs])
        _describe_space(console, space, [params for params, _ in met], distributions, names)
        _describe_variants(console, space, configs, names)
        _describe_repeats(console, record, folder)
        with _cluster(options, console) as cluster:
            slots = _slots(options, cluster)
            console.print(f"{cluster}: {slots_line(slots)}")
            if options.gpus_per_trial == "auto" and cluster.gpus:
                console.print("--gpus-per-trial auto: a pilot finds the share when it starts")
        num_finished = 0
        if options.resume:
            num_finished = int(trials_frame(folder, record)["state"].isin(_ENDED).sum())
        _describe_cost(console, record, space, data, configs, slots, cluster, num_finished)
    if options.json:
        print(json.dumps(summary(record, folder, None, time.monotonic() - start_s)))
    return 0


def _met(
    space: Space, distributions: dict[str, BaseDistribution]
) -> Sequence[tuple[Mapping[str, Any], TrialConfig]]:
    """Return the parameters and configurations of many dry trials; none where nothing is asked.

    `distributions` gets the ranges of the parameters.
    """
    if space.function is None:
        return []
    with time_limit(space.file):
        return asked(space.configure, MANY_DRY_TRIALS, distributions)


def _describe_space(
    console: Console,
    space: Space,
    params: Sequence[Mapping[str, Any]],
    distributions: Mapping[str, BaseDistribution],
    names: Names,
) -> None:
    console.print(f"{counted(space.num_trials, 'trial')} by {', '.join(space.metrics)}")
    for number, baseline in enumerate(_baselines(space)):
        console.print(f"baseline {number}: {names.name(baseline)}")
    if distributions:
        when = conditions(params, distributions)
        table = _table("parameter", "kind", "range or choices", "only with")
        for name, distribution in distributions.items():
            table.add_row(name, _kind(distribution), described(distribution), when[name])
        console.print("", table, sep="\n", soft_wrap=False)
    for name, value in space.fixed.items():
        console.print(f"{name}: fixed to {value}")


def _kind(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "choice"
    return "whole number" if isinstance(distribution, IntDistribution) else "number"


def _baselines(space: Space) -> list[TrialConfig]:
    return [TrialConfig.from_dict(each) for each in space.baselines[: space.num_trials]]


def _describe_variants(
    console: Console, space: Space, configs: Sequence[TrialConfig], names: Names
) -> None:
    """Say how many trials each architecture gets, and what it leaves unused; show samples."""
    baselines = _baselines(space)
    everything = [*baselines, *configs]
    acts = {
        architecture: {
            key for config in group for key in names.values(config)
        }
        for architecture, group in _by_architecture(everything).items()
    }  # fmt: skip
    others = space.num_trials - len(baselines)
    shares = Counter(config.architecture for config in configs)
    table = _table("architecture", "baselines", "others, about", "leaves unused")
    for architecture, keys in acts.items():
        about = others * shares[architecture] / len(configs) if configs else 0
        unused = [key for key in names.keys if key not in keys]
        table.add_row(
            architecture,
            str(sum(config.architecture == architecture for config in baselines)),
            f"{about:.0f}",
            ", ".join(unused),
        )
    console.print("", table, "", sep="\n", soft_wrap=False)
    for config in (configs or baselines)[:SAMPLES]:
        console.print(f"sample: {names.name(config)}")


def _by_architecture(configs: Sequence[TrialConfig]) -> dict[str, list[TrialConfig]]:
    found: dict[str, list[TrialConfig]] = {}
    for config in configs:
        found.setdefault(config.architecture, []).append(config)
    return found


def _describe_repeats(console: Console, record: SearchRecord, folder: UPath) -> None:
    if not record.repeats:
        return
    trials = trials_frame(folder, record)
    configs = dict(zip(trials["number"], trials["config"], strict=True))
    states = dict(zip(trials["number"], trials["state"], strict=True))
    names = Names(trials["config"])
    for repeat in record.repeats:
        console.print(
            f"repeat {repeat.number}: trial {repeat.trial} with seed {repeat.seed} "
            f"({states.get(repeat.number, 'to run')}), {names.name(configs[repeat.trial])}"
        )


@contextmanager
def _cluster(options: Options, console: Console) -> Iterator[Cluster]:
    """Give what a search would run on; one of its own is not started for this."""
    if options.address is None:
        yield this_machine()
        return
    console.print(f"connecting to {options.address}")
    with connected(options.address, note=console.print) as cluster:
        yield cluster


def _slots(options: Options, cluster: Cluster) -> Slots:
    share = options.gpus_per_trial
    return make_slots(
        cluster,
        concurrency=options.concurrency,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=None if isinstance(share, str) else share,
    )


def _describe_cost(
    console: Console,
    record: SearchRecord,
    space: Space,
    data: Data,
    configs: Sequence[TrialConfig],
    slots: Slots,
    cluster: Cluster,
    num_finished: int,
) -> None:
    """Say about how long it takes and what it leaves on the disk, measured here."""
    more = len(record.repeats) + len(record.retries)
    num_left = space.num_trials + more - num_finished
    if num_left <= 0:
        console.print("nothing is left to run")
        return
    console.print("training a few images of each kind of trial here, to estimate time and disk")
    baselines = _baselines(space)
    wanted = configs[: max(0, space.num_trials - len(baselines))]
    at_once = slots.concurrency or 1
    is_slower = cluster.gpus > 0 and not torch.cuda.is_available()
    found = estimate(
        [*baselines, *wanted], data, num_trials=num_left, slots=at_once, note=console.print,
        threads=max(1, int(slots.cpus_per_trial)),
        weights=Path(record.weights) if record.weights else None, is_fast=record.is_fast,
    )  # fmt: skip
    if found is None:
        return
    features = f"; {_size(found.feature_bytes)} of features in the cache"
    about = duration(max(1, found.seconds))
    console.print(
        f"{counted(num_left, 'trial')}: about {about} without pruning, {at_once} "
        f"at a time; pruning saves some of it. About {_size(found.kept_bytes)} in the search's "
        f"folder, and copies of the models in MLflow{features if found.feature_bytes else ''}"
    )
    console.print(
        f"measured on a few images, scaled to all: {found.num_measured} of "
        f"{counted(found.num_kinds, 'kind')} of trial"
        + (", here on a CPU: the GPUs are faster" * is_slower)
    )


def _size(num_bytes: float) -> str:
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
    return f"{num_bytes / 1000:.3g} TB"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    return table
