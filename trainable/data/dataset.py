"""What a search trains on: known and borrowed images, checked, decoded once and memory-mapped."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainable.data.built_in import novel_path, synthetic_folder
from trainable.data.layouts import (
    TEST_IMAGES,
    Known,
    Pool,
    common_folder,
    course_root,
    read_known,
    read_pool,
)
from trainable.data.made_once import make_once
from trainable.data.overlap import sort_out_copies, without_known_classes
from trainable.data.pixels import (
    check_whole,
    decode,
    decode_blocks,
    find_images,
    is_one_colour,
    shorter_sides,
)
from trainable.data.sources import Source, digests, open_source
from trainable.errors import DataError

STORED_SIZE_MAX = 224
DATA_FORMAT = 3
"""Counts the ways in which images became pixels and fingerprints: each makes other data."""
LABELS = ("superclass", "subclass", "borrowed_class", "native_side")
NAMES = ("superclasses", "subclasses", "borrowed_classes", "super_of_sub", "copies", "remarks")


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
    copies: tuple[tuple[int, ...], ...] = ()  # rows that hold the same pixels, in one class each
    remarks: tuple[str, ...] = ()  # what the user should know of the images, a line each
    fingerprint: str  # of labels and image bytes: same content, same fingerprint, see `same_data`
    source: str  # where the known images came from, as asked
    novel_source: str  # where the borrowed images came from, as asked

    @property
    def num_known(self) -> int:
        """How many of the images are known; the rest is borrowed."""
        return int((self.superclass < len(self.superclasses)).sum())


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
    list the sources again, read what changed since, and decode only content that is new.

    Args:
        source: A folder or .zip with `train_data.csv`, `superclass_mapping.csv`,
            `subclass_mapping.csv` and `train_images/`; or with `superclass/subclass/*.jpg`;
            or "synthetic".
        novel: A folder or .zip of images, with classes as sub-folders or without; or "cifar100",
            "synthetic".
        cache: Folder for decoded images, the synthetic data set and CIFAR-100; made if absent.
        note: Gets a line about whatever the user should know.

    Raises:
        DataError: A source that is missing, broken or inconsistent; images of a known class among
            the borrowed ones or in two classes; or a cache without space.
    """
    known_path = synthetic_folder(cache) if source == "synthetic" else source
    with (
        open_source(known_path) as known_source,
        open_source(novel_path(novel, cache, note)) as pool_source,
    ):
        if known_source.place == pool_source.place:
            raise DataError(f"--data and --novel must differ, both are {known_source.place}")
        for remark in (*known_source.remarks, *pool_source.remarks):
            note(remark)
        known, super_of_sub = read_known(known_source, note)
        pool = without_known_classes(
            read_pool(pool_source, note),
            known,
            novel,
            may_leave_out=novel == "cifar100",
            note=note,
        )
        memory = cache / "digests"
        fingerprint = _fingerprint(
            known,
            pool,
            digests(known_source, known.images, memory),
            digests(pool_source, pool.images, memory),
        )
        entry = cache / "data" / fingerprint

        def read() -> Data | None:
            return find_data(source, novel, cache, fingerprint)

        def build(folder: Path) -> None:
            if entry.exists():
                note(f"the cached images in {entry} are damaged: made again")
            _build(folder, known_source, known, super_of_sub, pool_source, pool, note)

        make_once(entry, build, is_whole=lambda: read() is not None)
        data = read()
    assert data is not None, f"{entry} was made and cannot be read"
    for remark in data.remarks:
        note(remark)
    return data


def same_data(recorded: str, now: str, note: Callable[[str], None]) -> bool:
    """Return whether two fingerprints are of the same data.

    One of version 0.1 was made of names, sizes and times. It says nothing about content, so it is
    taken for the same, and `note` gets a line.
    """
    if re.fullmatch("[0-9a-f]{64}", recorded):
        note(
            "this search is of version 0.1, which did not record what the images hold: "
            "that they are still the same cannot be checked"
        )
        return True
    return recorded == now


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
    make_once(entry, write, is_whole=lambda: find_data(*source) is not None)


def image_blocks(
    source: str, size: int, broken: dict[str, str], note: Callable[[str], None] = print
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield the images to predict, some at a time: names, and uint8 (N, size, size, 3) RGB.

    Those of `test_images/` where `source` holds the course's `train_data.csv`, otherwise every
    image, in the numeric order of the names. Names are relative to the deepest folder that
    holds all of them: base names unless there are sub-folders. A broken one is not among them, and
    its name gets the reason in `broken`. `note` gets a line about files that are no images.

    Raises:
        DataError: A source that is missing, or holds no such image.
    """
    with open_source(source) as opened:
        for remark in opened.remarks:
            note(remark)
        names, common = _to_predict(opened, source, note)
        unread: dict[str, str] = {}
        done = 0
        for block in decode_blocks(opened, names, size, unread):
            of_block = names[done : done + len(block.pixels)]
            whole = [place for place, name in enumerate(of_block) if name not in unread]
            broken.update({n.removeprefix(common): unread[n] for n in of_block if n in unread})
            done += len(of_block)
            yield (
                [of_block[place].removeprefix(common) for place in whole],
                torch.from_numpy(block.pixels[whole]),
            )


def _to_predict(opened: Source, source: str, note: Callable[[str], None]) -> tuple[list[str], str]:
    """Return the images of `image_blocks`, and the folder that holds all of them."""
    root = course_root(opened)
    names = find_images(opened, note, "" if root is None else root + TEST_IMAGES)
    if not names:
        where = "its test_images/" if root is not None else "it"
        raise DataError(f"{source}: there must be images to predict, {where} holds none")
    return names, common_folder(names)


def images_named(source: str, wanted: Collection[str], size: int) -> dict[str, torch.Tensor]:
    """Return some of the images of `image_blocks` by name, uint8 (size, size, 3).

    Raises:
        DataError: As there.
    """
    if not wanted:
        return {}
    with open_source(source) as opened:
        names, common = _to_predict(opened, source, lambda _: None)
        wanted_names = [name for name in names if name.removeprefix(common) in wanted]
        return {
            name.removeprefix(common): torch.tensor(decode(opened, name, size)[0])
            for name in wanted_names
        }


def load_images(
    source: str, size: int, note: Callable[[str], None] = print
) -> tuple[list[str], torch.Tensor]:
    """Return all images of `image_blocks` at once.

    Raises:
        DataError: As there, or some are broken.
    """
    broken: dict[str, str] = {}
    blocks = list(image_blocks(source, size, broken, note))
    check_whole({source: broken}, "replace or remove each")
    return [n for names, _ in blocks for n in names], torch.cat([images for _, images in blocks])


# --- The cache entry ---------------------------------------------------------------------------


def _fingerprint(
    known: Known, pool: Pool, known_digests: list[str], pool_digests: list[str]
) -> str:
    """Return what identifies the data: the format, and a digest of labels and image bytes.

    Names of files count as far as they decide the order of the images, names of classes do.
    """
    content = [
        [STORED_SIZE_MAX, known.superclasses, known.subclasses, pool.borrowed_classes],
        [known.superclass, known.subclass, known_digests],
        [pool.borrowed_class, pool_digests],
    ]
    return f"v{DATA_FORMAT}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()}"


def _build(
    folder: Path,
    known_source: Source,
    known: Known,
    super_of_sub: list[int],
    pool_source: Source,
    pool: Pool,
    note: Callable[[str], None],
) -> None:
    """Decode both sources, and write `images.npy` and `meta.json` into `folder`."""
    size = min(STORED_SIZE_MAX, max(1, *shorter_sides(known_source, known.images)))
    num_known, num_borrowed = len(known.images), len(pool.images)
    note(f"decoding {num_known:,} known and {num_borrowed:,} borrowed images to {size} px, once")
    folder.mkdir()
    sides: list[int] = []
    pixel_digests: list[bytes] = []
    num_of_one_colour: list[int] = []
    broken: dict[str, dict[str, str]] = {known_source.name: {}, pool_source.name: {}}
    with (folder / "images.npy").open("wb") as file:
        shape = (num_known + num_borrowed, size, size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for source, names in ((known_source, known.images), (pool_source, pool.images)):
            num_of_one_colour.append(0)
            for block in decode_blocks(source, names, size, broken[source.name]):
                file.write(block.pixels.data)
                sides += block.sides
                pixel_digests += block.digests
                num_of_one_colour[-1] += sum(map(is_one_colour, block.pixels))
    check_whole(broken, "replace or remove each")
    copies, borrowed_class, remarks = sort_out_copies(known, pool, pixel_digests, pool_source.name)
    for kind, flat, count in zip(
        ("known", "borrowed"), num_of_one_colour, (num_known, num_borrowed), strict=True
    ):
        if flat:
            remarks.append(f"{flat:,} of {count:,} {kind} images are of one colour throughout")
    meta = {
        "superclass": known.superclass + [len(known.superclasses)] * num_borrowed,
        "subclass": known.subclass + [len(known.subclasses)] * num_borrowed,
        "borrowed_class": [-1] * num_known + borrowed_class,
        "native_side": sides,
        "superclasses": known.superclasses,
        "subclasses": known.subclasses,
        "borrowed_classes": pool.borrowed_classes,
        "super_of_sub": super_of_sub,
        "copies": copies,
        "remarks": remarks,
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
        fields["copies"] = tuple(map(tuple, meta["copies"]))
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
