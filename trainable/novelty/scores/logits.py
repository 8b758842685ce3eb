"""Novelty scores from the logits of a head: nothing is fitted.

Only known classes can look known, so each is over all columns but the last (msp keeps novel in the
denominator).
"""

import torch

from trainable.parts import SCORES

GEN_GAMMA, GEN_TOP = 0.1, 100
"""The values that GEN's authors use for ImageNet."""


@SCORES.register("msp", source="Hendrycks and Gimpel (ICLR 2017)")
def msp(logits_NC: torch.Tensor) -> torch.Tensor:
    """The largest softmax probability of a known class."""
    return logits_NC.softmax(1)[:, :-1].amax(1)


@SCORES.register("max_logit", source="Hendrycks et al. (ICML 2022)")
def max_logit(logits_NC: torch.Tensor) -> torch.Tensor:
    """The largest logit of a known class."""
    return logits_NC[:, :-1].amax(1)


@SCORES.register("energy", source="Liu et al. (NeurIPS 2020)")
def energy(logits_NC: torch.Tensor) -> torch.Tensor:
    """Negative free energy of the known classes."""
    return logits_NC[:, :-1].logsumexp(1)


@SCORES.register("gen", source="Liu, Lochman and Zach (CVPR 2023)")
def gen(logits_NC: torch.Tensor) -> torch.Tensor:
    """Negative generalised entropy of the known classes."""
    top = logits_NC[:, :-1].softmax(1).sort(dim=1, descending=True).values[:, :GEN_TOP]
    return -(top**GEN_GAMMA * (1 - top) ** GEN_GAMMA).sum(1)
