"""A branch: the frozen part of a backbone, its trained part, and the heads on top."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from trainable.config import Branch, Task
from trainable.model import backbones
from trainable.model.augment import Augmentation
from trainable.model.folding import folded
from trainable.model.heads import build_head
from trainable.rng import generator


class BranchModel(nn.Module):
    """One backbone with one or more heads.

    Frozen means frozen: those stages stay in eval mode and out of every optimizer.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        branch: Branch,
        backbone: backbones.Backbone,
        num_classes: Mapping[Task, int],
        seed: int,
    ) -> None:
        super().__init__()
        cut = backbones.boundary(branch.fine_tune, len(backbone.stages))
        self.branch, self.num_features = branch, backbone.num_features
        self.frozen = nn.Sequential(*backbone.stages[:cut]).requires_grad_(False).eval()
        self.tuned = nn.Sequential(*backbone.stages[cut:])
        self.heads = nn.ModuleDict(
            {
                task: build_head(
                    kind, backbone.num_features, num_classes[task], generator(seed, "head", task)
                )
                for task, kind in zip(branch.tasks, branch.heads, strict=True)
            }
        )
        self.folds = nn.ModuleDict()
        """Heads that never saw one of the superclasses, by its number; see `add_fold`."""
        # Images come as 0 to 255; one multiply-add normalises them.
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(3, 1, 1), False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(3, 1, 1), False)

    @classmethod
    def build(
        cls,
        branch: Branch,
        num_classes: Mapping[Task, int],
        seed: int,
        weights: Path | None = None,
        *,
        pretrained: bool = True,
    ) -> Self:
        """Return the branch with pretrained weights and freshly drawn heads.

        Raises:
            ConfigError, WeightsError: See `backbones.build`.
        """
        backbone = backbones.build(
            branch.backbone, branch.image_size, weights,
            pretrained=pretrained, fine_tune=branch.fine_tune,
        )  # fmt: skip
        return cls(branch, backbone, num_classes, seed)

    def add_fold(self, superclass: int, num_classes: Mapping[Task, int], seed: int) -> None:
        """Draw further heads on the same features, for a fold that leaves `superclass` out."""
        self.folds[str(superclass)] = nn.ModuleDict(
            {
                task: build_head(
                    kind, self.num_features, num_classes[task],
                    generator(seed, "head", task, "left out", superclass),
                )
                for task, kind in zip(self.branch.tasks, self.branch.heads, strict=True)
            }
        )  # fmt: skip

    def add_share(self, number: int) -> None:
        """Copy the heads as they were drawn, for others that train without a share of the images.

        What they were drawn as shifts their scores for good, alike for all images: heads that were
        drawn anew would have thresholds of their own.
        """
        self.folds[str(number)] = copy.deepcopy(self.heads)

    @functools.cached_property
    def frozen_fingerprint(self) -> str:
        """Digest of the frozen part's weights, which names it in checkpoints and caches."""
        return backbones.fingerprint([self.frozen])

    @property
    def has_frozen_part(self) -> bool:
        """Whether features at the boundary can be computed once."""
        return len(self.frozen) > 0

    @property
    def is_frozen(self) -> bool:
        """Whether nothing below the heads is trained."""
        return len(self.tuned) == 0

    def train(self, mode: bool = True) -> Self:
        """Set training mode on what is trained; the frozen part always evaluates."""
        self.training = mode
        self.tuned.train(mode)
        self.heads.train(mode)
        self.folds.train(mode)
        return self

    def prepare(
        self, images_NHWC: torch.Tensor, augmentation: Augmentation | None = None
    ) -> torch.Tensor:
        """Return uint8 images resized, augmented and normalised: float (N, 3, S, S)."""
        size = self.branch.image_size
        x = images_NHWC.to(self.mean.device, non_blocking=True).permute(0, 3, 1, 2).float()
        if augmentation is not None:
            x = augmentation.match(x)
        if x.shape[-1] != size:
            x = F.interpolate(
                x, (size, size), mode="bilinear", align_corners=False, antialias=size < x.shape[-1]
            )
        if augmentation is not None:
            x = augmentation.apply(x)
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the frozen part's output for prepared images: what a feature cache stores."""
        with torch.no_grad():
            features: torch.Tensor = self._encoder(x)
        return features

    @functools.cached_property
    def _encoder(self) -> nn.Module:
        return folded(self.frozen, self.branch.image_size, self.mean.device)

    def forward(self, features: torch.Tensor) -> dict[Task, torch.Tensor]:
        """Return each task's logits (N, C + 1) from the frozen part's output."""
        return self.classify(self.tuned(features))

    def classify(
        self, pooled_ND: torch.Tensor, fold: int | None = None
    ) -> dict[Task, torch.Tensor]:
        """Return each task's logits (N, C + 1) from the whole backbone's output.

        Always in float32: bf16 has 8 bits of mantissa, and equal scores cannot be ranked.

        Args:
            pooled_ND: Pooled features.
            fold: By the heads that never saw this superclass.
        """
        heads = self.heads if fold is None else self.folds[str(fold)]
        assert isinstance(heads, nn.ModuleDict)
        with torch.autocast(pooled_ND.device.type, enabled=False):
            pooled_ND = pooled_ND.float()
            return {task: heads[task](pooled_ND) for task in self.branch.tasks}

    def with_own_weights(self) -> Self:
        """Return the same branch with a copy of what is trained; the frozen part is shared."""
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        for name in ("tuned", "heads", "folds"):
            setattr(twin, name, copy.deepcopy(getattr(self, name)))
        return twin

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Return what training changes: parameters and batch-norm statistics."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("frozen.")}

    def load_trained_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load what `trained_state` returned; the frozen part stays as it is."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        wrong = unexpected + [key for key in missing if not key.startswith("frozen.")]
        if wrong:
            raise ValueError(f"this state is of another model: {', '.join(wrong[:3])}")
