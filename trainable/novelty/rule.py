"""When to say novel: how known an image looks, the decision rule, and exact thresholds."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from trainable.config import Task
from trainable.novelty.scores import sums
from trainable.novelty.scores.logits import GEN_GAMMA, GEN_TOP
from trainable.parts import SCORES, needs_bank, read_from

_T = TypeVar("_T")
_R = TypeVar("_R", bound="Response")
_ACCEPT_ALL = -1e300
"""A threshold below every finite score; finite, because it is written as JSON."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a model says about N images: every answer, score and threshold follows from it.

    It never changes, so what many rules ask of it is computed once.
    """

    super_logits: torch.Tensor
    """float (N, K + 1), novel last."""
    sub_logits: torch.Tensor
    """float (N, C + 1), novel last."""
    super_feature_scores: Mapping[str, torch.Tensor]
    """float64 (N,) each, by name: the scores of features that were computed."""
    sub_feature_scores: Mapping[str, torch.Tensor]
    """The same from the features below the subclass head."""
    super_of_sub: torch.Tensor
    """int64 (C + 1,): superclass output of each subclass output."""

    def logits(self, task: Task) -> torch.Tensor:
        """Return the logits of `task`."""
        return self.super_logits if task == "super" else self.sub_logits

    def score(self, task: Task, name: str) -> torch.Tensor:
        """Return how known each image looks to `task`: float64 (N,), higher is more known.

        A sum says what its parts are standardised by, see `scores.sums`. super_NAME is what the
        superclass has as NAME. A score of features that was not computed is NaN.
        """
        computed = self.super_feature_scores if task == "super" else self.sub_feature_scores
        if name in computed:
            return computed[name]
        if len(sums.parts_of(name)) > 1:
            return self.once(
                ("score", task, name), lambda: sums.total(name, lambda part: self.score(task, part))
            )
        if (read := read_from(task, name)) != (task, name):
            return self.score(*read)
        if needs_bank(name):
            return torch.full((len(self.super_logits),), torch.nan, dtype=torch.float64)
        return self.once(("score", task, name), lambda: novelty_score(self.logits(task), name))

    def answer(self, task: Task, *, restrict_sub: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the argmax of `candidates`, which may be novel, and that of the known ones.

        Both int64 (N,).
        """

        def compute() -> tuple[torch.Tensor, torch.Tensor]:
            logits_NC = candidates(self, task, restrict_sub=restrict_sub)
            return logits_NC.argmax(1), logits_NC[:, :-1].argmax(1)

        return self.once(("answer", task, restrict_sub), compute)

    def once(self, what: tuple[Any, ...], compute: Callable[[], _T]) -> _T:
        """Return what `compute` gives, which `what` names and which is kept with the response."""
        if what not in self._known:
            self._known[what] = compute()
        found: _T = self._known[what]
        return found

    @functools.cached_property
    def _known(self) -> dict[tuple[Any, ...], Any]:
        return {}


def by_image(
    parts: Sequence[Response], combine: Callable[[list[torch.Tensor]], torch.Tensor]
) -> dict[str, Any]:
    """Return every field with a row per image, `combine`d from those of `parts`, by its name.

    Only scores that all of them have are kept.
    """
    found: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(each, field.name) for each in parts]
        if isinstance(values[0], Mapping):
            names = [name for name in values[0] if all(name in each for each in values)]
            found[field.name] = {name: combine([each[name] for each in values]) for name in names}
        elif isinstance(values[0], torch.Tensor) and field.name != "super_of_sub":
            found[field.name] = combine(values)
    return found


def averaged(parts: Sequence[_R]) -> _R:
    """Return what an ensemble says whose members say `parts` of the same images: mean logits and
    mean scores of features (Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017, average
    probabilities). Members are trained alike, so their scores are of one scale.
    """
    if len(parts) == 1:
        return parts[0]

    def mean(values: list[torch.Tensor]) -> torch.Tensor:
        alike = not values[0].is_floating_point()
        return values[0] if alike else torch.stack(values).mean(0)

    return replace(parts[0], **by_image(parts, mean))


def joined(parts: Sequence[_R]) -> _R:
    """Return what one model says about the images of all parts, in their order."""
    return replace(parts[0], **by_image(parts, torch.cat))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a response becomes an answer. Nothing is trained for it, so it can be chosen after."""

    super_score: str
    """Novelty score of the superclass: one of `parts.SCORES`, or a sum, see `scores.sums`."""
    sub_score: str
    """Novelty score of the subclass; super_NAME is the superclass's NAME."""
    tau_super: float
    """The superclass is novel below it."""
    tau_sub: tuple[float, ...]
    """The subclass is novel below it; one for each superclass that it may belong to."""
    couple_novel: bool
    """A novel superclass makes the subclass novel."""
    restrict_sub: bool
    """The subclass is one of the likeliest known superclass."""


def novelty_score(logits_NC: torch.Tensor, name: str) -> torch.Tensor:
    """Return how known each image looks: float64 (N,), higher is more known.

    Args:
        logits_NC: Logits with novel as the last column. Only known classes can look known, so
            every score is over the other columns (msp keeps novel in the denominator).
        name: One of `trainable.parts.SCORES` that is of logits.
    """
    score = SCORES.named(name)
    assert not isinstance(score, type), f"{name} is of features"
    return score(logits_NC.double()).double()


def for_num_classes(rule: Rule, before: int, after: int) -> Rule:
    """Return a rule for a head of `after` known subclasses that was chosen for one of `before`.

    gen is a sum over classes. Over C of them that share the probability left by the likeliest,
    p^γ sums to C (1 / C)^γ, so its thresholds scale by that. Measured on frozen features, 74 and 87
    subclasses, five draws: a threshold that rejects 5% of the known images rejects 4.3%, and 11%
    as it was. msp 5.6%, max_logit 7.5% and energy 7.9% are no such sums, and are kept.
    """
    if "gen" not in (parts := sums.parts_of(rule.sub_score)):
        return rule
    scale = (min(after, GEN_TOP) / min(before, GEN_TOP)) ** (1 - GEN_GAMMA)
    if len(parts) > 1:  # what it counts in changes instead
        return replace(rule, sub_score=sums.rescaled(rule.sub_score, "gen", scale))
    return replace(rule, tau_sub=tuple(tau * scale for tau in rule.tau_sub))


def candidates(response: Response, task: Task, *, restrict_sub: bool) -> torch.Tensor:
    """Return the logits that the answer of `task` is the argmax of: (N, C + 1).

    With `restrict_sub` those of subclasses outside the likeliest known superclass are -inf.
    """
    logits_NC = response.logits(task)
    if task == "super" or not restrict_sub:
        return logits_NC
    superclass_N = response.super_logits[:, :-1].argmax(1)
    is_outside_NC = response.super_of_sub[None, :-1] != superclass_N[:, None]
    is_outside_NC = F.pad(is_outside_NC, (0, 1), value=False)  # novel is always possible
    return logits_NC.masked_fill(is_outside_NC, -torch.inf)


def acceptance(
    response: Response, task: Task, name: str, *, restrict_sub: bool = False
) -> torch.Tensor:
    """Return the score that decides: -inf where novel is itself the argmax, float64 (N,)."""
    answer_N, _ = response.answer(task, restrict_sub=restrict_sub)
    is_novel_N = answer_N == response.logits(task).shape[1] - 1
    return response.score(task, name).masked_fill(is_novel_N, -torch.inf)


def decide(response: Response, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both answers, int64 (N,): the argmax where its acceptance reaches tau, else novel."""
    novel_super, novel_sub = response.super_logits.shape[1] - 1, response.sub_logits.shape[1] - 1
    superclass, _ = response.answer("super", restrict_sub=False)
    subclass, known_sub = response.answer("sub", restrict_sub=rule.restrict_sub)
    accept_super = acceptance(response, "super", rule.super_score)
    accept_sub = acceptance(response, "sub", rule.sub_score, restrict_sub=rule.restrict_sub)
    tau_sub = torch.tensor(rule.tau_sub, dtype=torch.float64)
    tau_sub_N = tau_sub[response.super_of_sub[known_sub]]
    superclass = superclass.masked_fill(~(accept_super >= rule.tau_super), novel_super)
    subclass = subclass.masked_fill(~(accept_sub >= tau_sub_N), novel_sub)
    if rule.couple_novel:
        subclass = subclass.masked_fill(superclass == novel_super, novel_sub)
    return superclass, subclass


def harmonic_mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return 2ab / (a + b), and 0 where both are 0."""
    return torch.where(a + b > 0, 2 * a * b / (a + b).clamp_min(1e-300), 0.0)


def calibrate(
    score_N: torch.Tensor,
    correct_N: torch.Tensor,
    known_N: torch.Tensor,
    group_N: torch.Tensor | None = None,
) -> float:
    """Return the tau that maximises the harmonic mean of known accuracy and novel recall.

    Exact: both rates change only at observed scores, so one sort gives every value they can
    take. Of equally good ones the lowest is taken, which rejects the fewest known images, and
    tau lies halfway to the next lower score.

    Args:
        score_N: `acceptance`, -inf where the image is called novel at any threshold.
        correct_N: bool (N,), the argmax is the right known class.
        known_N: bool (N,), the right answer is a known class; needs both values.
        group_N: int64 (N,), kinds of images, which count alike within the known and the novel
            ones, however many images they have; null: all are of one.
    """
    score_N = score_N.double()
    # Candidate i accepts the scores from values[i] up. Accepting none is never better.
    values = score_N[score_N.isfinite()].unique(sorted=True)
    if len(values) == 0:
        return 0.0
    group_N = torch.zeros_like(known_N) if group_N is None else group_N
    right, of_right = _shares(values, score_N, correct_N, group_N, known_N, above=True)
    caught, of_caught = _shares(values, score_N, ~known_N, group_N, ~known_N, above=False)
    # Half the harmonic mean as a ratio of whole numbers, so that equal ones are equal floats.
    parts = right * of_caught + caught * of_right
    return _just_below(values, int(((right * caught).double() / parts.clamp_min(1)).argmax()))


def _shares(
    values_V: torch.Tensor,
    score_N: torch.Tensor,
    counts_N: torch.Tensor,
    group_N: torch.Tensor,
    among_N: torch.Tensor,
    *,
    above: bool,
) -> tuple[torch.Tensor, int]:
    """Return how many of the images that count score at or above each value, or below it, as a mean
    share of the groups: whole numbers (V,), and what all would be.
    """
    sizes = {int(group): int(num) for group, num in zip(*_counted(group_N[among_N]), strict=True)}
    whole = math.prod(sizes.values())
    total = torch.zeros(len(values_V), dtype=torch.int64)
    for group, size in sizes.items():
        ranked = score_N[among_N & counts_N & (group_N == group)].sort().values
        below = torch.searchsorted(ranked, values_V)
        total += (len(ranked) - below if above else below) * (whole // size)
    return total, whole * len(sizes)


def _counted(group_N: torch.Tensor) -> tuple[list[int], list[int]]:
    groups, sizes = group_N.unique(return_counts=True)
    return groups.tolist(), sizes.tolist()


def conformal_threshold(
    score_N: torch.Tensor, rejection: float, group_N: torch.Tensor | None = None
) -> float:
    """Return a tau that rejects a new known image with a probability of at most `rejection`.

    Split conformal prediction (Vovk, Gammerman and Shafer, 2005): of n calibration scores and a
    new one, exchangeable with them, the new one is among the k lowest with a probability of at
    most k / (n + 1). That is a mean over draws of the calibration images: given one draw the rate
    varies about it, and within a class it may be any. So tau lies just below the k-th lowest,
    k = floor(rejection (n + 1)).

    Args:
        score_N: `acceptance` of known images. The bound is on what a threshold can decide: where
            k or more of them are -inf, all finite ones are accepted, and so are where k is 0.
        rejection: 0 to 1.
        group_N: int64 (N,), kinds of images, which count alike, however many images they have
            (weighted conformal prediction, Tibshirani et al., NeurIPS 2019; the new image weighs as
            the mean one); null: all are of one.
    """
    score_N = score_N.double()
    values = score_N[score_N.isfinite()].unique(sorted=True)
    if len(values) == 0:
        return 0.0
    group_N = torch.zeros_like(score_N) if group_N is None else group_N
    everyone = torch.ones_like(score_N, dtype=torch.bool)
    # Weighed so that all of them are as many as they are. Candidate i accepts from values[i] up.
    below, whole = _shares(values, score_N, everyone, group_N, everyone, above=False)
    num_below = below.double() * len(score_N) / whole
    num_rejected = rejection * (len(score_N) + 1) + 1e-9
    if num_rejected >= len(score_N) + 1:
        return float(values[-1]) + 1.0
    allowed = int((num_below + 1 <= num_rejected).sum())
    return _just_below(values, allowed - 1) if allowed else _ACCEPT_ALL


def accepting_all(rule: Rule) -> tuple[Task, ...]:
    """Return the tasks of which a threshold accepts every image, as a bound was out of reach."""
    taus: dict[Task, tuple[float, ...]] = {"super": (rule.tau_super,), "sub": rule.tau_sub}
    return tuple(task for task, each in taus.items() if min(each) <= _ACCEPT_ALL / 2)


def _just_below(values: torch.Tensor, place: int) -> float:
    """Return a threshold that accepts the sorted unique `values` from `place` up, on none of them:
    rounding differs between a trial and its saved model.
    """
    if place == 0:
        return float(values[0] - (1e-3 * (values[-1] - values[0]) or 1e-3))
    middle = float((values[place - 1] + values[place]) / 2)
    return middle if middle > values[place - 1] else float(values[place])
