"""What a trial reports: accuracies by its rule, and threshold-free curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

import torch
import torch.nn.functional as F

from trainable.config import BEST, TASKS, Task, TrialConfig
from trainable.data.splits import LEFT_OUT, NOVEL_SUPER, PSEUDO_NOVEL, SECOND, SEEN
from trainable.novelty.hierarchy import hierarchy_area
from trainable.novelty.rule import Rule, decide, harmonic_mean
from trainable.novelty.separation import auroc, expected_calibration_error, oscr, separation
from trainable.novelty.thresholds import (
    Answers,
    Fold,
    Outputs,
    PartRules,
    Threshold,
    available_scores,
    choose_rule,
)
from trainable.parts import SCORES, needs_borrowed

CONFORMAL_REJECTION = 0.05
"""Known images that the table's conformal thresholds may reject, where the config says nothing."""

METRICS: dict[str, Literal["maximize", "minimize"]] = {
    "score": "maximize",
    "score_calibrated": "maximize",
    "seen_super": "maximize",
    "seen_super_seen": "maximize",
    "seen_super_held_out": "maximize",
    "unseen_super": "maximize",
    "unseen_super_borrowed": "maximize",
    "unseen_super_left_out": "maximize",
    "unseen_super_left_out_worst": "maximize",
    "overall_super": "maximize",
    "hmean_super": "maximize",
    "known_rejected_super": "minimize",
    "known_rejected_super_seen": "minimize",
    "known_rejected_super_held_out": "minimize",
    "known_rejected_super_left_out": "minimize",
    "known_rejected_super_left_out_worst": "minimize",
    "seen_sub": "maximize",
    "unseen_sub": "maximize",
    "unseen_sub_near": "maximize",
    "unseen_sub_far": "maximize",
    "unseen_sub_borrowed": "maximize",
    "unseen_sub_left_out": "maximize",
    "unseen_sub_left_out_worst": "maximize",
    "unseen_sub_second": "maximize",
    "overall_sub": "maximize",
    "hmean_sub": "maximize",
    "known_rejected_sub": "minimize",
    "ce_super": "minimize",
    "ce_sub": "minimize",
    "ece_super": "minimize",
    "ece_sub": "minimize",
    "auroc_super": "maximize",
    "auroc_super_left_out": "maximize",
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

What is over novel images is a mean over their groups: of a novel superclass those that were left
out, or borrowed images where none was (`unseen_super_borrowed` is of these alone); of a novel
subclass near and far ones.

fpr95: novel images accepted where 95% of the known ones are. known_rejected95, its mirror: known
images rejected where 95% of the novel ones are. aupr: novel is the positive class.
"""


MAIN = (
    "score", "seen_super", "unseen_super", "seen_sub", "unseen_sub",
    "known_rejected_super", "known_rejected_sub",
)  # fmt: skip
"""What tables show with its interval, and what is kept of each part of the validation images."""

LEFT_OUT_RATES = ("unseen_super_left_out_worst", "known_rejected_super_left_out")
CURVES = ("auroc", "aupr", "fpr95", "known_rejected95")
Judged = tuple[torch.Tensor, torch.Tensor]


def judgements(outputs: Outputs, answers: Answers) -> dict[str, Judged]:
    """Return for each rate which images it is over, and which of those count: bool (N,) each.

    Every rate is over images of one group; `combined` makes the others of them.
    """
    right_super = answers.superclass == outputs.super_target
    right_sub = answers.subclass == outputs.sub_target
    novel_super, novel_sub = outputs.super_logits.shape[1] - 1, outputs.sub_logits.shape[1] - 1
    rejected_super, rejected_sub = answers.superclass == novel_super, answers.subclass == novel_sub
    seen, held_out = outputs.kind == SEEN, outputs.kind == PSEUDO_NOVEL
    borrowed, second = outputs.kind == NOVEL_SUPER, outputs.kind == SECOND
    result = {
        "seen_super_seen": (seen, right_super),
        "seen_super_held_out": (held_out, right_super),
        "unseen_super_borrowed": (borrowed, right_super),
        "known_rejected_super_seen": (seen, rejected_super),
        "known_rejected_super_held_out": (held_out, rejected_super),
        "seen_sub": (seen, right_sub),
        "unseen_sub_near": (held_out, right_sub),
        "unseen_sub_borrowed": (borrowed, right_sub),
        "unseen_sub_second": (second, rejected_sub),
        "known_rejected_sub": (seen, rejected_sub),
    }
    for fold, of_fold in zip(outputs.folds, answers.folds, strict=True):
        result |= _judgements_of_fold(fold, of_fold)
    return result


def _judgements_of_fold(fold: Fold, answers: Answers) -> dict[str, Judged]:
    rejected_super = answers.superclass == fold.super_logits.shape[1] - 1
    rejected_sub = answers.subclass == fold.sub_logits.shape[1] - 1
    left_out, name = fold.kind == LEFT_OUT, fold.superclass
    result = {
        f"unseen_super_left_out.{name}": (left_out, rejected_super),
        f"known_rejected_super_left_out_seen.{name}": (fold.kind == SEEN, rejected_super),
        f"known_rejected_super_left_out_held_out.{name}": (
            fold.kind == PSEUDO_NOVEL,
            rejected_super,
        ),
    }
    if "sub" in fold.exact:
        result[f"unseen_sub_left_out.{name}"] = (left_out, rejected_sub)
    return result


def combined(rates: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the rates and what follows from them, where its parts are there.

    Groups count alike, however many images they have: how many were borrowed is nobody's result.
    What a novel superclass would meet is the mean over those that were left out, and what borrowed
    images meet only where none was.

    Args:
        rates: By name; float64 of any one shape, such as (R,) for R resamples.
    """
    result = dict(rates)

    def add_mean(name: str, *groups: str) -> None:
        if found := [result[group] for group in groups if group in result]:
            result[name] = torch.stack(found).mean(0)

    add_mean("seen_super", "seen_super_seen", "seen_super_held_out")
    add_mean("known_rejected_super", "known_rejected_super_seen", "known_rejected_super_held_out")
    rejected = "known_rejected_super_left_out"
    for fold in [name.rpartition(".")[2] for name in rates if name.startswith(f"{rejected}_seen.")]:
        add_mean(f"{rejected}.{fold}", f"{rejected}_seen.{fold}", f"{rejected}_held_out.{fold}")
    for name, worst in (
        ("unseen_super_left_out", torch.amin),
        (rejected, torch.amax),
        ("unseen_sub_left_out", torch.amin),
    ):
        of_folds = [value for each, value in result.items() if each.startswith(f"{name}.")]
        if of_folds:
            result[name] = torch.stack(of_folds).mean(0)
            result[f"{name}_worst"] = worst(torch.stack(of_folds), 0)
    for name in ("unseen_super", "unseen_sub"):
        far = "_far" if name == "unseen_sub" else ""
        which = "left_out" if f"{name}_left_out" in result else "borrowed"
        add_mean(f"{name}{far}", f"{name}_{which}")
    add_mean("unseen_sub", "unseen_sub_near", "unseen_sub_far")
    for task in TASKS:
        if {f"seen_{task}", f"unseen_{task}"} <= result.keys():
            seen, unseen = result[f"seen_{task}"], result[f"unseen_{task}"]
            result[f"overall_{task}"] = (seen + unseen) / 2
            result[f"hmean_{task}"] = harmonic_mean(seen, unseen)
    if {"hmean_super", "hmean_sub"} <= result.keys():
        result["score"] = (result["hmean_super"] + result["hmean_sub"]) / 2
    return result


def accuracies(outputs: Outputs, answers: Answers) -> dict[str, float]:
    """Return the metrics that depend on thresholds, as fractions; empty groups are left out."""
    rates = {
        name: counts[over].double().mean()
        for name, (over, counts) in judgements(outputs, answers).items()
        if over.any()
    }
    return {name: float(value) for name, value in combined(rates).items()}


def judge(outputs: Outputs, rule: Rule) -> dict[str, float]:
    """Return every metric of labelled images that were answered by `rule`.

    What has no images is left out: no `unseen_super` without a novel superclass.
    """
    result = accuracies(outputs, Answers(*decide(outputs, rule))) | curves(outputs, rule)
    return {name: value for name, value in result.items() if not name.endswith("_borrowed")}


def curves(outputs: Outputs, rule: Rule, of_folds: Sequence[Rule] = ()) -> dict[str, float]:
    """Return what does not depend on a threshold, by the scores of `rule` and those of folds."""
    main = outputs.choosing()
    result: dict[str, float] = {}
    for task in TASKS:
        logits, target = main.logits(task).double(), main.target(task)
        result |= {
            f"ce_{task}": float(F.cross_entropy(logits, target)),
            f"ece_{task}": expected_calibration_error(logits, target),
        }
        names = [
            each.super_score if task == "super" else each.sub_score for each in (rule, *of_folds)
        ]
        of_task = task_separation(outputs, task, *names)
        result |= {f"{metric}_{task}": value for metric, value in of_task.items()}
    if outputs.folds:
        result["auroc_super_left_out"] = result["auroc_super"]
    seen, second = main.where(main.kind == SEEN), outputs.where(outputs.kind == SECOND)
    if 0 < len(seen.rows) < len(main.rows):
        result["hierarchy_area"] = hierarchy_area(main, rule)
    if len(second.rows) and len(seen.rows):
        known, novel = (each.score("sub", rule.sub_score) for each in (seen, second))
        result["auroc_sub_second"] = auroc(known, novel)
    return result


def task_separation(outputs: Outputs, task: Task, name: str, *of_folds: str) -> dict[str, float]:
    """Return how well a score tells what `task` knows from what is novel to it, and for the
    subclass `oscr`: means over the groups of novel images; nothing where either is missing.

    Args:
        outputs: Images of a novel superclass are those that folds leave out, where `task` has
            folds, see `combined`.
        task: Whose score.
        name: Of the score.
        of_folds: Its name in each fold, which may have chosen another.
    """
    folds = [
        _separation_from(fold, task, score, LEFT_OUT)
        for fold, score in zip(outputs.folds, of_folds, strict=True)
        if task == "super" or task in fold.exact
    ]
    groups = [mean_metrics(folds) if folds else _separation_from(outputs, task, name, NOVEL_SUPER)]
    if task == "sub":
        groups.append(_separation_from(outputs, task, name, PSEUDO_NOVEL))
    return mean_metrics(groups)


def _separation_from(outputs: Outputs, task: Task, name: str, kind: int) -> dict[str, float]:
    score, known, novel = outputs.score(task, name), outputs.is_known(task), outputs.kind == kind
    known = known & (outputs.kind != SECOND)
    if not (known.any() and novel.any()):
        return {}
    result = separation(score[known], score[novel])
    if task == "sub":
        correct = outputs.sub_logits[:, :-1].argmax(1) == outputs.sub_target
        result["oscr"] = oscr(score[known], correct[known], score[novel])
    return result


def mean_metrics(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over those that have it."""
    names = dict.fromkeys(name for each in found for name in each)
    return {name: fmean(each[name] for each in found if name in each) for name in names}


def evaluate(outputs: Outputs, config: TrialConfig, chosen_by: str = "score") -> dict[str, float]:
    """Return every metric of the validation images, each judged by what the other part chose.

    Rates are over all images, curves the means of both parts. `tau_*` are the thresholds that both
    parts choose together, which the model is kept with; `tau_sub` is the mean where each superclass
    has its own. `score_calibration` is the score of each part by its own rule: it chooses epochs,
    and is never a result. So is `METRIC_calibration`, where epochs are `chosen_by` another METRIC;
    but for one of the second hold-out, on which nothing is tuned. `score_calibrated` is the score
    with thresholds for the highest harmonic mean, whatever the config's. `part_a.NAME` and
    `part_b.NAME` are the `MAIN` rates of one part.
    """
    rules = PartRules.choose(outputs, config)
    answers = rules.answers(outputs)
    result = accuracies(outputs, answers)
    parts = {"part_a": outputs.part(a=True), "part_b": outputs.part(a=False)}

    def curves_of_parts(*, in_sample: bool) -> list[dict[str, float]]:
        found = []
        for name, part in parts.items():
            is_a = (name == "part_a") != in_sample
            rule, *of_folds = (each.judging(a=is_a) for each in (rules, *rules.folds))
            found.append(curves(part, rule, of_folds))
        return found

    result |= mean_metrics(curves_of_parts(in_sample=False))
    result["score_calibrated"] = result["score"]
    free = Threshold()
    if any(Threshold.of(config, task) != free for task in TASKS):
        best = PartRules.choose(outputs, config, super_threshold=free, sub_threshold=free)
        result["score_calibrated"] = accuracies(outputs, best.answers(outputs))["score"]
    in_sample = rules.answers(outputs, in_sample=True)
    own = [
        accuracies(part, in_sample.where(outputs.in_part_a == (name == "part_a")))
        for name, part in parts.items()
    ]
    result["score_calibration"] = fmean(each["score"] for each in own)
    if chosen_by not in ("score", "score_calibrated") and not chosen_by.endswith("_second"):
        found = mean_metrics(own + curves_of_parts(in_sample=True))
        if chosen_by in found:
            result[f"{chosen_by}_calibration"] = found[chosen_by]
    for name, part in parts.items():
        rates = accuracies(part, answers.where(outputs.in_part_a == (name == "part_a")))
        result |= {f"{name}.{each}": rates[each] for each in MAIN if each in rates}
    rule = choose_rule(outputs, config)
    result = {name: value for name, value in result.items() if not _is_of_a_group(name)}
    tau_sub = sum(rule.tau_sub) / len(rule.tau_sub)
    return result | {"tau_super": rule.tau_super, "tau_sub": tau_sub}


def _is_of_a_group(name: str) -> bool:
    """Whether a rate is of one group of one fold: too fine to be kept of every epoch."""
    return name.startswith(
        ("known_rejected_super_left_out_seen.", "known_rejected_super_left_out_held_out.")
    )


def _own_score(config: TrialConfig, task: Task) -> list[str]:
    """Return the score that `config` asks for if it is a sum of others, or one of another task."""
    name = config.of(task, "novelty_score")
    return [] if name == BEST or name in SCORES else [name]


def _scored_by(task: Task, name: str) -> dict[str, Any]:
    """Return what changes in a config whose `task` is scored by another score."""
    return {f"{task}_novelty_score": name, f"tau_{task}": None}


def _curves_of_score(outputs: Outputs, task: Task, config: TrialConfig) -> dict[str, float]:
    """Return the mean `task_separation` of the parts, a sum as it was standardised on the other."""
    names = [config.of(task, "novelty_score")] * (1 + len(outputs.folds))
    found = []
    for is_a in (True, False):
        if _own_score(config, task):
            rules = PartRules.choose(outputs, config)
            judging = [each.judging(a=is_a) for each in (rules, *rules.folds)]
            names = [each.super_score if task == "super" else each.sub_score for each in judging]
        found.append(task_separation(outputs.part(a=is_a), task, *names))
    return mean_metrics(found)


def score_table(outputs: Outputs, config: TrialConfig) -> Iterator[dict[str, Any]]:
    """Yield the result of every novelty score, kind of threshold and decision option that could
    have been chosen after the same training, of sums and scores of another task the config's own;
    one task at a time is varied. `tau` is what both parts choose together.
    """
    outputs = outputs.choosing()
    for task in TASKS:
        rejection = getattr(config, f"known_rejection_{task}") or CONFORMAL_REJECTION
        thresholds = [Threshold(), Threshold(known_rejection=rejection)]
        if getattr(config, f"tau_{task}") is not None:
            thresholds.append(Threshold.of(config, task))
        options = [(config.couple_novel, config.restrict_sub)]
        if task == "sub":
            options = [(couple, restrict) for couple in (False, True) for restrict in (False, True)]
        for name in dict.fromkeys((*available_scores(outputs, task), *_own_score(config, task))):
            if name in SCORES and needs_borrowed(name) and config.of(task, "novel_images") == 0:
                continue  # no config may ask for it
            curves = _curves_of_score(outputs, task, replace(config, **_scored_by(task, name)))
            for threshold in thresholds:
                for couple, restrict in options:
                    changed: dict[str, Any] = {
                        **_scored_by(task, name),
                        "couple_novel": couple,
                        "restrict_sub": restrict,
                    }
                    variant = replace(config, **changed)
                    asked = {f"{task}_threshold": threshold}
                    rule = choose_rule(outputs, variant, **asked)
                    answers = PartRules.choose(outputs, variant, **asked).answers(outputs)
                    rates = accuracies(outputs, answers)
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
                        **{each: rates[each] for each in LEFT_OUT_RATES if each in rates},
                        **{kind: curves[kind] for kind in CURVES},
                    }
