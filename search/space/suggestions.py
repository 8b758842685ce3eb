"""What `space` is given in place of Optuna's trial, and what it may suggest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.internals import allows
from search.space.file import barely_counted


class AskedTrial:
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
            for fixed in (key, unprefixed(key)):
                if fixed in self._fixed:
                    return self._fixed[fixed]
            with barely_counted():
                return method(*args, **kwargs)

        return suggest


def unprefixed(key: object) -> str:
    """Return a config key without the branch for which it overrides another."""
    return str(key).removeprefix("super_").removeprefix("sub_")


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


class GivenTrial(optuna.trial.FixedTrial):
    """A fixed trial that has a value for whatever else is asked."""

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._params.get(name)
        if name not in self._params or not allows(distribution, value):
            is_choice = isinstance(distribution, CategoricalDistribution)
            self._params[name] = distribution.choices[0] if is_choice else distribution.low  # type: ignore[attr-defined]
        return super()._suggest(name, distribution)


class InsideTrial(optuna.trial.FixedTrial):
    """A fixed trial that refuses values outside the ranges, and knows which were asked for."""

    def _suggest(self, name: str, distribution: Any) -> Any:
        if name not in self._params or not allows(distribution, self._params[name]):
            raise ValueError(f"{name} is outside the space")
        return super()._suggest(name, distribution)

    @property
    def params(self) -> dict[str, Any]:
        return {name: self._params[name] for name in self.distributions}


def described(distribution: BaseDistribution) -> str:
    """Return a parameter's choices or range as a person writes them."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    scale = ", log scale" if distribution.log else ""
    return f"{distribution.low:g} to {distribution.high:g}{scale}"
