"""A search of small trials that stand still after an epoch while a test holds them.

Nothing that the test then does is a race with them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

_PART = '''"""A loss term that waits."""

import time
from pathlib import Path

import torch

from trainable.parts import LOSSES

begun = set()


@LOSSES.register("held", source="the tests")
def held(step):
    """Nothing, as soon as nobody holds the trial, whose first step in a process is its own."""
    while step.config.lr in begun and Path({hold!r}).exists():
        time.sleep(0.05)
    begun.add(step.config.lr)
    return step.super_of_sub.new_zeros((), dtype=torch.float32)
'''
_SPACE = '''"""Small trials that can be told apart by their learning rate."""

PARTS = ["held.py"]
NUM_TRIALS = {trials}
EPOCHS = {epochs}
BASELINES = {baselines}
'''


@dataclass(frozen=True)
class HeldSearch:
    """The space file of a search, and the file by which its trials are held."""

    space: Path
    hold: Path


def held_search(folder: Path, *, trials: int, epochs: int) -> HeldSearch:
    """Write a space file and its part to `folder`; they hold nothing until `hold` is there."""
    made = HeldSearch(folder / "space.py", folder / "hold")
    (folder / "held.py").write_text(_PART.format(hold=str(made.hold)))
    same = {"fine_tune": "last_1", "image_size": 32, "novel_images": 8, "left_out": "none"}
    same |= {"batch_size": 256}  # an epoch is one step
    baselines = [same | {"loss": "cross_entropy+held", "lr": (n + 1) / 1000} for n in range(trials)]
    made.space.write_text(
        _SPACE.format(trials=trials, epochs=epochs, baselines=json.dumps(baselines, indent=4))
    )
    return made
