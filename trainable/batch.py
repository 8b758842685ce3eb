"""What a batch is trained to say: its targets, what a fold may see of it, and mixup."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, kw_only=True)
class Blends:
    """Blends of two images of one superclass, but of two subclasses: near what is known."""

    row_M: torch.Tensor
    """int64: one of the two, of a batch."""
    partner_M: torch.Tensor
    """int64: the other one."""
    share_M: torch.Tensor
    """float32: of the first one, 0.3 to 0.7."""

    @classmethod
    def draw(
        cls, target: Mapping[Task, torch.Tensor], num_known: int, *purpose: str | int
    ) -> Blends:
        """Return those of images that a random order has side by side: a third of three even
        superclasses.

        Args:
            target: int64 (N,) each, of a batch, on the CPU.
            num_known: Subclass outputs that are no novel class.
            purpose: Names the stream of random numbers.
        """
        rng = generator("blends", *purpose)
        superclass, subclass = target["super"], target["sub"]
        order = torch.randperm(len(subclass), generator=rng)
        share = 0.3 + 0.4 * torch.rand(len(order), generator=rng)
        partner = order.roll(1)
        fits = (superclass[order] == superclass[partner]) & (subclass[order] != subclass[partner])
        fits &= (subclass[order] < num_known) & (subclass[partner] < num_known)
        return cls(row_M=order[fits], partner_M=partner[fits], share_M=share[fits])

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the blends of float (N, ...): (M, ...)."""
        share = self.share_M.to(rows.device).view(-1, *[1] * (rows.dim() - 1))
        of_row, of_partner = (rows[each.to(rows.device)] for each in (self.row_M, self.partner_M))
        return share * of_row + (1 - share) * of_partner

    def seen(self, left_out_N: torch.Tensor | None) -> torch.Tensor:
        """Return which blends are of two images that a fold may see: int64 (K,).

        Args:
            left_out_N: bool, the images of the batch that it may not see; null: it may see all.
        """
        if left_out_N is None:
            return torch.arange(len(self.row_M))
        return (~left_out_N[self.row_M] & ~left_out_N[self.partner_M]).nonzero()[:, 0]
