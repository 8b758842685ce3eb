"""Which pretrained backbone tells best what it has never seen?

ResNet, ViT and EfficientNet, frozen and fine-tuned, with two models. All but the embedded
EfficientNet-Lites are downloaded once per machine, or given with --weights FOLDER (one file per
backbone, named after it). Thresholds bound how many known images are rejected, the same for all; a
frozen superclass branch may tell novel images by their distance to the training images.

Command: python -m search.run --space spaces/backbones.py --data DATA.zip --novel cifar100
Cost:    a GPU's work; --set fine_tune=frozen asks half of the question on a laptop.
"""

from typing import Any

import optuna

NUM_TRIALS = 24
EPOCHS = 10
METRIC = "score"

BACKBONES = [
    "efficientnet_lite0", "efficientnet_lite2", "resnet18", "resnet50", "vit_b_16",
    "tf_efficientnetv2_b0",
]  # fmt: skip
COMMON: dict[str, Any] = {
    "architecture": "two_models",
    "sub_novelty_score": "max_logit",
    "known_rejection_super": 0.05,
    "known_rejection_sub": 0.12,
}
BASELINES: list[dict[str, Any]] = [
    {
        **COMMON,
        "backbone": name,
        "fine_tune": "frozen",
        "super_novelty_score": "knn_difference",
        "image_size": 64,
        "lr": 1e-2,
    }
    for name in BACKBONES
]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Return one backbone, frozen or fine-tuned; image sizes suit ViT's patches of 16 px."""
    fine_tune = trial.suggest_categorical("fine_tune", ["full", "frozen"])
    low, high = (1e-3, 3e-2) if fine_tune == "frozen" else (2e-5, 5e-4)
    score = "max_logit"
    if fine_tune == "frozen":
        score = trial.suggest_categorical("super_novelty_score", ["max_logit", "knn_difference"])
    return {
        **COMMON,
        "super_novelty_score": score,
        "backbone": trial.suggest_categorical("backbone", BACKBONES),
        "image_size": trial.suggest_categorical("image_size", [64, 128]),
        "fine_tune": fine_tune,
        "lr": trial.suggest_float(f"lr_{fine_tune}", low, high, log=True),
    }
