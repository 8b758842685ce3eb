"""A search of small trials that stand still after an epoch while a test holds them.

Nothing that the test then does is a race with them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PART = '''"""A loss term that waits."""

import time
from pathlib import Path

import torch

from trainable.parts import LOSSES

begun = set()


@LOSSES.register("held", source="the tests")
def held(step):
    """Nothing, as soon as nobody holds the trial, whose first step in a process is its own."""
    hold, here = Path({hold!r}), Path({stands!r} + str(step.config.lr))
    if step.config.lr in begun and hold.exists():
        here.touch()
        while hold.exists():
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

    def hold_them(self) -> None:
        """Hold the trials from now on; who stood still before is forgotten."""
        for file in self._stands():
            file.unlink()
        self.hold.touch()

    def one_stands(self) -> bool:
        """Return whether a trial stands still. What it told before has been taken then."""
        return bool(self._stands())

    def _stands(self) -> list[Path]:
        return [*self.hold.parent.glob(f"{self.hold.name}-*")]


def held_search(
    folder: Path, *, trials: int, epochs: int, name: str = "space.py", **changes: Any
) -> HeldSearch:
    """Write a space file and its part to `folder`; they hold nothing until `hold` is there.

    Args:
        folder: Where to.
        trials: Of the search, each a baseline with a learning rate of its own.
        epochs: Of each.
        name: Of the space file.
        changes: Of their configuration.
    """
    made = HeldSearch(folder / name, folder / "hold")
    (folder / "held.py").write_text(_PART.format(hold=str(made.hold), stands=f"{made.hold}-"))
    same: dict[str, Any] = {"fine_tune": "last_1", "image_size": 32, "novel_images": 8}
    same |= {"left_out": "none", "batch_size": 256} | changes  # an epoch is one step
    baselines = [same | {"loss": "cross_entropy+held", "lr": (n + 1) / 1000} for n in range(trials)]
    made.space.write_text(
        _SPACE.format(trials=trials, epochs=epochs, baselines=json.dumps(baselines, indent=4))
    )
    return made
