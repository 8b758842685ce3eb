"""A search opened for a notebook: its trials, its best one, its models."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from upath import UPath

from results.history import trials_frame
from results.predict import predict_images
from results.ranking import best_trial
from results.record import RECORD_FILE, SearchRecord, load_record, run_folder, trial_folder
from results.report.material import Search
from results.trial import TrialState
from trainable.classifier import INFO_FILE, Classifier, load_outputs
from trainable.config import BEST, DECISION_KEYS, TASKS
from trainable.data.pixels import check_whole
from trainable.errors import ConfigError, DataError, nearest
from trainable.novelty.metrics import evaluate

if TYPE_CHECKING:
    from results.report.drawing import Picture


@dataclass(frozen=True)
class OpenedSearch:
    """A search by its folder. What is read is read anew, so a running one shows what it has."""

    folder: UPath
    record: SearchRecord
    """What was asked."""

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial, by number: see `results.history.trials_frame`.

        Raises:
            UserError: The study cannot be read.
        """
        return trials_frame(self.folder, self.record)

    @property
    def best(self) -> "pd.Series[Any] | None":
        """The row of the best trial, by the best mean where there are repeats; or none yet."""
        return best_trial(self.trials, self.record.metrics)

    def judged(self, trial: int, **decision: Any) -> dict[str, float]:
        """Return the metrics of a trial's best epoch by other scores, thresholds and options.

        Nothing is trained: thresholds are chosen anew on what the trial said about the validation
        images, see `trainable.novelty.metrics.evaluate`: by today's protocol, whichever it had.

        Args:
            trial: Its number.
            decision: Config keys of `trainable.config.DECISION_KEYS` in place of its own.

        Raises:
            UserError: Another key, or a trial that was not kept or lacks such a score.
        """
        for name in decision:
            if name not in DECISION_KEYS:
                raise ConfigError(
                    f"`{name}` is decided before training, so it needs a trial of its own; without "
                    f"one there can be another {', '.join(DECISION_KEYS)}"
                )
        if "novelty_score" in decision:  # of both, also where each has its own
            decision = {"super_novelty_score": None, "sub_novelty_score": None} | decision
        trials = self.trials
        row = trials[(trials["number"] == trial) & (trials["state"] == TrialState.COMPLETE)]
        if not len(row):
            raise DataError(f"{self.folder}: there is no COMPLETE trial {trial}")
        config = replace(row["config"].iloc[0], **decision)
        outputs = load_outputs(trial_folder(self.folder, trial))
        for task in TASKS:
            for part in config.of(task, "novelty_score").split("+"):
                if part != BEST and any(
                    each.score(task, part).isnan().any() for each in (outputs, *outputs.folds)
                ):
                    raise DataError(
                        f"trial {trial} of {self.folder} did not keep {part} of the {task}class: "
                        "one that has it in its novelty_score, or that has best, does"
                    )
        return evaluate(outputs, config)

    @property
    def models(self) -> Mapping[str, UPath]:
        """Folders of the models that are kept, by name: `trials/00003`, `refit/00003`."""
        found = [
            file.parent
            for kind in ("trials", "refit")
            for file in sorted(self.folder.glob(f"{kind}/*/{INFO_FILE}"))
        ]
        return {f"{folder.parent.name}/{folder.name}": folder for folder in found}

    @property
    def pictures(self) -> "dict[str, Picture]":
        """The report's pictures by name, drawn anew; a notebook shows each.

        Their `figures` are matplotlib's, `table` is what they show, `caption` what to conclude.

        Raises:
            UserError: The study cannot be read.
        """
        from results.report.page import pictures_of  # late: matplotlib

        return pictures_of(Search(self.folder, self.record))

    def load(self, model: str | None = None) -> Classifier:
        """Return a model that answers.

        Args:
            model: One of `models`; null: the best trial's, refitted if that was done.

        Raises:
            UserError: There is none.
        """
        models = self.models
        if model is None:
            best = self.best
            if best is None:
                raise DataError(f"{self.folder}: no trial of this search is COMPLETE")
            kinds = (f"{kind}/{int(best['number']):05d}" for kind in ("refit", "trials"))
            model = next((each for each in kinds if each in models), "")
        if model not in models:
            known = ", ".join(models) or "none"
            raise DataError(
                f"{self.folder}: there is no model {model!r}{nearest(model, models)}; there are "
                f"{known}"
            )
        weights = Path(self.record.weights) if self.record.weights else None
        return Classifier.load(models[model], weights)

    def predict(self, images: str | os.PathLike[str], model: str | None = None) -> pd.DataFrame:
        """Return one row per image of a folder or zip: indices, names and scores of the answers.

        Args:
            images: A folder or .zip.
            model: As `load` takes it.

        Raises:
            UserError: Images that are missing or broken.
        """
        broken: dict[str, str] = {}
        table = predict_images(self.load(model), str(images), broken)
        check_whole({str(images): broken}, "replace or remove each")
        return table


def open_search(
    search: str | os.PathLike[str], study: str | None = None, tracking_uri: str | None = None
) -> OpenedSearch:
    """Return the search in a folder, or of a name below `runs`.

    Args:
        search: Folder or name.
        study: URL of its database with the password, null: as its record has it.
        tracking_uri: Of its MLflow, likewise.

    Raises:
        UserError: There is none, or its record is damaged.
    """
    folder = UPath(search)
    if not (folder / RECORD_FILE).exists() and folder.name == str(folder):
        folder = run_folder(folder.name, None)
    return OpenedSearch(folder, load_record(folder).reached(study, tracking_uri))
