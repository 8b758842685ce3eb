"""Data sets of a few images: on the disk in every layout, and in memory without files."""

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainable.data import synthetic
from trainable.data.dataset import Data

SIZE = 8
CLASSES = (("bird", "robin"), ("dog", "boxer"), ("bird", "wren"))
"""Superclass and subclass, in the order of their indices."""
NUM_NUMBERED = 144


# --- On the disk ---------------------------------------------------------------------------------


def picture(
    file: Path, seed: int = 0, size: tuple[int, int] = (SIZE, SIZE), *, kind: str | None = None,
    **options: Any,
) -> Path:  # fmt: skip
    """Write an image of noise: lossless where its kind is, so that pixels can be compared.

    Args:
        file: Its suffix gives the kind, unless there is a `kind`.
        seed: Of the noise.
        size: Width and height.
        kind: As Pillow names it.
        options: Of Pillow for this kind.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file


def write_csv(file: Path, *rows: Sequence[object]) -> None:
    """Write a table, its header among the rows."""
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)


def course(
    folder: Path,
    classes: Sequence[tuple[str, str]] = CLASSES,
    images: int = 6,
    *,
    tests: Sequence[int] = (10, 2, 1),
    is_plain: bool = False,
    seed: int = 0,
) -> Path:
    """Write images and tables in the course's layout: classes take turns, novel is the last.

    Unless it `is_plain`, its table has a column more, with commas and ends of lines in it.
    """
    supers = [*dict.fromkeys(superclass for superclass, _ in classes)]
    more = [] if is_plain else ["a photograph, of\nan animal"]
    rows = [["image", "superclass_index", "subclass_index", *["description"] * len(more)]]
    for i in range(images):
        picture(folder / "train_images" / f"{i}.png", seed + i)
        sub = i % len(classes)
        index = str(supers.index(classes[sub][0]))
        rows.append([f"{i}.png", index, str(sub), *more])
    for i in tests:
        picture(folder / "test_images" / f"{i}.png", seed + i)
    write_csv(folder / "train_data.csv", *rows)
    for level, names in (("superclass", supers), ("subclass", [sub for _, sub in classes])):
        write_csv(
            folder / f"{level}_mapping.csv", ("index", "class"), *enumerate([*names, "novel"])
        )
    return folder


def tree(folder: Path, images: int = 6) -> Path:
    """Write the images of `course` as superclass/subclass/NAME.png."""
    for i in range(images):
        picture(folder / "/".join(CLASSES[i % 3]) / f"{i}.png", i)
    return folder


def pool(folder: Path, names: Sequence[str] = ("ship", "car", "ship", "car")) -> Path:
    """Write a pool of borrowed images, half as wide and high as the known ones."""
    for i, name in enumerate(names):
        picture(folder / name / f"{i}.png", 100 + i, (SIZE // 2, SIZE // 2))
    return folder


def zipped(folder: Path, top: str = "") -> Path:
    """Zip a folder, its entries under `top`, with the clutter that desktops add."""
    path = folder.with_name(folder.name + top.replace("/", "_") + ".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, top + file.relative_to(folder).as_posix())
        archive.writestr("__MACOSX/bird/robin/0.png", b"no image")
        archive.writestr(f"{top}bird/robin/._0.png", b"no image")
    return path


def drawn(folder: Path) -> Path:
    """Write the drawn data set: 96 known images, 48 borrowed ones of 6 classes."""
    synthetic.write(folder, images_per_subclass=4, novel_per_class=8, test_per_class=1)
    return folder


# --- In memory -----------------------------------------------------------------------------------


def make_data(
    subclasses: Sequence[int] = (4, 3),
    images: int | Sequence[int] = 8,
    borrowed: int | Sequence[int] = (6, 6, 6, 6),
    size: int = 2,
) -> Data:
    """Return known images, the classes taking turns row by row, and borrowed images after them.

    All are black.

    Args:
        subclasses: How many subclasses each superclass has.
        images: How many images each subclass has; one number for all of them.
        borrowed: How many images each borrowed class has; a number is a pool without classes.
        size: Side in pixels.
    """
    super_of_sub = tuple(k for k, count in enumerate(subclasses) for _ in range(count))
    num_sub = len(super_of_sub)
    counts = [images] * num_sub if isinstance(images, int) else list(images)
    subclass = [c for turn in range(max(counts)) for c in range(num_sub) if turn < counts[c]]
    if isinstance(borrowed, int):
        borrowed_class, num_borrowed_classes = [-1] * borrowed, 0
    else:
        borrowed_class = [b for b, count in enumerate(borrowed) for _ in range(count)]
        num_borrowed_classes = len(borrowed)
    num_novel, num_super = len(borrowed_class), len(subclasses)
    return Data(
        images=torch.zeros(len(subclass) + num_novel, size, size, 3, dtype=torch.uint8),
        superclass=torch.tensor([super_of_sub[c] for c in subclass] + [num_super] * num_novel),
        subclass=torch.tensor(subclass + [num_sub] * num_novel),
        borrowed_class=torch.tensor([-1] * len(subclass) + borrowed_class),
        native_side=torch.full((len(subclass) + num_novel,), size),
        superclasses=tuple(f"super {k}" for k in range(num_super)),
        subclasses=tuple(f"sub {c}" for c in range(num_sub)),
        borrowed_classes=tuple(f"borrowed {b}" for b in range(num_borrowed_classes)),
        super_of_sub=super_of_sub,
        fingerprint="made by hand",
        source="made by hand",
        novel_source="made by hand",
    )


def numbered_data(fingerprint: str = "numbered") -> Data:
    """Return images of one shade each, the number of their row, of 2 superclasses."""
    shade = torch.arange(NUM_NUMBERED, dtype=torch.uint8)
    label = torch.arange(NUM_NUMBERED) % 2
    return Data(
        images=shade[:, None, None, None].expand(-1, 8, 8, 3).contiguous(),
        superclass=label,
        subclass=label,
        borrowed_class=torch.full_like(label, -1),
        native_side=torch.full_like(label, 8),
        superclasses=("even", "odd"),
        subclasses=("an even one", "an odd one"),
        borrowed_classes=(),
        super_of_sub=(0, 1),
        fingerprint=fingerprint,
        source="numbered",
        novel_source="numbered",
    )
