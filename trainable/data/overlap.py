"""What known and borrowed images must not share: the names of classes, and pixels."""

from collections.abc import Callable

from trainable.data.layouts import Known, Pool, common_folder, listed_of, looks_of
from trainable.errors import DataError


def without_known_classes(
    pool: Pool, known: Known, where: str, *, may_leave_out: bool, note: Callable[[str], None]
) -> Pool:
    """Return the pool without classes that have the name of a known one, if they may be left out.

    Raises:
        DataError: There are some, and they may not; or nothing would remain.
    """
    known_names = (*known.superclasses, *known.subclasses)
    looks = set[str]().union(*map(looks_of, known_names))
    common = common_folder(pool.images)  # no part of the classes' names, which tells them apart
    if any(looks & looks_of(part) for part in common.split("/")):
        raise DataError(
            f"{where}: a borrowed class must not be a known one, and all images are in {common}, "
            "which has the name of one; take another pool, or rename the folder if it shows "
            "something else"
        )
    clashing = [
        name
        for name in pool.borrowed_classes
        if any(looks & looks_of(part) for part in (name, *name.split("/")))
    ]
    if not clashing:
        return pool
    kept = [name for name in pool.borrowed_classes if name not in clashing]
    if not may_leave_out or not kept:
        raise DataError(
            f"{where}: a borrowed class must not be a known one, and {len(clashing):,} have the "
            f"name of one: {listed_of(clashing)}; take them out of the pool, or rename them "
            "if they show something else"
        )
    note(f"{where}: left out, as they have the name of a known class: {', '.join(clashing)}")
    index = {name: i for i, name in enumerate(kept)}
    names = [pool.borrowed_classes[each] for each in pool.borrowed_class]
    rows = [(image, index[c]) for image, c in zip(pool.images, names, strict=True) if c in index]
    return Pool(
        images=[image for image, _ in rows],
        borrowed_class=[each for _, each in rows],
        borrowed_classes=kept,
    )


def sort_out_copies(
    known: Known, pool: Pool, pixel_digests: list[bytes], pool_name: str
) -> tuple[list[list[int]], list[int], list[str]]:
    """Return the groups of rows that hold the same pixels, each within one class.

    Also returns the class of each borrowed image, where copies in several borrowed classes all
    count as of the first, and lines about what was found.

    Args:
        known: The known images, rows 0 to N_known - 1.
        pool: The borrowed images, the rows after them.
        pixel_digests: (N_known + N_borrowed,) what is equal for equal pixels only.
        pool_name: For messages.

    Raises:
        DataError: The same pixels in two known classes, or among the known and the borrowed.
    """
    rows_of: dict[bytes, list[int]] = {}
    for row, digest in enumerate(pixel_digests):
        rows_of.setdefault(digest, []).append(row)
    groups = [rows for rows in rows_of.values() if len(rows) > 1]
    num_known = len(known.images)
    both = [rows for rows in groups if rows[0] < num_known <= rows[-1]]
    if both:
        num = sum(row >= num_known for rows in both for row in rows)
        listed = listed_of(f"{known.images[r[0]]} = {pool.images[r[-1] - num_known]}" for r in both)
        raise DataError(
            f"{pool_name}: no image may be known and borrowed, or training would teach that known "
            f"is novel; {num:,} of {len(pool.images):,} borrowed images are known ones too: "
            f"{listed}; take them out of one"
        )
    two_classes = [
        rows for rows in groups
        if rows[-1] < num_known and len({known.subclass[row] for row in rows}) > 1
    ]  # fmt: skip
    if two_classes:
        listed = listed_of(
            " = ".join(f"{known.images[r]} ({known.subclasses[known.subclass[r]]})" for r in rows)
            for rows in two_classes
        )
        raise DataError(
            f"an image must be of one class, {len(two_classes):,} are in two or more: {listed}; "
            "remove the wrong ones"
        )
    borrowed_class, num_moved = list(pool.borrowed_class), 0
    for rows in groups:
        first = rows[0] - num_known
        for row in rows[1:] if first >= 0 else ():
            num_moved += borrowed_class[row - num_known] != borrowed_class[first]
            borrowed_class[row - num_known] = borrowed_class[first]
    remarks = []
    if groups:
        remarks.append(
            f"copies of another image of their kind: {sum(map(len, groups)) - len(groups):,}; "
            "copies train together or judge together"
        )
    if num_moved:
        remarks.append(
            f"of these in two borrowed classes, and counted as of the first: {num_moved:,}"
        )
    return groups, borrowed_class, remarks
