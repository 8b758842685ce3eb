"""A small search that fault tests run in this process, on one Ray instance."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from upath import UPath

from results.record import MAX_RERUNS
from search.cluster import executor
from search.cluster.connect import connected
from search.cluster.executor import Slots, run_trials
from search.cluster.messages import Job
from search.cluster.nodes import Nodes
from search.space.space import load_space
from search.study.storage import create_study, open_study
from search.study.study import Observer, Study
from tests.faults.faulty import Fault, with_faults
from trainable.data.dataset import load_data

SPACE = """
NUM_TRIALS = 4
EPOCHS = 3
BASELINES = [{"fine_tune": "frozen", "image_size": 32, "novel_images": 8, "lr": lr / 1000}
             for lr in range(1, 31)]
"""


@dataclass(frozen=True)
class SmallSearch:
    """A search of frozen 32-pixel baselines, with faults by trial number."""

    folder: UPath
    data: Path
    cache: Path
    monkeypatch: pytest.MonkeyPatch
    space: str = SPACE

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'study.db'}"

    def run(
        self,
        trials: int,
        faults: Mapping[int, Fault] | None = None,
        *,
        concurrency: int | None = 1,
        gpus_per_trial: float = 0.0,
        max_reruns: int = MAX_RERUNS,
        resume: bool = False,
        note: Callable[[str], None] = print,
        observers: list[Observer] | None = None,
        **job: Any,
    ) -> Study:
        """Run the search to its end and return its study."""
        self.monkeypatch.setattr(executor, "run_trial", with_faults(faults or {}))
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "space.py"
        file.write_text(self.space)
        space = load_space(file, num_trials=trials)
        raw = open_study(self.url, "s") if resume else create_study(self.url, "s", space.metrics)
        study = Study(raw, space, seed=0, observers=observers or [])
        source, novel = str(self.data), str(self.data / "novel_images")
        loaded = load_data(source, novel, self.cache)
        nodes = Nodes(self.folder, loaded, self.cache, note)
        nodes.start()
        run_trials(
            study,
            Job(
                folder=self.folder,
                data=source,
                novel=novel,
                fingerprint=loaded.fingerprint,
                cache=self.cache,
                weights=None,
                **job,
            ),
            Slots(
                cpus_per_trial=1,
                gpus_per_trial=gpus_per_trial,
                concurrency=concurrency,
                max_reruns=max_reruns,
            ),
            nodes,
            should_stop=lambda: False,
            note=note,
        )
        return study

    def states(self) -> list[str]:
        """Return every trial's state, as Optuna's storage has it."""
        return [trial.state.name for trial in open_study(self.url, "s").trials]

    def attributes(self, number: int) -> dict[str, Any]:
        """Return what the storage holds of a trial."""
        return open_study(self.url, "s").trials[number].user_attrs


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults-cache")


@pytest.fixture
def small_search(
    tmp_path: Path, data: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> SmallSearch:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return SmallSearch(UPath(tmp_path / "run"), data, tiny_cache, monkeypatch)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connected(None, num_cpus=2):
        yield
