"""Which images train and which judge: the train, validation, pseudo-novel and novel pools."""

import itertools
from dataclasses import dataclass, replace

import torch

from trainable.config import TrialConfig
from trainable.data.dataset import Data
from trainable.errors import DataError
from trainable.rng import generator

SEEN, PSEUDO_NOVEL, NOVEL_SUPER, SECOND, LEFT_OUT = 0, 1, 2, 3, 4
"""Kind of a validation image: seen subclass, held-out subclass, novel superclass (a borrowed
image), a subclass of the second hold-out, which is only reported on, and in a fold a known image
of the superclass that it never saw: to be called novel there, and nothing else."""

PROTOCOL = 2
"""Which images judge, and by which metrics: figures of different protocols cannot be compared.

1: one half of the validation images chose rules and the other judged them, both with images of the
same held-out subclasses and borrowed classes; rates over all images of a pool.
2: two parts of different held-out subclasses and borrowed classes, each judged by what was chosen
on the other; rates are means over groups; novel superclasses are the known ones, each left out in
turn.
"""

NOVEL_VAL_CLASS_FRACTION = 0.25
"""Fraction of the borrowed classes (or images, in a pool without classes) kept from training; of
three classes or more at least two, one for each part."""
NOVEL_VAL_IMAGES_MAX = 1000
"""More judge no better, and each costs a forward pass per epoch."""
FOLDS_MAX = 10
"""Of more superclasses, as many are drawn to be left out in turn."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """Rows of a `Data` by purpose, and the labels as the heads see them.

    The subclass head has one output for each seen subclass, in the order of `subclasses`, and
    novel as the last. Held-out subclasses have no output: to the head they are novel.
    """

    train: torch.Tensor
    """int64 (num_train,): rows of seen subclasses and borrowed images."""
    val: torch.Tensor
    """int64 (num_val,): rows of V_seen, V_pseudo and V_novel, and of the second hold-out."""
    val_kind: torch.Tensor
    """int64 (num_val,): SEEN, PSEUDO_NOVEL, NOVEL_SUPER or SECOND."""
    val_in_part_a: torch.Tensor
    """bool (num_val,): in part A; the others are in part B. What is chosen on one is judged on the
    other."""
    super_target: torch.Tensor
    """int64 (num_rows,): output of the superclass head for each row of the data."""
    sub_target: torch.Tensor
    """int64 (num_rows,): output of the subclass head for each row of the data."""
    subclasses: tuple[int, ...]
    """Subclass index of each known output of the subclass head."""
    super_of_sub: tuple[int, ...]
    """Superclass output of each subclass output; novel belongs to novel."""
    left_out: torch.Tensor | None = None
    """bool (num_rows,): the images that are kept from training, of the superclass that a fold
    leaves out, or of a share; null: none are."""
    novel_images_used: int
    """Borrowed images in training: fewer than asked where the pool is smaller."""


def make_pools(data: Data, config: TrialConfig) -> Pools:
    """Return the pools that `config.seed` fixes.

    Held-out subclasses are spread over the superclasses. Each kind of validation image is cut
    into parts A and B: V_seen within each subclass, held-out subclasses and borrowed classes whole
    wherever there are two or more, so that who chooses has not seen who judges.

    Raises:
        DataError: A pool would have no image in one of its parts.
    """
    first, second = _held_out_subclasses(data, config)
    known = torch.arange(data.num_known)
    subclass = data.subclass[: data.num_known]
    is_first = torch.isin(subclass, torch.tensor(first).long())
    is_second = torch.isin(subclass, torch.tensor(second).long())
    train_known, seen = _validation_of_each_class(data, known[~is_first & ~is_second], config)
    pseudo = _shuffled(known[is_first], config.seed, "pseudo")
    train_novel, novel = _novel_pools(data, config)
    if len(seen) < 2 or len(novel) < 2:
        raise DataError(
            "each validation pool needs at least 2 images, one to choose and one to judge, "
            f"but got {len(seen)} of seen subclasses and {len(novel)} borrowed: add images"
        )
    groups = (seen, pseudo, novel, known[is_second])
    val = torch.cat(groups)
    kinds = [torch.full((len(rows),), k) for k, rows in enumerate(groups)]
    parts = [
        turns_of(data, seen) % 2 == 0,
        _part_of_classes(data, pseudo, subclass, data.super_of_sub, config.seed, "pseudo"),
        _part_of_classes(data, novel, data.borrowed_class, (), config.seed, "novel"),
        _part_of_classes(
            data, known[is_second], subclass, data.super_of_sub, config.seed, "second"
        ),
    ]
    return _pools(
        data, (*first, *second), torch.cat([train_known, train_novel]), len(train_novel),
        val=val, val_kind=torch.cat(kinds), val_in_part_a=torch.cat(parts),
    )  # fmt: skip


def make_refit_pools(data: Data, config: TrialConfig) -> Pools:
    """Return pools that train on every known image and hold nothing out."""
    borrowed = torch.arange(data.num_known, len(data.images))
    train_novel = _shuffled(borrowed, config.seed, "novel")[: config.most_novel_images()]
    train = torch.cat([torch.arange(data.num_known), train_novel])
    empty = torch.empty(0, dtype=torch.int64)
    return _pools(
        data, (), train, len(train_novel),
        val=empty, val_kind=empty, val_in_part_a=empty.bool(),
    )  # fmt: skip


def rows_of_branch(pools: Pools, novel_images: int) -> torch.Tensor:
    """Return the training rows of a branch with so many borrowed images: the first ones."""
    is_borrowed = pools.sub_target[pools.train] == len(pools.subclasses)
    return pools.train[~is_borrowed | (is_borrowed.cumsum(0) <= novel_images)]


def leave_out(pools: Pools, superclass: int) -> Pools:
    """Return the pools of a fold, to which a known superclass is novel.

    No image of it trains; its validation images are LEFT_OUT, but for those of the second hold-out.
    Its outputs are gone, and the others count on without it.
    """
    num_super = pools.super_of_sub[-1]
    super_output = torch.arange(num_super + 1)
    super_output[superclass + 1 :] -= 1
    super_output[superclass] = num_super - 1
    kept = [i for i, each in enumerate(pools.super_of_sub[:-1]) if each != superclass]
    sub_output = torch.full((len(pools.subclasses) + 1,), len(kept))
    sub_output[kept] = torch.arange(len(kept))
    is_out = pools.super_target == superclass
    is_judged = is_out[pools.val] & (pools.val_kind != SECOND)
    return replace(
        pools,
        train=pools.train[~is_out[pools.train]],
        val_kind=pools.val_kind.masked_fill(is_judged, LEFT_OUT),
        left_out=is_out,
        super_target=super_output[pools.super_target],
        sub_target=sub_output[pools.sub_target],
        subclasses=tuple(pools.subclasses[i] for i in kept),
        super_of_sub=tuple(int(super_output[pools.super_of_sub[i]]) for i in [*kept, -1]),
    )


def make_folds(pools: Pools, config: TrialConfig) -> dict[int, Pools]:
    """Return the pools of every fold by the superclass that it leaves out, at most `FOLDS_MAX`.

    Empty where `config` wants none or there are fewer than two superclasses. A superclass is not
    left out where a part would have none of its images, or none of seen subclasses of the others.
    """
    num_super = pools.super_of_sub[-1]
    if config.left_out == "none" or num_super < 2:
        return {}
    order = torch.randperm(num_super, generator=generator(config.seed, "left out")).tolist()
    folds = ((each, leave_out(pools, each)) for each in order)
    drawn = itertools.islice((each for each in folds if _is_judged(each[1])), FOLDS_MAX)
    return dict(sorted(drawn, key=lambda each: each[0]))


def _is_judged(fold: Pools) -> bool:
    return all(
        bool((fold.val_kind[fold.val_in_part_a == is_a] == kind).any())
        for is_a in (True, False)
        for kind in (SEEN, LEFT_OUT)
    )


def true_classes(data: Data) -> torch.Tensor:
    """Return what each image shows, int64 (num_rows,): its subclass index, or the number of
    subclasses plus its borrowed class; -1 for borrowed images without classes.
    """
    borrowed = data.borrowed_class + len(data.subclasses)
    borrowed = borrowed.masked_fill(data.borrowed_class < 0, -1)
    return torch.where(data.superclass < len(data.superclasses), data.subclass, borrowed)


def _pools(
    data: Data,
    held_out: tuple[int, ...],
    train: torch.Tensor,
    novel_images_used: int,
    **val: torch.Tensor,
) -> Pools:
    subclasses = tuple(i for i in range(len(data.subclasses)) if i not in held_out)
    output_of_subclass = torch.full((len(data.subclasses) + 1,), len(subclasses))
    output_of_subclass[torch.tensor(subclasses)] = torch.arange(len(subclasses))
    return Pools(
        train=train,
        super_target=data.superclass,
        sub_target=output_of_subclass[data.subclass],
        subclasses=subclasses,
        super_of_sub=(*(data.super_of_sub[i] for i in subclasses), len(data.superclasses)),
        novel_images_used=novel_images_used,
        **val,
    )


def num_held_out(data: Data, config: TrialConfig) -> int:
    """Return how many subclasses the first hold-out has, but where too few could be spared."""
    return round(config.pseudo_novel_fraction * len(data.subclasses))


def _held_out_subclasses(
    data: Data, config: TrialConfig
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the subclasses of both hold-outs: a superclass with k gives about fraction x k.

    Each superclass's shuffled subclasses get the positions (rank + 0.5) / k; the lowest positions
    over all superclasses are held out, so the share is even without quotas, and the next ones
    make the second hold-out. The last of each superclass stays, as without it nothing would train
    that superclass.
    """
    position: dict[int, float] = {}
    for superclass in range(len(data.superclasses)):
        members = [i for i, s in enumerate(data.super_of_sub) if s == superclass]
        order = torch.randperm(
            len(members), generator=generator(config.seed, "held_out", superclass)
        )
        for rank, which in enumerate(order.tolist()[:-1]):
            position[members[which]] = (rank + 0.5) / len(members)
    order_of_subclasses = sorted(position, key=lambda i: (position[i], i))
    first = num_held_out(data, config)
    second = first + round(config.second_pseudo_novel_fraction * len(data.subclasses))
    return tuple(sorted(order_of_subclasses[:first])), tuple(
        sorted(order_of_subclasses[first:second])
    )


def _validation_of_each_class(
    data: Data, rows: torch.Tensor, config: TrialConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return training rows and validation rows; a class of one image, or of its copies, only
    trains, and copies are on one side.

    Validation rows come in an order whose even and odd places are the two parts: classes one
    after the other, so that both parts get their share of each.
    """
    train, val = [], []
    for subclass in data.subclass[rows].unique().tolist():
        members = _shuffled(rows[data.subclass[rows] == subclass], config.seed, "val", subclass)
        count = max(1, round(config.val_fraction * len(members))) if len(members) > 1 else 0
        members, count = _copies_together(data, members, count)
        val.append(members[:count])
        train.append(members[count:])
    return torch.cat(train), torch.cat(val)


def _novel_pools(data: Data, config: TrialConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return borrowed rows for training and V_novel, of different classes if the pool has any."""
    rows = torch.arange(data.num_known, len(data.images))
    rows = _shuffled(rows, config.seed, "novel")
    num_classes = len(data.borrowed_classes)
    if num_classes > 1:
        order = torch.randperm(num_classes, generator=generator(config.seed, "novel_classes"))
        count = max(1 if num_classes == 2 else 2, round(NOVEL_VAL_CLASS_FRACTION * num_classes))
        for_val = torch.isin(data.borrowed_class[rows], order[:count])
        train, val = rows[~for_val], rows[for_val]
    else:
        count = max(2, round(NOVEL_VAL_CLASS_FRACTION * len(rows)))
        rows, count = _copies_together(data, rows, count)
        train, val = rows[count:], rows[:count]
    return train[: config.most_novel_images()], val[:NOVEL_VAL_IMAGES_MAX]


def _part_of_classes(
    data: Data,
    rows: torch.Tensor,
    class_of_row: torch.Tensor,
    group_of_class: tuple[int, ...],
    *purpose: str | int,
) -> torch.Tensor:
    """Return which of the rows are in part A, bool (N,): whole classes, of every group as many as
    in B or one more or less. A single class is cut by image, as images without a class (-1) are.
    """
    class_N = class_of_row[rows]
    classes: list[int] = class_N.unique().tolist()
    if len(classes) < 2:
        return turns_of(data, rows) % 2 == 0
    order = torch.randperm(len(classes), generator=generator(*purpose, "parts")).tolist()
    shuffled = [classes[place] for place in order]
    if group_of_class:
        shuffled.sort(key=lambda each: group_of_class[each])  # stable
    return torch.isin(class_N, torch.tensor(shuffled[::2]))


def _shuffled(rows: torch.Tensor, *purpose: str | int) -> torch.Tensor:
    return rows[torch.randperm(len(rows), generator=generator(*purpose))]


def turns_of(data: Data, rows: torch.Tensor) -> torch.Tensor:
    """Return the turn of each row, int64 (N,): 0, 1, 2, ... and copies of an image take its own."""
    first = {row: copies[0] for copies in data.copies for row in copies}
    turns: dict[int, int] = {}
    content = (first.get(row, row) for row in rows.tolist())
    return torch.tensor([turns.setdefault(c, len(turns)) for c in content], dtype=torch.int64)


def _copies_together(data: Data, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, int]:
    """Return the rows with copies beside each other, and where to cut them, at `count` or near it.

    Between copies there is no cut, and where it moves, it leaves an image behind it.
    """
    turns, order = turns_of(data, rows).sort(stable=True)
    cut = count
    while 0 < cut < len(rows) and turns[cut] == turns[cut - 1]:
        cut += 1
    if count < cut == len(rows):
        cut = int((turns < turns[-1]).sum())
    return rows[order], cut
