"""A real backbone and its weights, small enough to train in milliseconds."""

import os
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from trainable.config import Branch, TrialConfig
from trainable.model.augment import STRONG_OPERATIONS, Augmentation, FlipRotate
from trainable.model.backbones import Backbone

BACKBONE = "test_resnet"
"""Of timm: five stages, 470,000 parameters, batch norm."""


def write_weights(file: Path, seed: int = 0) -> Path:
    """Write random weights of BACKBONE, with batch-norm statistics that fit them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(BACKBONE)
        with torch.no_grad():
            for _ in range(20):
                model(torch.randn(16, 3, 32, 32))
    torch.save(model.state_dict(), file)
    return file


def small_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return random weights whose tensors overlap in memory, so that a big model's file is small.

    Element (i, j, ...) is draw i + j + ... of the tensor's own draws.
    """
    rng = torch.Generator().manual_seed(0)
    state = {}
    for key, tensor in model.state_dict().items():
        draws = 0.1 * torch.randn(1 + sum(tensor.shape), generator=rng)
        if key.endswith("running_var"):
            draws = draws.abs() + 0.5
        spread = draws.as_strided(tensor.shape, (1,) * tensor.dim())
        state[key] = spread if tensor.is_floating_point() else tensor
    return state


def silent(*_: object) -> None:
    """Take a note or a report, and do nothing with it."""


def tiny_config(**changes: Any) -> TrialConfig:
    """Return a configuration that trains an epoch of the tiny data in a tenth of a second."""
    small = {"backbone": BACKBONE, "image_size": 32, "batch_size": 32, "epochs": 1, "lr": 1e-3}
    return TrialConfig(**(small | {"novel_images": 32} | changes))


def tiny_branch(**changes: Any) -> Branch:
    """Return a branch with both heads for `tiny_backbone`."""
    both: dict[str, Any] = {"tasks": ("super", "sub"), "heads": ("linear", "linear")}
    small = {"backbone": "by hand"}
    numbers = {"image_size": 8, "fine_tune": "last_1", "lr": 1e-3, "head_lr": 1e-3}
    return Branch(**(both | small | numbers | changes))


def tiny_backbone(seed: int = 0) -> Backbone:
    """Return three stages with 6 features, fresh at every call, that see values of 0 to 255."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stages = (
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(6, 6)),
        )
    one = 1 / 255
    return Backbone(stages=stages, num_features=6, mean=(0.0, 0.0, 0.0), std=(one, one, one))


def fixed_augmentation(
    angle_N: torch.Tensor,
    flip_N: torch.Tensor | None = None,
    *,
    place_N2: torch.Tensor | None = None,
    side_N: torch.Tensor | None = None,
    **strength_N: torch.Tensor,
) -> Augmentation:
    """Return the augmentation of those parameters; of the others, none."""
    num = len(angle_N)
    return FlipRotate(
        angle_N=angle_N,
        flip_N=torch.zeros(num, dtype=torch.bool) if flip_N is None else flip_N,
        strength_NK=torch.stack(
            [strength_N.get(name, torch.zeros(num)) for name in STRONG_OPERATIONS], 1
        ),
        place_N2=torch.full((num, 2), 0.5) if place_N2 is None else place_N2,
        side_N=torch.zeros(num, dtype=torch.int64) if side_N is None else side_N,
    )


class Bait:
    """Unpickling it makes a folder: the proof that code in a file was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)
