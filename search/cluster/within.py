"""How far trials are within their epochs: told by workers now and then, read by who shows it.

It goes through the table that Ray's head keeps for its own processes: neither the study nor Tune
hears of it, a worker waits for no driver, and where nobody looks nothing is read.
"""

import time
from collections.abc import Iterable

from upath import UPath

from results.record import trial_folder

from ray.experimental import internal_kv  # isort: skip  (after what sets what Ray reads)

TELL_EVERY_S = 1.0
"""At most: an epoch that is shorter tells nothing."""
_NAMESPACE = "noveltune"


class Told:
    """Tells how far a trial is, and never fails it."""

    def __init__(self, folder: str) -> None:
        """Begin with a trial.

        Args:
            folder: The trial's: no other one on the cluster has it.
        """
        self._key = folder
        self._next_s = time.monotonic() + TELL_EVERY_S
        self._has_told = False

    def tell(self, epochs: float) -> None:
        """Tell how many epochs are done, if it is time to: 2.25 is a quarter of the third."""
        now_s = time.monotonic()
        if now_s < self._next_s or not internal_kv._internal_kv_initialized():
            return
        self._next_s = now_s + TELL_EVERY_S
        try:
            internal_kv._internal_kv_put(self._key, f"{epochs:.3f}", namespace=_NAMESPACE)
            self._has_told = True
        except Exception:  # noqa: BLE001 (a bar that stands still is no reason to fail a trial)
            self._next_s = float("inf")

    def end(self) -> None:
        """Take back what was told."""
        if self._has_told:
            forget([self._key])


def read(folder: UPath, numbers: Iterable[int]) -> dict[int, float]:
    """Return how many epochs trials of the search in `folder` have done, where that was told."""
    found: dict[int, float] = {}
    for number in numbers:
        key = str(trial_folder(folder, number))
        try:
            value = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        except Exception:  # noqa: BLE001 (it is asked again)
            return found
        if value is not None:
            found[number] = float(value)
    return found


def forget(keys: Iterable[str]) -> None:
    """Remove what was told, also by workers that are gone."""
    for key in keys:
        try:
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
        except Exception:  # noqa: BLE001 (a few bytes, until the cluster ends)
            return
