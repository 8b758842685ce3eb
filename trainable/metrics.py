"""What a trial reports: accuracies by its rule, and threshold-free curves."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

from trainable.calibration import Outputs, Threshold, available_scores, choose_rule
from trainable.config import TASKS, TrialConfig
from trainable.novelty import Rule, acceptance, decide, harmonic_mean
from trainable.splits import NOVEL, PSEUDO_NOVEL, SECOND, SEEN

CONFORMAL_REJECTION = 0.05
"""Known images that the table's conformal thresholds may reject, where the config says nothing."""
ECE_BINS = 15

METRICS: dict[str, Literal["maximize", "minimize"]] = {
    "score": "maximize",
    "score_calibrated": "maximize",
    "seen_super": "maximize",
    "unseen_super": "maximize",
    "overall_super": "maximize",
    "hmean_super": "maximize",
    "known_rejected_super": "minimize",
    "seen_sub": "maximize",
    "unseen_sub": "maximize",
    "unseen_sub_near": "maximize",
    "unseen_sub_far": "maximize",
    "unseen_sub_second": "maximize",
    "overall_sub": "maximize",
    "hmean_sub": "maximize",
    "known_rejected_sub": "minimize",
    "ce_super": "minimize",
    "ce_sub": "minimize",
    "ece_super": "minimize",
    "ece_sub": "minimize",
    "auroc_super": "maximize",
    "auroc_sub": "maximize",
    "auroc_sub_second": "maximize",
    "aupr_super": "maximize",
    "aupr_sub": "maximize",
    "oscr_sub": "maximize",
    "hierarchy_area": "maximize",
    "fpr95_super": "minimize",
    "fpr95_sub": "minimize",
    "known_rejected95_super": "minimize",
    "known_rejected95_sub": "minimize",
}
"""What a search may optimise, and in which direction. All but the ce_* are fractions, 0 to 1.

fpr95: novel images accepted where 95% of the known ones are. known_rejected95, its mirror: known
images rejected where 95% of the novel ones are. aupr: novel is the positive class.
"""


def judgements(outputs: Outputs, rule: Rule) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return for each rate which images it is over, and which of those count: bool (N,) each."""
    superclass, subclass = decide(outputs, rule)
    right_super = superclass == outputs.super_target
    right_sub = subclass == outputs.sub_target
    novel_super, novel_sub = outputs.super_logits.shape[1] - 1, outputs.sub_logits.shape[1] - 1
    kind = outputs.kind
    everything = torch.ones_like(right_sub)
    return {
        "seen_super": (kind != NOVEL, right_super),
        "unseen_super": (kind == NOVEL, right_super),
        "overall_super": (everything, right_super),
        "known_rejected_super": (kind != NOVEL, superclass == novel_super),
        "seen_sub": (kind == SEEN, right_sub),
        "unseen_sub": (kind != SEEN, right_sub),
        "unseen_sub_near": (kind == PSEUDO_NOVEL, right_sub),
        "unseen_sub_far": (kind == NOVEL, right_sub),
        "overall_sub": (everything, right_sub),
        "known_rejected_sub": (kind == SEEN, subclass == novel_sub),
    }


def combined(rates: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the rates and what follows from them: hmean_* and score, where their parts are there.

    Args:
        rates: By name; float64 of any one shape, such as (R,) for R resamples.
    """
    result = dict(rates)
    for task in TASKS:
        if {f"seen_{task}", f"unseen_{task}"} <= rates.keys():
            seen, unseen = rates[f"seen_{task}"], rates[f"unseen_{task}"]
            result[f"hmean_{task}"] = harmonic_mean(seen, unseen)
    if {"hmean_super", "hmean_sub"} <= result.keys():
        result["score"] = (result["hmean_super"] + result["hmean_sub"]) / 2
    return result


def accuracies(outputs: Outputs, rule: Rule) -> dict[str, float]:
    """Return the metrics that depend on thresholds, as fractions; empty groups are left out."""
    rates = {
        name: counts[over].double().mean()
        for name, (over, counts) in judgements(outputs, rule).items()
        if over.any()
    }
    return {name: float(value) for name, value in combined(rates).items()}


def judge(outputs: Outputs, rule: Rule) -> dict[str, float]:
    """Return every metric of labelled images that were answered by `rule`.

    What has no images is left out: no `unseen_super` without a novel superclass.
    """
    main = outputs.where(outputs.kind != SECOND)
    result = accuracies(main, rule)
    is_seen = main.kind == SEEN
    for task in TASKS:
        score = main.score(task, rule.super_score if task == "super" else rule.sub_score)
        known = main.is_known(task)
        logits, target = main.logits(task).double(), main.target(task)
        result |= {
            f"ce_{task}": float(F.cross_entropy(logits, target)),
            f"ece_{task}": expected_calibration_error(logits, target),
        }
        if known.any() and not known.all():
            for metric, value in separation(score[known], score[~known]).items():
                result[f"{metric}_{task}"] = value
    score = main.score("sub", rule.sub_score)
    correct = main.sub_logits[:, :-1].argmax(1) == main.sub_target
    if is_seen.any() and not is_seen.all():
        result["oscr_sub"] = oscr(score[is_seen], correct[is_seen], score[~is_seen])
        result["hierarchy_area"] = hierarchy_area(main, rule)
    second = outputs.where(outputs.kind == SECOND)
    if len(second.rows):
        novel_sub = second.sub_logits.shape[1] - 1
        result["unseen_sub_second"] = float((decide(second, rule)[1] == novel_sub).double().mean())
        result["auroc_sub_second"] = auroc(score[is_seen], second.score("sub", rule.sub_score))
    return result


def evaluate(outputs: Outputs, config: TrialConfig) -> dict[str, float]:
    """Return every metric of the evaluation half, and the thresholds used (`tau_*`).

    `score_calibration` is the score on the calibration half: it chooses epochs, and is never
    a result. `score_calibrated` is the score with thresholds for the highest harmonic mean,
    whatever the config's. `tau_sub` is the mean where each superclass has its own.
    """
    rule = choose_rule(outputs, config)
    free, calibrated = Threshold(), rule
    if any(Threshold.of(config, task) != free for task in TASKS):
        calibrated = choose_rule(outputs, config, super_threshold=free, sub_threshold=free)
    everything = outputs.half(calibration=False)
    result = judge(everything, rule)
    result["score_calibrated"] = result["score"]
    if calibrated is not rule:
        half = everything.where(everything.kind != SECOND)
        result["score_calibrated"] = accuracies(half, calibrated)["score"]
    result["score_calibration"] = accuracies(outputs.half(calibration=True), rule)["score"]
    tau_sub = sum(rule.tau_sub) / len(rule.tau_sub)
    return result | {"tau_super": rule.tau_super, "tau_sub": tau_sub}


def score_table(outputs: Outputs, config: TrialConfig) -> Iterator[dict[str, Any]]:
    """Yield the evaluation half's result of every novelty score, kind of threshold and decision
    option that could have been chosen after the same training; one task at a time is varied.
    """
    everything = outputs.half(calibration=False)
    half = everything.where(everything.kind != SECOND)
    for task in TASKS:
        rejection = getattr(config, f"known_rejection_{task}") or CONFORMAL_REJECTION
        thresholds = [Threshold(), Threshold(known_rejection=rejection)]
        if getattr(config, f"tau_{task}") is not None:
            thresholds.append(Threshold.of(config, task))
        options = [(config.couple_novel, config.restrict_sub)]
        if task == "sub":
            options = [(couple, restrict) for couple in (False, True) for restrict in (False, True)]
        for name in available_scores(outputs, task):
            if name == "knn_difference" and config.novel_images == 0:
                continue  # it is knn then, and no config may ask for it
            score, known = half.score(task, name), half.is_known(task)
            curves = separation(score[known], score[~known])
            for threshold in thresholds:
                for couple, restrict in options:
                    changed: dict[str, Any] = {
                        f"{task}_novelty_score": name,
                        f"tau_{task}": None,
                        "couple_novel": couple,
                        "restrict_sub": restrict,
                    }
                    variant = replace(config, **changed)
                    rule = choose_rule(outputs, variant, **{f"{task}_threshold": threshold})
                    rates = accuracies(half, rule)
                    tau = [rule.tau_super] if task == "super" else rule.tau_sub
                    yield {
                        "task": task,
                        "novelty_score": name,
                        "threshold": threshold.describe(),
                        "couple_novel": couple,
                        "restrict_sub": restrict,
                        "tau": " ".join(f"{each:.6g}" for each in dict.fromkeys(tau)),
                        **{
                            kind: rates[f"{kind}_{task}"]
                            for kind in ("hmean", "seen", "unseen", "known_rejected", "overall")
                        },
                        "score": rates["score"],
                        **curves,
                    }


def separation(known_N: torch.Tensor, novel_M: torch.Tensor) -> dict[str, float]:
    """Return how well scores tell known images from novel ones, without a threshold."""
    return {
        "auroc": auroc(known_N, novel_M),
        "aupr": average_precision(-novel_M, -known_N),
        "fpr95": fpr_at_tpr(known_N, novel_M, 0.95),
        "known_rejected95": fpr_at_tpr(-novel_M, -known_N, 0.95),
    }


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


def average_precision(positive_N: torch.Tensor, negative_M: torch.Tensor) -> float:
    """Return the area under the precision-recall curve as a sum over its steps.

    Images of one score come together, as in scikit-learn's `average_precision_score`.
    """
    positive, negative = positive_N.sort().values, negative_M.sort().values
    values, counts = positive.unique(return_counts=True)
    true = len(positive) - torch.searchsorted(positive, values)
    false = len(negative) - torch.searchsorted(negative, values)
    precision = true.double() / (true + false)
    return float((precision * counts).sum() / len(positive))


def expected_calibration_error(logits_NC: torch.Tensor, target_N: torch.Tensor) -> float:
    """Return the mean gap between confidence and accuracy (Naeini et al., AAAI 2015).

    Confidence is the largest softmax probability, novel included, in 15 bins of equal width.
    """
    confidence_N, answer_N = logits_NC.double().softmax(1).max(1)
    bin_N = (confidence_N * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gap_N = confidence_N - (answer_N == target_N).double()
    return float(gap_N.new_zeros(ECE_BINS).index_add(0, bin_N, gap_N).abs().sum() / len(gap_N))


def hierarchy_curve(outputs: Outputs, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return novel and known accuracy as the subclass's tau is swept upwards: float64 (T,) each.

    After Lee et al., Hierarchical Novelty Detection for Visual Object Recognition (CVPR 2018): a
    known image is right where superclass and subclass are; a novel one where its superclass is
    (novel, for borrowed images) and its subclass is called novel. The superclass's tau stays.
    """
    superclass, _ = decide(outputs, rule)
    right_super = superclass == outputs.super_target
    score = acceptance(outputs, "sub", rule.sub_score, restrict_sub=rule.restrict_sub)
    if rule.couple_novel:
        score = score.masked_fill(superclass == outputs.super_logits.shape[1] - 1, -torch.inf)
    is_seen = outputs.kind == SEEN
    _, likeliest_known = outputs.answer("sub", restrict_sub=rule.restrict_sub)
    right_sub = likeliest_known == outputs.sub_target
    known = score[is_seen & right_super & right_sub].sort().values
    known = known[known.isfinite()]
    novel = score[~is_seen & right_super].sort().values
    # One tau at each score, which accepts it, and one above them all.
    taus = torch.cat([torch.cat([known, novel]).unique(), torch.tensor([torch.inf]).double()])
    known_accuracy = (len(known) - torch.searchsorted(known, taus)).double() / is_seen.sum()
    novel_accuracy = torch.searchsorted(novel, taus).double() / (~is_seen).sum()
    return novel_accuracy, known_accuracy


def both_right(outputs: Outputs, rule: Rule) -> tuple[float, float]:
    """Return novel and known accuracy by `rule`: where its own tau lies on `hierarchy_curve`."""
    superclass, subclass = decide(outputs, rule)
    right = (superclass == outputs.super_target) & (subclass == outputs.sub_target)
    is_seen = outputs.kind == SEEN
    return float(right[~is_seen].double().mean()), float(right[is_seen].double().mean())


def hierarchy_area(outputs: Outputs, rule: Rule) -> float:
    """Return the area under `hierarchy_curve`, by trapezoids."""
    novel_accuracy, known_accuracy = hierarchy_curve(outputs, rule)
    return float(torch.trapezoid(known_accuracy, novel_accuracy))
