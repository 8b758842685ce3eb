"""Does the installation work, from the first check to the last line?

Command: python -m search.run --space spaces/smoke.py
Cost:    a minute or two on 2 cores.
Result:  none that means anything: two epochs of frozen heads, and one tiny fine-tuning.
"""

from typing import Any

import optuna

NUM_TRIALS = 4
EPOCHS = 2
METRIC = "score"
BASELINES = [{"fine_tune": "last_1", "image_size": 32, "novel_images": 200, "lr": 1e-3}]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Vary the learning rate of frozen heads at the smallest size."""
    return {
        "architecture": trial.suggest_categorical("architecture", ["two_heads", "two_models"]),
        "fine_tune": "frozen",
        "image_size": 32,
        "novel_images": 200,
        "feature_views": 1,
        "lr": trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    }
