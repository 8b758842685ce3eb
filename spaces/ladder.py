"""Which lever lifts the laptop's recipe, and by how much beside luck?

The ladder from the recipe of best_on_a_laptop to a new one: every row is the row before it and one
lever more, once per seed, without sampling and pruning. What loses is deleted here, and the rows
after it go on without it. A row that decides has three seeds, the same ones in all rows; the first
trials are all rows of seed 0. The tables compare rows by their mean over the seeds. The old recipe
is written out, as best_on_a_laptop becomes what wins.

Command: python -m search.run --space spaces/ladder.py --data DATA.zip --novel POOL.zip
         (--trials 9 for one seed of every row; an ensemble is no row: search.refit --ensemble N)
Cost:    27 trials of 9 epochs, a subclass branch tuned whole at 128 px in each: a night's work.
Result:  not measured.
"""

from typing import Any

SEEDS = (0, 1, 2)
EPOCHS = 9
METRIC = "score"

_OLD: dict[str, Any] = {
    "architecture": "two_models",
    "schedule": "one_cycle",
    "batch_size": 32,
    "novel_images": 1000,
    "match_resolution": 0.5,
    "super_fine_tune": "frozen",
    "feature_views": 1,
    "super_image_size": 160,
    "super_lr": 1e-3,
    "super_novelty_score": "knn_difference",
    "known_rejection_super": 0.04,
    "sub_fine_tune": "full",
    "sub_image_size": 128,
    "sub_novelty_score": "max_logit",
    "known_rejection_sub": 0.11,
    "couple_novel": True,
    "sub_lr": 8.5e-4,
    "label_smoothing": 0.1,
    "outlier_exposure": 0.5,
}
_LEVERS: list[dict[str, Any]] = [
    {"super_backbone": "efficientnet_lite2"},
    {"sub_backbone": "efficientnet_lite2"},
    {"sub_novelty_score": "max_logit+rmds"},
    {"super_novelty_score": "knn_difference+max_logit"},
    {"super_novel_images": 3600},
    {"sub_novel_images": 3600},
    {"sub_ema": 0.99},
    {"sub_mixup": 0.2},
]
CONFIGURATIONS: list[dict[str, Any]] = [_OLD]
for _lever in _LEVERS:
    CONFIGURATIONS.append({**CONFIGURATIONS[-1], **_lever})
BASELINES = [{**each, "seed": seed} for seed in SEEDS for each in CONFIGURATIONS]
