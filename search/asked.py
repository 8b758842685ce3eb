"""What is asked of one search, once all of it was checked."""

from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from results.record import SearchRecord, trial_folder
from results.terminal import HeardConsole
from results.trial import Trial
from search.log import SearchLog
from search.outcome import looked_at
from search.plan import Options
from search.progress import Progress
from search.space.space import Space
from trainable.checkpoint import drop_checkpoints
from trainable.data.dataset import Data


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a session runs, and where and to whom it speaks."""

    options: Options
    record: SearchRecord
    space: Space
    folder: UPath
    data: Data
    cache: Path
    """Of decoded images, and of frozen features where the search is fast."""
    console: HeardConsole
    log: SearchLog
    planned_on: bytes | None
    """What the record said when a resume was planned; null: a new search."""

    @property
    def num_trials(self) -> int:
        """How many there will be, repeats and retries included."""
        return self.space.num_trials + len(self.record.repeats) + len(self.record.retries)

    def progress(self) -> Progress:
        """Return what shows the trials of this search."""
        return Progress(
            self.console, num_trials=self.num_trials, metric=self.space.metrics[0],
            samples=self.space.samples, where=looked_at(self.record),
            num_whole=len(self.space.baselines) + len(self.record.repeats),
        )  # fmt: skip

    def clean_up(self, trial: Trial) -> None:
        """Drop what a trial needs no more when it has ended."""
        if trial.is_finished:
            drop_checkpoints(trial_folder(self.folder, trial.number))
