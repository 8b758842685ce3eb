"""What a report is made of: a search's trials, epochs and times, and its best trial's outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from upath import UPath

from results.history import frame_of, ran_again, read_study, searched
from results.naming import Names
from results.ranking import (
    Repeated,
    best_trial,
    completed,
    pareto_rows,
    ranking_metric,
    repeated,
    sign,
)
from results.record import SearchRecord, trial_folder
from trainable.classifier import INFO_FILE, OUTPUTS_FILE, load_outputs, load_rule, read_info
from trainable.config import Task, TrialConfig
from trainable.data.dataset import Data, find_data
from trainable.errors import UserError
from trainable.novelty.metrics import METRICS
from trainable.novelty.rule import Rule
from trainable.novelty.thresholds import Answers, Outputs, PartRules
from trainable.user_parts import current_parts


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model: what it says of images whose classes are known, and the rule that it says it by."""

    who: str
    """Which model, as titles say it."""
    outputs: Outputs
    answers: Answers
    rule: Rule
    superclasses: tuple[str, ...]
    """Names, novel last."""
    subclasses: tuple[str, ...]
    """Names of all subclasses, novel last."""
    subclass_of_output: tuple[int, ...]
    metrics: Mapping[str, float]
    """As they were judged, by name; NaN or left out where there was nothing to judge."""
    near: str
    """Images of novel subclasses of known superclasses."""
    far: str
    """Images of novel superclasses."""
    has_subclass: torch.Tensor | None = None
    """bool (N,); null: all have."""

    def of(self, task: Task) -> Outputs:
        """Return the outputs to the images that say something of `task`."""
        if task == "super" or self.has_subclass is None:
            return self.outputs
        return self.outputs.where(self.has_subclass)

    @property
    def outputs_names(self) -> tuple[str, ...]:
        """Names of the subclass head's outputs, novel last."""
        return (*(self.subclasses[each] for each in self.subclass_of_output), "novel")


@dataclass(frozen=True, kw_only=True)
class Best(Judged):
    """The best trial, on all validation images, those of a second hold-out too.

    Each part of them is answered by the rule that was chosen on the other, as its metrics are.
    """

    number: int
    config: TrialConfig

    def shows(self, place: int, data: Data | None) -> str:
        """Return what an image shows, as far as it is known: a class, or what it was borrowed as.

        Args:
            place: Among `outputs`.
            data: Its names of borrowed classes; null: they are not at hand.
        """
        true_class = int(self.outputs.true_class[place])
        num_known = len(self.subclasses) - 1
        if 0 <= true_class < num_known:
            return self.subclasses[true_class]
        if true_class < 0 or data is None:
            return "borrowed"
        return data.borrowed_classes[true_class - num_known]


class Search:
    """A search as a report sees it."""

    def __init__(self, folder: UPath, record: SearchRecord) -> None:
        """Read the study.

        Raises:
            RunError: It cannot be read.
        """
        self.folder, self.record = folder, record
        self._trials, self.frozen = read_study(folder, record)
        self.parts = current_parts()
        """What its configurations name. A process has those of one search at a time: whoever turns
        to this one uses them."""
        self.everything = frame_of(self._trials)
        """All trials, repeats too."""

    @cached_property
    def metric(self) -> str:
        """What orders its trials."""
        return ranking_metric(self.record.metrics, self.everything)

    @property
    def sign(self) -> float:
        """1 where more of `metric` is better, else -1."""
        return sign(self.metric)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Without repeats, and without failed ones that ran again."""
        return searched(self.everything[~ran_again(self.everything)])

    @property
    def states(self) -> str:
        """How many trials of each state there are, repeats too, in words."""
        is_past = ran_again(self.everything)
        counts = self.everything[~is_past]["state"].value_counts()
        words = [f"{count} {str(state).lower()}" for state, count in counts.items()]
        past = [f"{is_past.sum()} more failed and ran again"] if is_past.any() else []
        return ", ".join(words + past)

    @cached_property
    def complete(self) -> pd.DataFrame:
        """The complete ones of `trials`."""
        return completed(self.trials)

    @cached_property
    def front(self) -> pd.DataFrame:
        """The complete trials that no other one beats in all that was asked, by number."""
        return pareto_rows(self.trials, self.record.metrics)

    @cached_property
    def best(self) -> "pd.Series[Any] | None":
        """The trial to use: by mean over seeds where there are repeats."""
        self.parts.use()
        return best_trial(self.everything, self.record.metrics)

    @cached_property
    def repeated(self) -> list[Repeated]:
        """Configurations with several seeds."""
        return repeated(self.everything)

    @cached_property
    def naming(self) -> Names:
        """Names by what varies in this search."""
        return Names(self.everything["config"])

    @cached_property
    def names(self) -> dict[int, str]:
        """Of all trials, by number."""
        return self.naming.of(self.everything)

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row for each epoch that was trained: number, epoch, `metric`, epoch_s."""
        rows = [
            (trial.number, each.number, each.metrics.get(self.metric), each.seconds)
            for trial in self._trials
            for each in trial.epochs
        ]
        frame = pd.DataFrame(rows, columns=["number", "epoch", self.metric, "epoch_s"])
        return frame.astype(float).astype({"number": int})

    @cached_property
    def times(self) -> pd.DataFrame:
        """A row for each trial that started and ended: number, state, host, start_s, end_s, slot.

        Seconds of the search, which stand still while no trial runs: between an interruption and
        its resume. Slots are numbered: each trial takes the first that is free.
        """
        ran = [each for each in self.frozen if each.datetime_start and each.datetime_complete]
        ran.sort(key=lambda each: (each.datetime_start, each.number))
        rows, free_at = [], list[float]()
        idle_s, first, latest = 0.0, None, None
        for trial in ran:
            start, end = trial.datetime_start, trial.datetime_complete
            assert start is not None
            assert end is not None
            first, latest = first or start, latest or start
            idle_s += max(0.0, (start - latest).total_seconds())
            latest = max(latest, end)
            start_s = (start - first).total_seconds() - idle_s
            end_s = (end - first).total_seconds() - idle_s
            slot = next((n for n, at in enumerate(free_at) if at <= start_s), len(free_at))
            free_at[slot : slot + 1] = [end_s]
            host = str(trial.user_attrs.get("host", ""))
            rows.append((trial.number, trial.state.name, host, start_s, end_s, slot))
        return pd.DataFrame(rows, columns=["number", "state", "host", "start_s", "end_s", "slot"])

    @cached_property
    def anatomy(self) -> Best | None:
        """What the best trial left; None where it left nothing, or the folder was not copied."""
        if self.best is None:
            return None
        number = int(self.best["number"])
        folder = trial_folder(self.folder, number)
        if not all((folder / name).exists() for name in (OUTPUTS_FILE, INFO_FILE)):
            return None
        try:
            info, rule, outputs = read_info(folder), load_rule(folder), load_outputs(folder)
        except UserError:
            return None
        config = self.best["config"]
        return Best(
            who=f"trial {number}",
            number=number,
            config=config,
            outputs=outputs,
            answers=PartRules.choose(outputs, config).answers(outputs),
            metrics={name: float(self.best[name]) for name in METRICS if name in self.best},
            near="held-out subclasses",
            far="borrowed",
            rule=rule,
            superclasses=(*info["superclasses"], "novel"),
            subclasses=(*info["subclasses"], "novel"),
            subclass_of_output=tuple(info["subclass_of_output"]),
        )

    @cached_property
    def data(self) -> Data | None:
        """The images, if the cache of this machine has them."""
        record = self.record
        if record.cache is None:
            return None
        return find_data(record.data, record.novel, Path(record.cache), record.data_fingerprint)
