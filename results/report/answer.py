"""What a search answers, in three sentences and a table in the shape of the paper's table 2."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import pandas as pd

from results.naming import Names
from results.promise import intervals_of, nested_choice
from results.ranking import (
    SEEDS_TO_PROVE,
    best_repeated,
    best_row,
    repeats_frame,
    whole,
)
from results.record import SearchRecord
from results.report.drawing import between, is_fraction, number, plain, said
from results.report.material import Search
from results.terminal import counted
from trainable.errors import typed
from trainable.novelty.metrics import METRICS
from trainable.urls import public

GROUPS = (
    ("superclass", ("seen_super", "unseen_super", "overall_super")),
    ("subclass", ("seen_sub", "unseen_sub", "overall_sub")),
)
ROWS_MAX = 16
PACKAGES = ("noveltune", "torch", "torchvision", "timm", "optuna", "ray", "mlflow", "numpy")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A configuration of the main table."""

    trial: int
    name: str
    role: str
    """Why it is there: best, front, best two_heads, baseline; or nothing."""
    seeds: int
    values: dict[str, tuple[float, float, float]]
    """Mean, lowest and highest over the seeds, by metric."""
    is_best: bool


def columns(metric: str) -> list[str]:
    """Return the metrics of the main table."""
    shown = (metric, "score", *(name for _, names in GROUPS for name in names))
    return [*dict.fromkeys(shown)]


def main_rows(search: Search) -> list[Row]:
    """Return the rows of the main table, the best first: repeats, baselines, architectures' best,
    and trials of a Pareto front.

    Those of several seeds stand before those of one, whose values hold more luck.
    """
    if search.best is None:
        return []
    best = int(search.best["number"])
    rows: dict[Any, Row] = {}
    roles = {best: "best"}
    groups = {each.number: each.by_seed for each in search.repeated}
    singles = [search.best]
    front: list[pd.Series[Any]] = []
    if len(search.record.metrics) > 1:
        found = search.front.sort_values(search.metric, ascending=search.sign < 0, kind="stable")
        front = [row for _, row in found.iterrows()]
        roles = dict.fromkeys((int(row["number"]) for row in front), "front") | roles
    for architecture, group in search.complete.groupby("architecture"):
        top = best_row(group, search.record.metrics)
        if top is not None:
            singles.append(top)
            roles.setdefault(int(top["number"]), f"best {architecture}")
    for _, row in search.complete[search.complete["baseline"]].iterrows():
        singles.append(row)
        trial = int(row["number"])
        roles[trial] = f"{roles[trial]}, baseline" if trial in roles else "baseline"
    for each in search.repeated:
        singles.append(each.original)
    for place, row in enumerate([*singles, *front]):
        if place >= len(singles) and len(rows) >= ROWS_MAX:
            break  # a front may be long: it gets the places that the others leave
        trial = int(row["number"])
        of_seeds = groups.get(trial, pd.DataFrame([row]))
        values = {name: _spread(of_seeds[name]) for name in columns(search.metric)}
        rows.setdefault(
            replace(row["config"], seed=0),
            Row(
                trial=trial, name=search.names[trial], role=roles.get(trial, ""),
                seeds=len(of_seeds), values=values, is_best=trial == best,
            ),
        )  # fmt: skip
    order = sorted(
        rows.values(),
        key=lambda row: (
            not row.is_best,
            row.seeds == 1,
            -search.sign * row.values[search.metric][0],
        ),
    )
    return order[:ROWS_MAX]


def _spread(values: "pd.Series[Any]") -> tuple[float, float, float]:
    values = values.astype(float)
    return float(values.mean()), float(values.min()), float(values.max())


def main_frame(rows: Sequence[Row], metric: str) -> pd.DataFrame:
    """Return the main table for CSV: fractions; mean, min and max of each metric."""
    return pd.DataFrame(
        [
            {"trial": row.trial, "configuration": row.name, "role": row.role, "seeds": row.seeds}
            | {
                f"{name}{end}": value
                for name in columns(metric)
                for end, value in zip(("", "_min", "_max"), row.values[name], strict=True)
            }
            for row in rows
        ]
    )


def latex(rows: Sequence[Row], metric: str) -> str:
    """Return the main table for a paper: booktabs, percent, mean and range over seeds."""
    frame = pd.DataFrame(
        [
            {("", "configuration"): row.name, ("", "seeds"): str(row.seeds)}
            | {_head(name): _cell(name, row) for name in columns(metric)}
            for row in rows
        ]
    )
    frame.columns = pd.MultiIndex.from_tuples([*frame.columns])
    style = frame.style.hide(axis="index").format(escape="latex")
    style = style.format_index(escape="latex", axis=1)
    return str(
        style.to_latex(
            hrules=True,
            multicol_align="c",
            column_format="lr" + "r" * len(columns(metric)),
            caption="Validation, in percent; mean and range over seeds.",
        )
    )


def _head(name: str) -> tuple[str, str]:
    for group, names in GROUPS:
        if name in names:
            return group, name.split("_")[0]
    return "", said(name)


def _cell(name: str, row: Row) -> str:
    mean, low, high = row.values[name]
    text = plain(name, mean)
    return text if row.seeds == 1 else f"{text} ({plain(name, low)}-{plain(name, high)})"


# --- Three sentences -----------------------------------------------------------------------------


def sentences(search: Search) -> list[str]:
    """Return what is best, by how much, and how sure that is."""
    if search.best is None:
        reasons = search.everything.loc[search.everything["reason"] != "", "reason"]
        why = f" Most often: {reasons.value_counts().index[0]}" if len(reasons) else ""
        return [
            f"No trial has finished, so there is no result ({search.states or 'none yet'}).{why}"
        ]
    return [_what(search) + _front(search), _by_how_much(search), _how_sure(search)]


def _what(search: Search) -> str:
    best, metric = search.best, search.metric
    assert best is not None
    name = search.names[int(best["number"])]
    top = best_repeated(search.repeated, metric)
    if top is not None:
        values = top.values(metric)
        several = counted(len(whole(search.repeated)), "configuration")
        return (
            f"The best of {several} with {len(values)} seeds "
            f"is trial {top.number} ({name}), with a mean {said(metric)} of "
            f"{number(metric, values.mean())} ({between(metric, values.min(), values.max())})."
        )
    complete = counted(len(search.complete), "complete trial")
    which = f"The best of {complete}" if len(search.complete) > 1 else "The only complete trial"
    return (
        f"{which} is trial {int(best['number'])} "
        f"({name}), with a {said(metric)} of {number(metric, float(best[metric]))}."
    )


def _front(search: Search) -> str:
    """Return which trials no other one beats in all that several objectives ask, as a sentence."""
    metrics = search.record.metrics
    if len(metrics) < 2:
        return ""
    numbers = [str(each) for each in search.front["number"]]
    more = f" and {len(numbers) - ROWS_MAX} more" if len(numbers) > ROWS_MAX else ""
    return (
        f" By {' and '.join(map(said, metrics))} none beats "
        f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(numbers[:ROWS_MAX])}{more}."
    )


def _by_how_much(search: Search) -> str:
    best, metric = search.best, search.metric
    assert best is not None
    top = best_repeated(search.repeated, metric)
    if top is not None:
        frame = repeats_frame(search.everything, search.record.metrics, ())
        others = frame[frame["difference"].notna() & frame["is_whole"]]
        if not len(others):
            return "No other configuration is complete with the same seeds."
        row = others.iloc[0]
        luck = "within luck" if row["low"] <= 0 <= row["high"] else "more than luck"
        if luck != "within luck" and len(top.seeds) < SEEDS_TO_PROVE:
            luck = f"{counted(len(top.seeds), 'seed')} are too few to prove that this is not luck"
        return (
            f"The next best, trial {row['trial']} ({search.names[int(row['trial'])]}), differs by "
            f"{number(metric, row['difference'], signed=True)} at the same seeds (95% interval "
            f"{between(metric, row['low'], row['high'], signed=True)}): {luck}."
        )
    rivals: list[tuple[str, Any, str]] = []
    for label, rows in (
        (
            f"the {'next ' * bool(best['baseline'])}best baseline",
            search.complete[search.complete["baseline"]],
        ),
        ("the next best trial", search.complete),
    ):
        rows = rows[rows["config"] != best["config"]]
        other = best_row(rows, search.record.metrics)
        if other is not None and other["number"] not in [each[1] for each in rivals]:
            gap = float(best[metric]) - float(other[metric])
            rivals.append((label, other["number"], number(metric, gap, signed=True)))
    if not rivals:
        return "No other trial is complete, so there is nothing to compare it with."
    against = ", and ".join(f"{gap} against {label}, trial {num}" for label, num, gap in rivals)
    return f"With one seed each, that is {against}."


def _how_sure(search: Search) -> str:
    best, metric = search.best, search.metric
    assert best is not None
    parts = []
    ends = intervals_of(best).get(metric)
    if ends:
        parts.append(f"its 95% interval for other classes is {between(metric, *ends)}")
    nested = nested_choice(search.trials, search.record.metrics[0])
    if nested is not None and search.record.metrics[0] == metric:
        parts.append(
            f"judged on images that had no part in choosing it, the best is worth "
            f"{number(metric, nested)}"
        )
    few = best_repeated(search.repeated, metric) is None
    luck = (
        f"one seed says nothing about luck: {typed('search.run')} --resume --name "
        f"{search.record.name} --repeat {SEEDS_TO_PROVE}"
        if few
        else f"its seeds alone differ by {_range(search)}"
    )
    return f"How sure: {'; '.join([*parts, luck])}."


def _range(search: Search) -> str:
    top = best_repeated(search.repeated, search.metric)
    assert top is not None
    values = top.values(search.metric)
    gap = float(values.max() - values.min())
    return number(search.metric, gap, signed=True).lstrip("+")


# --- Several searches ----------------------------------------------------------------------------


def comparison(searches: Sequence[Search]) -> pd.DataFrame:
    """Return one row for each search: its best, its interval, its counts and time."""
    # What varies between searches is fixed within each, so names go by all of them.
    naming = Names(config for each in searches for config in each.everything["config"])
    rows = []
    for each in searches:
        best, metric = each.best, searches[0].metric
        states = each.trials["state"].value_counts()
        ends = {} if best is None else intervals_of(best)
        rows.append(
            {
                "search": each.record.name,
                "best trial": None if best is None else int(best["number"]),
                "configuration": "" if best is None else naming.name(best["config"]),
                metric: None if best is None else float(best[metric]),
                "low": ends.get(metric, (float("nan"),) * 2)[0],
                "high": ends.get(metric, (float("nan"),) * 2)[1],
                **{
                    name: None if best is None else float(best[name])
                    for name in columns(metric)[1:]
                    if not name.startswith("overall")
                },
                "complete": int(states.get("COMPLETE", 0)),
                "pruned": int(states.get("PRUNED", 0)),
                "failed": int(states.get("FAIL", 0)),
                "minutes": _minutes(each),
            }
        )
    return pd.DataFrame(rows)


def _minutes(search: Search) -> float:
    """Return how long the search's own trials took, without pauses."""
    times = search.times[search.times["number"].isin(search.trials["number"])]
    return float(times["end_s"].max()) / 60 if len(times) else 0.0


def _judging(record: SearchRecord) -> dict[str, Any]:
    """Return what decided which images judge."""
    return {key: value for key, value in record.said.items() if key.islower()}


def differences(searches: Sequence[Search]) -> list[str]:
    """Return what keeps results of these searches from being compared, a line each."""
    first = searches[0].record
    lines = []
    for other in (each.record for each in searches[1:]):
        for what, ours, theirs in (
            ("other images (data fingerprints differ)", first.data_fingerprint,
             other.data_fingerprint),
            ("another protocol", first.protocol, other.protocol),
            ("other validation images (by seed or fractions)", _judging(first), _judging(other)),
            ("another metric", first.metrics, other.metrics),
        ):  # fmt: skip
            if ours != theirs:
                lines.append(f"{other.name} has {what}: compare with care")
    return lines


# --- What was run --------------------------------------------------------------------------------


def facts(search: Search) -> list[tuple[str, str]]:
    """Return what was run, as pairs of a name and a value."""
    record, times, epochs = search.record, search.times, search.epochs
    command = [*typed("search.run").split(), "--space", str(search.folder / record.space_file)]
    command += ["--data", record.data, "--novel", record.novel, "--seed", str(record.seed)]
    command += ["--trials", str(record.num_trials), "--metric", ",".join(record.metrics)]
    if record.epochs is not None:
        command += ["--epochs", str(record.epochs)]
    if record.weights is not None:
        command += ["--weights", record.weights]
    if not record.is_fast:
        command += ["--no-cache"]
    for key, value in record.fixed.items():
        command += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    hosts = sorted({*search.everything["host"].dropna()} - {""})
    devices = sorted({*search.everything["device"].dropna()} - {""})
    wall = f"{float(times['end_s'].max()) / 60:.1f} minutes" if len(times) else "none"
    busy = float((times["end_s"] - times["start_s"]).sum()) / 3600 if len(times) else 0.0
    trained = float(epochs["epoch_s"].sum()) / 3600
    return [
        ("the same search again", shlex.join(command)),
        ("trials", search.states),
        ("images", f"{record.data}; borrowed from {record.novel}"),
        ("data fingerprint", record.data_fingerprint),
        ("protocol", str(record.protocol)),
        ("searched by", f"noveltune {record.version}"),
        ("reported by", versions()),
        ("machines", ", ".join(hosts) or "not recorded"),
        ("devices", ", ".join(devices) or "not recorded"),
        ("wall clock", f"{wall} with a trial running"),
        ("cost", f"{busy:.2f} hours of slots, {trained:.2f} of them in epochs"),
        ("study", public(record.study) if record.study else str(search.folder / "study.db")),
        ("MLflow", public(record.tracking_uri)),
    ]  # fmt: skip


def versions() -> str:
    """Return what draws a page, each with its version."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def protocol_note(search: Search) -> str:
    """Return what the figures of the main table are over."""
    unit = (
        "Percent"
        if is_fraction(search.metric)
        else f"{said(search.metric)} as it is, rates in percent"
    )
    direction = "higher" if METRICS[search.metric] == "maximize" else "lower"
    return (
        f"{unit}; {direction} {said(search.metric)} is better. Seen: answered right; unseen: "
        "called novel; overall: their mean. Where there are several seeds: mean and "
        f"(lowest-highest). All on validation images that trained nothing.{_pool_note(search)}"
    )


def _pool_note(search: Search) -> str:
    """Say so where the pool had fewer borrowed images than a configuration asks."""
    pairs = [
        (config.most_novel_images(), used)
        for config, used in zip(
            search.everything["config"],
            search.everything["novel_images_used"].astype(float),
            strict=True,
        )
        if config is not None
    ]
    short = [(asked, used) for asked, used in pairs if used < asked]  # nor where it is not known
    if not short:
        return ""
    asked, used = max(short)
    return f" Where {asked:,} borrowed images are asked, {used:,.0f} were there to train on."
