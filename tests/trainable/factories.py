"""Data sets built by hand: black images, with as many classes and images as a test asks for."""

from collections.abc import Sequence

import torch

from trainable.data.dataset import Data


def make_data(
    subclasses: Sequence[int] = (4, 3),
    images: int | Sequence[int] = 8,
    borrowed: int | Sequence[int] = (6, 6, 6, 6),
    size: int = 2,
) -> Data:
    """Return known images, the classes taking turns row by row, and borrowed images after them.

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
