"""Sources are checked before anything trains, decoded once, and shared."""

import csv
import hashlib
import os
import pickle
import shutil
import socket
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from tests.commands import ROOT, Command
from tests.made_data import SIZE, course, picture, pool, tree, write_csv, zipped
from trainable.data import sources, synthetic
from trainable.data.dataset import (
    STORED_SIZE_MAX,
    Data,
    default_cache,
    load_data,
    load_images,
    same_data,
)
from trainable.errors import DataError

REAL = ROOT.parent / "shared" / "data"


def patch_central(path: Path, offset: int, value: bytes) -> Path:
    """Overwrite bytes of the first central directory header of a zip."""
    raw = bytearray(path.read_bytes())
    start = raw.index(b"PK\x01\x02") + offset
    raw[start : start + len(value)] = value
    path.write_bytes(raw)
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new))


def same(a: Data, b: Data) -> bool:
    tensors = ("images", "superclass", "subclass", "borrowed_class", "native_side")
    names = ("superclasses", "subclasses", "borrowed_classes", "super_of_sub")
    return all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors) and all(
        getattr(a, n) == getattr(b, n) for n in names
    )


class Case:
    """A known source, a pool and a cache, and the notes of the loads."""

    def __init__(self, tmp_path: Path) -> None:
        self.known = course(tmp_path / "known")
        self.pool = pool(tmp_path / "pool")
        self.cache = tmp_path / "cache"
        self.notes: list[str] = []

    def load(self, known: Path | str | None = None, novel: Path | str | None = None) -> Data:
        source, borrowed = str(known or self.known), str(novel or self.pool)
        return load_data(source, borrowed, self.cache, note=self.notes.append)

    def decodings(self) -> int:
        return sum("decoding" in note for note in self.notes)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


# --- What a source means


def test_known_images_come_first_and_borrowed_ones_are_novel(case: Case) -> None:
    data = case.load()
    assert data.images.shape == (10, SIZE, SIZE, 3)
    assert data.images.dtype == torch.uint8
    assert data.superclass.tolist() == [0, 1, 0, 0, 1, 0, 2, 2, 2, 2]
    assert data.subclass.tolist() == [0, 1, 2, 0, 1, 2, 3, 3, 3, 3]
    assert data.borrowed_class.tolist() == [-1] * 6 + [0, 0, 1, 1]
    assert {t.dtype for t in (data.superclass, data.subclass, data.borrowed_class)} == {torch.int64}
    assert data.superclasses == ("bird", "dog")
    assert data.subclasses == ("robin", "boxer", "wren")
    assert data.borrowed_classes == ("car", "ship")
    assert data.super_of_sub == (0, 1, 0)
    assert (data.source, data.novel_source) == (str(case.known), str(case.pool))
    with Image.open(case.known / "train_images" / "4.png") as image:
        assert np.array_equal(data.images[4].numpy(), np.asarray(image))


@pytest.mark.parametrize("layout", [course, tree])
def test_a_folder_and_its_zip_at_any_depth_give_the_same_data(
    case: Case, tmp_path: Path, layout: Callable[[Path], Path]
) -> None:
    folder = layout(tmp_path / "one")
    shutil.copytree(folder, tmp_path / "outer" / "inner" / "two")
    for clutter in (".DS_Store", "bird/robin/._1.png", ".trash/bird/robin/1.png"):
        (folder / clutter).parent.mkdir(parents=True, exist_ok=True)
        (folder / clutter).write_bytes(b"clutter")
    expected = case.load(folder)
    novels = [zipped(case.pool), zipped(case.pool, "novel-images/")]
    for known in (tmp_path / "outer", zipped(folder), zipped(folder, "a/b/")):
        assert same(case.load(known), expected)
    for novel in novels:
        assert same(case.load(folder, novel), expected)


@pytest.mark.parametrize("layout", [course, tree])
def test_every_image_keeps_the_side_it_came_with(
    case: Case, tmp_path: Path, layout: Callable[[Path], Path]
) -> None:
    """The shorter one, before all are stored at one size."""
    known = layout(tmp_path / "sized")
    (first,) = known.rglob("0.png")
    if layout is course:
        first = known / "train_images" / "0.png"
    picture(first, 0, (6, 20))
    data = case.load(known)
    place = 0
    if layout is tree:
        place = sorted(path.relative_to(known).as_posix() for path in known.rglob("*.png")).index(
            first.relative_to(known).as_posix()
        )
    expected = [SIZE] * 6 + [SIZE // 2] * 4
    expected[place] = 6
    assert data.native_side.tolist() == expected
    assert data.images.shape[1] == SIZE


def test_a_cache_entry_of_another_format_is_made_anew(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("trainable.data.dataset.DATA_FORMAT", 1)
        old = case.load()
    new = case.load()
    assert new.fingerprint != old.fingerprint
    assert case.decodings() == 2


def test_a_folder_tree_labels_in_sorted_order(case: Case, tmp_path: Path) -> None:
    data = case.load(tree(tmp_path / "tree"))
    assert data.superclasses == ("bird", "dog")
    assert data.subclasses == ("boxer", "robin", "wren")
    assert data.super_of_sub == (1, 0, 0)
    assert data.subclass[:6].tolist() == [1, 1, 2, 2, 0, 0]


def test_one_superclass_is_enough(case: Case, tmp_path: Path) -> None:
    for i, name in enumerate(("robin", "wren")):
        picture(tmp_path / "birds" / "bird" / name / "0.png", i)
    assert case.load(tmp_path / "birds").superclasses == ("bird",)


@pytest.mark.parametrize("top", ["", "flat/"])
def test_a_flat_pool_has_no_classes(case: Case, tmp_path: Path, top: str) -> None:
    for i in range(3):
        picture(tmp_path / "flat" / f"{i}.png", 100 + i)
    for novel in (tmp_path / "flat", zipped(tmp_path / "flat", top)):
        data = case.load(novel=novel)
        assert data.borrowed_class.tolist() == [-1] * 9
        assert data.borrowed_classes == ()
        assert data.subclass[6:].tolist() == [3] * 3


def test_a_mapping_without_novel_in_any_row_order_is_fine(case: Case) -> None:
    expected = case.load()
    rows = (("class", "index"), ("wren", 2), ("robin", 0), ("boxer", 1))
    write_csv(case.known / "subclass_mapping.csv", *rows)
    assert same(case.load(), expected)


def test_linked_class_folders_are_followed(case: Case, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for name in ("car", "ship"):
        (tmp_path / "linked" / name).symlink_to(case.pool / name)
    assert same(case.load(novel=tmp_path / "linked"), case.load())


def test_stored_size_is_the_largest_shorter_side_up_to_the_limit(
    case: Case, tmp_path: Path
) -> None:
    picture(case.known / "train_images" / "0.png", size=(10, 30))
    picture(case.known / "train_images" / "1.png", size=(24, 20))
    assert case.load().images.shape[1:] == (20, 20, 3)
    picture(case.known / "train_images" / "1.png", size=(300, STORED_SIZE_MAX + 1))
    assert case.load().images.shape[1:] == (STORED_SIZE_MAX, STORED_SIZE_MAX, 3)


def test_cache_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "noveltune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "noveltune"


# --- Decoding


def decoded(path: Path, size: int = SIZE) -> np.ndarray:
    return load_images(str(path.parent), size)[1][0].numpy()


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("1", 1, "png", (255, 255, 255)),
        ("L", 100, "png", (100, 100, 100)),
        ("LA", (100, 0), "png", (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), "png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "webp", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("I;16", 0x8040, "png", (128, 128, 128)),
        ("I;16", 0x8040, "tif", (128, 128, 128)),
        ("I", 0x8040, "tif", (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, mode: str, colour: Any, suffix: str, expected: tuple[int, ...]
) -> None:
    Image.new(mode, (SIZE, SIZE), colour).save(tmp_path / f"0.{suffix}")
    assert np.abs(decoded(tmp_path / f"0.{suffix}").astype(int) - expected).max() <= 2


def test_palettes_are_looked_up_and_transparent_entries_show_white(tmp_path: Path) -> None:
    image = Image.new("P", (SIZE, SIZE), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (0, 0, SIZE, SIZE // 2))
    image.save(tmp_path / "0.png", transparency=1)
    assert decoded(tmp_path / "0.png")[0, 0].tolist() == [255, 255, 255]
    assert decoded(tmp_path / "0.png")[-1, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("orientation", "turn"), [(3, 180), (6, -90), (8, 90)])
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, turn: int) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    upright = np.asarray(Image.fromarray(pixels).rotate(turn))
    assert np.array_equal(decoded(tmp_path / "0.png", 16), upright)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_centre_is_cropped_of_the_resized_image(tmp_path: Path, transposed: bool) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 5:35, 1] = 200
    image = Image.fromarray(pixels.swapaxes(0, 1) if transposed else pixels)
    image.save(tmp_path / "0.png")
    assert (decoded(tmp_path / "0.png", 10) == (0, 200, 0)).all()


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "0.png")
    assert np.abs(decoded(tmp_path / "0.png", 8).astype(int)[1:-1, 1:-1] - 127).max() <= 3


def test_a_large_jpeg_looks_as_if_decoded_in_full(tmp_path: Path) -> None:
    y, x = np.mgrid[0:600, 0:800]
    waves = (128 + 100 * np.sin(x / 7 + y / 9), 128 + 100 * np.cos(x / 11), y / 4)
    pixels = np.stack(waves, -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.jpg", quality=95)
    with Image.open(tmp_path / "0.jpg") as image:
        cut = image.convert("RGB").crop((100, 0, 700, 600))
        full = cut.resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(decoded(tmp_path / "0.jpg", 64).astype(int) - np.asarray(full)).mean() < 1


# --- Mistakes in the known images


def replace_row(number: int, column: int, value: str) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        rows = list(csv.reader((folder / "train_data.csv").read_text().splitlines(True)))
        rows[number][column] = value
        write_csv(folder / "train_data.csv", *map(tuple, rows))

    return mutate


def set_subclasses(*rows: tuple[object, ...]) -> Callable[[Path], None]:
    return lambda folder: write_csv(folder / "subclass_mapping.csv", ("index", "class"), *rows)


def cut(name: str) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        raw = picture(folder / name, size=(64, 64)).read_bytes()
        (folder / name).write_bytes(raw[: len(raw) // 2])

    return mutate


def two_removed(folder: Path) -> None:
    for name in ("2.png", "4.png"):
        (folder / "train_images" / name).unlink()


BAD_COURSES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing mapping": (
        lambda f: (f / "subclass_mapping.csv").unlink(),
        "subclass_mapping.csv is missing",
    ),
    "missing column": (
        lambda f: edit(f / "train_data.csv", "subclass_index", "sub"),
        "train_data.csv must have the columns .*; subclass_index is missing",
    ),
    "missing column of a mapping": (
        lambda f: edit(f / "superclass_mapping.csv", "class", "name"),
        "superclass_mapping.csv must have the columns index, class; class is missing",
    ),
    "empty": (lambda f: (f / "train_data.csv").write_text(""), "image is missing among None"),
    "no rows": (
        lambda f: (f / "train_data.csv").write_text("image,superclass_index,subclass_index\n"),
        "every superclass must have an image, 'bird' has none",
    ),
    "not UTF-8": (
        lambda f: (f / "train_data.csv").write_bytes("image,é".encode("latin-1")),
        "train_data.csv must be CSV in UTF-8",
    ),
    "not CSV": (
        lambda f: (f / "train_data.csv").write_text(
            "image,superclass_index,subclass_index\n" + "9" * 200_000
        ),
        "train_data.csv must be CSV in UTF-8",
    ),
    "label not an integer": (
        replace_row(2, 2, "x"),
        "train_data.csv line 5: subclass_index must be an integer from 0 to 2, .* got 'x'",
    ),
    "label with a fraction": (replace_row(1, 1, "0.0"), "superclass_index .* got '0.0'"),
    "label missing": (replace_row(1, 2, ""), "subclass_index must be an integer .* got ''"),
    "label negative": (replace_row(1, 1, "-1"), "superclass_index .* from 0 to 1, .* got '-1'"),
    "label out of range": (replace_row(1, 2, "4"), "subclass_index .* got '4'"),
    "label novel": (replace_row(1, 1, "2"), "a known class and not novel, got '2'"),
    "duplicate row": (replace_row(2, 0, "0.png"), "must have one row, '0.png' has two"),
    "missing images": (two_removed, r"train_images/2.png is missing \(2 missing of 6\)"),
    "row that climbs out": (replace_row(1, 0, "../test_images/1.png"), "1.png is missing"),
    "broken image": (
        lambda f: (f / "train_images" / "3.png").write_bytes(b"no image"),
        "train_images/3.png is broken or no image",
    ),
    "truncated image": (cut("train_images/3.png"), "train_images/3.png is broken or no image"),
    "EPS in disguise": (  # Pillow would run Ghostscript on it
        lambda f: Image.new("RGB", (9, 9)).save(f / "train_images" / "3.png", "EPS"),
        r"train_images/3.png is broken or no image \(cannot identify",
    ),
    "infinite pixels": (
        lambda f: Image.new("F", (9, 9), float("inf")).save(f / "train_images" / "3.png", "TIFF"),
        "train_images/3.png is broken .*its pixels must be finite",
    ),
    "subclass of two superclasses": (
        replace_row(4, 1, "1"),
        "a subclass must be of one superclass, 'robin' is of 'bird' and, with .*3.png, of 'dog'",
    ),
    "mapping with a gap": (
        set_subclasses((0, "robin"), (1, "boxer"), (3, "wren")),
        "subclass_mapping.csv must number its 3 rows from 0, each index once, got 0, 1, 3",
    ),
    "mapping with an index twice": (
        set_subclasses((0, "robin"), (1, "boxer"), (1, "wren")),
        "each index once, got 0, 1, 1",
    ),
    "mapping with a name twice": (
        set_subclasses((0, "robin"), (1, "boxer"), (2, "robin")),
        "subclass_mapping.csv must give each class a name of its own, 'robin' is repeated",
    ),
    "novel in the middle": (
        set_subclasses((0, "robin"), (1, "boxer"), (2, "wren"), (3, "novel"), (4, "crow")),
        "subclass_index|named 'novel', only the last index",
    ),
    "subclass without image": (
        set_subclasses((0, "robin"), (1, "boxer"), (2, "wren"), (3, "crow")),
        r"every subclass must have an image, 'crow' has none \(1 without\)",
    ),
    "superclass without image": (
        lambda f: edit(f / "superclass_mapping.csv", "2,novel", "2,fish"),
        "every superclass must have an image, 'fish' has none",
    ),
    "two data sets in one": (
        lambda f: shutil.copytree(f, f / "copy"),
        r"there must be one train_data.csv, found it in \[",
    ),
}


@pytest.mark.parametrize(("mutate", "match"), BAD_COURSES.values(), ids=BAD_COURSES.keys())
def test_a_mistake_in_the_course_layout_is_named(
    case: Case, mutate: Callable[[Path], Any], match: str
) -> None:
    mutate(case.known)
    with pytest.raises(DataError, match=match):
        case.load()
    leftovers = [path.name for path in case.cache.rglob("*") if path.suffix != ".lock"]
    assert leftovers in ([], ["data"])


BAD_TREES: dict[str, tuple[list[str], str]] = {
    "no images": ([], "no layout recognised; .* found 0 images"),
    "flat": (["0.png", "1.png"], "no layout recognised; .* 2 images, such as '0.png'"),
    "one level": (["robin/0.png", "wren/1.png"], "no layout recognised"),
    "mixed depth": (["bird/robin/0.png", "bird/1.png"], "such as 'bird/1.png'"),
    "two tops": (["a/bird/robin/0.png", "b/bird/wren/1.png"], "no layout recognised"),
    "course without table": (
        ["top/train_images/0.png", "top/test_images/1.png"],
        "no layout recognised; there must be train_data.csv",
    ),
    "one subclass": (["bird/robin/0.png"], r"two subclasses or more, got \['robin'\]"),
    "subclass twice": (
        ["bird/crane/0.png", "machine/crane/1.png", "bird/wren/2.png"],
        "'crane' is of 'bird' and, with machine/crane/1.png, of 'machine'",
    ),
    "class named novel": (
        ["bird/robin/0.png", "novel/fish/1.png"],
        "must not be named 'novel'.* pass images of no known class with --novel",
    ),
}


@pytest.mark.parametrize(("names", "match"), BAD_TREES.values(), ids=BAD_TREES.keys())
def test_a_mistake_in_a_folder_tree_is_named(
    case: Case, tmp_path: Path, names: list[str], match: str
) -> None:
    (tmp_path / "tree").mkdir()
    for name in names:
        picture(tmp_path / "tree" / name)
    with pytest.raises(DataError, match=match):
        case.load(tmp_path / "tree")


def test_a_missing_source_is_named_with_the_nearest_keyword(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a folder or a .zip at '.*absent', found neither"):
        case.load(tmp_path / "absent")
    with pytest.raises(DataError, match="did you mean 'cifar100'"):
        case.load(novel="cifar10")
    with pytest.raises(DataError, match="absent', found neither"):  # before what may take a while
        case.load(tmp_path / "absent", novel="cifar10")


def test_a_file_that_is_no_zip_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(DataError, match=r"text.zip must be a folder or a .zip, and is no"):
        case.load(tmp_path / "text.zip")
    cut_zip = zipped(case.known)
    cut_zip.write_bytes(cut_zip.read_bytes()[:-40])
    with pytest.raises(DataError, match="is no readable zip"):
        case.load(cut_zip)


# --- Mistakes in the borrowed images


def test_an_empty_pool_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing here")
    with pytest.raises(DataError, match="there must be borrowed images, found none"):
        case.load(novel=tmp_path / "empty")


def test_a_pool_half_in_class_folders_is_refused(case: Case) -> None:
    picture(case.pool / "stray.png")
    with pytest.raises(
        DataError, match=r"all be in class folders or none, stray.png is beside car"
    ):
        case.load()


def test_a_broken_borrowed_image_is_named(case: Case) -> None:
    cut("car/1.png")(case.pool)
    with pytest.raises(DataError, match=r"pool: car/1.png is broken"):
        case.load()


# --- Hostile archives


@pytest.mark.parametrize(
    "name",
    ["../escaped.png", "a/../../escaped.png", "/tmp/escaped.png", "..\\escaped.png", "C:\\e"],
)
def test_a_zip_entry_outside_is_refused_and_nothing_is_written(
    case: Case, tmp_path: Path, name: str
) -> None:
    bad = zipped(case.known)
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(name, b"escaped")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        DataError, match=r"relative paths without '..' or NUL, got .*do not trust it"
    ):
        case.load(bad)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped.png").exists()


def test_reading_a_zip_extracts_nothing(case: Case, tmp_path: Path) -> None:
    known = zipped(case.known)
    before = set(tmp_path.rglob("*"))
    case.load(known)
    new = {path.name for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {name for name in new if not name.endswith(".lock")} == {"images.npy", "meta.json"}


def test_an_entry_that_declares_too_much_is_refused(case: Case) -> None:
    big = patch_central(zipped(case.known), 24, struct.pack("<I", 200_000_001))
    with pytest.raises(DataError, match=r"at most 200,000,000 bytes, .* declares 200,000,001"):
        case.load(big)


def test_an_entry_that_unpacks_to_more_than_it_declares_is_not_unpacked(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(64_000_000))
    patch_central(bomb, 24, struct.pack("<I", 1000))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb.zip: 0.png is broken"):
        load_images(str(bomb), SIZE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_an_encrypted_or_exotic_zip_is_refused(case: Case) -> None:
    locked = patch_central(zipped(case.known), 8, struct.pack("<H", 1))
    with pytest.raises(DataError, match="stored or deflated, without a password"):
        case.load(locked)
    with zipfile.ZipFile(locked, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("bird/robin/0.png", bytes(100))
    with pytest.raises(DataError, match="stored or deflated"):
        case.load(locked)


def test_a_damaged_zip_entry_is_named(case: Case) -> None:
    raw = bytearray(zipped(case.known).read_bytes())
    start = raw.index(b"train_images/5.png") + 60
    raw[start : start + 4] = b"\0\0\0\0"
    case.known.with_suffix(".zip").write_bytes(raw)
    with pytest.raises(DataError, match=r"train_images/5.png is broken"):
        case.load(case.known.with_suffix(".zip"))


@pytest.mark.parametrize("folder", [True, False])
def test_too_many_files_are_refused(
    case: Case, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    monkeypatch.setattr(sources, "MAX_ENTRIES", 5)
    with pytest.raises(DataError, match="at most 5 files are read, this has more"):
        case.load(case.known if folder else zipped(case.known))


@pytest.mark.parametrize("side", [7100, 20_000])  # Pillow itself refuses the second
@pytest.mark.parametrize("name", ["known/train_images/0.png", "pool/car/1.png"])
def test_an_image_over_the_pixel_limit_is_refused_undecoded(
    case: Case, tmp_path: Path, side: int, name: str
) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    file = Path(name).name
    with pytest.raises(DataError, match=f"{file} is broken .*at most 50,000,000 pixels are read"):
        case.load()


# --- The cache


def test_a_cached_load_decodes_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    first = case.load()

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", fail)
    second = case.load()
    assert same(first, second)
    assert first.fingerprint == second.fingerprint
    assert case.decodings() == 1


def test_images_are_mapped_and_writing_to_them_changes_no_file(case: Case) -> None:
    data = case.load()
    entry = case.cache / "data" / data.fingerprint
    if (maps := Path("/proc/self/maps")).exists():
        assert str(entry / "images.npy") in maps.read_text()
    before = data.images.clone()
    data.images[:] = 0
    assert torch.equal(case.load().images, before)


def test_a_cache_entry_is_two_files_made_under_another_name(case: Case) -> None:
    digest = case.load().fingerprint
    assert {path.name for path in (case.cache / "data").iterdir()} == {digest, f"{digest}.lock"}
    assert {path.name for path in (case.cache / "data" / digest).iterdir()} == {
        "images.npy",
        "meta.json",
    }


def test_what_a_killed_process_left_is_replaced(case: Case) -> None:
    first = case.load()
    digest, expected = first.fingerprint, first.images.clone()
    entry = case.cache / "data" / digest
    entry.rename(entry.with_name(digest + ".tmp"))
    (entry.with_name(digest + ".tmp") / "images.npy").write_bytes(b"half")
    assert torch.equal(case.load().images, expected)
    assert not entry.with_name(digest + ".tmp").exists()


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda c: picture(c.known / "train_images" / "0.png", 77),
        lambda c: edit(c.known / "train_data.csv", "0.png,0,0", "0.png,0,2"),
        lambda c: edit(c.known / "subclass_mapping.csv", "wren", "crow"),
        lambda c: picture(c.pool / "car" / "1.png", 77),
        lambda c: picture(c.pool / "car" / "9.png", 77),
        lambda c: (c.pool / "car").rename(c.pool / "bus"),
    ],
    ids=["image", "label", "name", "borrowed image", "borrowed image more", "borrowed class"],
)
def test_a_change_is_a_new_fingerprint(
    case: Case, change: Callable[[Case], Any], as_zip: bool
) -> None:
    def load() -> Data:
        return case.load(*(map(zipped, (case.known, case.pool)) if as_zip else ()))

    first = load()
    assert load().fingerprint == first.fingerprint
    change(case)
    second = load()
    assert second.fingerprint != first.fingerprint
    assert not same(first, second)
    assert case.decodings() == 2


def test_what_is_not_read_does_not_change_the_fingerprint(case: Case) -> None:
    first = case.load()
    picture(case.known / "test_images" / "3.png")
    (case.known / "train_images" / "Thumbs.db").write_bytes(b"thumbs")
    (case.pool / "car" / "Thumbs.db").write_bytes(b"thumbs")
    (case.pool / "README.md").write_text("about the pool")
    assert case.load().fingerprint == first.fingerprint


def renamed(folder: Path) -> Path:
    """The same images under other names, which come in the same order."""
    for file in folder.rglob("*.png"):
        file.rename(file.with_name(f"photo {file.name}"))
    return folder


def moved(folder: Path, target: Path) -> Path:
    """The same folder elsewhere, every file written anew, in another order."""
    for file in sorted(folder.rglob("*"), reverse=True):
        if file.is_file():
            copy = target / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
            os.utime(copy, (10**9, 10**9))
    return target


def test_the_same_content_has_the_same_fingerprint_wherever_it_is(
    case: Case, tmp_path: Path
) -> None:
    known = tree(tmp_path / "tree")
    fingerprint = case.load(known).fingerprint
    for file in [*known.rglob("*.png"), *case.pool.rglob("*.png")]:
        file.touch()
    assert case.load(known).fingerprint == fingerprint
    assert case.load(zipped(known, "any/"), zipped(case.pool)).fingerprint == fingerprint
    assert case.load(moved(known, tmp_path / "moved" / "to")).fingerprint == fingerprint
    assert case.load(renamed(known), renamed(case.pool)).fingerprint == fingerprint
    assert case.decodings() == 1
    for old, new in (("robin", "crow"), ("bird", "fowl")):
        shutil.copytree(known, tmp_path / new)
        next((tmp_path / new).rglob(old)).rename(next((tmp_path / new).rglob(old)).parent / new)
        assert case.load(tmp_path / new).fingerprint != fingerprint


@pytest.mark.parametrize("as_zip", [False, True])
def test_another_content_of_the_same_size_and_time_is_other_data(
    case: Case, monkeypatch: pytest.MonkeyPatch, as_zip: bool
) -> None:
    """Two archives unpacked with one date, or `touch -r`: only the kernel's ctime tells."""
    monkeypatch.setattr(sources, "SETTLED_NS", 0)
    files = [case.known / "train_images" / f"{i}.bmp" for i in range(6)]
    for i, file in enumerate(files):
        picture(file, i)
        edit(case.known / "train_data.csv", f"{i}.png", f"{i}.bmp")

    def load() -> Data:
        for file in files:
            os.utime(file, (10**9, 10**9))
        archive = zipped(case.known) if as_zip else None
        if archive is not None:
            os.utime(archive, (10**9, 10**9))
        return case.load(archive)

    first, size = load(), files[0].stat().st_size
    for i, file in enumerate(files):
        picture(file, 70 + i)
    assert files[0].stat().st_size == size
    second = load()
    assert second.fingerprint != first.fingerprint
    with Image.open(files[0]) as image:
        assert np.array_equal(second.images[0].numpy(), np.asarray(image))


@pytest.mark.parametrize("as_zip", [False, True])
def test_files_are_read_again_only_where_they_may_have_changed(
    case: Case, monkeypatch: pytest.MonkeyPatch, as_zip: bool
) -> None:
    known, novel = (zipped(p) if as_zip else p for p in (case.known, case.pool))
    read: list[str] = []
    digest = sources._digest

    def noted(source: Any, name: str) -> Any:
        read.append(name)
        return digest(source, name)

    monkeypatch.setattr(sources, "_digest", noted)

    def reads() -> int:
        read.clear()
        case.load(known, novel)
        return len(read)

    monkeypatch.setattr(sources, "SETTLED_NS", 10**18)
    assert [reads(), reads()] == [10, 10]  # too new: another change could have the same times
    monkeypatch.setattr(sources, "SETTLED_NS", 0)
    assert [reads(), reads()] == [10, 0]
    if not as_zip:
        picture(case.pool / "car" / "1.png", 77)
        assert [reads(), reads()] == [1, 0]
    for file in (case.cache / "digests").iterdir():
        truncate(file)
    assert [reads(), reads()] == [10, 0]


def test_a_fingerprint_of_version_0_1_is_taken_for_the_same_with_a_line(case: Case) -> None:
    now = case.load().fingerprint
    assert same_data(now, now, case.notes.append)
    assert not same_data(now[:-1] + "x", now, case.notes.append)
    assert not same_data("", now, case.notes.append)
    assert not any("0.1" in note for note in case.notes)
    assert same_data("d6d477b48e0a" + "0" * 52, now, case.notes.append)
    assert "of version 0.1, which did not record what the images hold" in case.notes[-1]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: truncate(entry / "images.npy"),
        lambda entry: (entry / "images.npy").write_bytes(b""),
        lambda entry: (entry / "images.npy").unlink(),
        lambda entry: truncate(entry / "meta.json"),
        lambda entry: (entry / "meta.json").write_text("{}"),
        lambda entry: edit(entry / "meta.json", '"subclass": [0, ', '"subclass": ['),
    ],
    ids=["images cut", "images empty", "images gone", "meta cut", "meta empty", "label gone"],
)
def test_a_damaged_cache_entry_is_made_again_with_a_note(
    case: Case, damage: Callable[[Path], Any]
) -> None:
    first = case.load()
    expected = first.images.clone()
    damage(case.cache / "data" / first.fingerprint)
    assert torch.equal(case.load().images, expected)
    assert case.decodings() == 2
    assert sum("are damaged: made again" in note for note in case.notes) == 1


def test_a_cache_that_cannot_be_written_is_named(case: Case) -> None:
    case.cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written .* set XDG_CACHE_HOME"):
        case.load()


LOADER = """
import sys, time
from pathlib import Path
import trainable.data.dataset as data
import trainable.data.made_once as made_once

mine, other = (Path(sys.argv[4], f"at_lock_{n}") for n in sys.argv[5:7])
deadline = time.monotonic() + 240

class Lock(made_once.FileLock):
    def acquire(self, *args, **kwargs):
        mine.touch()
        return super().acquire(*args, **kwargs)

def decode_blocks(*args):  # so slow that the other process has found no entry and waits
    while not other.exists():
        assert time.monotonic() < deadline, "the other process never came to the lock"
        time.sleep(0.01)
    return original(*args)

original, data.decode_blocks, made_once.FileLock = data.decode_blocks, decode_blocks, Lock
loaded = data.load_data(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
print(loaded.fingerprint, int(loaded.images.sum()))
"""


def test_two_processes_at_once_decode_once(case: Case, tmp_path: Path) -> None:
    arguments = [str(path) for path in (case.known, case.pool, case.cache, tmp_path)]
    with (
        Command(ROOT, "-c", LOADER, *arguments, "a", "b") as one,
        Command(ROOT, "-c", LOADER, *arguments, "b", "a") as other,
    ):
        ended = [one.ended(), other.ended()]
    assert [done.code for done in ended] == [0, 0], ended
    outputs = [done.out.splitlines() for done in ended]
    assert sorted(len(lines) for lines in outputs) == [1, 2]  # one of them said "decoding"
    expected = case.load()
    assert {lines[-1] for lines in outputs} == {
        f"{expected.fingerprint} {int(expected.images.sum())}"
    }
    assert case.decodings() == 0


# --- Sources that are made or fetched


def test_synthetic_data_are_written_once_and_alike_everywhere(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write, written = synthetic.write, []

    def write_few(folder: Path, *, seed: int) -> None:
        written.append(seed)
        write(folder, seed=seed, images_per_subclass=2, novel_per_class=2, test_per_class=1)

    monkeypatch.setattr(synthetic, "write", write_few)
    data = case.load("synthetic", "synthetic")
    assert len(data.superclasses) == 3
    assert int((data.borrowed_class >= 0).sum()) == 2 * len(data.borrowed_classes)
    assert (data.source, data.novel_source) == ("synthetic", "synthetic")
    assert same(case.load("synthetic", "synthetic"), data)
    assert written == [0]
    case.cache = tmp_path / "another"
    assert case.load("synthetic", "synthetic").fingerprint == data.fingerprint


def fake_cifar100(cache: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write a tiny CIFAR-100 into `cache`, as torchvision unpacks it; return its pixels."""
    names = ["apple", "crocodile", "dinosaur", "fox", "lizard", "snake", "turtle", "wolf"]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    entry = {
        "data": pixels.transpose(0, 3, 1, 2).reshape(16, -1),
        "fine_labels": [i % 8 for i in range(16)],
    }
    folder = cache / "cifar-100-python"
    folder.mkdir(parents=True)
    digests = {}
    for name, content in (("train", entry), ("test", entry), ("meta", {"fine_label_names": names})):
        (folder / name).write_bytes(pickle.dumps(content))
        digests[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", digests["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", digests["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": digests["meta"]})
    return pixels


def test_cifar100_lends_all_but_reptiles_and_the_wolf(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        picture(case.known / "train_images" / f"{i}.png", 50 + i, (32, 32))
    pixels = fake_cifar100(case.cache, monkeypatch)
    data = case.load(novel="cifar100")
    assert data.borrowed_classes == ("apple", "fox")
    assert data.borrowed_class[6:].tolist() == [0, 0, 1, 1]
    assert np.array_equal(data.images[6:].numpy(), pixels[[0, 8, 3, 11]])
    note = "crocodile, dinosaur, lizard, snake, turtle, wolf"
    assert any(note in line for line in case.notes)
    shutil.rmtree(case.cache / "cifar-100-python")  # what is cached needs no download
    assert same(case.load(novel="cifar100"), data)


def test_cifar100_lends_no_class_that_is_known(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(case.known / "subclass_mapping.csv", "wren", "Fox")
    pixels = fake_cifar100(case.cache, monkeypatch)
    for i in range(6):
        picture(case.known / "train_images" / f"{i}.png", 50 + i, (32, 32))
    data = case.load(novel="cifar100")
    assert data.borrowed_classes == ("apple",)
    assert data.borrowed_class[6:].tolist() == [0, 0]
    assert np.array_equal(data.images[6:].numpy(), pixels[[0, 8]])
    assert any("left out, as they have the name of a known class: fox" in n for n in case.notes)


def test_a_failed_download_says_to_pass_a_path(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{port}/cifar-100-python.tar.gz")
    with pytest.raises(DataError, match=r"cannot be downloaded .*: pass --novel PATH"):
        case.load(novel="cifar100")


# --- Images to predict


def test_test_images_come_in_numeric_order(case: Case) -> None:
    for source in (case.known, zipped(case.known), zipped(case.known, "top/")):
        names, images = load_images(str(source), 4)
        assert names == ["1.png", "2.png", "10.png"]
        assert images.shape == (3, 4, 4, 3)
        assert images.dtype == torch.uint8
    names, images = load_images(str(case.known), SIZE)
    for name, image in zip(names, images, strict=True):
        with Image.open(case.known / "test_images" / name) as expected:
            assert np.array_equal(image.numpy(), np.asarray(expected))


def test_images_of_any_folder_are_named_from_where_they_part(tmp_path: Path) -> None:
    flat = ("img10.png", "img9.JPG", "img9b.png")
    for name in flat:
        picture(tmp_path / "flat" / "only" / name)
    assert load_images(str(tmp_path / "flat"), 4)[0] == ["img9.JPG", "img9b.png", "img10.png"]
    for name in ("b/2.png", "b/10.png", "a/3.png"):
        picture(tmp_path / "deep" / name)
    (tmp_path / "deep" / "notes.txt").write_text("no image")
    for source in (tmp_path / "deep", zipped(tmp_path / "deep", "top/")):
        names = load_images(str(source), 4)[0]
        assert [n for n in names if "robin" not in n] == ["a/3.png", "b/2.png", "b/10.png"]


def test_more_images_than_a_block_keep_their_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "BLOCK_IMAGES", 4)
    for i in range(10):
        Image.new("L", (2, 2), i).save(picture(tmp_path / f"{i}.png"))
    assert load_images(str(tmp_path), 1)[1][:, 0, 0, 0].tolist() == list(range(10))


def test_images_to_predict_that_are_missing_or_broken_are_named(case: Case) -> None:
    (case.known / "test_images" / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"known: 2.png is broken"):
        load_images(str(case.known), SIZE)
    shutil.rmtree(case.known / "test_images")
    with pytest.raises(DataError, match="images to predict, its test_images/ holds none"):
        load_images(str(case.known), SIZE)


def test_an_empty_folder_has_nothing_to_predict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images to predict, it holds none"):
        load_images(str(tmp_path), SIZE)


# --- The real images


real_data = pytest.mark.skipif(not REAL.is_dir(), reason="no real images beside the project")


@real_data
@pytest.mark.real_data
def test_the_real_images_load(tmp_path: Path) -> None:
    known, novel = str(REAL / "bird-dog-reptile.zip"), str(REAL / "novel-images.zip")
    data = load_data(known, novel, tmp_path)
    assert data.images.shape == (6288 + 5040, 64, 64, 3)
    assert data.superclasses == ("bird", "dog", "reptile")
    assert len(data.subclasses) == len(data.super_of_sub) == 87
    assert data.borrowed_class[6288:].bincount().tolist() == [720] * 7
    assert data.borrowed_classes[:3] == ("airplane", "automobile", "cat")
    assert torch.equal(
        torch.tensor(data.super_of_sub)[data.subclass[:6288]], data.superclass[:6288]
    )


@real_data
@pytest.mark.real_data
def test_the_real_test_images_come_in_order() -> None:
    names, images = load_images(str(REAL / "bird-dog-reptile.zip"), 8)
    assert names == [f"{i}.jpg" for i in range(11_180)]
    assert images.shape == (11_180, 8, 8, 3)
