"""What turns pooled features into logits: heads by name.

A head is made by ``head(num_features, num_classes)``, and its parameters are drawn then, from
torch's own stream, which is seeded for each head.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from trainable.parts import HEADS

HeadMaker = Callable[[int, int], nn.Module]

INITIAL_COSINE_SCALE = 30.0


@HEADS.register("linear", source="torch.nn.Linear")
class LinearHead(nn.Linear):
    """w_c x + b_c."""

    def reset_parameters(self) -> None:
        """Draw both from what torch draws them from, weights first."""
        with torch.no_grad():
            _draw(self.weight, self.in_features)
            _draw(self.bias, self.in_features)


@HEADS.register("cosine", source="Wang et al., CosFace (CVPR 2018), without margin")
class CosineHead(nn.Module):
    """s cos(x, w_c) with a learnt scale s."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        self.scale = nn.Parameter(torch.tensor(INITIAL_COSINE_SCALE))
        with torch.no_grad():
            _draw(self.weight, num_features)

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Return logits (N, C)."""
        cosine_NC = F.linear(F.normalize(features_ND), F.normalize(self.weight))
        return self.scale * cosine_NC


def build_head(kind: str, num_features: int, num_classes: int, rng: torch.Generator) -> nn.Module:
    """Return a head of this kind whose parameters depend on the seed of `rng` alone.

    Raises:
        ConfigError: There is no such head.
    """
    make = HEADS.named(kind)
    with torch.random.fork_rng(devices=[]):
        # Not by torch.manual_seed, which formats a stack trace for every accelerator.
        torch.default_generator.manual_seed(rng.initial_seed())
        return make(num_features, num_classes)


def _draw(parameter: torch.Tensor, num_features: int) -> None:
    bound = 1 / math.sqrt(num_features)
    parameter.uniform_(-bound, bound)
