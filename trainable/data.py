"""What a search trains on: known and borrowed images, checked, decoded once and memory-mapped."""

import csv
import hashlib
import http.client
import io
import json
import os
import posixpath
import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from trainable import synthetic
from trainable.errors import DataError
from trainable.sources import Source, decode_blocks, open_source, shorter_sides

STORED_SIZE_MAX = 224
CACHE_FORMAT = 2
NOVEL = "novel"
LABELS = ("superclass", "subclass", "borrowed_class", "native_side")
NAMES = ("superclasses", "subclasses", "borrowed_classes", "super_of_sub")

TRAIN_CSV, TRAIN_IMAGES, TEST_IMAGES = "train_data.csv", "train_images/", "test_images/"
SUPER_CSV, SUB_CSV = "superclass_mapping.csv", "subclass_mapping.csv"

# Borrowed images stand for "another superclass", so none may be a bird, a dog or a reptile.
# CIFAR-100 has no bird and no dog. Dinosaurs are reptiles. A wolf is of the dog's own species and
# at 32 pixels looks like a husky: as borrowed image it would teach that huskies are novel. A fox
# is of another genus and looks it, so it stays.
CIFAR100_EXCLUDED = ("crocodile", "dinosaur", "lizard", "snake", "turtle", "wolf")


@dataclass(frozen=True, kw_only=True)
class Data:
    """All images of one search in one index space: first the known ones, then the borrowed."""

    images: torch.Tensor  # uint8 (N, S, S, 3) RGB, memory-mapped, shared by every process of a node
    superclass: torch.Tensor  # int64 (N,), 0..K_super-1; borrowed images carry K_super (novel)
    subclass: torch.Tensor  # int64 (N,), 0..K_sub-1; borrowed images carry K_sub (novel)
    borrowed_class: torch.Tensor  # int64 (N,), -1 for known images and for pools without classes
    native_side: torch.Tensor  # int64 (N,), shorter side in pixels that each image came with
    superclasses: tuple[str, ...]  # K_super names, without novel
    subclasses: tuple[str, ...]  # K_sub names, without novel
    borrowed_classes: tuple[str, ...]  # what `borrowed_class` counts; empty without classes
    super_of_sub: tuple[int, ...]  # (K_sub,) superclass of each subclass
    fingerprint: str  # hex digest of what was read: same content, same fingerprint
    source: str  # where the known images came from, as asked
    novel_source: str  # where the borrowed images came from, as asked

    @property
    def num_known(self) -> int:
        """How many of the images are known; the rest is borrowed."""
        return int((self.superclass < len(self.superclasses)).sum())


@dataclass(frozen=True, kw_only=True)
class _Known:
    """The known images before decoding: N_known entry names and labels, and the class names."""

    images: list[str]
    superclass: list[int]
    subclass: list[int]
    superclasses: list[str]
    subclasses: list[str]


def default_cache() -> Path:
    """Return the user's cache folder for images, frozen features and downloaded data sets."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noveltune"


@contextmanager
def folder_for_images(cache: Path | None) -> Iterator[Path]:
    """Give `cache`; without one, a temporary folder, which is removed at the end.

    Images that were mapped from it stay readable.
    """
    if cache is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="noveltune-") as folder:
        yield Path(folder)


def load_data(source: str, novel: str, cache: Path, *, note: Callable[[str], None] = print) -> Data:
    """Return the known images of `source` and the borrowed images of `novel`.

    Everything is checked and decoded at the first call, by one process of a node; later calls
    list the sources again, and decode again only what changed.

    Args:
        source: A folder or .zip with `train_data.csv`, `superclass_mapping.csv`,
            `subclass_mapping.csv` and `train_images/`; or with `superclass/subclass/*.jpg`;
            or "synthetic".
        novel: A folder or .zip of images, with classes as sub-folders or without; or "cifar100",
            "synthetic".
        cache: Folder for decoded images, the synthetic data set and CIFAR-100; made if absent.
        note: Gets a line about whatever the user should know.

    Raises:
        DataError: A source that is missing, broken or inconsistent, or a cache without space.
    """
    known_path = _synthetic(cache) if source == "synthetic" else source
    with open_source(known_path) as known, open_source(_novel_path(novel, cache, note)) as pool:
        fingerprint = _fingerprint(known, pool)
        entry = cache / "data" / fingerprint

        def read() -> Data | None:
            return find_data(source, novel, cache, fingerprint)

        def build(folder: Path) -> None:
            if entry.exists():
                note(f"the cached images in {entry} are damaged: made again")
            _build(folder, known, pool, note)

        _make_once(entry, build, is_whole=lambda: read() is not None)
        data = read()
    assert data is not None, f"{entry} was made and cannot be read"
    return data


def find_data(source: str, novel: str, cache: Path, fingerprint: str) -> Data | None:
    """Return the data of that fingerprint if the cache has it, without a look at the sources."""
    entry = cache / "data" / fingerprint
    return _map(entry, source=source, novel_source=novel, fingerprint=fingerprint)


def store_data(labels: Data, images: np.ndarray, cache: Path) -> None:
    """Write what another machine decoded into this one's cache, by one of its processes.

    Args:
        labels: All but the images.
        images: uint8 (N, S, S, 3).
        cache: As in `load_data`.

    Raises:
        DataError: The cache cannot be written.
    """

    def write(folder: Path) -> None:
        folder.mkdir()
        np.save(folder / "images.npy", images)
        meta = {name: getattr(labels, name).tolist() for name in LABELS}
        meta |= {name: getattr(labels, name) for name in NAMES}
        (folder / "meta.json").write_text(json.dumps(meta))

    source = (labels.source, labels.novel_source, cache, labels.fingerprint)
    entry = cache / "data" / labels.fingerprint
    _make_once(entry, write, is_whole=lambda: find_data(*source) is not None)


def load_images(source: str, size: int) -> tuple[list[str], torch.Tensor]:
    """Return the images to predict: their names, and uint8 (N, size, size, 3) RGB.

    Those of `test_images/` where `source` holds the course's `train_data.csv`, otherwise every
    image, in the numeric order of the names. Names are relative to the deepest folder that
    holds all of them: base names unless there are sub-folders.

    Raises:
        DataError: A source that is missing, holds no such image, or holds a broken one.
    """
    with open_source(source) as opened:
        root = _course_root(opened)
        names = opened.images("" if root is None else root + TEST_IMAGES)
        if not names:
            where = "its test_images/" if root is not None else "it"
            raise DataError(f"{source}: there must be images to predict, {where} holds none")
        images = np.empty((len(names), size, size, 3), np.uint8)
        done = 0
        for block in decode_blocks(opened, names, size):
            images[done : done + len(block)] = block
            done += len(block)
    common = _common_folder(names)
    return [name.removeprefix(common) for name in names], torch.from_numpy(images)


# --- Sources that are made or fetched once ---------------------------------------------------


def _synthetic(cache: Path) -> Path:
    """Return the folder of the synthetic data set, written at the first call."""
    digest = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()[:16]

    def write(folder: Path) -> None:
        synthetic.write(folder, seed=0)
        for path in folder.rglob("*"):  # the same fingerprint wherever it was written
            os.utime(path, (1_000_000_000, 1_000_000_000))

    return _make_once(cache / f"synthetic-{digest}", write)


def _novel_path(novel: str, cache: Path, note: Callable[[str], None]) -> Path | str:
    if novel == "synthetic":
        return _synthetic(cache) / "novel_images"
    if novel == "cifar100":
        note(f"cifar100: left out as too near bird, dog or reptile: {', '.join(CIFAR100_EXCLUDED)}")
        excluded = hashlib.sha256(repr(CIFAR100_EXCLUDED).encode()).hexdigest()[:16]
        folder = cache / f"cifar100-{excluded}"
        return _make_once(folder, lambda made: _write_cifar100(made, cache)) / "images.zip"
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


def _make_once(
    target: Path, make: Callable[[Path], None], is_whole: Callable[[], bool] | None = None
) -> Path:
    """Return the folder `target`, made by one process while the others wait: whole or absent."""
    is_whole = is_whole or target.exists
    if is_whole():
        return target
    temporary = target.with_name(target.name + ".tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if is_whole():
                return target
            shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
            try:
                make(temporary)
                for path in [*temporary.rglob("*"), temporary]:
                    _fsync(path)
                if target.exists():
                    shutil.rmtree(target)
                temporary.rename(target)
                _fsync(target.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"the cache {target.parent} cannot be written ({error}): free some space, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    return target


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- The cache entry ---------------------------------------------------------------------------


def _fingerprint(known: Source, pool: Source) -> str:
    """Return the digest of the files that `_build` would read, without reading them."""
    root = _course_root(known)
    if root is None:
        layout, names = "tree", known.images()
    else:
        layout = "course " + root
        wanted = (root + TRAIN_IMAGES, *(root + name for name in (TRAIN_CSV, SUPER_CSV, SUB_CSV)))
        names = [name for name in known.stamps if name.startswith(wanted)]
    listing = [
        [CACHE_FORMAT, STORED_SIZE_MAX, layout],
        sorted((name, known.stamps[name]) for name in names),
        sorted((name, pool.stamps[name]) for name in pool.images()),
    ]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _build(folder: Path, known: Source, pool: Source, note: Callable[[str], None]) -> None:
    """Check both sources, decode them, and write `images.npy` and `meta.json` into `folder`."""
    root = _course_root(known)
    labels = _read_tree(known) if root is None else _read_course(known, root)
    super_of_sub = _check_labels(labels, known.name)
    borrowed, borrowed_class, borrowed_classes = _read_pool(pool)
    sides = shorter_sides(known, labels.images)
    size = min(STORED_SIZE_MAX, max(sides))
    num_known, num_borrowed = len(labels.images), len(borrowed)
    note(f"decoding {num_known:,} known and {num_borrowed:,} borrowed images to {size} px, once")
    folder.mkdir()
    with (folder / "images.npy").open("wb") as file:
        shape = (num_known + num_borrowed, size, size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for source, names in ((known, labels.images), (pool, borrowed)):
            for block in decode_blocks(source, names, size):
                file.write(block.data)
    meta = {
        "superclass": labels.superclass + [len(labels.superclasses)] * num_borrowed,
        "subclass": labels.subclass + [len(labels.subclasses)] * num_borrowed,
        "borrowed_class": [-1] * num_known + borrowed_class,
        "native_side": sides + shorter_sides(pool, borrowed),
        "superclasses": labels.superclasses,
        "subclasses": labels.subclasses,
        "borrowed_classes": borrowed_classes,
        "super_of_sub": super_of_sub,
        "source": known.name,
        "novel_source": pool.name,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def _map(entry: Path, *, source: str, novel_source: str, fingerprint: str) -> Data | None:
    """Return the data of a cache entry, or None where it is absent or damaged."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        # Copy-on-write: torch gets a writable array, and unwritten pages stay shared.
        images = torch.from_numpy(np.load(entry / "images.npy", mmap_mode="c"))
        fields: dict[str, Any] = {name: torch.tensor(meta[name]) for name in LABELS}
        fields |= {name: tuple(meta[name]) for name in NAMES}
        data = Data(
            images=images,
            **fields,
            fingerprint=fingerprint,
            source=source,
            novel_source=novel_source,
        )
    except (OSError, EOFError, ValueError, TypeError, KeyError):
        return None
    is_whole = all(getattr(data, name).shape == images.shape[:1] for name in LABELS)
    return data if is_whole else None


# --- Layouts -----------------------------------------------------------------------------------


def _course_root(source: Source) -> str | None:
    """Return the folder that holds `train_data.csv`, "" or ending in "/", or None without one."""
    roots = [n.removesuffix(TRAIN_CSV) for n in source.stamps if posixpath.basename(n) == TRAIN_CSV]
    if len(roots) > 1:
        raise DataError(f"{source.name}: there must be one {TRAIN_CSV}, found it in {roots}")
    return roots[0] if roots else None


def _read_rows(source: Source, name: str, columns: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Return, for each row of a CSV file, where it is and its values in `columns`."""
    if name not in source.stamps:
        raise DataError(f"{source.name}: {name} is missing, beside {TRAIN_CSV}")
    try:
        text = source.read(name).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        missing = [c for c in columns if c not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{source.name}: {name} must have the columns {', '.join(columns)}; "
                f"{missing[0]} is missing among {reader.fieldnames}"
            )
        return [
            (f"{source.name}: {name} line {reader.line_num}", [row[c].strip() for c in columns])
            for row in reader
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source.name}: {name} must be CSV in UTF-8 ({error})") from error


def _read_mapping(source: Source, name: str) -> list[str]:
    """Return the class names of a mapping in the order of their indices, without a last novel."""
    rows = [row for _, row in _read_rows(source, name, ("index", "class"))]
    by_index = dict(rows)
    expected = [str(i) for i in range(len(rows))]
    if set(by_index) != set(expected):
        raise DataError(
            f"{source.name}: {name} must number its {len(rows)} rows from 0, each index once, "
            f"got {', '.join(index for index, _ in rows)}"
        )
    names = [by_index[index] for index in expected]
    repeated = [label for label, count in Counter(names).items() if count > 1 or not label]
    if repeated:
        raise DataError(
            f"{source.name}: {name} must give each class a name of its own, "
            f"{repeated[0]!r} is repeated or empty"
        )
    return names[:-1] if names and names[-1] == NOVEL else names


def _read_course(source: Source, root: str) -> _Known:
    names = [_read_mapping(source, root + mapping) for mapping in (SUPER_CSV, SUB_CSV)]
    indices = [{str(i): i for i in range(len(known))} for known in names]
    columns = ("superclass_index", "subclass_index")
    images: dict[str, str] = {}
    labels: tuple[list[int], list[int]] = ([], [])
    for where, row in _read_rows(source, root + TRAIN_CSV, ("image", *columns)):
        image = root + TRAIN_IMAGES + row[0]
        if image in images:
            raise DataError(f"{where}: an image must have one row, {row[0]!r} has two")
        images[image] = where
        for column, text, known, found in zip(columns, row[1:], indices, labels, strict=True):
            if text not in known:
                raise DataError(
                    f"{where}: {column} must be an integer from 0 to {len(known) - 1}, a known "
                    f"class and not novel, got {text!r}"
                )
            found.append(known[text])
    missing = [image for image in images if image not in source.stamps]
    if missing:
        raise DataError(
            f"{images[missing[0]]}: every row must have its file, {missing[0]} is missing "
            f"({len(missing):,} missing of {len(images):,})"
        )
    return _Known(
        images=list(images),
        superclass=labels[0],
        subclass=labels[1],
        superclasses=names[0],
        subclasses=names[1],
    )


def _read_tree(source: Source) -> _Known:
    images = source.images()
    parts = [image.split("/") for image in images]
    is_tree = len({tuple(p[:-3]) for p in parts}) == 1 and min(map(len, parts)) >= 3
    if not is_tree or any(p[-2] + "/" in (TRAIN_IMAGES, TEST_IMAGES) for p in parts):
        example = f", such as {min(images, key=lambda i: i.count('/'))!r}" if images else ""
        raise DataError(
            f"{source.name}: no layout recognised; there must be {TRAIN_CSV}, {SUPER_CSV}, "
            f"{SUB_CSV} and {TRAIN_IMAGES}, or every image as superclass/subclass/NAME.jpg; "
            f"found {len(images):,} images{example}"
        )
    superclasses = sorted({p[-3] for p in parts})
    subclasses = sorted({p[-2] for p in parts})
    super_index = {name: i for i, name in enumerate(superclasses)}
    sub_index = {name: i for i, name in enumerate(subclasses)}
    return _Known(
        images=images,
        superclass=[super_index[p[-3]] for p in parts],
        subclass=[sub_index[p[-2]] for p in parts],
        superclasses=superclasses,
        subclasses=subclasses,
    )


def _check_labels(known: _Known, where: str) -> list[int]:
    """Return the superclass of each subclass, after checking what both layouts must hold."""
    if NOVEL in (*known.superclasses, *known.subclasses):
        raise DataError(
            f"{where}: a known class must not be named {NOVEL!r}, only the last index of a mapping "
            "may; pass images of no known class with --novel"
        )
    for kind, names, labels in (
        ("superclass", known.superclasses, known.superclass),
        ("subclass", known.subclasses, known.subclass),
    ):
        empty = sorted(set(range(len(names))) - set(labels))
        if empty:
            raise DataError(
                f"{where}: every {kind} must have an image, {names[empty[0]]!r} has none "
                f"({len(empty)} without); add images or take it out of the mapping"
            )
    # One superclass is enough: its head still tells it from novel.
    if len(known.subclasses) < 2:
        raise DataError(f"{where}: there must be two subclasses or more, got {known.subclasses}")
    super_of_sub: dict[int, int] = {}
    for image, sup, sub in zip(known.images, known.superclass, known.subclass, strict=True):
        if super_of_sub.setdefault(sub, sup) != sup:
            raise DataError(
                f"{where}: a subclass must be of one superclass, {known.subclasses[sub]!r} is of "
                f"{known.superclasses[super_of_sub[sub]]!r} and, with {image}, of "
                f"{known.superclasses[sup]!r}; rename or relabel one"
            )
    return [super_of_sub[sub] for sub in range(len(known.subclasses))]


def _read_pool(source: Source) -> tuple[list[str], list[int], list[str]]:
    """Return the borrowed images, the class of each (-1 without classes), and the class names."""
    images = source.images()
    if not images:
        raise DataError(f"{source.name}: there must be borrowed images, found none; see --novel")
    common = _common_folder(images)
    folders = [posixpath.dirname(image.removeprefix(common)) for image in images]
    classes = sorted(set(folders))
    if classes == [""]:
        return images, [-1] * len(images), []
    if "" in classes:
        raise DataError(
            f"{source.name}: borrowed images must all be in class folders or none, "
            f"{images[folders.index('')]} is beside {classes[1]}/"
        )
    index = {name: i for i, name in enumerate(classes)}
    return images, [index[folder] for folder in folders], classes


def _common_folder(names: list[str]) -> str:
    """Return the deepest folder that holds all names: "" or ending in "/"."""
    common = posixpath.commonpath([posixpath.dirname(name) for name in names])
    return common + "/" if common else ""
