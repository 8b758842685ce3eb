"""Which learning rate do frozen heads of version 0.1 like?"""

from typing import Any

import optuna

NUM_TRIALS = 3
EPOCHS = 2
METRIC = "score"
BASELINES = [
    {"image_size": 32, "novel_images": 100, "fine_tune": "frozen", "feature_views": 1, "lr": 1e-2}
]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Vary the learning rate of frozen heads."""
    return {
        "architecture": trial.suggest_categorical("architecture", ["two_heads", "two_models"]),
        "fine_tune": "frozen",
        "image_size": 32,
        "novel_images": 100,
        "feature_views": 1,
        "lr": trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    }
