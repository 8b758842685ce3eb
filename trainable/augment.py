"""Random horizontal flip and rotation of a whole batch at once, on any device."""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F

MAX_ROTATION_DEGREES = 10.0


@dataclass(frozen=True)
class Augmentation:
    """One augmentation for each row of a data set.

    Equal in distribution to torchvision's RandomHorizontalFlip followed by
    RandomRotation(10, interpolation=BILINEAR, fill=None): black outside, borders blended once.
    """

    angle_N: torch.Tensor
    """float (N,): degrees counter-clockwise."""
    flip_N: torch.Tensor
    """bool (N,): flipped left to right, before the rotation."""

    @classmethod
    def draw(cls, num: int, generator: torch.Generator) -> Self:
        """Return `num` independent draws."""
        angle_N = (torch.rand(num, generator=generator) * 2 - 1) * MAX_ROTATION_DEGREES
        return cls(angle_N, torch.rand(num, generator=generator) < 0.5)

    def __getitem__(self, rows: torch.Tensor) -> "Augmentation":
        return Augmentation(self.angle_N[rows], self.flip_N[rows])

    def apply(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the augmented square images, bilinear, black outside."""
        angle_N = self.angle_N.to(images_NCHW.device) * (math.pi / 180)
        mirror_N = 1.0 - 2.0 * self.flip_N.to(images_NCHW.device).float()
        cos_N, sin_N, zero_N = angle_N.cos(), angle_N.sin(), torch.zeros_like(angle_N)
        # Output to input coordinates: undo the rotation, then undo the flip (the x row).
        theta_N23 = torch.stack(
            [
                torch.stack([mirror_N * cos_N, -mirror_N * sin_N, zero_N], 1),
                torch.stack([sin_N, cos_N, zero_N], 1),
            ],
            1,
        )
        grid = F.affine_grid(theta_N23, list(images_NCHW.shape), align_corners=False)
        return F.grid_sample(images_NCHW, grid, mode="bilinear", align_corners=False)
