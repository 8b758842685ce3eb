"""A novelty score from the spread of the training features."""

import functools

import torch

from trainable.novelty.scores.features import FeatureScore
from trainable.parts import SCORES

SHRINKAGE = 1e-3
"""Added to each covariance's diagonal, as a share of its mean, so that it can be inverted."""


@SCORES.register("rmds", source="Ren et al. (2021)")
class RelativeMahalanobis(FeatureScore):
    """Minus the relative Mahalanobis distance to the nearest subclass."""

    @staticmethod
    def fit(
        features_ND: torch.Tensor, target_N: torch.Tensor, *, shrinkage: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Return means and inverted covariances, float32, of each subclass and of all known images.

        Args:
            features_ND: float.
            target_N: int64, -1 for borrowed images, which are not looked at.
            shrinkage: Of both covariances; null: SHRINKAGE.
        """
        shrinkage = SHRINKAGE if shrinkage is None else shrinkage
        is_known_N = target_N >= 0
        known_ND = features_ND[is_known_N].double()
        labels, place_N = target_N[is_known_N].unique(return_inverse=True)
        count_C = place_N.bincount(minlength=len(labels))[:, None]
        mean_CD = known_ND.new_zeros(len(labels), known_ND.shape[1])
        mean_CD = mean_CD.index_add(0, place_N, known_ND) / count_C
        background_mean_D = known_ND.mean(0)
        return {
            "mean_CD": mean_CD.float(),
            "precision_DD": _precision(known_ND - mean_CD[place_N], shrinkage),
            "background_mean_D": background_mean_D.float(),
            "background_precision_DD": _precision(known_ND - background_mean_D, shrinkage),
        }

    def score(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Return float64 (B,)."""
        # Both distances by way of differences to the background mean, which keeps digits.
        x_BD = features_BD.double() - self.fitted["background_mean_D"].double()
        mean_CD, rotated_CD = self._means
        precision_DD, background_precision_DD = self._precisions
        rotated_BD = x_BD @ precision_DD
        to_class_BC = (
            (rotated_BD * x_BD).sum(1, keepdim=True)
            - 2 * rotated_BD @ mean_CD.T
            + (rotated_CD * mean_CD).sum(1)
        )
        to_background_B = (x_BD @ background_precision_DD * x_BD).sum(1)
        return -(to_class_BC.amin(1) - to_background_B)

    @functools.cached_property
    def _precisions(self) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            self.fitted["precision_DD"].double(),
            self.fitted["background_precision_DD"].double(),
        )

    @functools.cached_property
    def _means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of subclasses less the background's, and the same times the precision."""
        mean_CD = self.fitted["mean_CD"].double() - self.fitted["background_mean_D"].double()
        return mean_CD, mean_CD @ self._precisions[0]

    @classmethod
    def formula(cls) -> str:
        """Return the shrinkage."""
        return f"shrinkage {SHRINKAGE}"


def _precision(centred_ND: torch.Tensor, shrinkage: float) -> torch.Tensor:
    covariance_DD = centred_ND.T @ centred_ND / len(centred_ND)
    diagonal = covariance_DD.diagonal()
    diagonal += shrinkage * diagonal.mean() + torch.finfo(torch.float32).tiny
    inverse_DD: torch.Tensor = torch.linalg.inv(covariance_DD)
    return inverse_DD.float().contiguous()  # as it will be read from a file
