"""Outputs made up: what a model might say about validation images of every kind."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F

from trainable.config import Task
from trainable.data.splits import LEFT_OUT, NOVEL_SUPER, PSEUDO_NOVEL, SECOND, SEEN
from trainable.novelty.bank import all_of_features
from trainable.novelty.rule import by_image
from trainable.novelty.thresholds import Fold, Outputs
from trainable.parts import SCORES

NOVELTY_SCORES = tuple(SCORES)
FEATURE_SCORES = tuple(all_of_features())
LOGIT_SCORES = tuple(name for name in NOVELTY_SCORES if name not in FEATURE_SCORES)
SUPER_OF_SUB = (0, 0, 1, 1, 2)  # novel subclass 4 belongs to novel superclass 2


def make_outputs(
    seed: int = 0, num: int = 200, kinds: Sequence[int] = (SEEN, PSEUDO_NOVEL, NOVEL_SUPER)
) -> Outputs:
    """Logits and scores that are right more often than not, for images of `kinds`.

    Every other image is in part A.
    """
    rng = torch.Generator().manual_seed(seed)
    kind = torch.tensor(kinds)[torch.randint(len(kinds), (num,), generator=rng)]
    subclass = torch.randint(4, (num,), generator=rng)
    sub_target = subclass.masked_fill(kind != SEEN, 4)
    super_target = torch.tensor(SUPER_OF_SUB)[subclass].masked_fill(kind == NOVEL_SUPER, 2)

    def logits(target: torch.Tensor, num_classes: int) -> torch.Tensor:
        noise = torch.randn(num, num_classes, generator=rng)
        return noise + F.one_hot(target, num_classes)

    def feature_scores(is_known: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = torch.randn(num, len(FEATURE_SCORES), generator=rng, dtype=torch.float64)
        return dict(zip(FEATURE_SCORES, (noise + is_known[:, None] - 2).T, strict=True))

    return Outputs(
        super_logits=logits(super_target, 3),
        sub_logits=logits(sub_target, 5),
        super_feature_scores=feature_scores(kind != NOVEL_SUPER),
        sub_feature_scores=feature_scores(kind == SEEN),
        super_of_sub=torch.tensor(SUPER_OF_SUB),
        super_target=super_target,
        sub_target=sub_target,
        kind=kind,
        in_part_a=torch.arange(num) % 2 == 0,
        rows=torch.arange(num),
        true_class=torch.where(kind == NOVEL_SUPER, 4 + torch.arange(num) % 3, subclass),
    )


AnyOutputs = TypeVar("AnyOutputs", bound=Outputs)


def mixed(a: AnyOutputs, b: AnyOutputs) -> AnyOutputs:
    """Return outputs with part A of one and part B of the other."""
    assert torch.equal(a.in_part_a, b.in_part_a)

    def choose(parts: list[torch.Tensor]) -> torch.Tensor:
        ours, theirs = parts
        keep = a.in_part_a.view(-1, *[1] * (ours.dim() - 1))
        return torch.where(keep, ours, theirs)

    folds = tuple(mixed(ours, theirs) for ours, theirs in zip(a.folds, b.folds, strict=True))
    return replace(a, **by_image([a, b], choose), folds=folds)


def with_folds(
    outputs: Outputs, seed: int = 9, exact: Sequence[Task] = ("super", "sub")
) -> Outputs:
    """Return outputs of whose two superclasses each was left out once."""
    folds = []
    for superclass in range(2):
        said = make_outputs(seed + superclass, len(outputs.rows))
        known = [i for i, each in enumerate(SUPER_OF_SUB[:-1]) if each != superclass]
        is_out = (outputs.super_target == superclass) & (outputs.kind != SECOND)
        sub_output = torch.full((5,), len(known))
        sub_output[known] = torch.arange(len(known))
        super_target = (outputs.super_target != 1 - superclass).long()
        sub_target = sub_output[outputs.sub_target]
        shift = 2.0 * F.one_hot(super_target, 2), 2.0 * F.one_hot(sub_target, len(known) + 1)
        folds.append(
            Fold(
                super_logits=said.super_logits[:, [0, 2]] + shift[0],
                sub_logits=said.sub_logits[:, [*known, 4]] + shift[1],
                super_feature_scores={
                    name: each - super_target for name, each in said.super_feature_scores.items()
                },
                sub_feature_scores=said.sub_feature_scores,
                super_of_sub=torch.tensor([0] * len(known) + [1]),
                super_target=super_target,
                sub_target=sub_target,
                kind=outputs.kind.masked_fill(is_out, LEFT_OUT),
                in_part_a=outputs.in_part_a,
                rows=outputs.rows,
                true_class=outputs.true_class,
                superclass=superclass,
                exact=tuple(exact),
            )
        )
    return replace(outputs, folds=tuple(folds))


def without_bank(outputs: Outputs) -> Outputs:
    """Return the outputs of a trial that fitted no bank of features."""
    return replace(outputs, super_feature_scores={}, sub_feature_scores={})
