"""What tests of several packages share."""

from pathlib import Path

import pytest

from trainable.data import synthetic


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set on the disk, with its pool of borrowed images in `novel_images`."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    synthetic.write(folder, images_per_subclass=4, novel_per_class=8, test_per_class=1)
    return folder
