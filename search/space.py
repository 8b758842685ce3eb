"""A space file, loaded and checked: what to try, how long, by which metric."""

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from upath import UPath

from trainable.config import TrialConfig
from trainable.errors import ConfigError, UserError, nearest
from trainable.metrics import METRICS

DRY_TRIALS = 40
"""How often `space` is called before anything starts, to meet its conditional branches."""

TIME_LIMIT_S = 20.0
"""For running the file and its dry trials: one that takes longer loops, or trains."""

SpaceFunction = Callable[[optuna.Trial], dict[str, Any]]


class SpaceError(UserError):
    """A space file that cannot be loaded, or that returns configurations that cannot be."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """A checked space file with the command line's changes applied."""

    file: UPath
    source: str
    """The file's text: kept with the search, so that a resume asks the same question."""
    question: str
    """First line of the file's docstring."""
    num_trials: int
    metrics: tuple[str, ...]
    """What is optimised; more than one makes the search multi-objective."""
    baselines: tuple[dict[str, Any], ...]
    """Whole configurations, tried first."""
    samples: tuple[TrialConfig, ...]
    """Configurations of the dry trials: what a search may meet."""
    distributions: Mapping[str, BaseDistribution]
    """Range of every parameter that a dry trial suggested."""
    defaults: Mapping[str, Any]
    """Under what `space` returns: epochs and seed."""
    fixed: Mapping[str, Any]
    """Over what `space` returns: `--set`."""
    function: SpaceFunction | None
    """Null where the file has nothing but baselines."""

    def configure(self, trial: optuna.Trial) -> TrialConfig:
        """Return the configuration that `space` gives for `trial`.

        Raises:
            SpaceError: `space` raised, or returned what is no configuration.
        """
        assert self.function is not None
        try:
            returned = self.function(_FixedTrial(trial, self.fixed))  # type: ignore[arg-type]
        except SpaceError:
            raise  # the time limit's
        except Exception as error:
            raise SpaceError(
                f"{self.file}: space() raised {type(error).__name__} in line "
                f"{_line(self.file, error)}: {error}"
            ) from error
        if not isinstance(returned, dict):
            raise SpaceError(
                f"{self.file}: space() must return a dict of config keys, but got {returned!r}"
            )
        return _config(self.file, {**self.defaults, **_without(returned, self.fixed), **self.fixed})

    def parameters_of(self, baseline: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the parameters that make `space` give `baseline`, or None if it lies outside."""
        if self.function is None:
            return None
        parameters = {key: value for key, value in baseline.items() if key not in self.fixed}
        trial = _InsideTrial(parameters)
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
        file: A Python file with NUM_TRIALS, EPOCHS, METRIC, BASELINES and `space`; a file of
            BASELINES alone needs neither NUM_TRIALS nor `space`.
        num_trials: Over NUM_TRIALS.
        epochs: Over EPOCHS, and over what `space` returns.
        metric: Over METRIC.
        fixed: Values that hold for every trial, baselines included.
        seed: The configurations' seed where the file sets none.

    Raises:
        SpaceError: With the file, the key and the nearest valid one.
    """
    with _time_limit(file):
        values, source = _execute(file)
        space = _checked(file, values, source, num_trials, epochs, metric, fixed or {}, seed)
        return _with_samples(space)


def _checked(
    file: UPath,
    values: Mapping[str, Any],
    source: str,
    num_trials: int | None,
    epochs: int | None,
    metric: Sequence[str] | None,
    fixed: Mapping[str, Any],
    seed: int,
) -> Space:
    fixed = dict(fixed) | ({"epochs": epochs} if epochs is not None else {})
    function = values.get("space")
    if function is not None and not callable(function):
        raise SpaceError(f"{file}: `space` must be a function of an Optuna trial")
    defaults = {"epochs": _integer(file, values, "EPOCHS", TrialConfig.epochs), "seed": seed}
    baselines = _baselines(file, values.get("BASELINES", []), defaults, fixed)
    if function is None and not baselines:
        raise SpaceError(f"{file}: it needs a function space(trial), BASELINES, or both")
    planned = len(baselines) if function is None else _integer(file, values, "NUM_TRIALS", None)
    num_trials = planned if num_trials is None else num_trials
    if num_trials < 1:
        raise SpaceError(f"{file}: at least one trial must be asked for, but got {num_trials}")
    return Space(
        file=file,
        source=source,
        question=((values.get("__doc__") or "").strip() or file.stem).splitlines()[0],
        num_trials=num_trials if function else min(num_trials, len(baselines)),
        metrics=_metrics(file, metric or values.get("METRIC", "score")),
        baselines=tuple(baselines),
        samples=(),
        distributions={},
        defaults=defaults,
        fixed=fixed,
        function=function,
    )


@contextmanager
def _time_limit(file: UPath) -> Iterator[None]:
    """Stop a file that loops. Signals reach the main thread alone; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: Any) -> None:
        raise SpaceError(
            f"{file}: running it and {DRY_TRIALS} dry trials took over {TIME_LIMIT_S:g} s: "
            "a space file must only describe, and end"
        )

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _execute(file: UPath) -> tuple[dict[str, Any], str]:
    try:
        source = file.read_text()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SpaceError(f"--space {file}: cannot be read ({reason})") from error
    except UnicodeDecodeError as error:
        raise SpaceError(f"--space {file}: not a text file ({error})") from error
    values: dict[str, Any] = {"__name__": "space", "__file__": str(file)}
    try:
        exec(compile(source, str(file), "exec"), values)
    except SpaceError:
        raise  # the time limit's
    except Exception as error:
        raise SpaceError(
            f"{file}, line {_line(file, error)}: {type(error).__name__}: {error}"
        ) from error
    return values, source


def _line(file: UPath, error: Exception) -> int | None:
    """Return the last line of the space file on the way to `error`."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(file)), None)


def _integer(file: UPath, values: Mapping[str, Any], name: str, default: int | None) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SpaceError(f"{file}: {name} must be a whole number of 0 or more, but got {value!r}")
    return value


def _metrics(file: UPath, metric: Any) -> tuple[str, ...]:
    names = tuple(metric) if isinstance(metric, list | tuple) else (metric,)
    for name in names:
        if not isinstance(name, str) or name not in METRICS:
            raise SpaceError(f"{file}: unknown METRIC {name!r}{nearest(str(name), METRICS)}")
    if len(set(names)) < len(names) or not names:
        raise SpaceError(f"{file}: METRIC must name one metric or several different ones")
    return names


def _baselines(
    file: UPath, given: Any, defaults: Mapping[str, Any], fixed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the baselines as whole configurations, without those that `fixed` made equal."""
    if not isinstance(given, list | tuple) or not all(isinstance(each, dict) for each in given):
        raise SpaceError(f"{file}: BASELINES must be a list of dicts")
    whole = []
    for number, partial in enumerate(given):
        values = {**defaults, **_without(partial, fixed), **fixed}
        config = _config(file, values, f"BASELINES[{number}]: ").to_dict()
        if config not in whole:
            whole.append(config)
    return whole


def _unprefixed(key: object) -> str:
    return str(key).removeprefix("super_").removeprefix("sub_")


def _without(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Drop one branch's override of a key that is fixed: lr fixed means super_lr, too."""
    return {key: value for key, value in values.items() if _unprefixed(key) not in fixed}


def _config(file: UPath, values: Mapping[str, Any], where: str = "") -> TrialConfig:
    try:
        return TrialConfig.from_dict(values)
    except ConfigError as error:
        raise SpaceError(f"{file}: {where}{error}") from error


def _with_samples(space: Space) -> Space:
    samples = [TrialConfig.from_dict(baseline) for baseline in space.baselines]
    distributions: dict[str, BaseDistribution] = {}
    if space.function is not None:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(DRY_TRIALS):
            trial = study.ask()
            samples.append(space.configure(trial))
            distributions |= trial.distributions
    return replace(space, samples=tuple(samples), distributions=distributions)


def describe(distribution: BaseDistribution) -> str:
    """Return a parameter's choices or range as a person writes them."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    scale = ", log scale" if distribution.log else ""
    return f"{distribution.low:g} to {distribution.high:g}{scale}"


class _FixedTrial:
    """A trial whose fixed keys are not sampled: `space` is given their values."""

    def __init__(self, trial: optuna.Trial, fixed: Mapping[str, Any]) -> None:
        self._trial, self._fixed = trial, fixed

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._trial, name)
        if not name.startswith("suggest_"):
            return method

        def suggest(key: str, *args: Any, **kwargs: Any) -> Any:
            for name in (key, _unprefixed(key)):
                if name in self._fixed:
                    return self._fixed[name]
            return method(key, *args, **kwargs)

        return suggest


class _InsideTrial(optuna.trial.FixedTrial):
    """A fixed trial that refuses values outside the ranges, and knows which were asked for."""

    def _suggest(self, name: str, distribution: Any) -> Any:
        value = self._params.get(name)
        if value is None or not distribution._contains(distribution.to_internal_repr(value)):
            raise ValueError(f"{name}={value!r} is outside the space")
        return super()._suggest(name, distribution)

    @property
    def params(self) -> dict[str, Any]:
        return {name: self._params[name] for name in self.distributions}
