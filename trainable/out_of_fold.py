"""Which thresholds keep a trial's rejection of known images in a model that knows more classes?

A refit trains on more images of more classes, and its scores lie elsewhere. Where the backbone is
frozen, further heads say where: each trains without a share of the known images, in step with the
refit and on the features that it reads anyway, and is asked about that share. They know less than
the refit's heads, score a known image lower and reject more. So heads that miss a tenth and heads
that miss a twentieth are asked about the same images: as many more as the first reject, so many
fewer will whole ones reject than the second.

What is tuned would have to be trained once more for every share. Where it decides, a twentieth of
the known images trains nothing instead, and the refit's own models are asked about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from trainable.config import TASKS, Task, TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import SEEN, Pools, make_refit_pools, turns_of
from trainable.novelty.rule import Rule, acceptance, conformal_threshold, joined
from trainable.novelty.thresholds import Outputs
from trainable.rng import generator
from trainable.train import TrialResult

TWENTIETHS = 20
"""So many shares has every subclass."""

KEPT_MIN = 100
"""Fewer images say less of a threshold than it moves: the share of them that it rejects is known to
.03 where it is .1."""

TAIL_MIN = 10
"""Of fewer rejected images the threshold hangs on one or two outliers: a share of .008 of 320 kept
images, 2 of them, moved one of knn_difference from .117 to .038."""

GROUP_MIN = 20
"""Of fewer images of a superclass none would be rejected: its own threshold stays."""

TENTHS = tuple((each, each + 1) for each in range(0, TWENTIETHS, 4))
"""Of two twentieths each; every other one, which costs half."""


@dataclass(frozen=True)
class Rejected:
    """Which share of the images of seen subclasses a rule calls novel, 0 to 1."""

    super: float
    sub: tuple[float, ...]
    """Of those whose likeliest subclass is of each superclass; of all where they share a tau."""

    @classmethod
    def by(cls, rule: Rule, outputs: Outputs) -> "Rejected":
        """Return those of `outputs` that `rule` rejects."""
        seen = outputs.where(outputs.kind == SEEN)
        rejected = ~(acceptance(seen, "super", rule.super_score) >= rule.tau_super)
        score, superclass = _sub_scores(seen, rule)
        tau = torch.tensor(rule.tau_sub, dtype=torch.float64)
        rejected_sub = ~(score >= tau[superclass])
        groups = [superclass == each for each in range(len(rule.tau_sub))]
        if len(set(rule.tau_sub)) == 1:
            groups = [torch.ones_like(rejected)] * len(groups)
        shares = [rejected_sub[each].double().mean().nan_to_num() for each in groups]
        return cls(float(rejected.double().mean()), tuple(float(each) for each in shares))

    def of(self, task: Task) -> float:
        """Return the share of `task`, of its superclasses the mean."""
        return self.super if task == "super" else sum(self.sub) / len(self.sub)


@dataclass(frozen=True)
class RefitPools:
    """Which images a refit trains on, and which it is asked about to find its thresholds."""

    whole: Pools
    """What it trains on; `val`: known images that it does not, and is asked about."""
    tenths: tuple[Pools, ...] = ()
    """Without tenths of every subclass, for further heads: their `val` is what they miss."""
    twentieths: tuple[Pools, ...] = ()
    """The same without their halves."""


def carried_over(
    rule: Rule,
    rejected: Rejected,
    config: TrialConfig,
    asked: RefitPools,
    result: TrialResult,
) -> Rule:
    """Return `rule` with thresholds that reject as many known images in a refit as in its trial.

    One that rejects fewer than `TAIL_MIN` of the kept images stays as it is.

    Args:
        rule: Of the trial.
        rejected: By it, in the trial.
        config: What is refitted. Fixed thresholds stay.
        asked: What it was trained with.
        result: What came of it.
    """
    tasks = _free_tasks(config)
    if result.outputs is not None:
        num_kept = len(result.outputs.rows)
        tasks = [task for task in tasks if rejected.of(task) * num_kept >= TAIL_MIN]
        return moved(rule, rejected, result.outputs, tasks)
    num = len(asked.tenths)
    if not num:
        return rule
    return extrapolated(rule, rejected, tasks, result.shares[:num], result.shares[num:])


def extrapolated(
    rule: Rule,
    rejected: Rejected,
    tasks: Sequence[Task],
    tenths: Sequence[Outputs],
    twentieths: Sequence[Outputs],
) -> Rule:
    """Return `rule` with taus of `tasks` that reject as many known images by heads that miss none.

    Args:
        rule: Of the trial.
        rejected: By it, in the trial.
        tasks: Whose thresholds move.
        tenths: What heads that miss a tenth of the known images say of those.
        twentieths: The same of heads that miss a twentieth, of the same images.
    """
    known = joined(twentieths)
    by_twentieths = moved(rule, rejected, known, tasks)
    by_tenths = Rejected.by(by_twentieths, joined(tenths))
    # Heads that know less reject less by chance alone.
    target = Rejected(
        max(rejected.super, by_tenths.super),
        tuple(max(pair) for pair in zip(rejected.sub, by_tenths.sub, strict=True)),
    )
    return moved(rule, target, known, tasks)


def _free_tasks(config: TrialConfig) -> list[Task]:
    """Return the tasks whose threshold is not fixed."""
    return [task for task in TASKS if getattr(config, f"tau_{task}") is None]


def _is_frozen(config: TrialConfig) -> bool:
    """Return whether nothing tuned has a say in any threshold that is not fixed."""
    tasks = {*_free_tasks(config)}
    if "sub" in tasks and (config.couple_novel or config.restrict_sub):
        tasks.add("super")
    return all(
        branch.fine_tune == "frozen" for branch in config.branches() if tasks & {*branch.tasks}
    )


def pools_of_refit(data: Data, config: TrialConfig) -> RefitPools:
    """Return what a refit trains on, and which images say where its thresholds lie.

    Where nothing tuned has a say, it trains on every known image, and further heads do without
    shares. Else it does without a twentieth itself, unless that is fewer than `KEPT_MIN` images.
    Copies of an image are in the same share. No image is asked about where no threshold is free.
    """
    pools = make_refit_pools(data, config)
    if not _free_tasks(config) or not config.epochs:
        return RefitPools(pools)
    share = _shares(data, config.seed)

    def without(*shares: int) -> list[Pools]:
        is_out = torch.isin(share, torch.tensor(shares))
        rows = is_out.nonzero()[:, 0]
        each = replace(
            pools,
            train=pools.train[~is_out[pools.train]],
            left_out=is_out,
            val=rows,
            val_kind=torch.full_like(rows, SEEN),
            val_in_part_a=torch.zeros_like(rows, dtype=torch.bool),
        )
        return [each] if len(rows) else []

    if not _is_frozen(config):
        kept = [each for each in without(0) if len(each.val) >= KEPT_MIN]
        return RefitPools(kept[0] if kept else pools)
    return RefitPools(
        pools,
        tenths=tuple(each for tenth in TENTHS for each in without(*tenth)),
        twentieths=tuple(each for tenth in TENTHS for half in tenth for each in without(half)),
    )


def _shares(data: Data, seed: int) -> torch.Tensor:
    """Return the share of every image, 0 to 19; -1 for borrowed ones, and where a subclass has one
    image, without which nothing of it could be learnt.
    """
    share = torch.full((len(data.images),), -1)
    known = torch.arange(data.num_known)
    for subclass in range(len(data.subclasses)):
        rows = known[data.subclass[: data.num_known] == subclass]
        order = torch.randperm(len(rows), generator=generator(seed, "share", subclass))
        turns = turns_of(data, rows[order])
        if turns.max() > 0:
            share[rows[order]] = (turns + subclass) % TWENTIETHS
    return share


def moved(rule: Rule, rejected: Rejected, known: Outputs, tasks: Sequence[Task]) -> Rule:
    """Return `rule` with taus of `tasks` that reject the same shares of `known` images."""
    if "super" in tasks:
        score = acceptance(known, "super", rule.super_score)
        rule = replace(rule, tau_super=_rejecting(score, rejected.super, rule.tau_super))
    if "sub" in tasks:
        score, superclass = _sub_scores(known, rule)
        taus = []
        for each, tau in enumerate(rule.tau_sub):
            group = superclass == each
            if len(set(rule.tau_sub)) == 1:
                group = torch.ones_like(group)
            elif int(group.sum()) < GROUP_MIN:
                taus.append(tau)
                continue
            taus.append(_rejecting(score[group], rejected.sub[each], tau))
        rule = replace(rule, tau_sub=tuple(taus))
    return rule


def _sub_scores(outputs: Outputs, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what tau_sub is compared with, and the superclass whose tau it is: both (N,)."""
    score = acceptance(outputs, "sub", rule.sub_score, restrict_sub=rule.restrict_sub)
    if rule.couple_novel:
        is_novel = ~(acceptance(outputs, "super", rule.super_score) >= rule.tau_super)
        score = score.masked_fill(is_novel, -torch.inf)
    _, likeliest_known = outputs.answer("sub", restrict_sub=rule.restrict_sub)
    return score, outputs.super_of_sub[likeliest_known]


def _rejecting(score_N: torch.Tensor, share: float, before: float) -> float:
    """Return the tau that rejects a share of the images, below them all where that is nothing.

    It stays as `before` where novel is the argmax of all images, or there are none.
    """
    if not score_N.isfinite().any():
        return before
    return conformal_threshold(score_N, max(share, 1 / (len(score_N) + 1)))
