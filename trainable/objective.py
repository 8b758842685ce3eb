"""What a batch is trained to say, and how far off that is, by the trial and by each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from trainable.batch import Batch, Blends, Mixup
from trainable.config import Branch, Task, TrialConfig
from trainable.data.splits import Pools, rows_of_branch
from trainable.model.branch import BranchModel
from trainable.model.losses import Step, soft_targets
from trainable.parts import LOSSES


class Objective:
    """The loss of a trial's heads, and of those of its folds; it holds nothing that is trained."""

    def __init__(
        self,
        config: TrialConfig,
        pools: Mapping[int | None, Pools],
        novel_images: Sequence[int],
        device: torch.device,
    ) -> None:
        """Count the training images of each output.

        Args:
            config: The trial's.
            pools: Of the trial, under null, and of its folds by what they leave out.
            novel_images: How many borrowed images each branch trains on.
            device: Where the models are.
        """
        self.config, self.pools, self.device = config, pools, device
        self.super_of_sub = {
            fold: torch.tensor(each.super_of_sub, device=device) for fold, each in pools.items()
        }
        self.num_images = [
            {
                fold: _num_images(each, rows_of_branch(each, most), device)
                for fold, each in pools.items()
            }
            for most in novel_images
        ]
        """Training images of each output, by branch and fold."""

    def targets(
        self, rows: torch.Tensor, mixup: float, epoch: int, step: int
    ) -> dict[int | None, Batch]:
        """Return what is wanted of a batch, by the trial and by each fold."""
        mixed = Mixup.draw(len(rows), mixup, self.config.seed, epoch, step) if mixup else None
        return {fold: Batch.of(rows, each, mixed, self.device) for fold, each in self.pools.items()}

    def loss(
        self,
        pooled: torch.Tensor,
        logits: dict[Task, torch.Tensor],
        number: int,
        fold: int | None,
        batch: Batch,
    ) -> torch.Tensor:
        """Return the sum of the loss terms of the heads of branch `number`, or of a fold of it."""
        step = Step(
            config=self.config,
            logits=logits,
            wanted={
                task: self._wanted(task, batch, each.shape[1]) for task, each in logits.items()
            },
            pooled_ND=pooled,
            super_of_sub=self.super_of_sub[fold],
            num_images=self.num_images[number][fold],
            keep_N=self._unexposed(batch, self.super_of_sub[fold].shape[0] - 1),
        )
        loss = torch.zeros((), device=self.device)
        for name in self.config.loss_terms():
            loss = loss + LOSSES.named(name)(step)
        return loss

    def blends(self, branch: Branch, rows: torch.Tensor, epoch: int, step: int) -> Blends | None:
        """Return which of the images `rows` are blended for the subclass head; null: none."""
        if not self.config.near_novel or "sub" not in branch.tasks:
            return None
        pools = self.pools[None]
        target: dict[Task, torch.Tensor] = {
            "super": pools.super_target[rows], "sub": pools.sub_target[rows]
        }  # fmt: skip
        return Blends.draw(target, len(pools.subclasses), self.config.seed, epoch, step)

    def of_blends(
        self,
        pooled_MD: torch.Tensor,
        model: BranchModel,
        fold: int | None,
        blends: Blends,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of the blends that the trial, or a fold, may see, each weighing
        `near_novel` times as much as one of its images.
        """
        left_out = self.pools[fold].left_out
        left_out_N = None if left_out is None else left_out[rows]
        kept = blends.seen(left_out_N).to(self.device)
        logits = model.classify(pooled_MD.index_select(0, kept), fold)["sub"]
        novel = logits.shape[1] - 1
        wanted = soft_targets(
            torch.full((len(logits),), novel, device=self.device),
            novel + 1,
            outlier_exposure=self.config.outlier_exposure,
        )
        total = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        num_images = len(rows) if left_out_N is None else int((~left_out_N).sum())
        return self.config.near_novel * total / num_images

    def _unexposed(self, batch: Batch, novel: int) -> torch.Tensor | None:
        """Return the images whose subclass target outlier exposure leaves alone; null: all."""
        if not self.config.outlier_exposure:
            return None
        is_known_N = batch.target["sub"] < novel
        if batch.mixed is not None:
            is_known_N = is_known_N & batch.mixed.partners(is_known_N)
        return is_known_N if batch.place is None else is_known_N[batch.place]

    def _wanted(self, task: Task, batch: Batch, num_classes: int) -> torch.Tensor:
        """Return the targets of `task`: class indices, or (N, C) where an option softens them."""
        exposure = self.config.outlier_exposure if task == "sub" else 0.0
        wanted = batch.target[task]
        smoothing = self.config.of(task, "label_smoothing")
        if smoothing or exposure or batch.mixed is not None:
            wanted = soft_targets(
                wanted,
                num_classes,
                label_smoothing=smoothing,
                outlier_exposure=exposure,
            )
        if batch.mixed is not None:
            wanted = batch.mixed.of(wanted)
        return wanted if batch.place is None else wanted.index_select(0, batch.place)


def num_classes(pools: Pools) -> dict[Task, int]:
    """Return how many outputs each head has, novel included."""
    return {"super": pools.super_of_sub[-1] + 1, "sub": len(pools.subclasses) + 1}


def _num_images(pools: Pools, rows: torch.Tensor, device: torch.device) -> dict[Task, torch.Tensor]:
    """Return how many of `rows` each output of each head has: int64 (C + 1,)."""
    targets: dict[Task, torch.Tensor] = {"super": pools.super_target, "sub": pools.sub_target}
    return {
        task: targets[task][rows].bincount(minlength=num).to(device)
        for task, num in num_classes(pools).items()
    }
