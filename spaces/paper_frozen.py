"""What do the paper's questions come to where features are frozen and a novel superclass is new?

One change a row, from the paper's B with a frozen backbone. Frozen features know nothing of a
superclass that is left out, so what is promised of novel ones is exact, and a trial takes seconds:
five seeds instead of three. Two more rows tune the backbone's two last stages, of the superclass
branch with all of it trained anew for every superclass left out, so that they may be compared; they
are dear and come last. Thresholds bound how many known images are rejected, the same in every row.
No outlier exposure in any of them.

Command: python -m search.run --space spaces/paper_frozen.py --data DATA.zip --novel POOL.zip
Cost:    the 55 frozen trials take five minutes on 2 cores, one with a tuned branch minutes: tuning
         the superclass branch trains it four times.
Result:  the frozen rows, five seeds, see docs/results.md. Mean score .734; without borrowed images
         for the superclass .590, cosine superclass head .768, cosine subclass head .749, two heads
         with α 0.1 .711. On another CPU seeds 0 and 1 of the first row had .731 and .673 for .735
         and .694, and α 0.1 .746 and .701 for .705 and .666. Two stages tuned: of the subclass
         branch .743, three seeds, .011 to .025 above the first row's; of the superclass branch
         .725, two seeds, +.024 and -.003.
"""

from typing import Any

SEEDS = (0, 1, 2, 3, 4)
EPOCHS = 10
METRIC = "score"

_B: dict[str, Any] = {
    "architecture": "two_models",
    "fine_tune": "frozen",
    "image_size": 96,
    "feature_views": 1,
    "lr": 1e-2,
    "novelty_score": "max_logit",
    "known_rejection_super": 0.05,
    "known_rejection_sub": 0.12,
}
_A: dict[str, Any] = {"architecture": "two_heads", "alpha": 0.1, "temperature": 1.0}
_CHANGES: list[dict[str, Any]] = [
    {},
    {"super_novel_images": 1000},
    {"super_novel_images": 0},
    {"sub_novel_images": 1000},
    {"sub_novel_images": 0},
    {"super_head": "cosine"},
    {"sub_head": "cosine"},  # C
    {**_A},
    {**_A, "alpha": 0.0},
    {**_A, "alpha": 1.0},
    {**_A, "temperature": 4.0},
]
_TUNED: list[dict[str, Any]] = [
    {"sub_fine_tune": "last_2", "sub_lr": 3e-4, "sub_head_lr": 1e-2},
    {"super_fine_tune": "last_2", "super_lr": 3e-4, "super_head_lr": 1e-2, "left_out": "train"},
]
BASELINES = [
    {**_B, **change, "seed": seed}
    for rows in (_CHANGES, _TUNED)
    for seed in SEEDS
    for change in rows
]
