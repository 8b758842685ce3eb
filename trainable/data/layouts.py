"""How a source names classes and images: the course's tables, or folders, read and checked."""

import csv
import io
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trainable.data.pixels import find_images
from trainable.data.sources import Source, by_suffix, natural_key
from trainable.errors import DataError

NOVEL_CLASS = "novel"
"""Name of the answer that is no known class: the last of a mapping, and of no folder."""
TRAIN_CSV, TRAIN_IMAGES, TEST_IMAGES = "train_data.csv", "train_images/", "test_images/"
SUPER_CSV, SUB_CSV = "superclass_mapping.csv", "subclass_mapping.csv"

_LOOK_ALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u03bf\u2018\u2019\u02bc",
    "aeopcyxisjo" + 3 * "'",
)
"""Cyrillic and Greek small letters that print as Latin ones, and the forms of an apostrophe."""
_CAPITALS_ALIKE = str.maketrans(
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0405\u0406\u0408"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "ABEKMHOPCTYXSIJ" + "ABEZHIKMNOPTYX",
)
"""Cyrillic and Greek capital letters that print as Latin ones; as small letters most do not."""
_UNSEEN = "\u034f\u115f\u1160\u3164"
"""Characters without width that Unicode counts among letters and marks."""


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


def read_known(source: Source, note: Callable[[str], None]) -> tuple[Known, list[int]]:
    """Return the known images of `source`, and the superclass of each subclass.

    `note` gets a line about what is left out, or is not what it seems.

    Raises:
        DataError: No layout that is known, or one that is inconsistent.
    """
    root = course_root(source)
    if root is None:
        known = _read_tree(source, note)
    else:
        known = _read_course(source, root)
        _note_without_row(source, root, known, note)
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
        text = unicodedata.normalize("NFC", source.read(name).decode("utf-8-sig"))
        # Spreadsheets write semicolons where the comma is for decimals.
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=delimiter)
        reader.fieldnames = reader.fieldnames and [each.strip() for each in reader.fieldnames]
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
    return names[:-1] if names and NOVEL_CLASS in looks_of(names[-1]) else names


def _read_course(source: Source, root: str) -> Known:
    names = [_read_mapping(source, root + mapping) for mapping in (SUPER_CSV, SUB_CSV)]
    indices = [{str(i): i for i in range(len(known))} for known in names]
    columns = ("superclass_index", "subclass_index")
    images: dict[str, str] = {}
    labels: tuple[list[int], list[int]] = ([], [])
    for where, row in _read_rows(source, root + TRAIN_CSV, ("image", *columns)):
        image = root + TRAIN_IMAGES + row[0]
        if image in images:
            raise DataError(
                f"{where}: an image must have one row, {row[0]!r} has two, the other in "
                f"line {images[image].rpartition(' ')[2]}"
            )
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


def _note_without_row(source: Source, root: str, known: Known, note: Callable[[str], None]) -> None:
    """Say how many files of `train_images/` no row of `train_data.csv` names."""
    rows = set(known.images)
    others = [n for n in source.stamps if n.startswith(root + TRAIN_IMAGES) and n not in rows]
    if others:
        first = min(others, key=natural_key)
        note(
            f"{source.name}: left out, as without a row in {TRAIN_CSV}: {by_suffix(others)} "
            f"(such as {first})"
        )


def _read_tree(source: Source, note: Callable[[str], None]) -> Known:
    images = find_images(source, note)
    parts = [image.split("/") for image in images]
    tops = Counter("/".join(p[:-3]) for p in parts if len(p) >= 3)
    usual = max(tops, key=lambda top: tops[top], default=None)
    odd = [
        image
        for image, p in zip(images, parts, strict=True)
        if len(p) < 3 or "/".join(p[:-3]) != usual or _is_of_course(p)
    ]
    if odd or not images:
        raise DataError(
            f"{source.name}: no layout recognised; there must be {TRAIN_CSV}, {SUPER_CSV}, "
            f"{SUB_CSV} and {TRAIN_IMAGES}, or every image as superclass/subclass/NAME.jpg, in one "
            f"folder; found {_found(images, odd, by_suffix(source.stamps))}"
        )
    _check_folders(source, images, usual or "")
    superclasses = _in_natural_order({p[-3] for p in parts}, "superclasses", source.name, note)
    subclasses = _in_natural_order({p[-2] for p in parts}, "subclasses", source.name, note)
    super_index = {name: i for i, name in enumerate(superclasses)}
    sub_index = {name: i for i, name in enumerate(subclasses)}
    return Known(
        images=images,
        superclass=[super_index[p[-3]] for p in parts],
        subclass=[sub_index[p[-2]] for p in parts],
        superclasses=superclasses,
        subclasses=subclasses,
    )


def _is_of_course(parts: list[str]) -> bool:
    return len(parts) > 1 and parts[-2] + "/" in (TRAIN_IMAGES, TEST_IMAGES)


def _found(images: list[str], odd: list[str], files: str) -> str:
    """Return what was found in place of a layout: an image that does not fit, and one that does."""
    if not images:
        return f"0 images{files and f' among {files}'}"
    misfits = set(odd)
    regular = next((image for image in images if image not in misfits), None)
    unlike = f", unlike {regular!r}" if regular else ""
    return f"{len(images):,} images, such as {odd[0]!r}{unlike} ({len(odd):,} so)"


def _check_folders(source: Source, images: list[str], top: str) -> None:
    """Check that every class folder of a tree holds an image."""
    inside = [f for f in source.folders if not top or f.startswith(top + "/")]
    depth = top.count("/") + 1 if top else 0
    parents = {posixpath.dirname(folder) for folder in inside}
    _check_not_empty(
        source,
        images,
        (f for f in inside if f.count("/") == depth + 1
         or (f.count("/") == depth and f not in parents)),
    )  # fmt: skip


def _check_not_empty(source: Source, images: list[str], classes: Iterable[str]) -> None:
    filled = {posixpath.dirname(image) for image in images}
    empty = sorted((folder for folder in classes if folder not in filled), key=natural_key)
    if not empty:
        return
    inside = by_suffix(name for name in source.stamps if name.startswith(empty[0] + "/"))
    listed = listed_of(f"{folder}/" for folder in empty)
    raise DataError(
        f"{source.name}: every class folder must hold an image, {len(empty):,} hold none: {listed} "
        f"(in the first: {inside or 'nothing'}); add images of "
        "JPEG, PNG, BMP, GIF, WEBP, TIFF or AVIF, or remove the folder"
    )


def _in_natural_order(
    names: set[str], kind: str, where: str, note: Callable[[str], None]
) -> list[str]:
    """Return class names as they are numbered: 2 before 10."""
    ordered = sorted(names, key=natural_key)
    if ordered != sorted(names):
        note(f"{where}: {kind} are numbered in natural order, {', '.join(ordered[:3])}, ... "
             "(version 0.1 took the order of the text)")  # fmt: skip
    return ordered


def looks_of(name: str) -> set[str]:
    """Return how a name prints, of which names that print alike have one in common.

    Case, forms, dashes and spaces do not count.
    """
    text = "".join(
        "-" if unicodedata.category(c) == "Pd" else c
        for c in unicodedata.normalize("NFKC", name)
        if unicodedata.category(c) not in ("Cf", "Cc")
        and c not in _UNSEEN
        and not "\ufe00" <= c <= "\ufe0f"
    )
    forms = (text, text.translate(_CAPITALS_ALIKE))
    return {" ".join(form.casefold().translate(_LOOK_ALIKES).split()) for form in forms}


def _check_names(kind: str, names: Iterable[str], where: str) -> None:
    """Check that no two classes have names that print alike, and none is called novel."""
    seen: dict[str, str] = {}
    for name in names:
        looks = looks_of(name)
        if NOVEL_CLASS in looks:
            raise DataError(
                f"{where}: a known class must not be named {name!r}, only the last index of a "
                "mapping may; pass images of no known class with --novel"
            )
        others = {seen.setdefault(look, name) for look in looks} - {name}
        if others:
            other = min(others)
            raise DataError(
                f"{where}: names of {kind} must differ by more than case, spaces and letters "
                f"that look alike, got {other!a} and {name!a}; rename one, or make them "
                "one class"
            )


def _super_of_sub(known: Known, where: str) -> list[int]:
    """Return the superclass of each subclass, after checking what both layouts must hold."""
    _check_names("superclasses", known.superclasses, where)
    _check_names("subclasses", known.subclasses, where)
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


def read_pool(source: Source, note: Callable[[str], None]) -> Pool:
    """Return the borrowed images of `source`, with the class of each where they are in folders.

    Raises:
        DataError: There are none, or some are in class folders and some are not, or a folder has
            none, or two classes print alike.
    """
    images = find_images(source, note)
    if not images:
        files = by_suffix(source.stamps)
        raise DataError(
            f"{source.name}: there must be borrowed images, found none"
            f"{files and f' among {files}'}; see --novel"
        )
    parents = {posixpath.dirname(folder) for folder in source.folders}
    _check_not_empty(source, images, source.folders - parents)
    common = common_folder(images)
    folders = [posixpath.dirname(image.removeprefix(common)) for image in images]
    classes = sorted(set(folders), key=natural_key)
    if classes == [""]:
        return Pool(images=images, borrowed_class=[-1] * len(images), borrowed_classes=[])
    if "" in classes:
        raise DataError(
            f"{source.name}: borrowed images must all be in class folders or none, "
            f"{images[folders.index('')]} is beside {classes[1]}/"
        )
    _check_names("borrowed classes", classes, source.name)
    index = {name: i for i, name in enumerate(classes)}
    return Pool(
        images=images,
        borrowed_class=[index[folder] for folder in folders],
        borrowed_classes=classes,
    )


def common_folder(names: list[str]) -> str:
    """Return the deepest folder that holds all names: "" or ending in "/"."""
    common = posixpath.commonpath([posixpath.dirname(name) for name in names])
    return common + "/" if common else ""


def listed_of(names: Iterable[str], most: int = 20) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
