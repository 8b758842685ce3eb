"""Random augmentation of a whole batch at once, on any device."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
import torch.nn.functional as F

from trainable.parts import AUGMENTS

MAX_ROTATION_DEGREES = 10.0
STRONG_OPERATIONS = ("brightness", "contrast", "saturation", "zoom", "shift_x", "shift_y", "erase")
STRONG_PER_IMAGE = 2
"""As RandAugment's N; each with a magnitude of its own, uniform up to the limits below."""
MAX_COLOUR, MAX_ZOOM, MAX_SHIFT, MAX_ERASE = 0.5, 0.3, 0.2, 0.5
"""Factor 0.5 to 1.5; scale 0.7 to 1.3; a fifth of the side; a square of up to half the side."""


@dataclass(frozen=True, kw_only=True)
class Augmentation(ABC):
    """One augmentation for each row of a data set: every field has a row for each."""

    side_N: torch.Tensor
    """int64 (N,): side in pixels that an image is scaled down to and up again; 0: as it is."""

    @classmethod
    @abstractmethod
    def draw(
        cls, num: int, generator: torch.Generator, *, side_N: torch.Tensor | None = None
    ) -> Self:
        """Return `num` independent draws.

        Args:
            num: How many.
            generator: What they are drawn from, and nothing else.
            side_N: See `matched_sides`; null: every image as it is.
        """

    @abstractmethod
    def apply(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the augmented square images: float (N, 3, S, S), 0 to 255, on any device."""

    def __getitem__(self, rows: torch.Tensor) -> Self:
        return type(self)(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def match(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return stored images (0 to 255), those with a `side` scaled down to it and up again.

        Both as the data were: antialiased bicubic, rounded to whole numbers.
        """
        for side in self.side_N.unique().tolist():
            if 0 < side < images_NCHW.shape[-1]:
                places = (self.side_N == side).nonzero()[:, 0].to(images_NCHW.device)
                small = _bicubic(images_NCHW[places], side)
                coarse = _bicubic(small, images_NCHW.shape[-1])
                images_NCHW = images_NCHW.index_copy(0, places, coarse)
        return images_NCHW


@AUGMENTS.register("none", source="the images as they are")
@dataclass(frozen=True, kw_only=True)
class Unchanged(Augmentation):
    """No augmentation."""

    angle_N: torch.Tensor
    """float (N,): degrees counter-clockwise."""
    flip_N: torch.Tensor
    """bool (N,): flipped left to right, before the rotation."""
    strength_NK: torch.Tensor
    """float (N, K), -1 to 1: of each of `STRONG_OPERATIONS`; 0: not applied."""
    place_N2: torch.Tensor
    """float (N, 2), 0 to 1: where the erased square lies."""

    @classmethod
    def draw(
        cls, num: int, generator: torch.Generator, *, side_N: torch.Tensor | None = None
    ) -> Self:
        """Return `num` draws that change nothing."""
        return cls(
            angle_N=torch.zeros(num),
            flip_N=torch.zeros(num, dtype=torch.bool),
            strength_NK=torch.zeros(num, len(STRONG_OPERATIONS)),
            place_N2=torch.zeros(num, 2),
            side_N=torch.zeros(num, dtype=torch.int64) if side_N is None else side_N,
        )

    def apply(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Return the augmented square images (0 to 255), bilinear, black outside."""
        device = images_NCHW.device
        strength = dict(
            zip(STRONG_OPERATIONS, self.strength_NK.T.to(device, non_blocking=True), strict=True)
        )
        angle_N = self.angle_N.to(device, non_blocking=True) * (math.pi / 180)
        mirror_N = 1.0 - 2.0 * self.flip_N.to(device, non_blocking=True).float()
        scale_N = 1.0 / (1.0 + MAX_ZOOM * strength["zoom"])
        cos_N, sin_N = angle_N.cos() * scale_N, angle_N.sin() * scale_N
        # Output to input coordinates: undo zoom and rotation, then the flip (the x row), then the
        # shift. A shift by s of the side is 2 s in coordinates of -1 to 1.
        shift_x_N = 2 * MAX_SHIFT * strength["shift_x"]
        shift_y_N = 2 * MAX_SHIFT * strength["shift_y"]
        theta_N23 = torch.stack(
            [
                torch.stack([mirror_N * cos_N, -mirror_N * sin_N, shift_x_N], 1),
                torch.stack([sin_N, cos_N, shift_y_N], 1),
            ],
            1,
        )
        grid = F.affine_grid(theta_N23, list(images_NCHW.shape), align_corners=False)
        images_NCHW = F.grid_sample(images_NCHW, grid, mode="bilinear", align_corners=False)
        if self.strength_NK.any():
            images_NCHW = _recolour(images_NCHW, strength)
            images_NCHW = _erase(images_NCHW, strength["erase"], self.place_N2.to(device))
        return images_NCHW


@AUGMENTS.register("flip_rotate", source="torchvision's RandomHorizontalFlip and RandomRotation")
@dataclass(frozen=True, kw_only=True)
class FlipRotate(Unchanged):
    """Horizontal flip and rotation by up to 10 degrees.

    Equal in distribution to torchvision's RandomHorizontalFlip followed by
    RandomRotation(10, interpolation=BILINEAR, fill=None): black outside, borders blended once.
    """

    @classmethod
    def draw(
        cls, num: int, generator: torch.Generator, *, side_N: torch.Tensor | None = None
    ) -> Self:
        """Return `num` independent draws."""
        angle_N = (torch.rand(num, generator=generator) * 2 - 1) * MAX_ROTATION_DEGREES
        flip_N = torch.rand(num, generator=generator) < 0.5
        unchanged = super().draw(num, generator, side_N=side_N)
        return replace(unchanged, angle_N=angle_N, flip_N=flip_N)


@AUGMENTS.register("strong", source="in the manner of RandAugment, Cubuk et al. (NeurIPS 2020)")
@dataclass(frozen=True, kw_only=True)
class Strong(FlipRotate):
    """After flip and rotation two random ones of brightness, contrast, saturation, zoom, shift and
    erasing.
    """

    @classmethod
    def draw(
        cls, num: int, generator: torch.Generator, *, side_N: torch.Tensor | None = None
    ) -> Self:
        """Return `num` independent draws."""
        drawn = super().draw(num, generator, side_N=side_N)
        shape = drawn.strength_NK.shape
        chosen = torch.rand(shape, generator=generator).argsort(1).argsort(1)
        strength_NK = torch.rand(shape, generator=generator) * 2 - 1
        strength_NK[chosen >= STRONG_PER_IMAGE] = 0.0
        place_N2 = torch.rand(num, 2, generator=generator)
        return replace(drawn, strength_NK=strength_NK, place_N2=place_N2)


def matched_sides(
    native_side_N: torch.Tensor,
    num_known: int,
    probability: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the side that each image is scaled down to: int64 (N,), 0 for most.

    A known image gets, with `probability`, the side of a borrowed image drawn at random, so that
    sharpness does not tell known from borrowed. Images that are no larger stay as they are.

    Args:
        native_side_N: int64, the shorter side in pixels that each image came with.
        num_known: How many known images come first; the rest is borrowed.
        probability: 0 to 1.
        generator: What is drawn from.
    """
    num = len(native_side_N)
    borrowed = native_side_N[num_known:]
    is_matched_N = torch.rand(num, generator=generator) < probability
    side_N = borrowed[torch.randint(len(borrowed), (num,), generator=generator)]
    is_matched_N &= (torch.arange(num) < num_known) & (side_N < native_side_N)
    return side_N * is_matched_N


def _bicubic(images_NCHW: torch.Tensor, side: int) -> torch.Tensor:
    resized = F.interpolate(
        images_NCHW, (side, side), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp(0, 255).round()


def _recolour(images_NCHW: torch.Tensor, strength: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return images blended with black, with their mean grey, and with themselves in grey."""
    luma = images_NCHW.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601
    factor = {
        name: (1.0 + MAX_COLOUR * strength[name]).view(-1, 1, 1, 1)
        for name in ("brightness", "contrast", "saturation")
    }
    images_NCHW = (images_NCHW * factor["brightness"]).clamp(0, 255)
    grey = (images_NCHW * luma).sum(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    images_NCHW = (mean + (images_NCHW - mean) * factor["contrast"]).clamp(0, 255)
    grey = (images_NCHW * luma).sum(1, keepdim=True)
    return (grey + (images_NCHW - grey) * factor["saturation"]).clamp(0, 255)


def _erase(
    images_NCHW: torch.Tensor, strength_N: torch.Tensor, place_N2: torch.Tensor
) -> torch.Tensor:
    """Return images with a black square of side MAX_ERASE |strength| (DeVries and Taylor, 2017)."""
    size = images_NCHW.shape[-1]
    half_N1 = (MAX_ERASE * strength_N.abs() * size / 2)[:, None]
    position = torch.arange(size, device=images_NCHW.device) + 0.5
    inside_NS = [
        (position - place_N2[:, axis : axis + 1] * size).abs() < half_N1 for axis in (0, 1)
    ]
    is_erased = inside_NS[0][:, None, :, None] & inside_NS[1][:, None, None, :]
    return images_NCHW.masked_fill(is_erased, 0.0)
