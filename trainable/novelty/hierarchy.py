"""Superclass and subclass judged together, at every threshold of the subclass."""

from statistics import fmean

import torch

from trainable.data.splits import NOVEL_SUPER, PSEUDO_NOVEL, SEEN
from trainable.novelty.rule import Rule, acceptance, decide
from trainable.novelty.thresholds import (
    Outputs,
)


def hierarchy_curve(outputs: Outputs, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Return novel and known accuracy as the subclass's tau is swept upwards: float64 (T,) each.

    After Lee et al., Hierarchical Novelty Detection for Visual Object Recognition (CVPR 2018): a
    known image is right where superclass and subclass are; a novel one where its superclass is
    (novel, for borrowed images) and its subclass is called novel. The superclass's tau stays. Novel
    accuracy is the mean over held-out subclasses and borrowed images.
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
    groups = _novel_groups(outputs)
    of_group = [score[group & right_super].sort().values for group in groups]
    # One tau at each score, which accepts it, and one above them all.
    taus = torch.cat([torch.cat([known, *of_group]).unique(), torch.tensor([torch.inf]).double()])
    known_accuracy = (len(known) - torch.searchsorted(known, taus)).double() / is_seen.sum()
    novel_accuracy = torch.stack(
        [
            torch.searchsorted(novel, taus).double() / group.sum()
            for novel, group in zip(of_group, groups, strict=True)
        ]
    ).mean(0)
    return novel_accuracy, known_accuracy


def _novel_groups(outputs: Outputs) -> list[torch.Tensor]:
    """Return which images are of each group whose subclass is novel, bool (N,), but empty ones."""
    groups = [outputs.kind == kind for kind in (PSEUDO_NOVEL, NOVEL_SUPER)]
    return [group for group in groups if group.any()]


def both_right(outputs: Outputs, rule: Rule) -> tuple[float, float]:
    """Return novel and known accuracy by `rule`: where its own tau lies on `hierarchy_curve`."""
    superclass, subclass = decide(outputs, rule)
    right = (superclass == outputs.super_target) & (subclass == outputs.sub_target)
    novel = fmean(float(right[group].double().mean()) for group in _novel_groups(outputs))
    return novel, float(right[outputs.kind == SEEN].double().mean())


def hierarchy_area(outputs: Outputs, rule: Rule) -> float:
    """Return the area under `hierarchy_curve`, by trapezoids."""
    novel_accuracy, known_accuracy = hierarchy_curve(outputs, rule)
    return float(torch.trapezoid(known_accuracy, novel_accuracy))
