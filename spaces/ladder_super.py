"""Which lever lifts the superclass's half of the laptop's recipe, beside luck?

One lever a row, from the recipe of version 0.1, with frozen features and the subclass branch as
cheap as can be: it decides nothing here. A row has the same three seeds as the others, the first
trials are all rows of seed 0. The tables compare rows by their mean over the seeds. Other bounds
and scores cost no training: `noveltune.open("runs/NAME").judged(...)`.

Command: python -m search.run --space spaces/ladder_super.py --data DATA.zip --novel POOL.zip
Cost:    27 trials on 2 cores: minutes for the features, seconds for each trial then.
Result:  of 3% rejected known images, the last row finds .973 of a superclass that was left out, the
         first one .937, at the same share of seen superclasses right (.954 and .956): see
         docs/results.md. Each lever alone: 192 px .961, lite2 .932, both of these .962.
Rejected: sums of scores: at the same bound max_logit beside knn_difference finds fewer (.901), rmds
         rejects more known images (.076), and all three are within luck (hmean_super .950,
         .923 to .965 by seed; without .942, .914 to .980). 3,600 borrowed images: likewise
         (.950, .922 to .981), for 30% more features.
Since:   with every subclass and superclass left out, instead of the 13 that a seed draws, sums with
         rmds are far better on both backbones at 192 px (tests.benchmarks.never_seen: .992 of a
         superclass found at 1.5% of the known images rejected, .919 by knn_difference).
"""

from typing import Any

SEEDS = (0, 1, 2)
EPOCHS = 9
METRIC = "hmean_super"

_BOTH = "efficientnet_lite0+efficientnet_lite2"
_OLD: dict[str, Any] = {
    "architecture": "two_models",
    "schedule": "one_cycle",
    "batch_size": 32,
    "novel_images": 1000,
    "match_resolution": 0.5,
    "label_smoothing": 0.1,
    "outlier_exposure": 0.5,
    "feature_views": 1,
    "fine_tune": "frozen",
    "super_image_size": 160,
    "super_lr": 1e-3,
    "super_novelty_score": "knn_difference",
    "known_rejection_super": 0.03,
    "sub_image_size": 64,
    "sub_lr": 8.5e-4,
    "sub_novelty_score": "max_logit",
    "known_rejection_sub": 0.11,
    "couple_novel": True,
}
_LITE2: dict[str, Any] = {"super_backbone": "efficientnet_lite2"}
_LEVERS: list[dict[str, Any]] = [
    {},
    {"super_image_size": 192},
    {**_LITE2},
    {**_LITE2, "super_novelty_score": "knn_difference+max_logit"},
    {**_LITE2, "super_novelty_score": "knn_difference+rmds"},
    {**_LITE2, "super_novelty_score": "knn_difference+rmds+max_logit"},
    {**_LITE2, "super_novel_images": 3600},
    {**_LITE2, "super_image_size": 192},
    {"super_backbone": _BOTH, "super_image_size": 192},
]
BASELINES = [{**_OLD, **lever, "seed": seed} for seed in SEEDS for lever in _LEVERS]
