"""What a branch's scores of features were fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import torch

from trainable.errors import ConfigError
from trainable.novelty.scores import FeatureScore
from trainable.parts import SCORES, needs_bank

_FAMILY_OF_0_1 = {
    "known_ND": "knn", "borrowed_MD": "knn", "mean_CD": "rmds", "precision_DD": "rmds",
    "background_mean_D": "rmds", "background_precision_DD": "rmds",
}  # fmt: skip
"""Version 0.1 stored what scores keep without the name of their family."""


class FeatureBank:
    """Scores by features, each fitted when somebody first asks for it."""

    def __init__(
        self,
        features_ND: torch.Tensor | None = None,
        target_N: torch.Tensor | None = None,
        fitted: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        self._features_ND, self._target_N = features_ND, target_N
        self._fitted = dict(fitted or {})
        self._scores: dict[str, FeatureScore] = {}

    @classmethod
    def fit(cls, features_ND: torch.Tensor, target_N: torch.Tensor) -> Self:
        """Return the bank of training images, see `FeatureScore.fit`."""
        return cls(features_ND, target_N)

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, torch.Tensor], scores: Iterable[str], num_features: int
    ) -> Self:
        """Return the bank that `tensors` were taken from.

        Args:
            tensors: See `tensors`.
            scores: Those that it will be asked for, which are tried.
            num_features: Width of the features.

        Raises:
            ValueError: It cannot score.
        """
        fitted: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            family, dot, name = key.partition(".")
            family, name = (family, name) if dot else (_FAMILY_OF_0_1.get(key, ""), key)
            fitted.setdefault(family, {})[name] = tensor
        bank = cls(fitted=fitted)
        device = next((tensor.device for tensor in tensors.values()), None)
        try:
            bank.scores(torch.zeros(1, num_features, device=device), scores)
        except KeyError as error:
            raise ValueError(f"its bank of features lacks {error}") from error
        return bank

    def tensors(self, scores: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return all that `scores` need, ready for a file: as FAMILY.NAME."""
        return {
            f"{family}.{name}": tensor
            for family in dict.fromkeys(map(_family, scores))
            for name, tensor in self._fitted_of(family).items()
        }

    def scores(self, features_BD: torch.Tensor, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return each score by its name: float64 (B,), higher is more known."""
        return {name: self._score(name).score(features_BD).double() for name in names}

    def _score(self, name: str) -> FeatureScore:
        if name not in self._scores:
            self._scores[name] = _class_of(name)(self._fitted_of(_family(name)))
        return self._scores[name]

    def _fitted_of(self, family: str) -> Mapping[str, torch.Tensor]:
        if family not in self._fitted:
            if self._features_ND is None or self._target_N is None:
                raise KeyError(family)
            score, *others = (name for name in all_of_features() if _family(name) == family)
            for other in others:
                if _class_of(other).fit != _class_of(score).fit:
                    raise ConfigError(
                        f"the novelty scores {score} and {other} are of one family, {family!r}, "
                        f"which has one fit, but each has its own: give {other} another family"
                    )
            fitted = _class_of(score).fit(self._features_ND, self._target_N)
            self._fitted[family] = {name: each.contiguous() for name, each in fitted.items()}
        return self._fitted[family]


def all_of_features() -> list[str]:
    """Return the names of the scores of features."""
    return [name for name in SCORES if needs_bank(name)]


def formula(name: str) -> str:
    """Return what a score of features depends on beside them: stored ones of another are not it."""
    return f"{name} {_class_of(name).formula()} {SCORES.file_of(name)}"


def _class_of(name: str) -> type[FeatureScore]:
    score = SCORES.named(name)
    assert isinstance(score, type), f"{name} is not of features"
    assert issubclass(score, FeatureScore)
    return score


def _family(name: str) -> str:
    return _class_of(name).family or name
