"""A drawn stand-in for real photographs, so that everything runs with no network.

Three superclasses of creatures, told apart by body plan, with eight subclasses each, told apart
by the attributes in `SEEN`; a novel pool of objects (`OBJECTS`); a test split that also shows
subclasses (`UNSEEN`) and a superclass (`FISH`) that training never had. Backgrounds, pose, scale,
place, direction, rotation and light vary in every image and say nothing about its class.

    python -m trainable.data.synthetic --out FOLDER [--seed N]
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from trainable.data.synthetic.creatures import FISH, FORMS, SEEN, UNSEEN, Creature
from trainable.data.synthetic.objects import OBJECTS
from trainable.data.synthetic.pictures import draw
from trainable.errors import DataError, Parser, UserError


def _write_labelled(
    folder: Path, split: str, rows: Sequence[tuple[Creature, int, int]], count: int, key: list[int]
) -> None:
    """Write `count` pictures of each (creature, superclass index, subclass index), mixed.

    The test's table also names the creature, which is all that tells novel ones apart.
    """
    is_test = split == "test"
    (folder / f"{split}_images").mkdir()
    lines = ["image,superclass_index,subclass_index" + (",true_class" if is_test else "")]
    for number, job in enumerate(np.random.default_rng(key).permutation(len(rows) * count)):
        row, index = divmod(int(job), count)
        creature, superclass, subclass = rows[row]
        painter = partial(FORMS[creature.form], creature)
        # Keyed by what is drawn, not by its place: more images leave the others as they were.
        picture = draw(painter, np.random.default_rng([*key, row, index]))
        picture.save(folder / f"{split}_images" / f"{number}.png")
        named = f",{creature.name}" if is_test else ""
        lines.append(f"{number}.png,{superclass},{subclass}{named}")
    (folder / f"{split}_data.csv").write_text("\n".join(lines) + "\n")


def _write_all(folder: Path, seed: int, num_train: int, num_novel: int, num_test: int) -> None:
    supers = list(dict.fromkeys(creature.form for creature in SEEN))
    for name, classes in (("superclass", supers), ("subclass", [c.name for c in SEEN])):
        lines = [f"{index},{word}" for index, word in enumerate([*classes, "novel"])]
        (folder / f"{name}_mapping.csv").write_text("\n".join(["index,class", *lines]) + "\n")
    seen = [(creature, supers.index(creature.form), index) for index, creature in enumerate(SEEN)]
    unseen = [(creature, supers.index(creature.form), len(SEEN)) for creature in UNSEEN]
    fish = [(creature, len(supers), len(SEEN)) for creature in FISH]
    _write_labelled(folder, "train", seen, num_train, [seed, 0])
    _write_labelled(folder, "test", [*seen, *unseen, *fish], num_test, [seed, 1])
    for row, (name, painter) in enumerate(OBJECTS.items()):
        (folder / "novel_images" / name).mkdir(parents=True)
        for index in range(num_novel):
            picture = draw(painter, np.random.default_rng([seed, 2, row, index]))
            picture.save(folder / "novel_images" / name / f"{index}.png")


def write(
    folder: Path,
    *,
    seed: int = 0,
    images_per_subclass: int = 32,
    novel_per_class: int = 300,
    test_per_class: int = 10,
) -> None:
    """Write the data set in the course's layout, whole or not at all.

    Args:
        folder: Where to; made where it is missing.
        seed: Decides every byte, at least 0.
        images_per_subclass: Training images of each of the 24 seen subclasses.
        novel_per_class: Pictures of each of the 6 objects in `novel_images/`.
        test_per_class: Test images of each seen subclass, unseen subclass and kind of fish.

    Raises:
        DataError: `folder` is a file or holds something, or a number is out of range.
    """
    counts = (images_per_subclass, novel_per_class, test_per_class)
    if seed < 0 or min(counts) < 1:
        raise DataError(
            f"`seed` must be at least 0 and every count at least 1, but got {seed=}, {counts=}"
        )
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise DataError(f"the folder to write to must be new or empty: {folder}; name another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".synthetic-") as scratch:
        draft = Path(scratch) / "draft"  # scratch itself is readable by its owner only
        draft.mkdir()
        _write_all(draft, seed, *counts)
        draft.rename(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the default data set to `--out`; return the exit code."""
    parser = Parser(
        prog="python -m trainable.data.synthetic",
        description="Write the built-in data set to a folder.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args(argv)
    try:
        write(arguments.out, seed=arguments.seed)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"wrote {arguments.out}")
    return 0
