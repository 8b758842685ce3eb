"""The novelty scores, a file per family: importing this registers those that are built in.

A score says how known an image looks, higher is more known. It is a function of float64 logits
(N, C + 1), novel last, or a `FeatureScore`, which is fitted to features of training images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# In the order in which tables show them.
from trainable.novelty.scores import logits, mahalanobis, neighbours
from trainable.novelty.scores.features import FeatureScore

Score = Callable[[torch.Tensor], torch.Tensor] | type[FeatureScore]

__all__ = ["FeatureScore", "Score", "logits", "mahalanobis", "neighbours"]
