"""What a trial reports: accuracies at its thresholds, and threshold-free curves."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn.functional as F

from trainable.config import TASKS, Task, TrialConfig
from trainable.novelty import acceptance, calibrate, decide, harmonic_mean, novelty_score
from trainable.splits import NOVEL, PSEUDO_NOVEL, SEEN

METRICS: dict[str, Literal["maximize", "minimize"]] = {
    "score": "maximize",
    "score_calibrated": "maximize",
    "seen_super": "maximize",
    "unseen_super": "maximize",
    "overall_super": "maximize",
    "hmean_super": "maximize",
    "seen_sub": "maximize",
    "unseen_sub": "maximize",
    "unseen_sub_near": "maximize",
    "unseen_sub_far": "maximize",
    "overall_sub": "maximize",
    "hmean_sub": "maximize",
    "ce_super": "minimize",
    "ce_sub": "minimize",
    "auroc_super": "maximize",
    "auroc_sub": "maximize",
    "oscr_sub": "maximize",
    "fpr95_super": "minimize",
    "fpr95_sub": "minimize",
}
"""What a search may optimise, and in which direction. All but the ce_* are fractions, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a model says about the validation images: every threshold and score follows from it."""

    super_logits: torch.Tensor
    """float (N, K + 1), novel last."""
    sub_logits: torch.Tensor
    """float (N, C + 1), novel last."""
    super_target: torch.Tensor
    """int64 (N,)."""
    sub_target: torch.Tensor
    """int64 (N,): held-out subclasses and borrowed images are novel."""
    kind: torch.Tensor
    """int64 (N,): SEEN, PSEUDO_NOVEL or NOVEL."""
    is_calibration: torch.Tensor
    """bool (N,)."""
    rows: torch.Tensor
    """int64 (N,): the images, as rows of the data set."""

    def half(self, *, calibration: bool) -> "Outputs":
        """Return the images that choose thresholds, or those that are reported on."""
        keep = self.is_calibration == calibration
        return replace(self, **{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    def of(self, task: Task) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits, targets and which images are known to `task`."""
        if task == "super":
            return self.super_logits, self.super_target, self.kind != NOVEL
        return self.sub_logits, self.sub_target, self.kind == SEEN


@dataclass(frozen=True)
class Thresholds:
    """The novelty-score values from which a class is accepted."""

    super: float
    sub: float


def calibrated_thresholds(outputs: Outputs, config: TrialConfig) -> Thresholds:
    """Return both taus chosen on the calibration half of `outputs`."""
    return _thresholds(outputs, config, {"super": None, "sub": None})


def thresholds(outputs: Outputs, config: TrialConfig) -> Thresholds:
    """Return the config's fixed taus, and calibrated ones where the config has null."""
    return _thresholds(outputs, config, {"super": config.tau_super, "sub": config.tau_sub})


def _thresholds(
    outputs: Outputs, config: TrialConfig, fixed: Mapping[Task, float | None]
) -> Thresholds:
    """With `couple_novel` the subclass threshold is chosen given the superclass decision."""
    half = outputs.half(calibration=True)
    tau: dict[Task, float] = {}
    rejected = torch.zeros(len(half.rows), dtype=torch.bool)
    for task in TASKS:
        logits, target, known = half.of(task)
        score = acceptance(logits, config.of(task, "novelty_score"))
        score = score.masked_fill(rejected, -torch.inf)
        correct = (logits.argmax(1) == target) & ~rejected
        given = fixed[task]
        tau[task] = calibrate(score, correct, known) if given is None else given
        if config.couple_novel:
            rejected = ~(score >= tau[task])
    return Thresholds(tau["super"], tau["sub"])


def accuracies(outputs: Outputs, config: TrialConfig, tau: Thresholds) -> dict[str, float]:
    """Return the metrics that depend on thresholds, as fractions; empty groups are left out."""
    superclass, subclass = decide(
        outputs.super_logits,
        outputs.sub_logits,
        acceptance(outputs.super_logits, config.of("super", "novelty_score")),
        acceptance(outputs.sub_logits, config.of("sub", "novelty_score")),
        tau_super=tau.super,
        tau_sub=tau.sub,
        couple_novel=config.couple_novel,
    )
    right_super = superclass == outputs.super_target
    right_sub = subclass == outputs.sub_target
    kind = outputs.kind
    groups = {
        "seen_super": right_super[kind != NOVEL],
        "unseen_super": right_super[kind == NOVEL],
        "overall_super": right_super,
        "seen_sub": right_sub[kind == SEEN],
        "unseen_sub": right_sub[kind != SEEN],
        "unseen_sub_near": right_sub[kind == PSEUDO_NOVEL],
        "unseen_sub_far": right_sub[kind == NOVEL],
        "overall_sub": right_sub,
    }
    result = {name: float(r.double().mean()) for name, r in groups.items() if len(r)}
    for task in TASKS:
        rates = [result[f"seen_{task}"], result[f"unseen_{task}"]]
        result[f"hmean_{task}"] = float(harmonic_mean(*torch.tensor(rates, dtype=torch.float64)))
    result["score"] = (result["hmean_super"] + result["hmean_sub"]) / 2
    return result


def evaluate(outputs: Outputs, config: TrialConfig) -> dict[str, float]:
    """Return every metric of the evaluation half, and the thresholds used (`tau_*`).

    `score_calibration` is the score on the calibration half: it chooses epochs, and is never
    a result. `score_calibrated` is the score with calibrated thresholds, whatever the config's.
    """
    tau = thresholds(outputs, config)
    half = outputs.half(calibration=False)
    result = accuracies(half, config, tau)
    result["score_calibrated"] = accuracies(half, config, calibrated_thresholds(outputs, config))[
        "score"
    ]
    result["score_calibration"] = accuracies(outputs.half(calibration=True), config, tau)["score"]
    for task in TASKS:
        logits, target, known = half.of(task)
        score = novelty_score(logits, config.of(task, "novelty_score"))
        result[f"ce_{task}"] = float(F.cross_entropy(logits.double(), target))
        result[f"auroc_{task}"] = auroc(score[known], score[~known])
        result[f"fpr95_{task}"] = fpr_at_tpr(score[known], score[~known], 0.95)
    correct = half.sub_logits[:, :-1].argmax(1) == half.sub_target
    score = novelty_score(half.sub_logits, config.of("sub", "novelty_score"))
    known = half.kind == SEEN
    result["oscr_sub"] = oscr(score[known], correct[known], score[~known])
    return result | {"tau_super": tau.super, "tau_sub": tau.sub}


def auroc(known_N: torch.Tensor, novel_M: torch.Tensor) -> float:
    """Return the probability that a known image scores above a novel one; ties count half."""
    novel = novel_M.sort().values
    below = torch.searchsorted(novel, known_N)
    up_to = torch.searchsorted(novel, known_N, right=True)
    return float((below + up_to).double().mean() / (2 * len(novel)))


def fpr_at_tpr(known_N: torch.Tensor, novel_M: torch.Tensor, tpr: float) -> float:
    """Return the fraction of novel images accepted where at least `tpr` of the known ones are."""
    count = int(torch.ceil(torch.tensor(tpr * len(known_N), dtype=torch.float64) - 1e-9))
    threshold = known_N.sort(descending=True).values[max(count, 1) - 1]
    return float((novel_M >= threshold).double().mean())


def oscr(known_N: torch.Tensor, correct_N: torch.Tensor, novel_M: torch.Tensor) -> float:
    """Return the area under known images accepted and right, against novel images accepted.

    Dhamija, Günther and Boult (NeurIPS 2018), integrated exactly over all thresholds with ties
    counting half, so that with a perfect classifier it equals the AUROC.
    """
    if not correct_N.any():
        return 0.0
    return auroc(known_N[correct_N], novel_M) * float(correct_N.double().mean())
