"""The drawn data set is determined by its seed, consistently labelled, and never half written."""

import csv
import inspect
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spaces import full_ablation, paper
from tests.commands import run
from tests.made_data import make_data
from trainable.config import TrialConfig
from trainable.data import synthetic
from trainable.data.splits import make_pools
from trainable.data.synthetic.creatures import FISH, FORMS, SEEN, UNSEEN, Creature
from trainable.data.synthetic.objects import OBJECTS
from trainable.data.synthetic.pen import Pen
from trainable.errors import DataError

tiny = partial(synthetic.write, images_per_subclass=2, novel_per_class=1, test_per_class=1)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes, by its path inside `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "new" / "data"
    tiny(folder)
    return folder


def test_same_seed_gives_same_bytes(data: Path, tmp_path: Path) -> None:
    tiny(tmp_path, seed=0)  # tmp_path exists and is empty, which is allowed
    assert contents(tmp_path) == contents(data)


def test_other_seed_gives_other_pictures(data: Path, tmp_path: Path) -> None:
    tiny(tmp_path, seed=1)
    new, old = contents(tmp_path), contents(data)
    assert new.keys() == old.keys()
    assert not [name for name in new if name.endswith(".png") and new[name] == old[name]]


def test_no_two_pictures_are_the_same(data: Path) -> None:
    pictures = [body for name, body in contents(data).items() if name.endswith(".png")]
    assert len(set(pictures)) == len(pictures)


def test_more_images_leave_the_others_unchanged(data: Path, tmp_path: Path) -> None:
    synthetic.write(tmp_path, images_per_subclass=3, novel_per_class=2, test_per_class=2)
    for part in ("train_images", "test_images", "novel_images"):
        few, many = contents(data / part).values(), contents(tmp_path / part).values()
        assert set(few) < set(many)


@pytest.mark.parametrize(
    ("split", "num_images"),
    [("train", 2 * len(SEEN)), ("test", len(SEEN) + len(UNSEEN) + len(FISH))],
)
def test_csv_lists_every_image_once_with_known_indices(
    data: Path, split: str, num_images: int
) -> None:
    table = rows(data / f"{split}_data.csv")
    more = ["true_class"] if split == "test" else []
    assert list(table[0]) == ["image", "superclass_index", "subclass_index", *more]
    names = [row["image"] for row in table]
    assert sorted(names) == sorted(path.name for path in (data / f"{split}_images").iterdir())
    assert set(names) == {f"{number}.png" for number in range(num_images)}
    for level in ("superclass", "subclass"):
        known = {row["index"] for row in rows(data / f"{level}_mapping.csv")}
        assert {row[f"{level}_index"] for row in table} <= known


def test_mappings_count_up_and_end_with_novel(data: Path) -> None:
    supers, subs = (rows(data / f"{name}_mapping.csv") for name in ("superclass", "subclass"))
    assert [row["class"] for row in supers] == ["bird", "dog", "reptile", "novel"]
    assert [row["class"] for row in subs] == [*(creature.name for creature in SEEN), "novel"]
    for table in (supers, subs):
        assert [row["index"] for row in table] == [str(index) for index in range(len(table))]


def test_training_labels_are_balanced_mixed_and_of_the_right_superclass(data: Path) -> None:
    table = rows(data / "train_data.csv")
    subclasses = [int(row["subclass_index"]) for row in table]
    assert Counter(subclasses) == dict.fromkeys(range(24), 2)
    assert subclasses != sorted(subclasses)
    forms = [row["class"] for row in rows(data / "superclass_mapping.csv")]
    for row, subclass in zip(table, subclasses, strict=True):
        assert forms[int(row["superclass_index"])] == SEEN[subclass].form


def test_unseen_classes_are_in_the_test_split_only(data: Path) -> None:
    def count(split: str) -> Counter[tuple[int, bool]]:
        table = rows(data / f"{split}_data.csv")
        return Counter(
            (int(row["superclass_index"]), row["subclass_index"] == "24") for row in table
        )

    assert count("train") == {(form, False): 16 for form in range(3)}
    expected = {(form, False): 8 for form in range(3)} | {(form, True): 3 for form in range(3)}
    assert count("test") == expected | {(3, True): len(FISH)}
    assert {creature.form for creature in UNSEEN} == {creature.form for creature in SEEN}
    assert not {creature.form for creature in FISH} & {creature.form for creature in SEEN}


def test_every_image_is_64_px_rgb(data: Path) -> None:
    pictures = list(data.rglob("*.png"))
    assert len(pictures) == 48 + 37 + 6
    for path in pictures:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")


def test_novel_pool_has_a_folder_for_each_object(data: Path) -> None:
    names = {path.relative_to(data / "novel_images") for path in data.glob("novel_images/*/*")}
    assert names == {Path(name, "0.png") for name in OBJECTS}
    assert len(OBJECTS) == 6
    assert not set(OBJECTS) & {creature.form for creature in (*SEEN, *UNSEEN, *FISH)}


def test_creatures_of_one_form_differ_in_two_attributes_that_show() -> None:
    def shown(creature: Creature) -> Creature:
        marked = creature.pattern != "plain" or creature.top in ("crest", "spines", "frill")
        return creature if marked else replace(creature, mark="")

    everyone = [shown(creature) for creature in (*SEEN, *UNSEEN, *FISH)]
    assert len({creature.name for creature in everyone}) == len(everyone)
    for one, other in combinations(everyone, 2):
        a, b = asdict(one), asdict(other)
        if one.form == other.form:
            assert sum(a[key] != b[key] for key in a.keys() - {"name"}) >= 2, (a, b)


@pytest.mark.parametrize("attribute", ["coat", "mark", "pattern", "top", "snout", "tail", "legs"])
@pytest.mark.parametrize("form", ["bird", "dog", "reptile", "fish"])
def test_each_attribute_but_the_legs_of_a_fish_shows(form: str, attribute: str) -> None:
    tops = {"bird": "crest", "dog": "pointed", "reptile": "spines", "fish": "crest"}
    values: dict[str, Any] = {"coat": "blue", "mark": "red", "pattern": "spots", "top": tops[form]}
    plain = Creature(form=form, name="plain", coat="grey", pattern="stripes")
    changed = replace(plain, **{attribute: values.get(attribute, 1.5)})

    def drawn(creature: Creature) -> bytes:
        image = Image.new("RGB", (128, 128))
        pen = Pen(image=image, matrix=np.eye(2) * 48, centre=np.full(2, 64.0))
        FORMS[form](creature, pen, np.random.default_rng(5))
        return image.tobytes()

    assert (drawn(plain) != drawn(changed)) == ((form, attribute) != ("fish", "legs"))


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_refuses_a_place_that_is_taken_and_leaves_it_alone(tmp_path: Path, taken: str) -> None:
    file = tmp_path / "data" / "mine.txt" if taken == "folder" else tmp_path / "data"
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(DataError, match="must be new or empty"):
        tiny(tmp_path / "data")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"images_per_subclass": 0}, {"novel_per_class": 0}, {"test_per_class": 0}],
)
def test_refuses_numbers_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match="at least 0 and every count at least 1, but got"):
        tiny(tmp_path / "data", **wrong)
    assert not (tmp_path / "data").exists()


def test_failure_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setitem(OBJECTS, "plane", run_out)  # the last thing written
    with pytest.raises(OSError, match="disk full"):
        tiny(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_command_writes_the_folder_with_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic, "write", tiny)
    assert synthetic.main(["--out", str(tmp_path / "command"), "--seed", "3"]) == 0
    assert str(tmp_path / "command") in capsys.readouterr().out
    tiny(tmp_path / "direct", seed=3)
    assert contents(tmp_path / "command") == contents(tmp_path / "direct")


def test_command_reports_a_taken_folder_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run(tmp_path, "-m", "trainable.data.synthetic", "--out", str(tmp_path))
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "must be new or empty" in done.err


@pytest.mark.parametrize("space", [full_ablation.BASELINES, paper.CONFIGURATIONS])
def test_the_papers_five_configurations_are_five_experiments_on_the_built_in_data(
    space: list[dict[str, Any]],
) -> None:
    """Two of them differ only in how many images are borrowed: the pool must hold that many."""
    defaults = {n: p.default for n, p in inspect.signature(synthetic.write).parameters.items()}
    data = make_data(
        subclasses=(8, 8, 8),
        images=defaults["images_per_subclass"],
        borrowed=[defaults["novel_per_class"]] * len(OBJECTS),
    )
    experiments = set()
    for values in space:
        config = TrialConfig.from_dict(values)
        used = make_pools(data, config).novel_images_used
        experiments.add(replace(config, novel_images=used))
    assert len(experiments) == 5
