"""A space file, loaded and checked: what to try, how long, by which metric."""

import difflib
import importlib.util
import json
import math
import signal
import threading
import time
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

from search.modules import UserModule
from search.study.storage import STORAGE_ERRORS
from trainable.checkpoint import write_atomically
from trainable.config import TrialConfig
from trainable.errors import ConfigError, UserError, nearest
from trainable.novelty.metrics import METRICS

DRY_TRIALS = 40
"""How often `space` is called before anything starts, to meet its conditional branches."""

TIME_LIMIT_S = 20.0
"""For running the file and its dry trials: one that takes longer loops, or trains."""
SUGGESTION_S = 0.1
"""What one suggestion counts for at most: a database that is away may take half a minute."""
UNUSED_LIMIT_S = 2.0
"""For finding parameters that change nothing."""

NAMES = ("NUM_TRIALS", "EPOCHS", "METRIC", "BASELINES")
PLANNED = ("PARTS", "SAMPLER", "PRUNER", "CONSTRAINTS")
"""Names that a later version may read: not free for other use, and refused until then."""
_COUNTING_WORDS = {"NUM", "N", "NR", "NUMBER", "OF", "MAX", "TOTAL"}

NEEDS = {
    "unseen_sub_near": "pseudo_novel_fraction",
    "unseen_sub_second": "second_pseudo_novel_fraction",
    "auroc_sub_second": "second_pseudo_novel_fraction",
}
"""Metrics that a trial has only where this key is above 0."""

MODULES_FOLDER = "space_modules"
"""In a search's folder: the modules that its space file imports, as they were. A resume takes these
beside the file's copy, and the originals where `--space` names the original file."""

SpaceFunction = Callable[[optuna.Trial], dict[str, Any]]


class SpaceError(UserError):
    """A space file that cannot be loaded, or that returns configurations that cannot be."""


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

    def save(self, folder: UPath, name: str) -> None:
        """Keep the file under `name` in a search's folder, with the modules that it imports."""
        for path, text in self.modules.items():
            write_atomically(folder / MODULES_FOLDER / path, text)
        write_atomically(folder / name, self.source)

    def ask(self, trial: optuna.Trial) -> TrialConfig:
        """Do as `configure`, and stop `space` where it loops."""
        with _time_limit(self.file):
            return self.configure(trial)

    def configure(self, trial: optuna.Trial) -> TrialConfig:
        """Return the configuration that `space` gives for `trial`.

        Raises:
            SpaceError: `space` raised, or returned what is no configuration.
        """
        assert self.function is not None
        try:
            with self.module.running():
                returned = self.function(_AskedTrial(trial, self.fixed))  # type: ignore[arg-type]
        except (SpaceError, *STORAGE_ERRORS):
            raise  # the time limit's; a database that is away is no mistake of the file
        except (Exception, SystemExit) as error:
            raise SpaceError(
                f"{self.file}: space() raised {type(error).__name__} in line "
                f"{_line(self.file, error)}: {error}"
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
        source = _read(file)
        kept = file.parent / MODULES_FOLDER
        module = UserModule(file, kept if kept.is_dir() else file.parent)
        values = _execute(file, module, source)
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
    _check_names(file, values)
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
    )


def _check_names(file: UPath, values: Mapping[str, Any]) -> None:
    """Refuse names that nothing reads, though they look as if something did."""
    for name in PLANNED:
        if name in values:
            raise SpaceError(f"{file}: {name} is not supported yet: leave it out")
    for name in values:
        if name.isupper() and name not in NAMES and (meant := _meant(name, values)):
            remedy = "leave it out" if meant in PLANNED else "rename it"
            raise SpaceError(
                f"{file}: nothing reads {name} (did you mean {meant}?): {remedy}, or give it "
                "a name that is less like it"
            )
        if name.upper() in NAMES and name.upper() not in values:
            raise SpaceError(f"{file}: nothing reads {name} (did you mean {name.upper()}?)")


def _meant(name: str, values: Mapping[str, Any]) -> str | None:
    """Return which of our names an upper-case one was meant for, if it looks like one.

    BASELINE and METRCI do; BASELINE_LR, of several words, does not; NUM_EPOCHS does as long as
    there is no EPOCHS.
    """
    words = name.strip("_").split("_")
    counted = [word for word in words if word not in _COUNTING_WORDS]
    for known in (*NAMES, *PLANNED):
        stem = known.removeprefix("NUM_")
        for those in (words, counted if known not in values else []):
            alike = difflib.SequenceMatcher(None, "".join(those), stem).ratio()
            whole = difflib.SequenceMatcher(None, "".join(words), known.replace("_", "")).ratio()
            if alike >= (0.82 if len(those) == 1 else 0.95) or whole >= 0.9:
                return known
    return None


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


@contextmanager
def _barely_counted() -> Iterator[None]:
    """Hold the time limit for what is not the file's: only `SUGGESTION_S` of it counts."""
    left_s = 0.0
    if threading.current_thread() is threading.main_thread():
        left_s, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    start_s = time.monotonic()
    try:
        yield
    finally:
        if left_s:
            counted_s = min(time.monotonic() - start_s, SUGGESTION_S)
            signal.setitimer(signal.ITIMER_REAL, max(left_s - counted_s, 1e-6))


def _read(file: UPath) -> bytes:
    try:
        source = file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SpaceError(f"--space {file}: cannot be read ({reason})") from error
    try:
        importlib.util.decode_source(source)
    except (UnicodeDecodeError, SyntaxError) as error:
        raise SpaceError(f"--space {file}: not a text file ({error})") from error
    if b"\0" in source:
        raise SpaceError(f"--space {file}: not a text file (it has null bytes)")
    return source


def _execute(file: UPath, module: UserModule, source: bytes) -> dict[str, Any]:
    if clash := module.clash(source):
        raise SpaceError(f"--space {file}: {clash}")
    try:
        return module.execute(source)
    except SpaceError:
        raise  # the time limit's
    except SyntaxError as error:
        where = file if error.filename == str(file) else error.filename
        raise SpaceError(f"{where}, line {error.lineno}: SyntaxError: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise SpaceError(
            f"{file}, line {_line(file, error)}: {type(error).__name__}: {error}"
        ) from error


def _line(file: UPath, error: BaseException) -> int | None:
    """Return the last line of the space file on the way to `error`."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(file)), None)


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


def _unprefixed(key: object) -> str:
    return str(key).removeprefix("super_").removeprefix("sub_")


def _without(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Drop one branch's override of a key that is fixed: lr fixed means super_lr, too."""
    return {key: value for key, value in values.items() if _unprefixed(key) not in fixed}


def _config(where: str, values: Mapping[str, Any], fixed: Mapping[str, Any]) -> TrialConfig:
    """Return the configuration with `fixed` over `values`; what is wrong is blamed on its source:
    `where`, or the setting without which there is nothing wrong.
    """
    try:
        return TrialConfig.from_dict({**_without(values, fixed), **fixed})
    except ConfigError as error:
        for key, value in fixed.items():
            rest = {k: v for k, v in fixed.items() if k != key}
            # Without all fixed keys: what `space` was given for a fixed parameter, it returns.
            if _is_config({**_without(values, fixed), **rest}):
                given = f"--epochs {value}" if key == "epochs" else f"--set {key}={_typed(value)}"
                raise SpaceError(f"{given}: {error}") from error
        raise SpaceError(f"{where}{error}") from error


def _is_config(values: Mapping[str, Any]) -> bool:
    try:
        TrialConfig.from_dict(values)
    except ConfigError:
        return False
    return True


def _typed(value: Any) -> str:
    """Return a value as it is typed after --set."""
    return value if isinstance(value, str) else json.dumps(value)


def _with_samples(space: Space) -> Space:
    samples = [TrialConfig.from_dict(baseline) for baseline in space.baselines]
    if space.function is None:
        return replace(space, samples=tuple(samples))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    distributions: dict[str, BaseDistribution] = {}
    dry: list[tuple[dict[str, Any], TrialConfig]] = []
    for _ in range(DRY_TRIALS):
        trial = study.ask()
        config = space.configure(trial)
        samples.append(config)
        dry.append((trial.params, config))
        distributions |= trial.distributions
    unused = _unused(space, dry, distributions)
    return replace(space, samples=tuple(samples), distributions=distributions, unused=unused)


def _unused(
    space: Space,
    dry: Sequence[tuple[dict[str, Any], TrialConfig]],
    distributions: Mapping[str, BaseDistribution],
) -> tuple[str, ...]:
    """Return the parameters that no dry trial's configuration changes with, as far as time allows.

    Each is given other values in the trials that had it, and all else stays.
    """
    end_s = time.monotonic() + UNUSED_LIMIT_S
    unused = []
    for name, distribution in distributions.items():
        changed = (
            ({**params, name: other}, config)
            for params, config in dry
            if name in params
            for other in _others(distribution, params[name])
        )
        is_used = not _others(distribution, None)
        while not is_used and (each := next(changed, None)) is not None:
            is_used = time.monotonic() > end_s or _gives_another(space, *each)
        if not is_used:
            unused.append(name)
    return tuple(unused)


def _others(distribution: BaseDistribution, value: Any) -> list[Any]:
    """Return what a parameter could be instead of `value`: its choices, or both ends."""
    if distribution.single():
        return []
    if isinstance(distribution, CategoricalDistribution):
        return [choice for choice in distribution.choices if choice != value]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [end for end in (distribution.low, distribution.high) if end != value]


def _gives_another(space: Space, params: dict[str, Any], config: TrialConfig) -> bool:
    try:
        return space.configure(_GivenTrial(params)) != config  # type: ignore[arg-type]
    except SpaceError:
        return True  # it does change something


def describe(distribution: BaseDistribution) -> str:
    """Return a parameter's choices or range as a person writes them."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    scale = ", log scale" if distribution.log else ""
    return f"{distribution.low:g} to {distribution.high:g}{scale}"


class _AskedTrial:
    """The trial that `space` is given: fixed keys are not sampled, and choices are checked."""

    def __init__(self, trial: optuna.Trial, fixed: Mapping[str, Any]) -> None:
        self._trial, self._fixed = trial, fixed

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._trial, name)
        if not name.startswith("suggest_"):
            return method

        def suggest(*args: Any, **kwargs: Any) -> Any:
            key = args[0] if args else kwargs.get("name")
            if not isinstance(key, str) or not 0 < len(key) <= 512:
                raise TypeError(
                    f"a parameter's name must be a text of 1 to 512 characters, but got {key!r}"
                )
            if name == "suggest_categorical" and (len(args) == 2 or "choices" in kwargs):
                choices = list(args[1] if len(args) == 2 else kwargs.pop("choices"))
                _check_choices(key, choices)
                args, kwargs = (), {"name": key, "choices": choices}
            for fixed in (key, _unprefixed(key)):
                if fixed in self._fixed:
                    return self._fixed[fixed]
            with _barely_counted():
                return method(*args, **kwargs)

        return suggest


def _check_choices(name: str, choices: Sequence[Any]) -> None:
    """Refuse choices that the study, which stores them as JSON, would give back as others."""
    seen: list[Any] = []
    for choice in choices:
        if type(choice) not in (type(None), bool, int, float, str):
            raise TypeError(
                f"choice {choice!r} of {name!r} is a {type(choice).__name__}, but the study keeps "
                "choices as JSON: take None, bool, int, float or str, and look up in the file "
                "what they stand for"
            )
        if isinstance(choice, float) and not math.isfinite(choice):
            raise TypeError(f"choice {choice!r} of {name!r} is not finite: take a text or None")
        twin = next((s for s in seen if s == choice and type(s) is not type(choice)), choice)
        if type(twin) is not type(choice):
            raise TypeError(
                f"choices {twin!r} and {choice!r} of {name!r} are equal to Python: take texts"
            )
        seen.append(choice)


class _GivenTrial(optuna.trial.FixedTrial):
    """A fixed trial that has a value for whatever else is asked."""

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._params.get(name)
        if name not in self._params or not _contains(distribution, value):
            is_choice = isinstance(distribution, CategoricalDistribution)
            self._params[name] = distribution.choices[0] if is_choice else distribution.low  # type: ignore[attr-defined]
        return super()._suggest(name, distribution)


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


class _InsideTrial(optuna.trial.FixedTrial):
    """A fixed trial that refuses values outside the ranges, and knows which were asked for."""

    def _suggest(self, name: str, distribution: Any) -> Any:
        if name not in self._params or not _contains(distribution, self._params[name]):
            raise ValueError(f"{name} is outside the space")
        return super()._suggest(name, distribution)

    @property
    def params(self) -> dict[str, Any]:
        return {name: self._params[name] for name in self.distributions}
