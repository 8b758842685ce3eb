"""Under which names MLflow shows what was measured: in groups, `score` before all of them."""

from trainable.novelty.metrics import METRICS

CHOSEN = "chosen"
"""Group of what the chosen epoch is worth, as the study has it."""


def grouped(name: str) -> str:
    """Return a metric's name in MLflow: GROUP/NAME, which its pages show as a section of charts.

    `score` has no group: what has none comes first. super and sub: of that level; both: of both;
    training: how it went; part_a, part_b and interval: what stands before the dot of a name.
    """
    if name == "score":
        return name
    group, dot, rest = name.partition(".")
    if dot:
        return f"{group}/{rest}"
    words = name.split("_")
    for level in ("super", "sub"):
        if level in words:
            return f"{level}/{name}"
    is_result = name.removesuffix("_calibration") in METRICS
    return f"{'both' if is_result else 'training'}/{name}"
