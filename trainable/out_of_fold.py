"""Which thresholds keep a trial's rejection of known images in a model that knows more classes?

A refit trains on more images of more classes, and its scores lie elsewhere. Where the backbone is
frozen, further heads say where: each trains without a share of the known images, in step with the
refit and on the features that it reads anyway, and is asked about that share. They know less than
the refit's heads, score a known image lower and reject more. So heads that miss a tenth and heads
that miss a twentieth are asked about the same images: as many more as the first reject, so many
fewer will whole ones reject than the second.

A known superclass has subclasses that training never showed, and their images are rejected far more
often than those of seen ones: by .048 instead of .010 in one trial of the real data. Which ones a
trial held out is luck (.077 of all 87, each in turn), so further heads do without a tenth of the
subclasses each, until all have been left out, and the superclass's threshold is found on both.

What is tuned would have to be trained once more for every share. Where it decides, a twentieth of
the known images trains nothing instead, and the refit's own models are asked about it.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from trainable.config import TASKS, Task, TrialConfig
from trainable.data.dataset import Data
from trainable.data.splits import (
    PSEUDO_NOVEL,
    SEEN,
    Pools,
    make_refit_pools,
    num_held_out,
    turns_of,
)
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

SUBCLASS_SHARES = 10
"""Into so many shares the subclasses are dealt: heads that miss one know nine tenths of them, where
those of a trial know what `pseudo_novel_fraction` leaves."""


@dataclass(frozen=True)
class Rejected:
    """Which share of known images a rule calls novel, 0 to 1."""

    super: float
    """Of seen subclasses."""
    sub: tuple[float, ...]
    """Of seen subclasses, those whose likeliest subclass is of each superclass; of all where they
    share a tau."""
    super_of_both: float
    """The mean of seen and of held-out subclasses; of seen ones where none is held out."""

    @classmethod
    def by(cls, rule: Rule, outputs: Outputs) -> "Rejected":
        """Return those of `outputs` that `rule` rejects."""
        seen, unseen = (outputs.where(outputs.kind == kind) for kind in (SEEN, PSEUDO_NOVEL))
        rejected = [_rejected_super(rule, each) for each in (seen, unseen) if len(each.rows)]
        score, superclass = _sub_scores(seen, rule)
        tau = torch.tensor(rule.tau_sub, dtype=torch.float64)
        rejected_sub = ~(score >= tau[superclass])
        groups = [superclass == each for each in range(len(rule.tau_sub))]
        if len(set(rule.tau_sub)) == 1:
            groups = [torch.ones_like(rejected_sub)] * len(groups)
        shares = [rejected_sub[each].double().mean().nan_to_num() for each in groups]
        mean = sum(rejected) / len(rejected)
        return cls(rejected[0], tuple(float(each) for each in shares), mean)

    def of(self, task: Task) -> float:
        """Return the share of `task`, of its superclasses the mean."""
        return self.super if task == "super" else sum(self.sub) / len(self.sub)


@dataclass(frozen=True)
class RefitPools:
    """Which images a refit trains on, and which it is asked about to find its thresholds."""

    whole: Pools
    """What it trains on; `val`: known images that it does not, and is asked about."""
    by_heads: tuple[Task, ...] = ()
    """Whose threshold further heads find."""
    by_kept: tuple[Task, ...] = ()
    """Whose threshold those known images find."""
    tenths: tuple[Pools, ...] = ()
    """Without tenths of every subclass, for further heads: their `val` is what they miss."""
    twentieths: tuple[Pools, ...] = ()
    """The same without their halves."""
    subclasses: tuple[Pools, ...] = ()
    """The same without whole subclasses, for the superclass's threshold."""

    @property
    def shares(self) -> tuple[Pools, ...]:
        """All that further heads are trained with."""
        return (*self.tenths, *self.twentieths, *self.subclasses)


def carried_over(rule: Rule, rejected: Rejected, asked: RefitPools, result: TrialResult) -> Rule:
    """Return `rule` with thresholds that reject as many known images in a refit as in its trial.

    One that rejects fewer than `TAIL_MIN` of the kept images stays as it is.

    Args:
        rule: Of the trial.
        rejected: By it, in the trial.
        asked: What it was trained with, and whose thresholds are found; others stay.
        result: What came of it.
    """
    if asked.shares:
        said = iter(result.shares)
        parts = (
            [*itertools.islice(said, len(each))]
            for each in (asked.tenths, asked.twentieths, asked.subclasses)
        )
        rule = extrapolated(rule, rejected, asked.by_heads, *parts)
    if result.outputs is None:
        return rule
    num_kept = len(result.outputs.rows)
    kept = [task for task in asked.by_kept if rejected.of(task) * num_kept >= TAIL_MIN]
    return moved(rule, rejected, result.outputs, kept)


def extrapolated(
    rule: Rule,
    rejected: Rejected,
    tasks: Sequence[Task],
    tenths: Sequence[Outputs],
    twentieths: Sequence[Outputs],
    subclasses: Sequence[Outputs] = (),
) -> Rule:
    """Return `rule` with taus of `tasks` that reject as many known images by heads that miss none.

    Args:
        rule: Of the trial.
        rejected: By it, in the trial.
        tasks: Whose thresholds move.
        tenths: What heads that miss a tenth of the known images say of those.
        twentieths: The same of heads that miss a twentieth, of the same images.
        subclasses: The same of heads that miss subclasses.
    """
    known = joined([*twentieths, *subclasses])
    by_twentieths = moved(rule, rejected, known, tasks)
    by_tenths = Rejected.by(by_twentieths, joined([*tenths, *subclasses]))
    # Heads that know less reject less by chance alone.
    target = Rejected(
        max(rejected.super, by_tenths.super),
        tuple(max(pair) for pair in zip(rejected.sub, by_tenths.sub, strict=True)),
        max(rejected.super_of_both, by_tenths.super_of_both),
    )
    return moved(rule, target, known, tasks)


def _free_tasks(config: TrialConfig) -> list[Task]:
    """Return the tasks whose threshold is not fixed."""
    return [task for task in TASKS if getattr(config, f"tau_{task}") is None]


def _tasks_of_heads(config: TrialConfig) -> list[Task]:
    """Return the tasks whose threshold is not fixed and in which nothing tuned has a say."""
    is_tuned = {
        task: branch.fine_tune != "frozen" for branch in config.branches() for task in branch.tasks
    }
    if config.couple_novel or config.restrict_sub or config.sub_reads_super:
        is_tuned["sub"] |= is_tuned["super"]
    return [task for task in _free_tasks(config) if not is_tuned[task]]


def pools_of_refit(data: Data, config: TrialConfig) -> RefitPools:
    """Return what a refit trains on, and which images say where its thresholds lie.

    Further heads do without shares where nothing tuned has a say in a threshold. Where something
    has, the refit itself does without a twentieth, unless that is fewer than `KEPT_MIN` images.
    Copies of an image are in the same share. No image is asked about where no threshold is free.
    """
    whole = make_refit_pools(data, config)
    by_heads = _tasks_of_heads(config)
    by_kept = tuple(task for task in _free_tasks(config) if task not in by_heads)
    if (not by_heads and not by_kept) or not config.epochs:
        return RefitPools(whole)
    share, tenths = _shares(data, config.seed), TENTHS
    if by_kept:
        kept = without(whole, share == 0, SEEN)
        if len(kept.val) >= KEPT_MIN:
            whole, tenths = kept, TENTHS[1:]  # of the first one half trains nothing anyway
        else:
            by_kept = ()
    if not by_heads:
        return RefitPools(whole, by_kept=by_kept)

    def shares(*which: tuple[int, ...]) -> tuple[Pools, ...]:
        found = (without(whole, torch.isin(share, torch.tensor(each)), SEEN) for each in which)
        return tuple(each for each in found if len(each.val))

    halves = shares(*((half,) for tenth in tenths for half in tenth))
    subclasses: list[Pools] = []
    if "super" in by_heads and halves:
        subclasses = [without(whole, each, PSEUDO_NOVEL) for each in _subclass_shares(data, config)]
    return RefitPools(whole, tuple(by_heads), by_kept, shares(*tenths), halves, tuple(subclasses))


def without(pools: Pools, is_out: torch.Tensor, kind: int) -> Pools:
    """Return the pools of a refit that do without some images and are asked about them.

    Args:
        pools: Of a refit.
        is_out: bool (num_rows,): known images.
        kind: Of those.
    """
    rows = is_out.nonzero()[:, 0]
    return replace(
        pools,
        train=pools.train[~is_out[pools.train]],
        left_out=is_out,
        val=rows,
        val_kind=torch.full_like(rows, kind),
        val_in_part_a=torch.zeros_like(rows, dtype=torch.bool),
    )


def _subclass_shares(data: Data, config: TrialConfig) -> Iterator[torch.Tensor]:
    """Give the images of each share of the subclasses, bool (num_rows,), dealt evenly over the
    superclasses: none where a trial holds none out, nor the only one of a superclass, without which
    nothing would train that.
    """
    if not num_held_out(data, config):
        return
    dealt: list[int] = []
    for superclass in range(len(data.superclasses)):
        members = [each for each, of in enumerate(data.super_of_sub) if of == superclass]
        order = generator(config.seed, "subclass share", superclass)
        shuffled = torch.randperm(len(members), generator=order).tolist()
        dealt += [members[place] for place in shuffled if len(members) > 1]
    for share in range(SUBCLASS_SHARES):
        if out := dealt[share::SUBCLASS_SHARES]:
            yield torch.isin(data.subclass, torch.tensor(out))


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
    """Return `rule` with taus of `tasks` that reject the same shares of `known` images: the
    superclass's of both kinds, where there are images of held-out subclasses.
    """
    seen = known.where(known.kind == SEEN)
    if "super" in tasks:
        share = rejected.super if len(seen.rows) == len(known.rows) else rejected.super_of_both
        score = acceptance(known, "super", rule.super_score)
        rule = replace(rule, tau_super=_rejecting(score, share, rule.tau_super, known.kind))
    if "sub" in tasks:
        score, superclass = _sub_scores(seen, rule)
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


def _rejected_super(rule: Rule, known: Outputs) -> float:
    accepted = acceptance(known, "super", rule.super_score) >= rule.tau_super
    return float((~accepted).double().mean())


def _rejecting(
    score_N: torch.Tensor, share: float, before: float, group_N: torch.Tensor | None = None
) -> float:
    """Return the tau that rejects a share of the images, below them all where that is nothing.

    It stays as `before` where novel is the argmax of all images, or there are none.
    """
    if not score_N.isfinite().any():
        return before
    return conformal_threshold(score_N, max(share, 1 / (len(score_N) + 1)), group_N)
