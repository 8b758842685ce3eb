"""Novelty scores that are sums of others, such as `max_logit+rmds`.

Each part counts in deviations from its mean over known images, as otherwise the one of the widest
range would decide alone. Those images are the ones that choose a rule, so a configuration names
the parts, and a rule names their means and deviations too: `max_logit[12.5,2.25]+rmds[-31.5,8.0]`.
As these stand in the name, they are saved with the rule, and mean the same wherever it is used.
"""

import re
from collections.abc import Callable, Collection, Mapping

import torch

from trainable.keys import Task
from trainable.parts import read_from

_PART = re.compile(r"([^\[\]]+)\[([^,]+),([^,]+)\]")


def parts_of(name: str) -> tuple[str, ...]:
    """Return the scores that `name` is the sum of: itself, if of no others."""
    return tuple(part.partition("[")[0] for part in _split(name))


def of_tasks(scores: Mapping[Task, str], tasks: Collection[Task]) -> list[str]:
    """Return what `scores` of both tasks have of these: registered names, once each, in order."""
    found = [read_from(task, part) for task, name in scores.items() for part in parts_of(name)]
    return [*dict.fromkeys(own for whose, own in found if whose in tasks)]


def plain(name: str) -> str:
    """Return the name as a configuration has it, without means and deviations."""
    return "+".join(parts_of(name))


def standardised(name: str, known: Callable[[str], torch.Tensor]) -> str:
    """Return the name of a sum with the mean and deviation of each part; of another, the same.

    Args:
        name: As a configuration has it.
        known: Returns a part's scores of the known images that choose: float64 (N,).
    """
    parts = parts_of(name)
    if len(parts) == 1:
        return name
    return "+".join(f"{part}[{_units(known(part))}]" for part in parts)


def total(name: str, score: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """Return the sum of standardised parts, float64 (N,); `score` returns that of a part."""
    return torch.stack([(score(part) - mean) / std for part, mean, std in _terms(name)]).sum(0)


def rescaled(name: str, part: str, scale: float) -> str:
    """Return the name of a sum for a `part` whose values have become `scale` times as large."""
    return "+".join(
        f"{each}[{mean * scale!r},{std * scale!r}]" if each == part else f"{each}[{mean!r},{std!r}]"
        for each, mean, std in _terms(name)
    )


def _terms(name: str) -> list[tuple[str, float, float]]:
    found = [_PART.fullmatch(part) for part in _split(name)]
    assert all(found), f"{name} says no means and deviations"
    return [(each[1], float(each[2]), float(each[3])) for each in found if each]


def _split(name: str) -> list[str]:
    return re.split(r"\+(?=[a-z])", name)  # there is a + in 1e+20, too


def _units(score_N: torch.Tensor) -> str:
    score_N = score_N.double()
    std = float(score_N.std(correction=0)) if len(score_N) else 0.0
    mean = float(score_N.mean()) if len(score_N) else 0.0
    return f"{mean!r},{std or 1.0!r}"  # one value alone tells nothing from anything
