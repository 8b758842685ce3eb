"""The novelty scores, a file per family; `parts.SCORES` names the built-in files in their order.

A score says how known an image looks, higher is more known. It is a function of float64 logits
(N, C + 1), novel last, or a `FeatureScore`, which is fitted to features of training images.
"""

from collections.abc import Callable

import torch

from trainable.novelty.scores.features import FeatureScore

Score = Callable[[torch.Tensor], torch.Tensor] | type[FeatureScore]

__all__ = ["FeatureScore", "Score"]
