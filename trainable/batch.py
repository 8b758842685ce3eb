"""What a batch is trained to say: its targets, what a fold may see of it, and mixup."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trainable.config import Task
from trainable.data.splits import Pools
from trainable.rng import generator


@dataclass(frozen=True)
class Batch:
    """What the heads of a trial or of a fold are to say of a batch."""

    target: dict[Task, torch.Tensor]
    """int64 (N,), of the whole batch."""
    mixed: Mixup | None
    place: torch.Tensor | None
    """int64, which images a fold may see, being of nothing that it leaves out; null: all."""

    @classmethod
    def of(
        cls, rows: torch.Tensor, pools: Pools, mixed: Mixup | None, device: torch.device
    ) -> Batch:
        """Return what is wanted of training `rows`, by the pools of the trial or of a fold."""
        target: dict[Task, torch.Tensor] = {
            "super": pools.super_target[rows].to(device, non_blocking=True),
            "sub": pools.sub_target[rows].to(device, non_blocking=True),
        }
        if pools.left_out is None:
            return cls(target, mixed, None)
        is_seen_N = ~pools.left_out[rows]
        if mixed is not None:
            is_seen_N &= mixed.partners(is_seen_N)
        place = is_seen_N.nonzero()[:, 0].to(device, non_blocking=True)
        return cls(target, mixed, place)


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """One draw of mixup for a batch: each row is blended with another one."""

    share: float
    """Of the row itself, 0 to 1."""
    partner_N: torch.Tensor
    """int64 (N,): the other row."""

    @classmethod
    def draw(cls, num: int, beta: float, *purpose: str | int) -> Mixup:
        """Return a draw for `num` rows with a share of distribution Beta(beta, beta)."""
        rng = generator("mixup", *purpose)
        share = np.random.default_rng(rng.initial_seed()).beta(beta, beta)
        return cls(share=float(share), partner_N=torch.randperm(num, generator=rng))

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """Return each row of float (N, ...) blended with its partner."""
        return self.share * rows + (1 - self.share) * self.partners(rows)

    def partners(self, rows: torch.Tensor) -> torch.Tensor:
        """Return each row's partner."""
        return rows[self.partner_N.to(rows.device)]
