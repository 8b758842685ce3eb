"""What the tests of training share: one tiny data set on disk, decoded once, and weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainable import tiny
from trainable.data.dataset import Data, load_data


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are too small to share out, and one thread gives the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_data(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The tiny data set as training sees it: 64 px, 96 known images and 48 borrowed ones."""
    cache = tmp_path_factory.mktemp("cache")
    return load_data(str(data), str(data / "novel_images"), cache)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state-dict file for `tiny.BACKBONE`."""
    return tiny.write_weights(tmp_path_factory.mktemp("weights") / f"{tiny.BACKBONE}.pth")
