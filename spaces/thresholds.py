"""What does a threshold buy, and what does it cost?

Two objectives, so the result is a Pareto front: subclass accuracy on seen images against novel
recall. Frozen features, so trials take seconds; the thresholds are probabilities (max-softmax).

Command: python -m search.run --space spaces/thresholds.py --data DATA.zip --novel POOL.zip
Cost:    the features once, then seconds per trial on 2 cores.
"""

from typing import Any

import optuna

NUM_TRIALS = 40
EPOCHS = 8
METRIC = ("seen_sub", "unseen_sub")
BASELINES: list[dict[str, Any]] = [
    {"fine_tune": "frozen", "lr": 1e-2, "tau_super": 0.99, "tau_sub": 0.85},  # the paper's
    {"fine_tune": "frozen", "lr": 1e-2},  # calibrated
]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Return a frozen two-head model with other fixed thresholds."""
    return {
        "architecture": "two_heads",
        "fine_tune": "frozen",
        "lr": 1e-2,
        "tau_super": trial.suggest_float("tau_super", 0.3, 0.999),
        # Couples the superclass threshold to what is optimised.
        "couple_novel": trial.suggest_categorical("couple_novel", [False, True]),
        "tau_sub": trial.suggest_float("tau_sub", 0.05, 0.95),
    }
