"""A space file, loaded and checked: what to try, how long, by which metric."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from upath import UPath

from results.database import STORAGE_ERRORS
from search.space.dry_trials import dry_trials
from search.space.file import SpaceError, TimeUp, check_names, execute, line_of, read, time_limit
from search.space.suggestions import AskedTrial, InsideTrial, unprefixed
from trainable.checkpoint import write_atomically
from trainable.config import TrialConfig
from trainable.errors import ConfigError, nearest
from trainable.modules import UserModule
from trainable.novelty.metrics import METRICS
from trainable.user_parts import PARTS_FOLDER, UserParts

NEEDS = {
    "unseen_sub_near": "pseudo_novel_fraction",
    "unseen_sub_second": "second_pseudo_novel_fraction",
    "auroc_sub_second": "second_pseudo_novel_fraction",
}
"""Metrics that a trial has only where this key is above 0."""

MODULES_FOLDER = "space_modules"
"""In a search's folder: the modules that its space file imports, as they were. A resume takes these
beside the file's copy, and the originals where `--space` names the original file."""

MOST_WRONG = 3
"""How many wrong settings are told from right ones; beyond that it is all of them."""

SpaceFunction = Callable[[optuna.Trial], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Space:
    """A checked space file with the command line's changes applied."""

    file: UPath
    source: bytes
    """The file as it is: kept with the search, so that a resume asks the same question."""
    modules: Mapping[str, bytes]
    """Modules beside the file that it imports, by their relative path: kept, too."""
    question: str
    """First line of the file's docstring."""
    num_trials: int
    planned_trials: int | None
    """What the file says, whatever the command line does; null: nothing."""
    planned_metrics: tuple[str, ...]
    """The same of METRIC."""
    metrics: tuple[str, ...]
    """What is optimised; more than one makes the search multi-objective."""
    baselines: tuple[dict[str, Any], ...]
    """Whole configurations, tried first."""
    samples: tuple[TrialConfig, ...]
    """Configurations of the dry trials: what a search may meet."""
    distributions: Mapping[str, BaseDistribution]
    """Range of every parameter that a dry trial suggested."""
    unused: tuple[str, ...]
    """Parameters of which no dry trial's configuration depends."""
    defaults: Mapping[str, Any]
    """Under what `space` returns: epochs and seed."""
    fixed: Mapping[str, Any]
    """Over what `space` returns: `--set`."""
    function: SpaceFunction | None
    """Null where the file has nothing but baselines."""
    module: UserModule
    parts: UserParts
    """The user's own parts that PARTS names: kept, too."""

    def save(self, folder: UPath, name: str) -> None:
        """Keep the file under `name` in a search's folder, with the modules that it imports."""
        kept = folder / MODULES_FOLDER
        for path, text in self.modules.items():
            write_atomically(kept / path, text)
        for file in [*kept.rglob("*")] if kept.exists() else []:
            if file.is_file() and file.relative_to(kept).as_posix() not in self.modules:
                file.unlink()  # an earlier start's
        self.parts.save(folder / PARTS_FOLDER)
        write_atomically(folder / name, self.source)

    def ask(self, trial: optuna.Trial) -> TrialConfig:
        """Do as `configure`, and stop `space` where it loops."""
        with time_limit(self.file):
            return self.configure(trial)

    def configure(self, trial: optuna.Trial) -> TrialConfig:
        """Return the configuration that `space` gives for `trial`.

        Raises:
            SpaceError: `space` raised, or returned what is no configuration.
        """
        assert self.function is not None
        try:
            with self.module.running():
                returned = self.function(AskedTrial(trial, self.fixed))  # type: ignore[arg-type]
        except (TimeUp, KeyboardInterrupt, *STORAGE_ERRORS):
            raise  # a database that is away is no mistake of the file
        except BaseException as error:  # sys.exit's, too
            raise SpaceError(
                f"{self.file}: space() raised {type(error).__name__} in line "
                f"{line_of(self.file, error)}: {error}"
            ) from error
        if not isinstance(returned, dict):
            raise SpaceError(
                f"{self.file}: space() must return a dict of config keys, but got {returned!r}"
            )
        return _config(f"{self.file}: ", {**self.defaults, **returned}, self.fixed)

    def parameters_of(self, baseline: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the parameters that make `space` give `baseline`, or None if it lies outside."""
        if self.function is None:
            return None
        parameters = {key: value for key, value in baseline.items() if key not in self.fixed}
        trial = InsideTrial(parameters)
        try:
            config = self.configure(trial)  # type: ignore[arg-type]
        except SpaceError:
            return None
        return trial.params if config.to_dict() == dict(baseline) else None


def load_space(
    file: UPath,
    *,
    num_trials: int | None = None,
    epochs: int | None = None,
    metric: Sequence[str] | None = None,
    fixed: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Space:
    """Load a space file, call it on dry trials, and check every configuration it can give.

    Args:
        file: A Python file with NUM_TRIALS, EPOCHS, METRIC, BASELINES, PARTS and `space`; a file of
            BASELINES alone needs neither NUM_TRIALS nor `space`.
        num_trials: Over NUM_TRIALS.
        epochs: Over EPOCHS, and over what `space` returns.
        metric: Over METRIC.
        fixed: Values that hold for every trial, baselines included.
        seed: The configurations' seed where the file sets none.

    Raises:
        SpaceError: With the file, the key and the nearest valid one.
    """
    with time_limit(file):
        source = read(file)
        kept = file.parent / MODULES_FOLDER
        module = UserModule(file, kept if kept.is_dir() else file.parent)
        values = execute(file, module, source)
        space = _checked(
            file, values, source, module, num_trials, epochs, metric, fixed or {}, seed
        )
        space = _with_samples(space)
        _check_that_metrics_exist(space, metric is not None)
        return replace(space, modules=module.sources(source))


def _checked(
    file: UPath,
    values: Mapping[str, Any],
    source: bytes,
    module: UserModule,
    num_trials: int | None,
    epochs: int | None,
    metric: Sequence[str] | None,
    fixed: Mapping[str, Any],
    seed: int,
) -> Space:
    check_names(file, values)
    parts = _parts(file, values.get("PARTS", []))
    parts.use()  # before any configuration names one
    fixed = dict(fixed) | ({"epochs": epochs} if epochs is not None else {})
    function = values.get("space")
    if function is not None and not callable(function):
        raise SpaceError(f"{file}: `space` must be a function of an Optuna trial")
    defaults = {"epochs": _integer(file, values, "EPOCHS", TrialConfig.epochs), "seed": seed}
    _config("--seed: ", {"seed": seed}, {})
    _config(f"{file}: EPOCHS: ", {"epochs": defaults["epochs"]}, {})
    baselines = _baselines(file, values.get("BASELINES", []), defaults, fixed)
    if function is None and not baselines:
        raise SpaceError(f"{file}: it needs a function space(trial), BASELINES, or both")
    planned = _planned_trials(file, values, None if function else len(baselines))
    if planned is None and num_trials is None:
        raise SpaceError(
            f"{file}: NUM_TRIALS is missing: add NUM_TRIALS = N to the file, or pass --trials N"
        )
    count = num_trials if num_trials is not None else planned
    assert count is not None
    if count < 1:
        raise SpaceError(f"{file}: at least one trial must be asked for, but got {count}")
    planned_metrics = _metrics(f"{file}: ", "METRIC", values.get("METRIC", "score"))
    return Space(
        file=file,
        source=source,
        modules={},
        question=((values.get("__doc__") or "").strip() or file.stem).splitlines()[0],
        num_trials=count if function else min(count, len(baselines)),
        planned_trials=planned,
        planned_metrics=planned_metrics,
        metrics=_metrics("", "--metric", metric) if metric else planned_metrics,
        baselines=tuple(baselines),
        samples=(),
        distributions={},
        unused=(),
        defaults=defaults,
        fixed=fixed,
        function=function,
        module=module,
        parts=parts,
    )


def _parts(file: UPath, names: Any) -> UserParts:
    """Return the parts beside the file, or as its search kept them."""
    if not isinstance(names, list | tuple):
        raise SpaceError(f"{file}: PARTS must be a list of files, but got {names!r}")
    kept = file.parent / PARTS_FOLDER
    return UserParts.read(kept if kept.is_dir() else file.parent, names)


def _planned_trials(file: UPath, values: Mapping[str, Any], default: int | None) -> int | None:
    if "NUM_TRIALS" not in values or values.get("space") is None:
        return default
    return _integer(file, values, "NUM_TRIALS", None)


def _check_that_metrics_exist(space: Space, is_asked: bool) -> None:
    """Refuse a metric that no configuration's trial can have."""
    for metric in space.metrics:
        if "left_out" in metric and all(each.left_out == "none" for each in space.samples):
            where = "--metric" if is_asked else f"{space.file}: METRIC"
            raise SpaceError(
                f"{where} {metric} is over superclasses that are left out, and `left_out` is none "
                "in every configuration: add --set left_out=features, or take another metric"
            )
        key = NEEDS.get(metric)
        if key and not any(getattr(config, key) > 0 for config in space.samples):
            where = "--metric" if is_asked else f"{space.file}: METRIC"
            raise SpaceError(
                f"{where} {metric} is only there where `{key}` is above 0, and no configuration "
                f"of this space sets it: add --set {key}=0.15, or take another metric"
            )


def _integer(file: UPath, values: Mapping[str, Any], name: str, default: int | None) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpaceError(f"{file}: {name} must be a whole number of 0 or more, but got {value!r}")
    return value


def _metrics(where: str, flag: str, metric: Any) -> tuple[str, ...]:
    names = tuple(metric) if isinstance(metric, list | tuple) else (metric,)
    for name in names:
        if not isinstance(name, str) or name not in METRICS:
            raise SpaceError(f"{where}unknown {flag} {name!r}{nearest(str(name), METRICS)}")
    if len(set(names)) < len(names) or not names:
        raise SpaceError(f"{where}{flag} must name one metric or several different ones")
    return names


def _baselines(
    file: UPath, given: Any, defaults: Mapping[str, Any], fixed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the baselines as whole configurations, without those that `fixed` made equal."""
    if not isinstance(given, list | tuple) or not all(isinstance(each, dict) for each in given):
        raise SpaceError(f"{file}: BASELINES must be a list of dicts")
    whole = []
    for number, partial in enumerate(given):
        where = f"{file}: BASELINES[{number}]: "
        config = _config(where, {**defaults, **partial}, fixed).to_dict()
        if config not in whole:
            whole.append(config)
    return whole


def _without(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Drop one branch's override of a key that is fixed: lr fixed means super_lr, too."""
    return {key: value for key, value in values.items() if unprefixed(key) not in fixed}


def _config(where: str, values: Mapping[str, Any], fixed: Mapping[str, Any]) -> TrialConfig:
    """Return the configuration with `fixed` over `values`; what is wrong is blamed on its source:
    `where`, or the setting without which there is nothing wrong.
    """
    free = _without(values, fixed)
    try:
        return TrialConfig.from_dict({**free, **fixed})
    except ConfigError as error:
        wrong = _wrong(free, fixed)
        right = {k: v for k, v in {**free, **fixed}.items() if k not in wrong}
        told = []
        for key in wrong:
            value = fixed[key]
            given = f"--epochs {value}" if key == "epochs" else f"--set {key}={_typed(value)}"
            if mistake := _mistake({**right, key: value}):
                told.append(f"{given}: {mistake}")
        raise SpaceError("; ".join(told) or f"{where}{error}") from error


def _wrong(free: Mapping[str, Any], fixed: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fewest of the fixed keys without which there is nothing wrong, if there are such.

    Args:
        free: The other keys. What `space` was given for a fixed parameter, it returns.
        fixed: Those with a value of their own.
    """
    for number in sorted({*range(1, MOST_WRONG + 1), len(fixed)}):
        keys: tuple[str, ...]
        for keys in itertools.combinations(fixed, number):
            if not _mistake({k: v for k, v in {**free, **fixed}.items() if k not in keys}):
                return keys
    return ()


def _mistake(values: Mapping[str, Any]) -> ConfigError | None:
    """Return what is wrong with a configuration."""
    try:
        TrialConfig.from_dict(values)
    except ConfigError as error:
        return error
    return None


def _typed(value: Any) -> str:
    """Return a value as it is typed after --set."""
    return value if isinstance(value, str) else json.dumps(value)


def _with_samples(space: Space) -> Space:
    samples = [TrialConfig.from_dict(baseline) for baseline in space.baselines]
    if space.function is None:
        return replace(space, samples=tuple(samples))
    met = dry_trials(space.configure)
    return replace(
        space,
        samples=(*samples, *met.samples),
        distributions=met.distributions,
        unused=met.unused,
    )
