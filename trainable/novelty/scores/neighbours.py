"""Novelty scores from distances to the nearest training images.

Neighbours are kept in half precision, so that scores from a file are those of the trial bit for
bit.
"""

import functools

import torch
import torch.nn.functional as F

from trainable.novelty.scores.features import FeatureScore
from trainable.parts import SCORES

NEIGHBOURS = 10
"""The k of the k-th nearest neighbour. On frozen features of the real data, with one superclass
left out as novel, 5 to 20 were equally good and 1 and 50 worse."""
_QUERIES = 512  # rows of a distance matrix at once


@SCORES.register("knn", source="Sun et al. (ICML 2022)")
class Knn(FeatureScore):
    """Minus the distance to the k-th nearest known image between features of length 1."""

    family = "knn"

    @staticmethod
    def fit(features_ND: torch.Tensor, target_N: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return known_ND and borrowed_MD: float16, features of length 1; M may be 0."""
        is_known_N = target_N >= 0
        return {
            "known_ND": F.normalize(features_ND[is_known_N].double()).half(),
            "borrowed_MD": F.normalize(features_ND[~is_known_N].double()).half(),
        }

    def score(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return float32 (B,), of fewer images than k the distance to the farthest."""
        return -_kth_distance(F.normalize(features_BD.float()), self._known_ND)

    @functools.cached_property
    def _known_ND(self) -> torch.Tensor:  # noqa: N802
        """As float32: converted once, not for every batch of images."""
        return self.fitted["known_ND"].float()

    @classmethod
    def formula(cls) -> str:
        """Return k."""
        return f"k {NEIGHBOURS}"


@SCORES.register("knn_difference", source="Sun et al. (ICML 2022), of known and borrowed images")
class KnnDifference(Knn):
    """The same to known images less that to borrowed ones; knn without any."""

    needs_borrowed = True

    def score(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return float32 (B,)."""
        knn_B = super().score(features_BD)
        if not len(self._borrowed_MD):
            return knn_B
        return knn_B + _kth_distance(F.normalize(features_BD.float()), self._borrowed_MD)

    @functools.cached_property
    def _borrowed_MD(self) -> torch.Tensor:  # noqa: N802
        return self.fitted["borrowed_MD"].float()


def _kth_distance(unit_BD: torch.Tensor, bank_ND: torch.Tensor) -> torch.Tensor:
    """Return the distance to the k-th nearest row of `bank_ND`, or to the farthest of fewer."""
    k = min(NEIGHBOURS, len(bank_ND))
    cosine_B = torch.cat(
        [(rows @ bank_ND.T).topk(k, dim=1).values[:, -1] for rows in unit_BD.split(_QUERIES)]
    )
    return (2 - 2 * cosine_B).clamp_min(0).sqrt()
