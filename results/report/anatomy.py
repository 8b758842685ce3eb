"""The best trial as pictures: its scores and thresholds, its answers, its mistakes."""

from results.record import trial_folder
from results.report.confusion import confusion
from results.report.curves import hierarchy, precision, reliability, roc
from results.report.drawing import (
    Picture,
)
from results.report.material import Search
from results.report.sheets import sheets
from results.report.thresholds import thresholds


def pictures(search: Search) -> list[Picture]:
    """Return the pictures of the best trial that there is something to show in."""
    best = search.anatomy
    if best is None or search.best is None:
        return []
    found = [
        thresholds(best), roc(best), precision(best), reliability(best),
        hierarchy(search), confusion(best), *sheets(best, search),
    ]  # fmt: skip
    return [picture for picture in found if picture is not None]


def remarks(search: Search) -> list[str]:
    """Return why something of the best trial is not shown, a line each."""
    if search.best is None:
        return []
    folder = trial_folder(search.folder, int(search.best["number"]))
    if search.anatomy is None:
        return [f"{folder} holds no validation outputs, so nothing of the best trial is shown."]
    if search.data is None:
        return [
            f"Images are not shown: the cache {search.record.cache or 'that was switched off'} of "
            "this machine does not hold them. The tables beside this page name their rows."
        ]
    return []
