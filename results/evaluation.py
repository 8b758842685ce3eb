"""What labelled images say of a model: metrics with intervals, confusions, worst answers."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from results.labels import UNLABELLED, Labels
from results.report.material import Judged
from trainable.classifier import Classifier
from trainable.config import TASKS, Task
from trainable.data.layouts import NOVEL_CLASS
from trainable.data.splits import NOVEL_SUPER, PSEUDO_NOVEL, SEEN
from trainable.novelty.intervals import Interval, percentiles, rate_intervals, resamples
from trainable.novelty.metrics import METRICS, judge, judgements
from trainable.novelty.rule import Response, Rule, decide
from trainable.novelty.thresholds import Answers, Outputs

CURVE_RESAMPLES = 199
"""Of metrics that are no rates, which are computed anew for each sample."""
LEVELS: dict[Task, str] = {"super": "superclass", "sub": "subclass"}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found."""

    metrics: dict[str, float]
    """As a search's, by name; those that the labels do not allow are left out."""
    intervals: dict[str, Interval]
    """95%, by classes where they are known."""
    counts: dict[str, int]
    """Images by kind, and the classes that novel ones are known to be of."""
    confusion: dict[str, pd.DataFrame]
    """By level: images of each class (rows, what they show) by answer (columns)."""
    wrong: pd.DataFrame
    """A row for each wrong answer, the surest first: image, level, truth, answer, score, margin."""
    judged: Judged
    """What pictures of it are drawn from."""


def evaluate(response: Response, classifier: Classifier, labels: Labels) -> Evaluation:
    """Return what `labels` say of the classifier's answers.

    Args:
        response: To the labelled images, in their order.
        classifier: Whose rule and classes they go by.
        labels: Indices as the classifier's classes count, novel behind the last.
    """
    outputs = labelled_outputs(response, classifier, labels)
    has_subclass = labels.subclass != UNLABELLED
    metrics = _judged(outputs, classifier.rule, has_subclass)
    answers = decide(response, classifier.rule)
    return Evaluation(
        metrics=metrics,
        intervals=_intervals(outputs, classifier.rule, has_subclass, metrics),
        counts=_counts(outputs, has_subclass),
        confusion=confusions(answers, classifier, labels),
        wrong=_wrong(response, answers, classifier, labels, outputs.sub_target),
        judged=Judged(
            who="this model",
            outputs=outputs,
            answers=Answers(*answers),
            rule=classifier.rule,
            superclasses=classifier.superclasses,
            subclasses=classifier.subclasses,
            subclass_of_output=tuple(classifier.info["subclass_of_output"]),
            metrics=metrics,
            near="novel subclasses",
            far="novel superclasses",
            has_subclass=has_subclass,
        ),
    )


def labelled_outputs(response: Response, classifier: Classifier, labels: Labels) -> Outputs:
    """Return the response with its truth. A subclass that the model was trained without is novel.

    An image whose subclass is not labelled counts as seen; only superclass metrics may use it.
    """
    num_super, num_sub = len(classifier.superclasses) - 1, len(classifier.subclasses) - 1
    known = [int(each) for each in classifier.info["subclass_of_output"]]
    output_of_subclass = torch.full((num_sub + 1,), len(known))
    output_of_subclass[known] = torch.arange(len(known))
    is_labelled = labels.subclass != UNLABELLED
    sub_target = output_of_subclass[labels.subclass.clamp_min(0)]
    kind = torch.full_like(sub_target, SEEN)
    kind[is_labelled & (sub_target == len(known))] = PSEUDO_NOVEL
    kind[labels.superclass == num_super] = NOVEL_SUPER
    return Outputs(
        super_logits=response.super_logits,
        sub_logits=response.sub_logits,
        super_feature_scores=response.super_feature_scores,
        sub_feature_scores=response.sub_feature_scores,
        super_of_sub=response.super_of_sub,
        super_target=labels.superclass,
        sub_target=sub_target,
        kind=kind,
        in_part_a=torch.zeros_like(is_labelled),
        rows=torch.arange(len(kind)),
        true_class=labels.true_class,
    )


def _judged(outputs: Outputs, rule: Rule, has_subclass: torch.Tensor) -> dict[str, float]:
    """Return the superclass's metrics of all images, and all others of those with a subclass."""
    found = judge(outputs, rule)
    if not has_subclass.all():
        of_super = {name: value for name, value in found.items() if _is_of_super(name)}
        found = of_super
        if has_subclass.any():
            of_both = judge(outputs.where(has_subclass), rule)
            found |= {name: v for name, v in of_both.items() if not _is_of_super(name)}
    # Whatever is novel here was never borrowed.
    return {name: found[name] for name in METRICS if name in found and "borrowed" not in name}


def _is_of_super(name: str) -> bool:
    return "super" in name


def _intervals(
    outputs: Outputs, rule: Rule, has_subclass: torch.Tensor, metrics: Mapping[str, float]
) -> dict[str, Interval]:
    weights_RN = resamples(outputs.kind, outputs.true_class)
    judged = {
        name: (over if _is_of_super(name) else over & has_subclass, counts)
        for name, (over, counts) in judgements(outputs, Answers(*decide(outputs, rule))).items()
    }
    found = rate_intervals(judged, weights_RN)
    if not metrics.keys() <= found.keys():
        images = np.arange(weights_RN.shape[1])
        samples = []
        for weights_N in weights_RN[:CURVE_RESAMPLES].astype(int):
            rows = torch.from_numpy(np.repeat(images, weights_N))
            samples.append(_judged(outputs.where(rows), rule, has_subclass[rows]))
        for name in metrics.keys() - found.keys():
            found[name] = percentiles([each.get(name, math.nan) for each in samples])
    return {name: found[name] for name in metrics}


def _counts(outputs: Outputs, has_subclass: torch.Tensor) -> dict[str, int]:
    kind, true_class = outputs.kind, outputs.true_class
    is_novel = kind != SEEN
    return {
        "images": len(kind),
        "seen": int(((kind == SEEN) & has_subclass).sum()),
        "novel_subclass": int((kind == PSEUDO_NOVEL).sum()),
        "novel_superclass": int((kind == NOVEL_SUPER).sum()),
        "without_subclass": int((~has_subclass).sum()),
        "novel_classes": len(true_class[is_novel & (true_class >= 0)].unique()),
        "novel_of_unknown_class": int((is_novel & (true_class < 0)).sum()),
    }


def confusions(
    answers: tuple[torch.Tensor, torch.Tensor], classifier: Classifier, labels: Labels
) -> dict[str, pd.DataFrame]:
    """Return by level how many images of each class (rows) were answered each class (columns)."""
    tables = {}
    for level, truth, answer, names in _levels(answers, classifier, labels):
        keep = truth != UNLABELLED
        counts = torch.zeros(len(names), len(names), dtype=torch.int64)
        counts.index_put_((truth[keep], answer[keep]), torch.tensor(1), accumulate=True)
        index = pd.Index(names, name="truth")
        tables[level] = pd.DataFrame(counts.numpy(), index=index, columns=list(names))
    return tables


def _levels(
    answers: tuple[torch.Tensor, torch.Tensor], classifier: Classifier, labels: Labels
) -> list[tuple[str, torch.Tensor, torch.Tensor, tuple[str, ...]]]:
    """Return name, truth, answer and classes of both levels; novel is the last class."""
    superclass, output = answers
    return [
        ("superclass", labels.superclass, superclass, classifier.superclasses),
        ("subclass", labels.subclass, classifier.subclass_of(output), classifier.subclasses),
    ]


def _wrong(
    response: Response,
    answers: tuple[torch.Tensor, torch.Tensor],
    classifier: Classifier,
    labels: Labels,
    sub_target: torch.Tensor,
) -> pd.DataFrame:
    """Return the wrong answers, the surest first.

    It is right to call novel what the model was trained without, though its name is known.

    The margin says how far the score lies on its answer's side of the threshold, in standard
    deviations of the score over all images; it is negative where the argmax, or a novel superclass,
    said novel though the score did not.
    """
    rule = classifier.rule
    likeliest = response.answer("sub", restrict_sub=rule.restrict_sub)[1]
    tau_sub = torch.tensor(rule.tau_sub, dtype=torch.float64)[response.super_of_sub[likeliest]]
    tau = {"super": torch.full_like(tau_sub, rule.tau_super), "sub": tau_sub}
    tables = []
    for task, (level, truth, answer, names) in zip(
        TASKS, _levels(answers, classifier, labels), strict=True
    ):
        score = response.score(task, rule.super_score if task == "super" else rule.sub_score)
        spread = score.std(correction=0).clamp_min(1e-12)
        above = (score - tau[task]) / spread
        margin = torch.where(answer == len(names) - 1, -above, above)
        is_wrong = (truth != UNLABELLED) & (answer != truth)
        if task == "sub":
            is_wrong &= answers[1] != sub_target
        places = is_wrong.nonzero()[:, 0]
        tables.append(
            pd.DataFrame(
                {
                    "image": [labels.images[place] for place in places.tolist()],
                    "level": level,
                    "truth": [names[each] for each in truth[places].tolist()],
                    "answer": [names[each] for each in answer[places].tolist()],
                    "score": score[places].numpy(),
                    "margin": margin[places].numpy(),
                }
            )
        )
    return pd.concat(tables).sort_values("margin", ascending=False, kind="stable")


def held_out(judged: Judged) -> set[str]:
    """Return the subclasses that the model was trained without, though it has their names."""
    return {*judged.subclasses} - {*judged.outputs_names}


def frequent(confusion: pd.DataFrame, most: int, unknown: Collection[str] = ()) -> pd.DataFrame:
    """Return the most frequent wrong answers: truth, answer, images, share of what shows it.

    Args:
        confusion: Images by what they show and by answer.
        most: Rows.
        unknown: What it is right to call novel, beside what is.
    """
    counts = confusion.to_numpy()
    totals = counts.sum(1)
    rows: list[dict[str, Any]] = [
        {
            "truth": confusion.index[truth],
            "answer": confusion.columns[answer],
            "images": int(counts[truth, answer]),
            "share": counts[truth, answer] / totals[truth],
        }
        for truth, answer in np.argwhere(counts)
        if truth != answer
        and not (confusion.columns[answer] == NOVEL_CLASS and confusion.index[truth] in unknown)
    ]
    table = pd.DataFrame(rows, columns=["truth", "answer", "images", "share"])
    return table.sort_values("images", ascending=False, kind="stable").head(most)
