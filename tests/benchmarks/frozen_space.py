"""What does a frozen trial cost?

Two metrics make the search multi-objective, so that no trial is pruned; without the interaction
loss a trial computes what the plain script computes.
"""

from typing import Any

import optuna

NUM_TRIALS = 16
EPOCHS = 10
METRIC = ("score", "auroc_sub")


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Vary what a frozen backbone leaves to choose."""
    return {
        "fine_tune": "frozen",
        "alpha": 0.0,
        "lr": trial.suggest_float("lr", 3e-4, 3e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True),
    }
