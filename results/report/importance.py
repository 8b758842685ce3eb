"""What mattered in a search: its parameters, and what its best trials have in common."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from results.naming import key_in_words
from results.ranking import quiet_optuna
from results.report.drawing import (
    BEST,
    FAINT,
    INK,
    MANY,
    PAPER,
    TRIAL,
    WIDTH,
    Picture,
    as_percent,
    by_size,
    legend_below,
    number,
    panel,
    room,
    rows_panel,
    said,
    short,
)
from results.report.material import Search
from results.terminal import counted

AXES_MAX = 9
"""Of parallel coordinates: more cannot be told apart."""


def importance(search: Search) -> Picture | None:
    """Show how much each parameter mattered, by PED-ANOVA (Watanabe, Bansal and Hutter, 2023).

    Only of trials with parameters. A baseline outside the space has none: among the best trials,
    which are compared with all, it would hide what those have in common.
    """
    shares = importances(search)
    if not shares:
        return None
    frame = pd.DataFrame({"parameter": [*shares], "share": [*shares.values()]}).head(15)
    labels = room([key_in_words(name) for name in frame["parameter"]], 24)
    figure, axes = rows_panel(f"Which parameters mattered for {said(search.metric)}", labels, 0.26)
    axes.barh(range(len(frame)), frame["share"], color=TRIAL, height=0.62)
    axes.grid(axis="y", visible=False)
    as_percent(axes.xaxis, "share of what tells the best tenth of trials from all")
    num = len(_sampled(search))
    top = frame.iloc[0]
    return Picture(
        name="importance",
        title=f"Which parameters mattered for {said(search.metric)}",
        caption=f"Most by {key_in_words(top['parameter'])} ({100 * top['share']:.0f}%). By "
        f"PED-ANOVA over {num} complete trials that the space gave"
        + ("; so few trials make it a rough guess." if num < 30 else "."),
        table=pd.DataFrame({"parameter": [*shares], "share": [*shares.values()]}),
        figures=(figure,),
    )


def importances(search: Search) -> dict[str, float]:
    """Return each parameter's share, the largest first; nothing for fewer than four trials."""
    sampled = _sampled(search)
    if len(sampled) < 4:
        return {}
    values = dict(zip(search.trials["number"], search.trials[search.metric], strict=True))
    with quiet_optuna():
        shown = optuna.create_study(direction="maximize" if search.sign > 0 else "minimize")
    shown.add_trials(
        [
            optuna.trial.create_trial(
                value=float(values[each.number]),
                params=each.params,
                distributions=each.distributions,
            )
            for each in sampled
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental; and where all trials are equal
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(shown, evaluator=evaluator)
    return {name: share for name, share in found.items() if share == share}


def _sampled(search: Search) -> list[optuna.trial.FrozenTrial]:
    numbers = set(search.complete.dropna(subset=search.metric)["number"])
    return [each for each in search.frozen if each.number in numbers and each.params]


def parallel(search: Search) -> Picture | None:
    """Show every complete trial as a line through its choices."""
    complete = search.complete.dropna(subset=search.metric)
    told = {*search.naming.telling(complete["config"])}
    varying = [key for key in search.naming.keys if key in told]
    ranked = [key for key in importances(search) if key in varying]
    keys = [*ranked, *(key for key in varying if key not in ranked)][:AXES_MAX]
    if len(complete) < 3 or len(keys) < 2:
        return None
    acts = [search.naming.values(config) for config in complete["config"]]
    values = complete[search.metric].to_numpy(float)
    scales = [_scale([each.get(key) for each in acts]) for key in keys]
    low, high = values.min(), values.max()
    heights = (values - low) / ((high - low) or 1.0)
    lines = np.array(
        [[*(place[i] for place, _ in scales), heights[i]] for i in range(len(values))], dtype=float
    )
    figure, axes = panel(
        f"Every complete trial as a line through its choices to its {said(search.metric)}",
        3.8, max(WIDTH, 0.85 * len(keys) + 1.6),
    )  # fmt: skip
    _draw_parallel(axes, search, lines, values, complete["number"].to_numpy())
    for column, (_, ticks) in enumerate(scales):
        axes.axvline(column, color=FAINT, lw=0.8, zorder=0)
        texts = room([text for _, text in ticks], 15, 4)
        for (place, _), text in zip(ticks, texts, strict=True):
            _on_line(axes, column, place, text)
    last = len(keys)
    axes.axvline(last, color=FAINT, lw=0.8, zorder=0)
    for value, place in ((low, 0.0), (high, 1.0)):
        _on_line(axes, last, place, number(search.metric, float(value)))
    labels = room([*map(key_in_words, keys), said(search.metric)], 12)
    axes.set_xticks(range(last + 1), labels, fontsize=7.5)
    axes.set(xlim=(-0.15, last + 0.55), ylim=(-0.06, 1.06), yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    legend_below(axes)
    left_out = len(varying) - len(keys)
    skips = any(key not in each for each in acts for key in keys)
    table = pd.DataFrame([{key: each.get(key) for key in search.naming.keys} for each in acts])
    table.insert(0, "number", complete["number"].to_numpy())
    return Picture(
        name="parallel",
        title="Every complete trial as a line through its choices",
        caption=_common(acts, values * search.sign, search.naming.keys)
        + (" A line skips what its configuration does not have." if skips else "")
        + (f" In the CSV alone: {counted(left_out, 'key')}." if left_out else ""),
        table=table.assign(**{search.metric: values}),
        figures=(figure,),
    )


def _on_line(axes: Axes, x: float, y: float, text: str) -> None:
    """Write beside an axis, readable over the lines that cross it."""
    paper = {"facecolor": PAPER, "linewidth": 0, "pad": 0.6}
    axes.text(x + 0.05, y, text, fontsize=7, va="center", zorder=5, bbox=paper)


def _draw_parallel(axes: Axes, search: Search, lines: Any, values: Any, numbers: Any) -> None:
    assert search.best is not None
    order = np.argsort(values * search.sign)
    top = set(order[-max(1, len(order) // 10) :].tolist())
    steps = np.arange(lines.shape[1])
    pixels = len(lines) > MANY / 4
    groups = (
        (TRIAL, "complete", [i for i in range(len(lines)) if i not in top], 0.8),
        (INK, "best tenth", [i for i in top if numbers[i] != search.best["number"]], 1.2),
        (BEST, "best", [i for i in range(len(lines)) if numbers[i] == search.best["number"]], 2.2),
    )
    for colour, label, places, width in groups:
        if places:
            paths = [np.column_stack([steps, lines[i]]) for i in places]
            paths = [path[np.isfinite(path[:, 1])] for path in paths]
            alpha = 1.0 if colour == BEST else max(0.12, min(0.6, 40 / len(paths)))
            axes.plot([], [], color=colour, lw=width, label=label)
            axes.add_collection(
                LineCollection(paths, colors=colour, lw=width, alpha=alpha,
                               rasterized=pixels and colour != BEST)
            )  # fmt: skip


def _scale(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return each value's place between 0 and 1, NaN where there is none, and the ticks."""
    present = [each for each in values if each is not None]
    if all(isinstance(each, float) for each in present) and len(set(present)) > 5:
        low, high = min(present), max(present)
        is_log = low > 0 and high / low > 20
        change = np.log if is_log else float
        span = change(high) - change(low)
        places = [np.nan if v is None else (change(v) - change(low)) / span for v in values]
        return places, [(0.0, short(low)), (1.0, short(high))]
    choices = sorted(set(present), key=by_size)
    at = {each: (n + 0.5) / len(choices) for n, each in enumerate(choices)}
    shown = choices if len(choices) <= 8 else [choices[0], choices[-1]]
    places = [np.nan if each is None else at[each] for each in values]
    return places, [(at[each], short(each)) for each in shown]


def _common(acts: list[dict[str, Any]], values: Any, keys: Sequence[str]) -> str:
    """Say what the best tenth of the trials, three at least, have in common."""
    top = np.argsort(values)[-max(3, len(values) // 10) :]
    shared = []
    for key in keys:
        found = {repr(acts[i].get(key)) for i in top}
        everywhere = {repr(each.get(key)) for each in acts}
        value = acts[top[-1]].get(key)
        if len(found) == 1 and len(everywhere) > 1 and value is not None:
            shared.append(f"{key_in_words(key)} {short(value)}")
    if not shared:
        return _favoured(acts, top, keys)
    return f"The best {len(top)} trials share {', '.join(shared)}."


def _favoured(acts: list[dict[str, Any]], top: Any, keys: Sequence[str]) -> str:
    """Say which choice is more frequent among the best trials than among all."""
    found = []
    for key in keys:
        of_all = [each.get(key) for each in acts]
        for value in {value for value in of_all if value is not None}:
            share = sum(of_all[i] == value for i in top) / len(top)
            found.append((share - of_all.count(value) / len(acts), share, key, value))
    gain, share, key, value = max(found, key=lambda each: each[:2])
    return (
        f"The best {len(top)} trials share no choice; most favoured is {key_in_words(key)} "
        f"{short(value)}, in {100 * share:.0f}% of them against {100 * (share - gain):.0f}% of "
        f"all {len(acts)}."
    )
