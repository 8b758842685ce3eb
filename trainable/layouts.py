"""How a source names classes and images: the course's tables, or folders, read and checked."""

import csv
import io
import posixpath
from collections import Counter
from dataclasses import dataclass

from trainable.errors import DataError
from trainable.sources import Source

NOVEL = "novel"
TRAIN_CSV, TRAIN_IMAGES, TEST_IMAGES = "train_data.csv", "train_images/", "test_images/"
SUPER_CSV, SUB_CSV = "superclass_mapping.csv", "subclass_mapping.csv"


@dataclass(frozen=True, kw_only=True)
class Known:
    """The known images before decoding: N_known entry names and labels, and the class names."""

    images: list[str]
    superclass: list[int]
    subclass: list[int]
    superclasses: list[str]
    subclasses: list[str]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The borrowed images before decoding: N_borrowed entry names, and their classes if any."""

    images: list[str]
    borrowed_class: list[int]
    """-1 in a pool without classes."""
    borrowed_classes: list[str]


def read_known(source: Source) -> tuple[Known, list[int]]:
    """Return the known images of `source`, and the superclass of each subclass.

    Raises:
        DataError: No layout that is known, or one that is inconsistent.
    """
    root = course_root(source)
    known = _read_tree(source) if root is None else _read_course(source, root)
    return known, _super_of_sub(known, source.name)


def course_root(source: Source) -> str | None:
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


def _read_course(source: Source, root: str) -> Known:
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
    return Known(
        images=list(images),
        superclass=labels[0],
        subclass=labels[1],
        superclasses=names[0],
        subclasses=names[1],
    )


def _read_tree(source: Source) -> Known:
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
    return Known(
        images=images,
        superclass=[super_index[p[-3]] for p in parts],
        subclass=[sub_index[p[-2]] for p in parts],
        superclasses=superclasses,
        subclasses=subclasses,
    )


def _super_of_sub(known: Known, where: str) -> list[int]:
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


def read_pool(source: Source) -> Pool:
    """Return the borrowed images of `source`, with the class of each where they are in folders.

    Raises:
        DataError: There are none, or some are in class folders and some are not.
    """
    images = source.images()
    if not images:
        raise DataError(f"{source.name}: there must be borrowed images, found none; see --novel")
    common = common_folder(images)
    folders = [posixpath.dirname(image.removeprefix(common)) for image in images]
    classes = sorted(set(folders))
    if classes == [""]:
        return Pool(images=images, borrowed_class=[-1] * len(images), borrowed_classes=[])
    if "" in classes:
        raise DataError(
            f"{source.name}: borrowed images must all be in class folders or none, "
            f"{images[folders.index('')]} is beside {classes[1]}/"
        )
    index = {name: i for i, name in enumerate(classes)}
    borrowed_class = [index[folder] for folder in folders]
    return Pool(images=images, borrowed_class=borrowed_class, borrowed_classes=classes)


def common_folder(names: list[str]) -> str:
    """Return the deepest folder that holds all names: "" or ending in "/"."""
    common = posixpath.commonpath([posixpath.dirname(name) for name in names])
    return common + "/" if common else ""
