"""What a novelty score of features is: fitted once to training images, then asked of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch


class FeatureScore(ABC):
    """How known an image looks by the pooled features below its head, higher is more known.

    An instance is fitted. It scores bit for bit alike when what `fit` returned comes from a file.
    """

    family: ClassVar[str] = ""
    """Scores of one family have one `fit`, whose tensors are kept once; empty: of its own."""
    needs_borrowed: ClassVar[bool] = False
    """Whether a config without borrowed images may not ask for it. It must work without any, all
    the same: whatever could be chosen is computed."""

    def __init__(self, fitted: Mapping[str, torch.Tensor]) -> None:
        self.fitted = fitted

    @staticmethod
    @abstractmethod
    def fit(features_ND: torch.Tensor, target_N: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the score keeps of training images: it is stored with a model.

        Args:
            features_ND: float, pooled features of the training images.
            target_N: int64, their subclass output, -1 for borrowed images, of which there may be
                none.
        """

    @abstractmethod
    def score(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return the scores (B,) of images with these pooled features."""

    @classmethod
    def formula(cls) -> str:
        """Return what scores depend on beside features: stored ones of another are not these."""
        return ""
