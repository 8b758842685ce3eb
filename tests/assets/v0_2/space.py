"""Which learning rate do frozen heads of version 0.2 like?"""

from typing import Any

import optuna

NUM_TRIALS = 2
EPOCHS = 1
METRIC = "score"
COMMON = {"image_size": 32, "novel_images": 100, "fine_tune": "frozen", "feature_views": 1}
BASELINES = [COMMON | {"lr": 1e-2}]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Vary the learning rate of frozen heads."""
    return COMMON | {"lr": trial.suggest_float("lr", 1e-3, 1e-1, log=True)}
