"""Which rule a trial answers by: its scores and thresholds, chosen on the calibration half."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from trainable.config import BEST, NOVELTY_SCORES, Task, TrialConfig
from trainable.novelty import (
    Response,
    Rule,
    acceptance,
    calibrate,
    conformal_threshold,
    harmonic_mean,
)
from trainable.splits import NOVEL, SECOND, SEEN


@dataclass(frozen=True, kw_only=True)
class Outputs(Response):
    """What a model says about the validation images, and what is true."""

    super_target: torch.Tensor
    """int64 (N,)."""
    sub_target: torch.Tensor
    """int64 (N,): held-out subclasses and borrowed images are novel."""
    kind: torch.Tensor
    """int64 (N,): SEEN, PSEUDO_NOVEL, NOVEL or SECOND."""
    is_calibration: torch.Tensor
    """bool (N,)."""
    rows: torch.Tensor
    """int64 (N,): the images, as rows of the data set."""
    true_class: torch.Tensor
    """int64 (N,): what each image shows, see `splits.true_classes`; -1 where nobody knows. Images
    of one class err alike, so intervals resample classes."""

    def where(self, keep_N: torch.Tensor) -> "Outputs":
        """Return the images that `keep_N` selects."""
        names = [field.name for field in fields(self) if field.name != "super_of_sub"]
        return replace(self, **{name: getattr(self, name)[keep_N] for name in names})

    def half(self, *, calibration: bool) -> "Outputs":
        """Return the images that choose thresholds, or those that are reported on."""
        return self.once(
            ("half", calibration), lambda: self.where(self.is_calibration == calibration)
        )

    def all_calibrating(self) -> "Outputs":
        """Return the same images, all choosing thresholds but those of the second hold-out.

        For a model whose validation is over: twice as many images choose more exactly.
        """
        return replace(self, is_calibration=self.kind != SECOND)

    def target(self, task: Task) -> torch.Tensor:
        """Return what `task` should answer, int64 (N,)."""
        return self.super_target if task == "super" else self.sub_target

    def is_known(self, task: Task) -> torch.Tensor:
        """Return which images are of a class known to `task`, bool (N,)."""
        return self.kind != NOVEL if task == "super" else self.kind == SEEN


@dataclass(frozen=True)
class Threshold:
    """How a tau is found: fixed, bounded (conformal), or else for the highest harmonic mean."""

    tau: float | None = None
    known_rejection: float | None = None

    @classmethod
    def of(cls, config: TrialConfig, task: Task) -> "Threshold":
        """Return what `config` asks for."""
        return cls(getattr(config, f"tau_{task}"), getattr(config, f"known_rejection_{task}"))

    def find(self, score_N: torch.Tensor, correct_N: torch.Tensor, known_N: torch.Tensor) -> float:
        """Return tau; the arguments are those of `calibrate`."""
        if self.tau is not None:
            return self.tau
        if self.known_rejection is not None:
            return conformal_threshold(score_N[known_N], self.known_rejection)
        return calibrate(score_N, correct_N, known_N)

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
    """Return the rule that `config` asks for, chosen on the calibration half of `outputs`.

    The superclass's part is chosen first; with `couple_novel` the subclass's given its decisions.

    Args:
        outputs: Both halves; only the calibration half is looked at.
        config: Scores, thresholds and decision options.
        super_threshold: In place of what `config` says.
        sub_threshold: In place of what `config` says.
    """
    half = outputs.half(calibration=True)
    super_threshold = super_threshold or Threshold.of(config, "super")
    sub_threshold = sub_threshold or Threshold.of(config, "sub")
    nothing = torch.zeros(len(half.rows), dtype=torch.bool)
    super_score, tau_super = max(
        _choices(half, "super", config, super_threshold, nothing), key=lambda each: each[0]
    )[1:]
    rejected = nothing
    if config.couple_novel:
        rejected = ~(acceptance(half, "super", super_score) >= tau_super[0])
    sub_score, tau_sub = max(
        _choices(half, "sub", config, sub_threshold, rejected), key=lambda each: each[0]
    )[1:]
    return Rule(
        super_score=super_score,
        sub_score=sub_score,
        tau_super=tau_super[0],
        tau_sub=tau_sub,
        couple_novel=config.couple_novel,
        restrict_sub=config.restrict_sub,
    )


def scores_of(response: Response, task: Task, config: TrialConfig) -> tuple[str, ...]:
    """Return the novelty scores that `config` lets `task` choose from."""
    name = config.of(task, "novelty_score")
    return available_scores(response, task) if name == BEST else (name,)


def available_scores(response: Response, task: Task) -> tuple[str, ...]:
    """Return the novelty scores that `response` has; without a bank those of features are NaN."""
    return tuple(name for name in NOVELTY_SCORES if not response.score(task, name).isnan().any())


def _choices(
    half: Outputs, task: Task, config: TrialConfig, threshold: Threshold, rejected_N: torch.Tensor
) -> Iterator[tuple[float, str, tuple[float, ...]]]:
    """Yield the harmonic mean, score and taus of every score that `config` allows.

    Args:
        half: The calibration half.
        task: Whose rule.
        config: Its scores and options.
        threshold: How tau is found.
        rejected_N: bool, images that are novel whatever their score.
    """
    restrict_sub = task == "sub" and config.restrict_sub
    answer, likeliest_known = half.answer(task, restrict_sub=restrict_sub)
    known = half.is_known(task)
    correct = (answer == half.target(task)) & ~rejected_N
    num_superclasses = half.super_logits.shape[1] - 1
    superclass = half.super_of_sub[likeliest_known] if task == "sub" else None
    for name in scores_of(half, task, config):
        score = acceptance(half, task, name, restrict_sub=restrict_sub)
        score = score.masked_fill(rejected_N, -torch.inf)
        tau = threshold.find(score, correct, known)
        taus = [tau] * (num_superclasses if task == "sub" else 1)
        if superclass is not None and config.tau_sub_per_superclass:
            for each in range(num_superclasses):
                group = superclass == each
                if (group & known).any() and (group & ~known).any():
                    taus[each] = threshold.find(score[group], correct[group], known[group])
        own_tau = tau if superclass is None else torch.tensor(taus).double()[superclass]
        accepted = score >= own_tau
        rates = (accepted & correct)[known].double().mean(), (~accepted)[~known].double().mean()
        yield float(harmonic_mean(*rates)), name, tuple(taus)
