"""When a parameter of a space exists: told from what it suggested in dry trials."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

FEW = 10
"""Values at most of a whole number that others may depend on."""
TOGETHER = 2
"""Parameters at most that one depends on."""

_ABSENT = "absent"


def conditions(
    asked: Sequence[Mapping[str, Any]], distributions: Mapping[str, BaseDistribution]
) -> dict[str, str]:
    """Return under which condition each parameter exists; empty: always.

    It is the first that is true of all dry trials: of one parameter suggested before it, else of
    two. Where none is, it says how often the parameter was there.

    Args:
        asked: The parameters of each dry trial, in the order in which they were suggested.
        distributions: Of each parameter.
    """
    return {name: _condition(name, asked, distributions) for name in distributions}


def _condition(
    name: str, asked: Sequence[Mapping[str, Any]], distributions: Mapping[str, BaseDistribution]
) -> str:
    there = [params for params in asked if name in params]
    if len(there) == len(asked):
        return ""
    lacking = [params for params in asked if name not in params]
    before = dict.fromkeys(
        other
        for params in there
        for other in itertools.takewhile(lambda each: each != name, params)
        if _is_of_few(distributions[other])
    )
    needed = {other: {params.get(other, _ABSENT) for params in there} for other in before}
    for number in range(1, TOGETHER + 1):
        for others in itertools.combinations(before, number):
            if not any(
                all(params.get(other, _ABSENT) in needed[other] for other in others)
                for params in lacking
            ):
                return " and ".join(_said(o, needed[o], distributions[o]) for o in others)
    return f"in {len(there)} of {len(asked)} dry trials"


def _is_of_few(distribution: BaseDistribution) -> bool:
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step < FEW
    return isinstance(distribution, CategoricalDistribution)


def _said(name: str, needed: set[Any], distribution: BaseDistribution) -> str:
    """Return a parameter and the values that it must have, as a person writes them."""
    present = needed - {_ABSENT}
    every = isinstance(distribution, CategoricalDistribution) and present == {*distribution.choices}
    if every and _ABSENT not in needed:
        return f"with {name}"
    order = distribution.choices if isinstance(distribution, CategoricalDistribution) else ()
    shown = [str(value) for value in order if value in present] or sorted(map(str, present))
    absent = [_ABSENT] if _ABSENT in needed else []
    return f"{name} {' or '.join([*shown, *absent])}"
