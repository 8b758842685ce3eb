"""Novelty scores from features: how far an image lies from what its branch was trained on."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F

from trainable.config import FEATURE_SCORES
from trainable.errors import chosen

NEIGHBOURS = 10
"""The k of the k-th nearest neighbour. On frozen features of the real data, with one superclass
left out as novel, 5 to 20 were equally good and 1 and 50 worse."""
SHRINKAGE = 1e-3
"""Added to each covariance's diagonal, as a share of its mean, so that it can be inverted."""
_QUERIES = 512  # rows of a distance matrix at once


def formula() -> str:
    """Return what scores depend on beside the features: stored scores of another are not these."""
    return f"{FEATURE_SCORES} k {NEIGHBOURS} shrinkage {SHRINKAGE}"


@dataclass(frozen=True, kw_only=True)
class FeatureBank:
    """Training features, and what scores need of them; see `fit`.

    Neighbours are kept in half precision, so that a bank read from a file scores bit for bit as
    the one that was written.
    """

    known_ND: torch.Tensor
    """float16, features of known images, of length 1."""
    borrowed_MD: torch.Tensor
    """float16, features of borrowed images, of length 1; M may be 0."""
    mean_CD: torch.Tensor
    """float32, mean feature of each subclass."""
    precision_DD: torch.Tensor
    """float32, inverse of the covariance within subclasses."""
    background_mean_D: torch.Tensor
    """float32, mean feature of all known images."""
    background_precision_DD: torch.Tensor
    """float32, inverse of the covariance of all known images."""

    @classmethod
    def fit(
        cls, features_ND: torch.Tensor, target_N: torch.Tensor, *, shrinkage: float = SHRINKAGE
    ) -> Self:
        """Return the bank of training features.

        Args:
            features_ND: float, pooled features of the training images.
            target_N: int64, their subclass output, -1 for borrowed images.
            shrinkage: Of both covariances.
        """
        is_known_N = target_N >= 0
        known_ND, borrowed_MD = features_ND[is_known_N].double(), features_ND[~is_known_N]
        labels, place_N = target_N[is_known_N].unique(return_inverse=True)
        count_C = place_N.bincount(minlength=len(labels))[:, None]
        mean_CD = known_ND.new_zeros(len(labels), known_ND.shape[1])
        mean_CD = mean_CD.index_add(0, place_N, known_ND) / count_C
        background_mean_D = known_ND.mean(0)
        return cls(
            known_ND=F.normalize(known_ND).half(),
            borrowed_MD=F.normalize(borrowed_MD.double()).half(),
            mean_CD=mean_CD.float(),
            precision_DD=_precision(known_ND - mean_CD[place_N], shrinkage),
            background_mean_D=background_mean_D.float(),
            background_precision_DD=_precision(known_ND - background_mean_D, shrinkage),
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """Return the bank that `tensors` were taken from."""
        return cls(**tensors)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all that the bank holds, ready for a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def scores(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return float64 (B, 3), higher is more known, in the order of `FEATURE_SCORES`.

        knn: minus the distance to the k-th nearest known image between features of length 1 (Sun
        et al., ICML 2022). knn_difference: knn to known images less knn to borrowed ones; knn
        without any. rmds: minus the relative Mahalanobis distance to the nearest subclass (Ren et
        al., 2021).
        """
        unit_BD = F.normalize(features_BD.float())
        knn_B = -_kth_distance(unit_BD, self._neighbours[0])
        difference_B = knn_B
        if len(self.borrowed_MD):
            difference_B = knn_B + _kth_distance(unit_BD, self._neighbours[1])
        by_name = {
            "knn": knn_B,
            "knn_difference": difference_B,
            "rmds": -self._relative_mahalanobis(features_BD.double()),
        }
        return torch.stack(
            [chosen(by_name, "novelty_score", name).double() for name in FEATURE_SCORES], 1
        )

    @functools.cached_property
    def _neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Known and borrowed rows as float32: converted once, not for every batch of images."""
        return self.known_ND.float(), self.borrowed_MD.float()

    @functools.cached_property
    def _precisions(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.precision_DD.double(), self.background_precision_DD.double()

    @functools.cached_property
    def _means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of subclasses less the background's, and the same times the precision."""
        mean_CD = self.mean_CD.double() - self.background_mean_D.double()
        return mean_CD, mean_CD @ self._precisions[0]

    def _relative_mahalanobis(self, features_BD: torch.Tensor) -> torch.Tensor:
        # Both distances by way of differences to the background mean, which keeps digits.
        x_BD = features_BD - self.background_mean_D.double()
        mean_CD, rotated_CD = self._means
        precision_DD, background_precision_DD = self._precisions
        rotated_BD = x_BD @ precision_DD
        to_class_BC = (
            (rotated_BD * x_BD).sum(1, keepdim=True)
            - 2 * rotated_BD @ mean_CD.T
            + (rotated_CD * mean_CD).sum(1)
        )
        to_background_B = (x_BD @ background_precision_DD * x_BD).sum(1)
        return to_class_BC.amin(1) - to_background_B


def _kth_distance(unit_BD: torch.Tensor, bank_ND: torch.Tensor) -> torch.Tensor:
    """Return the distance to the k-th nearest row of `bank_ND`, or to the farthest of fewer."""
    k = min(NEIGHBOURS, len(bank_ND))
    cosine_B = torch.cat(
        [(rows @ bank_ND.T).topk(k, dim=1).values[:, -1] for rows in unit_BD.split(_QUERIES)]
    )
    return (2 - 2 * cosine_B).clamp_min(0).sqrt()


def _precision(centred_ND: torch.Tensor, shrinkage: float) -> torch.Tensor:
    covariance_DD = centred_ND.T @ centred_ND / len(centred_ND)
    diagonal = covariance_DD.diagonal()
    diagonal += shrinkage * diagonal.mean() + torch.finfo(torch.float32).tiny
    inverse_DD: torch.Tensor = torch.linalg.inv(covariance_DD)
    return inverse_DD.float().contiguous()  # as it will be read from a file
