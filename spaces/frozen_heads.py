"""How far do frozen features go, and what should the heads be?

Frozen backbones cost one forward pass per image and view; after that a trial takes seconds. So a
laptop can ask about heads, borrowed images, interaction and learning rate in minutes.

Command: python -m search.run --space spaces/frozen_heads.py --data DATA.zip --novel POOL.zip
Cost:    on 2 cores with 12,000 images of 64 px: minutes for the features, then seconds per trial.
"""

from typing import Any

import optuna

NUM_TRIALS = 32
EPOCHS = 15
METRIC = "score"
BASELINES: list[dict[str, Any]] = [
    # The paper's B, frozen, spelt in the space's own keys so that the sampler learns from it.
    {
        "architecture": "two_models",
        "fine_tune": "frozen",
        "novel_images": 5000,
        "super_head": "linear",
        "sub_head": "linear",
        "novelty_score": "msp",
        "lr": 1e-2,
        "weight_decay": 1e-4,
    },
]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Return one configuration with every backbone frozen."""
    architecture = trial.suggest_categorical("architecture", ["two_heads", "two_models"])
    config: dict[str, Any] = {
        "architecture": architecture,
        "fine_tune": "frozen",
        "novel_images": trial.suggest_categorical("novel_images", [0, 1000, 5000]),
        "super_head": trial.suggest_categorical("super_head", ["linear", "cosine"]),
        "sub_head": trial.suggest_categorical("sub_head", ["linear", "cosine"]),
        "novelty_score": trial.suggest_categorical("novelty_score", ["msp", "max_logit", "energy"]),
        "lr": trial.suggest_float("lr", 3e-4, 3e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True),
    }
    if architecture == "two_heads":
        config["alpha"] = trial.suggest_float("alpha", 0.01, 1.0, log=True)
        config["temperature"] = trial.suggest_float("temperature", 0.5, 4.0, log=True)
    return config
