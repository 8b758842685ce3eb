"""What training minimises: cross-entropy for each head, and their disagreement."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from trainable.config import Task, TrialConfig
from trainable.parts import LOSSES


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a loss term sees of a batch of N images, for a branch with one or both heads."""

    config: TrialConfig
    logits: Mapping[Task, torch.Tensor]
    """float32 (N, C + 1) of each head, novel last."""
    wanted: Mapping[Task, torch.Tensor]
    """What each head should say: int64 (N,), or (N, C + 1) where an option softens it."""
    pooled_ND: torch.Tensor
    """float32, the features below the heads. Of a fold's heads nothing passes back to them."""
    super_of_sub: torch.Tensor
    """int64 (C + 1,): superclass output of each subclass output."""
    num_images: Mapping[Task, torch.Tensor]
    """int64 (C + 1,), training images of each output."""
    keep_N: torch.Tensor | None
    """bool, the images whose subclass target outlier exposure leaves alone; null: all."""


_BALANCE = 0.999
"""β of the effective number of images: of n, (1 - β^n) / (1 - β)."""

LossTerm = Callable[[Step], torch.Tensor]
"""Returns a scalar, 0 where it means nothing to the branch. The terms that the config's `loss`
names are summed."""


@LOSSES.register("cross_entropy", source="torch.nn.functional.cross_entropy")
def cross_entropy(step: Step) -> torch.Tensor:
    """Cross-entropy of each head with what it should say."""
    loss = step.super_of_sub.new_zeros((), dtype=torch.float32)
    for task, logits_NC in step.logits.items():
        loss = loss + F.cross_entropy(logits_NC, step.wanted[task])
    return loss


@LOSSES.register("class_balanced", source="Cui et al. (CVPR 2019)")
def class_balanced(step: Step) -> torch.Tensor:
    """Cross-entropy in which a class of n images counts as 1 / (1 - 0.999^n), for uneven data.

    The weights are those of the classes that have images, with a mean of 1; novel is one of them.
    """
    loss = step.super_of_sub.new_zeros((), dtype=torch.float32)
    for task, logits_NC in step.logits.items():
        has_images = step.num_images[task] > 0
        effective = 1 - _BALANCE ** step.num_images[task].clamp_min(1).double()
        weight = (1 / effective).masked_fill(~has_images, 0)
        weight = (weight * has_images.sum() / weight.sum()).float()
        wanted = step.wanted[task]
        if wanted.dim() == 1:
            wanted = F.one_hot(wanted, len(weight)).float()
        loss = loss + F.cross_entropy(logits_NC, wanted * weight)
    return loss


@LOSSES.register("interaction", source="the paper, section 3.6")
def interaction(step: Step) -> torch.Tensor:
    """alpha times what the superclass head and the subclass head disagree in."""
    if len(step.logits) < 2 or step.config.alpha == 0:
        return step.super_of_sub.new_zeros((), dtype=torch.float32)
    return step.config.alpha * interaction_loss(
        step.logits["super"], step.logits["sub"], step.super_of_sub, step.config.temperature,
        keep_N=step.keep_N,
    )  # fmt: skip


def implied_super_log_probs(
    sub_logits_NC: torch.Tensor,
    super_of_sub_C: torch.Tensor,
    temperature: float = 1.0,
    num_super: int | None = None,
) -> torch.Tensor:
    """Return log p̂_super (N, K): the subclass head's opinion on the superclass.

    p̂[k] is the sum of p_sub over the subclasses of k (paper, section 3.5), taken as a logsumexp
    of log-probabilities so that it neither under- nor overflows.

    Args:
        sub_logits_NC: Logits of the subclass head, novel last.
        super_of_sub_C: int64 (C,), superclass of each output; every superclass must occur.
        temperature: Divides the logits.
        num_super: K; null: counted, for which a GPU must be waited for.
    """
    log_p_NC = F.log_softmax(sub_logits_NC / temperature, dim=1)
    num_super = num_super or int(super_of_sub_C.max()) + 1
    member_KC = F.one_hot(super_of_sub_C, num_super).T.bool()
    masked_NKC = log_p_NC[:, None, :].masked_fill(~member_KC, -torch.inf)
    return masked_NKC.logsumexp(dim=2)


def interaction_loss(
    super_logits_NK: torch.Tensor,
    sub_logits_NC: torch.Tensor,
    super_of_sub_C: torch.Tensor,
    temperature: float = 1.0,
    *,
    keep_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return KL(p̂_super || p_super) (paper, section 3.6): a scalar, >= 0.

    Args:
        super_logits_NK: Logits of the superclass head, novel last.
        sub_logits_NC: Logits of the subclass head, novel last.
        super_of_sub_C: int64 (C,), superclass of each output.
        temperature: Divides both.
        keep_N: bool (N,), the images that it is the mean over, null: all; of none it is 0. An image
            whose subclass is to look like every known one (outlier exposure) has no place in it: p̂
            would say "known" of what the superclass learns to call novel.
    """
    num_super = super_logits_NK.shape[1]
    implied_NK = implied_super_log_probs(sub_logits_NC, super_of_sub_C, temperature, num_super)
    log_p_NK = F.log_softmax(super_logits_NK / temperature, dim=1)
    if keep_N is None:
        return F.kl_div(log_p_NK, implied_NK, reduction="batchmean", log_target=True)
    kl_N = F.kl_div(log_p_NK, implied_NK, reduction="none", log_target=True).sum(1)
    return (kl_N * keep_N).sum() / keep_N.sum().clamp_min(1)


def soft_targets(
    target_N: torch.Tensor,
    num_classes: int,
    *,
    label_smoothing: float = 0.0,
    outlier_exposure: float = 0.0,
) -> torch.Tensor:
    """Return what a head should say, (N, C): cross-entropy with it is the loss of each image.

    Args:
        target_N: int64, outputs of the head, novel last.
        num_classes: C, novel included.
        label_smoothing: Share of each target spread evenly over all outputs.
        outlier_exposure: Above 0, novel images are to look like every known class alike, with
            this weight (their rows sum to it), instead of like the novel class.
    """
    novel = num_classes - 1
    target_NC = F.one_hot(target_N, num_classes).float()
    target_NC = target_NC * (1 - label_smoothing) + label_smoothing / num_classes
    if outlier_exposure > 0:
        uniform_C = torch.full((num_classes,), outlier_exposure / novel, device=target_N.device)
        uniform_C[novel] = 0.0
        target_NC = torch.where((target_N == novel)[:, None], uniform_C, target_NC)
    return target_NC
