"""Under which names MLflow shows what was measured: in groups.

The table of a run's page has them as they came first, see `place`. Its charts stand in a section
for each group, by the alphabet, and what has no group, the score, behind all of them.
"""

from trainable.novelty.metrics import MAIN, METRICS

CHOSEN = "chosen"
"""Group of what the chosen epoch is worth, as the study has it."""
_LEVELS = ("super", "sub")
_GROUPS = ("", *_LEVELS, CHOSEN, "two_levels", "training", "validation_parts")
"""As a table shows them: what is read most, first."""


def grouped(name: str) -> str:
    """Return a metric's name in MLflow: GROUP/NAME, which its pages show as a section of charts.

    `score` has no group. super and sub: of that level; two_levels: of both; training: how it went;
    validation_parts: what each part of the validation images gave.
    """
    whole, dot, _ = name.partition(".")
    if name == "score":
        return name
    if dot and whole in ("part_a", "part_b", "interval"):
        return f"validation_parts/{name}"
    for level in _LEVELS:
        if level in whole.split("_"):
            return f"{level}/{name}"
    is_result = name.removesuffix("_calibration") in METRICS
    return f"{'two_levels' if is_result else 'training'}/{name}"


def place(shown: str) -> tuple[int, int]:
    """Return what orders names as `grouped` gives them: by group, the main rates first."""
    group, _, name = shown.rpartition("/")
    return _GROUPS.index(group), MAIN.index(name) if name in MAIN else len(MAIN)
