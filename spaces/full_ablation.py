"""Which architecture, how many borrowed images, how much fine-tuning, and which thresholds?

Everything the paper's authors compared by hand, as one conditional space, on the embedded
backbone: heads, borrowed images, fine-tuning for each branch, α and temperature, learning rates,
novelty score and thresholds, and the training options that proved worth it. The paper's five
configurations are tried first and never pruned, so their rows are always in the table.

Command: python -m search.run --space spaces/full_ablation.py
Cost:    4 min 42 s on 2 cores with the built-in data, 16 trials of 3 epochs. On real images raise
         --trials and --epochs; the search can be resumed with more of both.
Gained:  label smoothing and outlier exposure of the subclass (the best trial of
         spaces/best_on_a_laptop.py has both), knn_difference for a frozen superclass branch, bounds
         on rejected known images, which superclasses left out in turn reward and borrowed images,
         which "calibrated" trusts, do not.
Rejected: an image_size choice of 64 or 128: at 128 px an epoch costs four times as much, which
         says more about budgets than about architectures. Set it with --set image_size=128.
         Strong augmentation: pruned wherever spaces/best_on_a_laptop.py tried it.
"""

from typing import Any

import optuna

NUM_TRIALS = 16
EPOCHS = 3
METRIC = "score"

BASELINES: list[dict[str, Any]] = [
    {"architecture": "two_heads", "alpha": 0.1, "temperature": 1.0},  # the paper's A
    {"architecture": "two_models"},  # B
    {"architecture": "two_models", "novel_images": 1000},  # B with fewer borrowed images
    {"architecture": "two_models", "fine_tune": "frozen", "lr": 1e-2},  # B, frozen
    {"architecture": "two_models", "sub_head": "cosine"},  # C
]

FINE_TUNE = ["full", "frozen", "last_2"]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Return one configuration; a key is suggested only where it means something."""
    architecture = trial.suggest_categorical("architecture", ["two_heads", "two_models"])
    config: dict[str, Any] = {
        "architecture": architecture,
        "novel_images": trial.suggest_categorical("novel_images", [0, 1000, 5000]),
        "super_head": trial.suggest_categorical("super_head", ["linear", "cosine"]),
        "sub_head": trial.suggest_categorical("sub_head", ["linear", "cosine"]),
        "novelty_score": trial.suggest_categorical("novelty_score", ["msp", "max_logit"]),
        "couple_novel": trial.suggest_categorical("couple_novel", [False, True]),
        "label_smoothing": trial.suggest_categorical("label_smoothing", [0.0, 0.1]),
    }
    if config["novel_images"]:
        config["outlier_exposure"] = trial.suggest_categorical("outlier_exposure", [0.0, 0.5])
    if architecture == "two_heads":
        config |= _branch(trial, "")
        config["alpha"] = trial.suggest_float("alpha", 0.01, 1.0, log=True)
        config["temperature"] = trial.suggest_float("temperature", 0.5, 4.0, log=True)
    else:
        config |= _branch(trial, "super_") | _branch(trial, "sub_")
    # Where nothing blurs the features, their distance to the training images tells novel ones.
    fine_tune = config["super_fine_tune" if architecture == "two_models" else "fine_tune"]
    is_by_features = fine_tune == "frozen" and trial.suggest_categorical(
        "super_by_features", [False, True]
    )
    if is_by_features:
        config["super_novelty_score"] = "knn_difference" if config["novel_images"] else "knn"
    # Fixed thresholds are probabilities, so they go with max-softmax.
    kinds = ["calibrated", "bounded", *["fixed"] * (config["novelty_score"] == "msp")]
    thresholds = trial.suggest_categorical(f"thresholds_of_{config['novelty_score']}", kinds)
    if thresholds == "bounded":
        config["known_rejection_super"] = trial.suggest_float("known_rejection_super", 0.02, 0.1)
        config["known_rejection_sub"] = trial.suggest_float("known_rejection_sub", 0.05, 0.25)
    if thresholds == "fixed":
        if not is_by_features:
            config["tau_super"] = trial.suggest_float("tau_super", 0.3, 0.999)
        config["tau_sub"] = trial.suggest_float("tau_sub", 0.1, 0.95)
    return config


def _branch(trial: optuna.Trial, prefix: str) -> dict[str, Any]:
    """Return how one branch is fine-tuned, with a learning rate in that mode's range."""
    fine_tune = trial.suggest_categorical(f"{prefix}fine_tune", FINE_TUNE)
    low, high = (1e-3, 3e-2) if fine_tune == "frozen" else (5e-5, 1e-3)
    lr = trial.suggest_float(f"{prefix}lr_{fine_tune}", low, high, log=True)
    return {f"{prefix}fine_tune": fine_tune, f"{prefix}lr": lr}
