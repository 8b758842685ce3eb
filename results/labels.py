"""What labelled images show: a CSV as results.predict writes it, with names or indices, checked."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from results.terminal import counted
from trainable.data.layouts import NOVEL_CLASS
from trainable.errors import DataError, nearest

COLUMNS = ("image", "superclass_index", "subclass_index")
TRUE_CLASS = "true_class"
"""Optional column: what a novel image really shows, whatever its name. Images of one class err
alike, and without it nobody knows which do."""
UNLABELLED = -1
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What N images show."""

    images: tuple[str, ...]
    superclass: torch.Tensor
    """int64 (N,); novel is the number of superclasses."""
    subclass: torch.Tensor
    """int64 (N,); novel is the number of subclasses, `UNLABELLED` where the row leaves it empty."""
    true_class: torch.Tensor
    """int64 (N,): images of one number show one class; -1 where nobody knows."""

    def of(self, images: Sequence[str]) -> "Labels":
        """Return the labels of `images`, each of which must have some, in their order."""
        place = {name: n for n, name in enumerate(self.images)}
        rows = torch.tensor([place[name] for name in images], dtype=torch.int64)
        return Labels(
            images=tuple(images),
            superclass=self.superclass[rows],
            subclass=self.subclass[rows],
            true_class=self.true_class[rows],
        )


def read_labels(
    file: Path,
    superclasses: Sequence[str],
    subclasses: Sequence[str],
    super_of_sub: dict[int, int],
    note: Callable[[str], None] = print,
) -> Labels:
    """Return the labels in a CSV of image, superclass_index and subclass_index.

    A column holds indices or names; the index behind the last, or the word novel, is novel. The
    subclass may be empty.

    Args:
        file: UTF-8. Other columns are left alone, but for `true_class`.
        superclasses: Names of the known ones.
        subclasses: Names of the known ones.
        super_of_sub: Superclass of each subclass where it is known.
        note: Gets a line about what the user should know.

    Raises:
        DataError: A file, a name or an index that cannot be meant; an image twice; a subclass of
            another superclass.
    """
    table = _read(file)
    images = table["image"].tolist()
    if twice := table["image"][table["image"].duplicated()].unique().tolist():
        raise DataError(f"{file}: an image must have one row, but {_some(twice)} have more")
    superclass = _parsed(file, table, "superclass_index", superclasses, note)
    if empty := [name for name, value in zip(images, superclass, strict=True) if value < 0]:
        raise DataError(f"{file}: superclass_index must not be empty, but is for {_some(empty)}")
    subclass = _parsed(file, table, "subclass_index", subclasses, note)
    _check_hierarchy(file, images, superclass, subclass, superclasses, subclasses, super_of_sub)
    return Labels(
        images=tuple(images),
        superclass=torch.tensor(superclass),
        subclass=torch.tensor(subclass),
        true_class=torch.tensor(_true_classes(table, subclass, len(subclasses))),
    )


def _read(file: Path) -> pd.DataFrame:
    """Return the rows as stripped text."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"--labels {file}: no readable CSV ({reason})") from error
    table = table.rename(columns=str.strip)
    if missing := [name for name in COLUMNS if name not in table]:
        raise DataError(
            f"{file}: the first line must name the columns {','.join(COLUMNS)}, but it lacks "
            f"{', '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )
    if not len(table):
        raise DataError(f"{file}: there must be a row for each labelled image, it has none")
    return pd.DataFrame({name: table[name].str.strip() for name in table})


def _parsed(
    file: Path,
    table: pd.DataFrame,
    column: str,
    names: Sequence[str],
    note: Callable[[str], None],
) -> list[int]:
    """Return a column's classes; `UNLABELLED` where it is empty."""
    values = table[column].tolist()
    # pandas writes whole numbers as 3.0 where another row of the column is empty.
    given = [
        re.sub(r"(?<=\d)\.0+$", "", value) for value in values if value not in ("", NOVEL_CLASS)
    ]
    if all(re.fullmatch(r"-?\d+", value) for value in given):
        if given and any(re.fullmatch(r"\d+", name) for name in names):
            note(f"{file}: {column} is read as indices, though there are classes of such names")
        index = {str(n): n for n in range(len(names) + 1)}
        rule = f"an index of 0 to {len(names)}, of which {len(names)} is novel"
    else:
        index = {name: n for n, name in enumerate(names)}
        rule = "a class of the model, or novel"
    index |= {NOVEL_CLASS: len(names), "": UNLABELLED}
    found = []
    for image, value in zip(table["image"], values, strict=True):
        number = index.get(value, index.get(re.sub(r"(?<=\d)\.0+$", "", value)))
        if number is None:
            wrong = [each for each in dict.fromkeys(values) if each not in index]
            more = f" ({len(wrong)} such values)" if len(wrong) > 1 else ""
            raise DataError(
                f"{file}: {column} must be {rule}, but {image} has {value!r}{more}"
                f"{nearest(value, names)}"
            )
        found.append(number)
    return found


def _check_hierarchy(
    file: Path,
    images: Iterable[str],
    superclass: Iterable[int],
    subclass: Iterable[int],
    superclasses: Sequence[str],
    subclasses: Sequence[str],
    super_of_sub: dict[int, int],
) -> None:
    """Refuse a known subclass under another superclass than the model's, or under novel."""
    wrong = []
    for image, above, below in zip(images, superclass, subclass, strict=True):
        if 0 <= below < len(subclasses) and super_of_sub.get(below, above) != above:
            wrong.append(
                f"{image} is {(*superclasses, NOVEL_CLASS)[above]} and {subclasses[below]}, which "
                f"is a {superclasses[super_of_sub[below]]}"
            )
        elif 0 <= below < len(subclasses) and above == len(superclasses):
            wrong.append(f"{image} is of a novel superclass and of {subclasses[below]}")
    if wrong:
        raise DataError(f"{file}: a subclass must be of its superclass, but {_some(wrong, '; ')}")


def _true_classes(table: pd.DataFrame, subclass: Sequence[int], num_known: int) -> list[int]:
    """Return a number for each class that the images show: a known subclass's own, and others
    behind them for the names of `true_class`; -1 where neither says.
    """
    named = table[TRUE_CLASS].tolist() if TRUE_CLASS in table else [""] * len(table)
    numbers: dict[str, int] = {}
    found = []
    for known, name in zip(subclass, named, strict=True):
        if 0 <= known < num_known:
            found.append(known)
        elif name:
            found.append(numbers.setdefault(name, num_known + len(numbers)))
        else:
            found.append(-1)
    return found


def matched(labels: Labels, images: Sequence[str], note: Callable[[str], None]) -> list[str]:
    """Return those of `images` that have a label; `note` tells how many have none, and how many
    rows are of images that are not there.

    Raises:
        DataError: No image has a label.
    """
    known = set(labels.images)
    judged = [name for name in images if name in known]
    there = set(images)
    gone = [name for name in labels.images if name not in there]
    bare = [name for name in images if name not in known]
    if not judged:
        raise DataError(
            f"--labels: no row is of an image that is there: rows name {_some(labels.images)}, "
            f"images are called {_some(images)}"
        )
    if gone:
        note(f"{counted(len(gone), 'row')} of images that are not there: {_some(gone)}")
    if bare:
        note(f"{counted(len(bare), 'image')} without a row, not judged: {_some(bare)}")
    return judged


def _some(names: Iterable[str], between: str = ", ") -> str:
    """Return the first few, and how many there are more."""
    names = list(names)
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return between.join(names[:_SHOWN]) + more
