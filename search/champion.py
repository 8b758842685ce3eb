"""Which version of a registered model is its `champion`: the best of those that compare."""

from collections.abc import Mapping
from typing import NamedTuple

from results.ranking import sign

CHAMPION = "champion"
"""The alias: `models:/NAME@champion`."""
_SAME = {"protocol": "by validation protocol", "data_fingerprint": "on data"}
"""Tags that must be alike for two versions to be compared, and how a line names them."""
_MAY_LACK = "data_fingerprint"


class Verdict(NamedTuple):
    """Whether the alias goes to a new version, and why."""

    moves: bool
    reason: str


def verdict(new: Mapping[str, str], now: Mapping[str, str]) -> Verdict:
    """Return whether a version with the tags `new` takes the alias of one with the tags `now`.

    It does where it is better by the metric of its search, under the same validation protocol and,
    where both say which, on the same data.
    """
    for tag, how in _SAME.items():
        ours, theirs = new.get(tag, ""), now.get(tag, "")
        if ours != theirs and not (tag == _MAY_LACK and "" in (ours, theirs)):
            was = f"{how} {theirs[:12]}" if theirs else "in a way that it does not say"
            return Verdict(
                False, f"that was judged {was}, this one {how} {ours[:12]}: they do not compare"
            )
    metric = new["metric"]
    if not (metric in new and metric in now):
        which = "this one" if metric not in new else "that"
        return Verdict(False, f"{which} says no {metric}, by which they would be compared")
    ours, theirs = new[metric], now[metric]
    gain = (float(ours) - float(theirs)) * sign(metric)
    numbers = f"{metric} {float(ours):.4f} against {float(theirs):.4f}"
    if gain > 0:
        return Verdict(True, f"better: {numbers}")
    return Verdict(False, f"not better: {numbers}")


def champion_line(name: str, version: str, now: str | None, found: Verdict) -> str:
    """Return what a person is told: where the alias is, and why.

    Args:
        name: Of the registered model.
        version: The new one.
        now: That had the alias; null: none had.
        found: The verdict.
    """
    if now is None:
        return f"{CHAMPION}: version {version}, {found.reason}"
    if found.moves:
        return f"{CHAMPION}: version {version} in place of version {now}, {found.reason}"
    command = f"set_registered_model_alias({name!r}, {CHAMPION!r}, {version!r})"
    return (
        f"{CHAMPION}: still version {now}, {found.reason}. To have version {version} all the same: "
        f"mlflow.MlflowClient().{command}"
    )
