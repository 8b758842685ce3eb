"""How far do frozen features go where 4% of the known images may be lost, and with which heads?

Frozen backbones cost one forward pass per image; after that a trial takes seconds. So a laptop can
ask about heads, novelty scores, borrowed images, interaction and learning rate in minutes. Every
superclass is left out in turn, exactly, so what is promised for novel ones is what never seen ones
of the same camera met. Thresholds bound how many known images are lost: the highest harmonic mean
on borrowed images, which the first baseline takes, finds hardly any left-out superclass. How many
known superclasses may be lost is a price to be named, not searched: the score pays for a novel one
with a known one, and so 8 to 10%.

Command: python -m search.run --space spaces/frozen_heads.py --data DATA.zip --novel POOL.zip
Cost:    on 2 cores with 11,000 images, --trials 16 --epochs 10: 2 minutes, the features included.
Result:  on the course's data (--trials 16 --epochs 10 --seed 0): score .833, seen super .942,
         unseen super .870, seen sub .710, unseen sub .818, known subclasses rejected .234. What the
         bound trades was read off a search that still sampled it: trial 7, knn_difference and
         cosine heads, answering at a bound of
             .03  score .809, seen super .957, unseen super .775 (worst left-out superclass .661)
             .04        .832             .945                .864                           .812
             .05        .839             .929                .907                           .877
             .07        .846             .915                .944                           .924
             .10        .847             .900                .963                           .942
         with seen sub .73, unseen sub .80 (held-out subclasses .60), known subclasses rejected .21
         to .22. The second baseline at .04: .815, .941, .855 (.775), seen sub .821, unseen sub
         .663. The first one, by thresholds found on borrowed images: .610, of which it finds .985,
         and .408 of left-out superclasses.
Before:  version 0.1, where borrowed images stood for novel superclasses and this space had neither
         bounds nor scores of features, promised .992 for its best trial (two heads, energy, 64 px);
         of superclasses left out the same configuration finds .235 after 8 epochs.
"""

from typing import Any

import optuna

NUM_TRIALS = 32
EPOCHS = 15
METRIC = "score"
REJECTED = 0.04
"""Of known images, by the superclass: --set known_rejection_super=0.06 asks at another price."""
COMMON: dict[str, Any] = {"fine_tune": "frozen", "image_size": 96, "feature_views": 1}
BASELINES: list[dict[str, Any]] = [
    # The paper's B, frozen, with thresholds found on borrowed images.
    {**COMMON, "architecture": "two_models", "lr": 1e-2, "weight_decay": 1e-4},
    # Distances to known and borrowed training images, and bounds: in the space's own keys, so that
    # the sampler learns from it.
    {
        **COMMON,
        "architecture": "two_models",
        "novel_images": 5000,
        "super_head": "linear",
        "sub_head": "linear",
        "super_novelty_score": "knn_difference",
        "sub_novelty_score": "max_logit",
        "known_rejection_super": REJECTED,
        "known_rejection_sub": 0.12,
        "couple_novel": True,
        "lr": 3e-3,
        "weight_decay": 1e-4,
    },
]


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Return one configuration with every backbone frozen."""
    architecture = trial.suggest_categorical("architecture", ["two_heads", "two_models"])
    by_features = ["knn_difference", "rmds"]
    config: dict[str, Any] = {
        **COMMON,
        "architecture": architecture,
        "novel_images": trial.suggest_categorical("novel_images", [0, 1000, 5000]),
        "super_head": trial.suggest_categorical("super_head", ["linear", "cosine"]),
        "sub_head": trial.suggest_categorical("sub_head", ["linear", "cosine"]),
        "super_novelty_score": trial.suggest_categorical(
            "super_novelty_score", ["max_logit", *by_features]
        ),
        "sub_novelty_score": trial.suggest_categorical(
            "sub_novelty_score", ["msp", "max_logit", "rmds"]
        ),
        "known_rejection_super": REJECTED,
        "known_rejection_sub": trial.suggest_float("known_rejection_sub", 0.05, 0.25),
        "couple_novel": trial.suggest_categorical("couple_novel", [False, True]),
        "lr": trial.suggest_float("lr", 3e-4, 3e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True),
    }
    if not config["novel_images"] and config["super_novelty_score"] == "knn_difference":
        config["super_novelty_score"] = "knn"  # there is nothing to be near to instead
    if architecture == "two_heads":
        config["alpha"] = trial.suggest_float("alpha", 0.01, 1.0, log=True)
        config["temperature"] = trial.suggest_float("temperature", 0.5, 4.0, log=True)
    return config
