"""What a space may give, met before anything starts."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.space.file import DRY_TRIALS, SpaceError
from search.space.suggestions import GivenTrial
from trainable.config import TrialConfig

Configure = Callable[[optuna.Trial], TrialConfig]
"""`Space.configure`."""


MORE_LIMIT_S = 5.0
"""For what is shown and not checked."""

UNUSED_LIMIT_S = 2.0
"""For finding parameters that change nothing."""


@dataclass(frozen=True)
class Met:
    """What dry trials met."""

    samples: tuple[TrialConfig, ...]
    distributions: Mapping[str, BaseDistribution]
    """Of every parameter that was suggested."""
    unused: tuple[str, ...]
    """Parameters with which no configuration changes."""


def dry_trials(configure: Configure) -> Met:
    """Ask for `DRY_TRIALS` configurations, the same ones every time.

    Raises:
        SpaceError: One of them cannot be.
    """
    distributions: dict[str, BaseDistribution] = {}
    dry = asked(configure, DRY_TRIALS, distributions)
    unused = _unused(configure, dry, distributions)
    return Met(tuple(config for _, config in dry), distributions, unused)


def asked(
    configure: Configure, number: int, distributions: dict[str, BaseDistribution] | None = None
) -> list[tuple[dict[str, Any], TrialConfig]]:
    """Return the parameters and configurations of so many dry trials, drawn at random.

    Args:
        configure: `Space.configure`.
        number: The first ones are the same, however many. Of those after `DRY_TRIALS` some may be
            missing: bad ones, which would fail their own trials, and what takes too long.
        distributions: Gets that of every parameter that was suggested.

    Raises:
        SpaceError: One of the first `DRY_TRIALS` configurations cannot be.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    dry = []
    end_s = time.monotonic() + MORE_LIMIT_S
    for place in range(number):
        is_checked = place < DRY_TRIALS
        if not is_checked and time.monotonic() > end_s:
            break
        trial = study.ask()
        try:
            config = configure(trial)
        except SpaceError:
            if is_checked:
                raise
            continue
        dry.append((trial.params, config))
        if distributions is not None:
            distributions |= trial.distributions
    return dry


def _unused(
    configure: Configure,
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
            is_used = time.monotonic() > end_s or _gives_another(configure, *each)
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


def _gives_another(configure: Configure, params: dict[str, Any], config: TrialConfig) -> bool:
    try:
        return configure(GivenTrial(params)) != config  # type: ignore[arg-type]
    except SpaceError:
        return True  # it does change something
