"""Does the sampler learn more than chance does, with baselines that lie outside the space?

`python -m tests.benchmarks.sampler` runs whole searches through `search.study.study.Study`, with a
formula in place of training: ours, random suggestions, and TPE to which the baselines without
parameters are left visible, as Optuna shows them. The five baselines are as good as what people
choose by hand: as the best five of the space's forty dry trials. A search's result is the true
value of the sampled trial that it would report as its best; values are told with noise. The last
line is one JSON object: means over seeds and objectives, and on how many of these ours won.
"""

import argparse
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import optuna

from search.space.space import Space, load_space
from search.study.study import Study
from tests.benchmarks.common import finish, say
from trainable.config import TrialConfig
from trainable.epoch import Epoch
from trainable.rng import generator

NOISE = 0.01
"""Standard deviation of what is told about the truth."""

HEADER = """
NUM_TRIALS = 60
EPOCHS = 1
BASELINES = [{"batch_size": 16 + n} for n in range(5)]  # no space here asks for a batch size
"""

BRANCHES = """
def space(trial):
    architecture = trial.suggest_categorical("architecture", ["two_heads", "two_models"])
    config = {
        "architecture": architecture,
        "novel_images": trial.suggest_categorical("novel_images", [0, 1000, 5000]),
        "sub_head": trial.suggest_categorical("sub_head", ["linear", "cosine"]),
    }
    for prefix in [""] if architecture == "two_heads" else ["super_", "sub_"]:
        mode = trial.suggest_categorical(f"{prefix}fine_tune", ["full", "frozen", "last_2"])
        low, high = (1e-3, 3e-2) if mode == "frozen" else (5e-5, 1e-3)
        config[f"{prefix}fine_tune"] = mode
        config[f"{prefix}lr"] = trial.suggest_float(f"{prefix}lr_{mode}", low, high, log=True)
    if architecture == "two_heads":
        config["alpha"] = trial.suggest_float("alpha", 0.01, 1.0, log=True)
        config["temperature"] = trial.suggest_float("temperature", 0.5, 4.0, log=True)
    return config
"""

FLAT = """
def space(trial):
    return {
        "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.4),
        "mixup": trial.suggest_float("mixup", 0.0, 1.0),
        "alpha": trial.suggest_float("alpha", 0.01, 1.0, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["adam", "adamw"]),
        "schedule": trial.suggest_categorical("schedule", ["constant", "one_cycle", "cosine"]),
    }
"""

THRESHOLDS = """
def space(trial):
    config = {
        "novelty_score": trial.suggest_categorical(
            "novelty_score", ["msp", "max_logit", "energy", "gen"]
        ),
        "super_head": trial.suggest_categorical("super_head", ["linear", "cosine"]),
        "lr": trial.suggest_float("lr", 1e-5, 1e-2, log=True),
        "outlier_exposure": trial.suggest_categorical("outlier_exposure", [0.0, 0.5, 1.0]),
    }
    if config["novelty_score"] == "msp":
        config["tau_super"] = trial.suggest_float("tau_super", 0.3, 0.999)
        config["tau_sub"] = trial.suggest_float("tau_sub", 0.1, 0.95)
    return config
"""


def _near(value: float, best: float, decades: float) -> float:
    return math.exp(-((math.log10(value / best) / decades) ** 2))


def branches(config: TrialConfig) -> float:
    """Return 0 to 1: two branches with their own modes and rates, or one with alpha."""
    if config.architecture == "two_heads":
        fit = {"full": 0.7, "frozen": 0.5, "last_2": 0.8}[config.fine_tune]
        best = 8e-3 if config.fine_tune == "frozen" else 3e-4
        value = fit * _near(config.lr, best, 0.4) * (0.6 + 0.4 * _near(config.alpha, 0.2, 0.4))
        value *= 0.8 + 0.2 * _near(config.temperature, 2.0, 0.2)
    else:
        value = 1.0
        for task, liked in (("super", "frozen"), ("sub", "last_2")):
            mode, lr = config.of(task, "fine_tune"), config.of(task, "lr")  # type: ignore[arg-type]
            best = 8e-3 if mode == "frozen" else 3e-4
            value *= (1.0 if mode == liked else 0.8) * (0.5 + 0.5 * _near(lr, best, 0.4))
    value *= {0: 0.7, 1000: 0.9}.get(config.novel_images, 1.0)
    return value * (1.0 if config.of("sub", "head") == "cosine" else 0.93)


def flat(config: TrialConfig) -> float:
    """Return 0 to 1: numbers on linear and log scales, one of which two choices shift."""
    best_lr = 1e-3 if config.schedule == "constant" else 1e-2
    value = 0.3 + 0.4 * _near(config.lr, best_lr, 0.7) + 0.1 * _near(config.alpha, 0.1, 0.5)
    value += 0.1 * _near(max(config.weight_decay, 1e-9), 1e-3, 1.0)
    value += 0.1 * math.exp(-(((config.label_smoothing - 0.1) / 0.1) ** 2))
    value *= 1.0 - 0.2 * config.mixup
    return value * {"constant": 0.9, "one_cycle": 1.0, "cosine": 0.95}[config.schedule]


def thresholds(config: TrialConfig) -> float:
    """Return 0 to 1: fixed thresholds are best, but only where both are right."""
    value = {"msp": 0.5, "max_logit": 0.75, "energy": 0.7, "gen": 0.72}[config.novelty_score]
    if config.tau_super is not None and config.tau_sub is not None:
        value += 0.25 * math.exp(-(((config.tau_super - 0.8) / 0.15) ** 2))
        value += 0.25 * math.exp(-(((config.tau_sub - 0.5) / 0.2) ** 2))
    value *= 0.4 + 0.6 * _near(config.lr, 4e-4, 0.6)
    value *= 1.0 - 0.1 * abs(config.outlier_exposure - 0.5)
    return value * (1.0 if config.of("super", "head") == "linear" else 0.95)


OBJECTIVES: dict[str, tuple[str, Callable[[TrialConfig], float]]] = {
    "branches": (BRANCHES, branches),
    "flat": (FLAT, flat),
    "thresholds": (THRESHOLDS, thresholds),
}


class _Random(Study):
    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = generator("random", self._seed, number).initial_seed() % 2**32
        return optuna.samplers.RandomSampler(seed=seed)


class _Visible(Study):
    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = generator("visible", self._seed, number).initial_seed() % 2**32
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True
        )


SIDES: dict[str, type[Study]] = {"ours": Study, "random": _Random, "visible": _Visible}


def search(side: type[Study], space: Space, truth: Callable[[Any], float], seed: int) -> float:
    """Run one search of `space`; return the true value of the sampled trial that it reports."""
    study = side(optuna.create_study(direction="maximize"), space, seed=seed, observers=[])
    by_hand = sorted(truth(config) for config in space.samples[len(space.baselines) :])
    while (trial := study.next()) is not None:
        noise = NOISE * random.Random(f"{seed} {trial.number}").gauss()
        value = by_hand[-1 - trial.number] if trial.is_baseline else truth(trial.config)
        study.finish(trial.number, Epoch(number=1, metrics={"score": value + noise}))
    sampled = [trial for trial in study.trials.values() if not trial.is_baseline]
    return truth(max(sampled, key=lambda trial: trial.metrics["score"]).config)


def main(argv: list[str] | None = None) -> None:
    """Run every side on every objective and seed; print the means and who won."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.sampler", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--trials", type=int, default=60, help="five of them are baselines")
    args = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    start_s = time.monotonic()
    best: dict[str, dict[str, list[float]]] = {}
    for name, (text, truth) in OBJECTIVES.items():
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            file = Path(folder) / "asked.py"
            file.write_text(HEADER + text)
            space = load_space(file, num_trials=args.trials)  # type: ignore[arg-type]
        best[name] = {
            side: [search(study, space, truth, seed) for seed in range(args.seeds)]
            for side, study in SIDES.items()
        }
        means = ", ".join(f"{side} {mean(values):.3f}" for side, values in best[name].items())
        say(f"{name:<10}  {means}")
    every = {side: [v for values in best.values() for v in values[side]] for side in SIDES}
    wins = {
        side: sum(ours > other for ours, other in zip(every["ours"], every[side], strict=True))
        for side in SIDES
        if side != "ours"
    }
    searches = args.seeds * len(OBJECTIVES)
    for side, won in wins.items():
        say(f"ours beats {side} in {won} of {searches} searches")
    finish(
        {
            "benchmark": "sampler",
            "ratio": mean(every["ours"]) / mean(every["random"]),
            "mean": {side: mean(values) for side, values in every.items()},
            "means": {
                name: {side: mean(values) for side, values in sides.items()}
                for name, sides in best.items()
            },
            "wins": wins,
            "searches": searches,
            "trials": args.trials,
            "baselines_outside": 5,
            "wall_s": time.monotonic() - start_s,
        }
    )


if __name__ == "__main__":
    main()
