"""Batched augmentation equals torchvision's, image by image."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from tests.trainable.tiny import fixed_augmentation
from trainable.augment import MAX_ROTATION_DEGREES, Augmentation

ANGLES = (-10.0, -7.3, 0.5, 3.0, 10.0, 45.0, 90.0)
SIZES = (5, 32, 64, 97)


def noise(num: int, size: int) -> torch.Tensor:
    """Images of noise, 0 to 255: the hardest to interpolate alike."""
    return 255 * torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(size))


def tolerance(size: int) -> float:
    """Both sides place samples in float32, so each is off by a few eps x size pixels, and noise
    changes by up to 255 a pixel. At 224 px that is 0.03 of a grey level."""
    return 4 * torch.finfo(torch.float32).eps * size * 255


def by_torchvision(image: torch.Tensor, angle: float, flip: bool, **fill: float) -> torch.Tensor:
    if flip:
        image = tv.hflip(image)
    return tv.rotate(image, angle, interpolation=InterpolationMode.BILINEAR, **fill)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flip", [False, True])
def test_each_image_is_flipped_then_rotated_as_torchvision_does(size: int, flip: bool) -> None:
    """Everywhere, borders too: outside is black, and a border pixel fades with its distance."""
    images = noise(len(ANGLES), size)
    batch = fixed_augmentation(torch.tensor(ANGLES), torch.full((len(ANGLES),), flip)).apply(images)
    for image, angle, ours in zip(images, ANGLES, batch, strict=True):
        torch.testing.assert_close(
            ours, by_torchvision(image, angle, flip), rtol=0, atol=tolerance(size)
        )


@pytest.mark.parametrize("angle", [-10.0, 4.0, 45.0])
def test_black_fill_differs_from_torchvision_only_in_the_fading_border(angle: float) -> None:
    """torchvision's `fill=0` fades a border pixel twice, so pixels partly covered differ."""
    image = noise(1, 64)
    ours = fixed_augmentation(torch.tensor([angle]), torch.tensor([True])).apply(image)
    filled = by_torchvision(image, angle, True, fill=0.0)
    covered = by_torchvision(torch.ones_like(image), angle, True)
    inside, outside = covered > 0.9999, covered == 0
    assert inside.float().mean() > 0.75
    assert outside.any()
    torch.testing.assert_close(ours[inside], filled[inside], rtol=0, atol=0.1)
    assert not ours[outside].any()
    assert not filled[outside].any()


@pytest.mark.parametrize("size", SIZES)
def test_no_angle_and_no_flip_leaves_images_as_they_are(size: int) -> None:
    images = noise(2, size)
    same = fixed_augmentation(torch.zeros(2), torch.zeros(2, dtype=torch.bool)).apply(images)
    torch.testing.assert_close(same, images, rtol=0, atol=tolerance(size))


@pytest.mark.parametrize("size", SIZES)
def test_flip_alone_mirrors_left_and_right(size: int) -> None:
    images = noise(2, size)
    mirrored = fixed_augmentation(torch.zeros(2), torch.tensor([True, False])).apply(images)
    torch.testing.assert_close(mirrored[0], images[0].flip(-1), rtol=0, atol=tolerance(size))
    torch.testing.assert_close(mirrored[1], images[1], rtol=0, atol=tolerance(size))


def test_positive_angle_turns_counter_clockwise() -> None:
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 4] = 1.0  # right of the centre
    turned = fixed_augmentation(torch.tensor([90.0]), torch.tensor([False])).apply(image)
    assert turned.flatten().argmax() == 2  # top row, above the centre


def test_drawn_angles_are_uniform_within_ten_degrees() -> None:
    angles = Augmentation.draw(20_000, torch.Generator().manual_seed(1)).angle_N.numpy()
    assert MAX_ROTATION_DEGREES == 10.0
    assert np.abs(angles).max() <= 10.0
    assert kstest(angles, "uniform", args=(-10, 20)).pvalue > 0.01


def test_half_the_draws_flip_whatever_the_angle() -> None:
    drawn = Augmentation.draw(20_000, torch.Generator().manual_seed(2))
    assert binomtest(int(drawn.flip_N.sum()), 20_000, 0.5).pvalue > 0.01
    flipped, others = drawn.angle_N[drawn.flip_N], drawn.angle_N[~drawn.flip_N]
    assert kstest(flipped.numpy(), others.numpy()).pvalue > 0.01


def test_same_generator_state_draws_the_same() -> None:
    first, second = (Augmentation.draw(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.angle_N, second.angle_N)
    assert torch.equal(first.flip_N, second.flip_N)


def test_indexing_takes_the_augmentations_of_those_rows() -> None:
    drawn = Augmentation.draw(6, torch.Generator().manual_seed(4))
    rows = torch.tensor([5, 0, 0, 3])
    images = noise(6, 16)
    assert torch.equal(drawn[rows].angle_N, drawn.angle_N[rows])
    assert torch.equal(drawn[rows].flip_N, drawn.flip_N[rows])
    assert torch.equal(drawn[rows].apply(images[rows]), drawn.apply(images)[rows])
