"""What the tests of training share: one tiny data set on disk, decoded once, and weights."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.trainable import tiny
from trainable import classifier
from trainable.data.dataset import Data, load_data
from trainable.novelty.metrics import score_table


@pytest.fixture(scope="session", autouse=True)
def _short_tables() -> Iterator[None]:
    """A trial's table of scores takes as long as all else of it: keep the first rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "score_table", lambda *of: islice(score_table(*of), 2))
        yield


@pytest.fixture
def whole_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "score_table", score_table)


@pytest.fixture(scope="session")
def tiny_data(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The tiny data set as training sees it: 64 px, 96 known images and 48 borrowed ones."""
    cache = tmp_path_factory.mktemp("cache")
    return load_data(str(data), str(data / "novel_images"), cache)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state-dict file for `tiny.BACKBONE`."""
    return tiny.write_weights(tmp_path_factory.mktemp("weights") / f"{tiny.BACKBONE}.pth")
