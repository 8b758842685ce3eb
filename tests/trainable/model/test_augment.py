"""Batched augmentation equals torchvision's, image by image."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, kstest
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from tests.trainable.tiny import fixed_augmentation
from trainable.model.augment import (
    MAX_ROTATION_DEGREES,
    STRONG_OPERATIONS,
    FlipRotate,
    Strong,
    Unchanged,
    matched_sides,
)

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
    turned: torch.Tensor = tv.rotate(image, angle, interpolation=InterpolationMode.BILINEAR, **fill)
    return turned


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
    angles = FlipRotate.draw(20_000, torch.Generator().manual_seed(1)).angle_N.numpy()
    assert MAX_ROTATION_DEGREES == 10.0
    assert np.abs(angles).max() <= 10.0
    assert kstest(angles, "uniform", args=(-10, 20)).pvalue > 0.01


def test_half_the_draws_flip_whatever_the_angle() -> None:
    drawn = FlipRotate.draw(20_000, torch.Generator().manual_seed(2))
    assert binomtest(int(drawn.flip_N.sum()), 20_000, 0.5).pvalue > 0.01
    flipped, others = drawn.angle_N[drawn.flip_N], drawn.angle_N[~drawn.flip_N]
    assert kstest(flipped.numpy(), others.numpy()).pvalue > 0.01


def test_same_generator_state_draws_the_same() -> None:
    first, second = (FlipRotate.draw(50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.angle_N, second.angle_N)
    assert torch.equal(first.flip_N, second.flip_N)


def test_indexing_takes_the_augmentations_of_those_rows() -> None:
    drawn = FlipRotate.draw(6, torch.Generator().manual_seed(4))
    rows = torch.tensor([5, 0, 0, 3])
    images = noise(6, 16)
    assert torch.equal(drawn[rows].angle_N, drawn.angle_N[rows])
    assert torch.equal(drawn[rows].flip_N, drawn.flip_N[rows])
    assert torch.equal(drawn[rows].apply(images[rows]), drawn.apply(images)[rows])


# --- Strong augmentation ----------------------------------------------------------------------


def coloured(num: int, size: int) -> torch.Tensor:
    """Whole-number images, 0 to 255."""
    return noise(num, size).round()


def test_strong_augmentation_is_two_operations_each_equally_likely_on_top_of_flip_rotate() -> None:
    drawn = Strong.draw(20_000, torch.Generator().manual_seed(5))
    plain = FlipRotate.draw(20_000, torch.Generator().manual_seed(5))
    assert torch.equal(drawn.angle_N, plain.angle_N)
    assert torch.equal(drawn.flip_N, plain.flip_N)
    assert not plain.strength_NK.any()
    is_applied = drawn.strength_NK != 0
    assert set(is_applied.sum(1).tolist()) == {2}
    for column in range(len(STRONG_OPERATIONS)):
        applied = is_applied[:, column]
        assert binomtest(int(applied.sum()), 20_000, 2 / 7).pvalue > 0.001
        strengths = drawn.strength_NK[applied, column].numpy()
        assert kstest(strengths, "uniform", args=(-1, 2)).pvalue > 0.001
    assert kstest(drawn.place_N2.flatten().numpy(), "uniform").pvalue > 0.001


def test_no_augmentation_draws_neither_angle_nor_flip() -> None:
    drawn = Unchanged.draw(50, torch.Generator().manual_seed(5))
    assert not drawn.angle_N.any()
    assert not drawn.flip_N.any()
    assert not drawn.strength_NK.any()


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.3, 1.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_as_torchvision_does_it(name: str, strength: float) -> None:
    """By a factor of 0.5 to 1.5."""
    images = coloured(3, 16)
    changed = {name: torch.full((3,), strength)}
    ours = fixed_augmentation(torch.zeros(3), **changed).apply(images)
    expected = getattr(tv, f"adjust_{name}")(images / 255, 1 + 0.5 * strength) * 255
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.1)
    assert (ours - images).abs().max() > 5


@pytest.mark.parametrize(
    ("name", "strength", "affine"),
    [
        ("zoom", 1.0, {"scale": 1.3}),
        ("zoom", -1.0, {"scale": 0.7}),
        ("shift_x", 1.0, {"translate": [-4.0, 0.0]}),
        ("shift_x", -0.5, {"translate": [2.0, 0.0]}),
        ("shift_y", 1.0, {"translate": [0.0, -4.0]}),
        ("shift_y", -0.25, {"translate": [0.0, 1.0]}),
    ],
)
def test_zoom_and_shift_are_torchvisions_affine(
    name: str, strength: float, affine: dict[str, Any]
) -> None:
    """Scale 0.7 to 1.3, and up to a fifth of the side: 4 of 20 px."""
    images = noise(2, 20)
    ours = fixed_augmentation(torch.zeros(2), **{name: torch.full((2,), strength)}).apply(images)
    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    expected = tv.affine(images, **(still | affine), interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance(20) * 4)


@pytest.mark.parametrize("strength", [1.0, -1.0, 0.5])
def test_erased_square_lies_where_it_was_drawn(strength: float) -> None:
    """Up to half the side, cut off at the border."""
    images = torch.full((3, 3, 16, 16), 200.0)
    places = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.0, 0.0]])  # of the centre: down, right
    erase = torch.full((3,), strength)
    ours = fixed_augmentation(torch.zeros(3), place_N2=places, erase=erase).apply(images)
    half = int(4 * abs(strength))
    for image, (y, x) in zip(ours, (places * 16).int().tolist(), strict=True):
        expected = torch.full((3, 16, 16), 200.0)
        expected[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-3)


# --- Matched resolution -----------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_known_images_get_the_side_of_a_borrowed_one(probability: float) -> None:
    native = torch.cat([torch.full((8_000,), 64), torch.tensor([32, 32, 32, 48] * 500)])
    sides = matched_sides(native, 8_000, probability, torch.Generator().manual_seed(6))
    assert sides.dtype == torch.int64
    assert not sides[8_000:].any()
    matched = sides[sides > 0]
    assert set(matched.tolist()) <= {32, 48}
    assert binomtest(len(matched), 8_000, probability).pvalue > 0.001
    if len(matched):
        assert binomtest(int((matched == 32).sum()), len(matched), 0.75).pvalue > 0.001


def test_images_no_larger_than_the_borrowed_one_stay_as_they_are() -> None:
    native = torch.tensor([20, 32, 33, 64, 32])
    sides = matched_sides(native, 4, 1.0, torch.Generator().manual_seed(7))
    assert sides.tolist() == [0, 0, 32, 32, 0]


@pytest.mark.parametrize("side", [8, 17, 24])
def test_matched_image_is_scaled_down_and_up_as_pillow_does_it(side: int) -> None:
    images = (coloured(3, 32) / 2 + 64).round()  # Pillow clips in between
    sides = torch.tensor([0, side, 32])
    before = images.clone()
    ours = fixed_augmentation(torch.zeros(3), side_N=sides).match(images)
    assert torch.equal(images, before)
    assert torch.equal(ours[[0, 2]], images[[0, 2]])
    picture = Image.fromarray(images[1].permute(1, 2, 0).numpy().astype(np.uint8))
    small = picture.resize((side, side), Image.Resampling.BICUBIC)
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_allclose(ours[1].permute(1, 2, 0).numpy(), expected, atol=2)
    assert (ours[1] - images[1]).abs().max() > 2
