"""What does a threshold buy, and what does it cost?

Two objectives, so the result is a Pareto front: subclass accuracy on seen images against novel
recall. Frozen features, so trials take seconds. Fixed thresholds are probabilities (max-softmax);
bounds on how many known images are rejected go with any score, of features too.

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
    {"fine_tune": "frozen", "lr": 1e-2},  # calibrated on borrowed images
]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Return a frozen two-head model with other thresholds, fixed or bounded."""
    config: dict[str, Any] = {
        "architecture": "two_heads",
        "fine_tune": "frozen",
        "lr": 1e-2,
        # Couples the superclass threshold to what is optimised.
        "couple_novel": trial.suggest_categorical("couple_novel", [False, True]),
    }
    if trial.suggest_categorical("thresholds", ["fixed", "bounded"]) == "fixed":
        config["tau_super"] = trial.suggest_float("tau_super", 0.3, 0.999)
        config["tau_sub"] = trial.suggest_float("tau_sub", 0.05, 0.95)
        return config
    for task, scores in (
        ("super", ["max_logit", "knn_difference", "rmds"]),
        ("sub", ["msp", "max_logit", "rmds"]),
    ):
        key = f"{task}_novelty_score"
        config[key] = trial.suggest_categorical(key, scores)
    config["known_rejection_super"] = trial.suggest_float("known_rejection_super", 0.01, 0.2)
    config["known_rejection_sub"] = trial.suggest_float("known_rejection_sub", 0.01, 0.5)
    return config
