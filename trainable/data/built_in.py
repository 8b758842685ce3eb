"""Images that need no file of the user's: the built-in data, and CIFAR-100 to borrow from."""

import hashlib
import http.client
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from trainable.data import synthetic
from trainable.data.made_once import make_once
from trainable.errors import DataError

TEST_CSV = "test_data.csv"
"""Labels of the built-in data's test images, for `results.evaluate`."""


# Borrowed images stand for "another superclass", so none may be a bird, a dog or a reptile.
# CIFAR-100 has no bird and no dog. Dinosaurs are reptiles. A wolf is of the dog's own species and
# at 32 pixels looks like a husky: as borrowed image it would teach that huskies are novel. A fox
# is of another genus and looks it, so it stays.
CIFAR100_EXCLUDED = ("crocodile", "dinosaur", "lizard", "snake", "turtle", "wolf")


def synthetic_folder(cache: Path) -> Path:
    """Return the folder of the synthetic data set, written at the first call. Its test images have
    labels, in `TEST_CSV`.
    """
    files = sorted(Path(synthetic.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]

    def write(folder: Path) -> None:
        synthetic.write(folder, seed=0)

    return make_once(cache / f"synthetic-{digest}", write)


def novel_path(novel: str, cache: Path, note: Callable[[str], None]) -> Path | str:
    """Return where the borrowed images lie that `--novel` names, made if they are built in."""
    if novel == "synthetic":
        return synthetic_folder(cache) / "novel_images"
    if novel == "cifar100":
        note(f"cifar100: left out as too near bird, dog or reptile: {', '.join(CIFAR100_EXCLUDED)}")
        excluded = hashlib.sha256(repr(CIFAR100_EXCLUDED).encode()).hexdigest()[:16]
        folder = cache / f"cifar100-{excluded}"
        return make_once(folder, lambda made: _write_cifar100(made, cache)) / "images.zip"
    return novel


def _write_cifar100(folder: Path, cache: Path) -> None:
    """Write the borrowed classes of CIFAR-100 as a zip of CLASS/NNNNN.bmp, to be read as any other.

    Raises:
        DataError: It cannot be downloaded.
    """
    from torchvision.datasets import CIFAR100  # a second to import, for this alone

    try:
        dataset = CIFAR100(root=cache, train=True, download=True)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise DataError(
            f"CIFAR-100 cannot be downloaded ({error}): pass --novel PATH with a folder or .zip "
            "of images that are of none of your superclasses"
        ) from error
    folder.mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for i, (pixels, target) in enumerate(zip(dataset.data, dataset.targets, strict=True)):
            if (label := dataset.classes[target]) not in CIFAR100_EXCLUDED:
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "BMP")
                archive.writestr(f"{label}/{i:05}.bmp", buffer.getvalue())
