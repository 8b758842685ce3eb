"""Outputs made up: what a model might say about validation images of every kind."""

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F

from trainable.calibration import Outputs
from trainable.config import FEATURE_SCORES
from trainable.splits import NOVEL, PSEUDO_NOVEL, SEEN

SUPER_OF_SUB = (0, 0, 1, 1, 2)  # novel subclass 4 belongs to novel superclass 2


def make_outputs(
    seed: int = 0, num: int = 200, kinds: Sequence[int] = (SEEN, PSEUDO_NOVEL, NOVEL)
) -> Outputs:
    """Logits and scores that are right more often than not, for images of `kinds`.

    Every other image is in part A.
    """
    rng = torch.Generator().manual_seed(seed)
    kind = torch.tensor(kinds)[torch.randint(len(kinds), (num,), generator=rng)]
    subclass = torch.randint(4, (num,), generator=rng)
    sub_target = subclass.masked_fill(kind != SEEN, 4)
    super_target = torch.tensor(SUPER_OF_SUB)[subclass].masked_fill(kind == NOVEL, 2)

    def logits(target: torch.Tensor, num_classes: int) -> torch.Tensor:
        noise = torch.randn(num, num_classes, generator=rng)
        return noise + F.one_hot(target, num_classes)

    def feature_scores(is_known: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(num, len(FEATURE_SCORES), generator=rng, dtype=torch.float64)
        return noise + is_known[:, None] - 2

    return Outputs(
        super_logits=logits(super_target, 3),
        sub_logits=logits(sub_target, 5),
        super_feature_scores=feature_scores(kind != NOVEL),
        sub_feature_scores=feature_scores(kind == SEEN),
        super_of_sub=torch.tensor(SUPER_OF_SUB),
        super_target=super_target,
        sub_target=sub_target,
        kind=kind,
        in_part_a=torch.arange(num) % 2 == 0,
        rows=torch.arange(num),
        true_class=torch.where(kind == NOVEL, 4 + torch.arange(num) % 3, subclass),
    )


def mixed(a: Outputs, b: Outputs) -> Outputs:
    """Return outputs with part A of one and part B of the other."""
    assert torch.equal(a.in_part_a, b.in_part_a)

    def choose(name: str) -> torch.Tensor:
        ours, theirs = getattr(a, name), getattr(b, name)
        keep = a.in_part_a.view(-1, *[1] * (ours.dim() - 1))
        return torch.where(keep, ours, theirs)

    names = [field.name for field in fields(a) if field.name != "super_of_sub"]
    return replace(a, **{name: choose(name) for name in names})


def without_bank(outputs: Outputs) -> Outputs:
    """Return the outputs of a trial that fitted no bank of features."""
    nothing = torch.full_like(outputs.super_feature_scores, torch.nan)
    return replace(outputs, super_feature_scores=nothing, sub_feature_scores=nothing)
