"""Which rule a trial answers by: its scores and thresholds, chosen on validation images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch

from trainable.config import BEST, Task, TrialConfig
from trainable.data.splits import LEFT_OUT, NOVEL_SUPER, SECOND, SEEN
from trainable.novelty.rule import (
    Response,
    Rule,
    acceptance,
    by_image,
    calibrate,
    conformal_threshold,
    decide,
    harmonic_mean,
)
from trainable.novelty.scores.sums import standardised
from trainable.parts import SCORES


@dataclass(frozen=True, kw_only=True)
class Outputs(Response):
    """What a model says about the validation images, and what is true."""

    super_target: torch.Tensor
    """int64 (N,)."""
    sub_target: torch.Tensor
    """int64 (N,): held-out subclasses and borrowed images are novel."""
    kind: torch.Tensor
    """int64 (N,): SEEN, PSEUDO_NOVEL, NOVEL_SUPER or SECOND, or in a fold LEFT_OUT."""
    in_part_a: torch.Tensor
    """bool (N,): in part A, else in part B, see `splits.make_pools`."""
    rows: torch.Tensor
    """int64 (N,): the images, as rows of the data set."""
    true_class: torch.Tensor
    """int64 (N,): what each image shows, see `splits.true_classes`; -1 where nobody knows. Images
    of one class err alike, so intervals resample classes."""
    folds: tuple["Fold", ...] = ()
    """What models say about the same images that never saw one of the superclasses."""

    def where(self, keep_N: torch.Tensor) -> Self:
        """Return the images that `keep_N` selects."""
        kept = by_image([self], lambda parts: parts[0][keep_N])
        return replace(self, **kept, folds=tuple(fold.where(keep_N) for fold in self.folds))

    def is_finite(self) -> bool:
        """Return whether all logits are numbers."""
        return bool(self.super_logits.isfinite().all() and self.sub_logits.isfinite().all())

    def part(self, *, a: bool) -> Self:
        """Return the images of part A, or those of part B."""
        return self.once(("part", a), lambda: self.where(self.in_part_a == a))

    def choosing(self) -> Self:
        """Return the images that may choose a rule: all but those of the second hold-out and of
        what a fold leaves out.
        """
        return self.once(("choosing",), lambda: self.where(self.kind < SECOND))

    def target(self, task: Task) -> torch.Tensor:
        """Return what `task` should answer, int64 (N,)."""
        return self.super_target if task == "super" else self.sub_target

    def is_known(self, task: Task) -> torch.Tensor:
        """Return which images are of a class known to `task`, bool (N,)."""
        if task == "sub":
            return self.kind == SEEN
        return (self.kind != NOVEL_SUPER) & (self.kind != LEFT_OUT)


@dataclass(frozen=True, kw_only=True)
class Fold(Outputs):
    """What a model says that never saw one known superclass, whose images are of kind LEFT_OUT.

    Outputs and targets count without that superclass and its subclasses.
    """

    superclass: int
    """The one left out, as the data counts."""
    exact: tuple[Task, ...]
    """Whose branch never saw it; the features of another one did."""


@dataclass(frozen=True)
class Threshold:
    """How a tau is found: fixed, bounded (conformal), or else for the highest harmonic mean."""

    tau: float | None = None
    known_rejection: float | None = None

    @classmethod
    def of(cls, config: TrialConfig, task: Task) -> "Threshold":
        """Return what `config` asks for."""
        return cls(getattr(config, f"tau_{task}"), getattr(config, f"known_rejection_{task}"))

    def find(
        self,
        score_N: torch.Tensor,
        correct_N: torch.Tensor,
        known_N: torch.Tensor,
        group_N: torch.Tensor,
    ) -> float:
        """Return tau; the arguments are those of `calibrate`."""
        if self.tau is not None:
            return self.tau
        if self.known_rejection is not None:
            return conformal_threshold(score_N[known_N], self.known_rejection, group_N[known_N])
        return calibrate(score_N, correct_N, known_N, group_N)

    def describe(self) -> str:
        """Return its name in tables."""
        if self.tau is not None:
            return "fixed"
        return "harmonic_mean" if self.known_rejection is None else f"reject_{self.known_rejection}"


def choose_rule(
    outputs: Outputs,
    config: TrialConfig,
    *,
    super_threshold: Threshold | None = None,
    sub_threshold: Threshold | None = None,
) -> Rule:
    """Return the rule that `config` asks for, chosen on `outputs.choosing()`.

    The superclass's part is chosen first; with `couple_novel` the subclass's given its decisions.

    Args:
        outputs: Of both parts for a model whose validation is over; of one part for a rule that
            is judged on the other, see `PartRules`.
        config: Scores, thresholds and decision options.
        super_threshold: In place of what `config` says.
        sub_threshold: In place of what `config` says.
    """
    images = outputs.choosing()
    super_threshold = super_threshold or Threshold.of(config, "super")
    sub_threshold = sub_threshold or Threshold.of(config, "sub")
    super_score, tau_super = _best_choice(images, "super", config, super_threshold, None)
    coupled = (super_score, tau_super[0]) if config.couple_novel else None
    sub_score, tau_sub = _best_choice(images, "sub", config, sub_threshold, coupled)
    return Rule(
        super_score=super_score,
        sub_score=sub_score,
        tau_super=tau_super[0],
        tau_sub=tau_sub,
        couple_novel=config.couple_novel,
        restrict_sub=config.restrict_sub,
    )


@dataclass(frozen=True)
class Answers:
    """What N images were answered."""

    superclass: torch.Tensor
    """int64 (N,)."""
    subclass: torch.Tensor
    """int64 (N,)."""
    folds: tuple["Answers", ...] = ()
    """Of each fold, as it counts."""

    def where(self, keep_N: torch.Tensor) -> "Answers":
        """Return those to the images that `keep_N` selects."""
        folds = tuple(fold.where(keep_N) for fold in self.folds)
        return Answers(self.superclass[keep_N], self.subclass[keep_N], folds)


@dataclass(frozen=True)
class PartRules:
    """Cross-fitting: a rule chosen on each part, so that all choose and none is judged by itself.

    See Chernozhukov et al., Double/debiased machine learning (The Econometrics Journal, 2018).
    """

    a: Rule
    """Chosen on part A."""
    b: Rule
    """Chosen on part B."""
    folds: tuple["PartRules", ...] = ()
    """Of each fold, chosen without what it leaves out."""

    @classmethod
    def choose(cls, outputs: Outputs, config: TrialConfig, **thresholds: Threshold) -> "PartRules":
        """Return what `config` asks for; `thresholds` are those of `choose_rule`."""
        a, b = (choose_rule(outputs.part(a=is_a), config, **thresholds) for is_a in (True, False))
        return cls(a, b, tuple(cls.choose(fold, config, **thresholds) for fold in outputs.folds))

    def judging(self, *, a: bool) -> Rule:
        """Return the rule that judges part A, which was chosen on B, or the other."""
        return self.b if a else self.a

    def answers(self, outputs: Outputs, *, in_sample: bool = False) -> Answers:
        """Return the answers to both parts, each by the rule that was chosen on the other.

        Args:
            outputs: Of both parts.
            in_sample: Each by its own rule instead: what chooses, and is never a result.
        """
        by_a, by_b = decide(outputs, self.a), decide(outputs, self.b)
        is_by_a = outputs.in_part_a if in_sample else ~outputs.in_part_a
        superclass, subclass = (torch.where(is_by_a, a, b) for a, b in zip(by_a, by_b, strict=True))
        of_folds = (
            rules.answers(fold, in_sample=in_sample)
            for rules, fold in zip(self.folds, outputs.folds, strict=True)
        )
        return Answers(superclass, subclass, tuple(of_folds))


def scores_of(response: Response, task: Task, config: TrialConfig) -> tuple[str, ...]:
    """Return the novelty scores that `config` lets `task` choose from."""
    name = config.of(task, "novelty_score")
    return available_scores(response, task) if name == BEST else (name,)


def _standardised(images: Outputs, task: Task, name: str) -> str:
    """Return the score's name, of a sum with what the known ones of `images` standardise it by."""
    known = images.is_known(task)
    return standardised(name, lambda part: images.score(task, part)[known])


def available_scores(response: Response, task: Task) -> tuple[str, ...]:
    """Return the novelty scores that `response` has; of features those that were computed."""
    return tuple(name for name in SCORES if not response.score(task, name).isnan().any())


def _best_choice(
    images: Outputs,
    task: Task,
    config: TrialConfig,
    threshold: Threshold,
    coupled: tuple[str, float] | None,
) -> tuple[str, tuple[float, ...]]:
    """Return the score and taus of the highest harmonic mean.

    Many rules differ in the other task alone, so what they have in common is found once.

    Args:
        images: Those that choose.
        task: Whose rule.
        config: Its scores and options.
        threshold: How tau is found.
        coupled: Score and tau of the superclass, where what it calls novel is novel here too.
    """

    def compute() -> tuple[str, tuple[float, ...]]:
        rejected = torch.zeros(len(images.rows), dtype=torch.bool)
        if coupled is not None:
            score, tau = coupled
            rejected = ~(acceptance(images, "super", score) >= tau)
        choices = _choices(images, task, config, threshold, rejected)
        return max(choices, key=lambda each: each[0])[1:]

    # All of the config that `_choices` reads.
    names = scores_of(images, task, config)
    options = (config.restrict_sub, config.tau_sub_per_superclass) if task == "sub" else ()
    return images.once(("choice", task, names, options, threshold, coupled), compute)


def _choices(
    images: Outputs, task: Task, config: TrialConfig, threshold: Threshold, rejected_N: torch.Tensor
) -> Iterator[tuple[float, str, tuple[float, ...]]]:
    """Yield the harmonic mean, score and taus of every score that `config` allows.

    Args:
        images: Those that choose.
        task: Whose rule.
        config: Its scores and options.
        threshold: How tau is found.
        rejected_N: bool, images that are novel whatever their score.
    """
    restrict_sub = task == "sub" and config.restrict_sub
    answer, likeliest_known = images.answer(task, restrict_sub=restrict_sub)
    known = images.is_known(task)
    correct = (answer == images.target(task)) & ~rejected_N
    num_superclasses = images.super_logits.shape[1] - 1
    superclass = images.super_of_sub[likeliest_known] if task == "sub" else None
    for plain_name in scores_of(images, task, config):
        name = _standardised(images, task, plain_name)
        score = acceptance(images, task, name, restrict_sub=restrict_sub)
        score = score.masked_fill(rejected_N, -torch.inf)
        tau = threshold.find(score, correct, known, images.kind)
        taus = [tau] * (num_superclasses if task == "sub" else 1)
        if superclass is not None and config.tau_sub_per_superclass:
            for each in range(num_superclasses):
                group = superclass == each
                if (group & known).any() and (group & ~known).any():
                    taus[each] = threshold.find(
                        score[group], correct[group], known[group], images.kind[group]
                    )
        own_tau = tau if superclass is None else torch.tensor(taus).double()[superclass]
        accepted = score >= own_tau
        rates = (
            _group_mean(accepted & correct, images.kind, known),
            _group_mean(~accepted, images.kind, ~known),
        )
        yield float(harmonic_mean(*rates)), name, tuple(taus)


def _group_mean(
    counts_N: torch.Tensor, group_N: torch.Tensor, among_N: torch.Tensor
) -> torch.Tensor:
    """Return the mean over groups of the share that counts: a float64 scalar."""
    groups = (among_N & (group_N == each) for each in group_N[among_N].unique())
    return torch.stack([counts_N[group].double().mean() for group in groups]).mean()
