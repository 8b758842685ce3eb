"""Are labels read as they are meant, and refused where they cannot be?"""

from pathlib import Path

import pytest

from results.labels import Labels, matched, read_labels
from trainable.errors import DataError

SUPERS, SUBS = ("bird", "dog"), ("robin", "jay", "husky")
SUPER_OF_SUB = {0: 0, 1: 0, 2: 1}
HEADER = "image,superclass_index,subclass_index\n"


@pytest.fixture
def read(tmp_path: Path) -> object:
    def made(text: str, header: str = HEADER) -> tuple[Labels, list[str]]:
        file = tmp_path / "labels.csv"
        file.write_text(header + text, encoding="utf-8-sig")
        notes: list[str] = []
        return read_labels(file, SUPERS, SUBS, SUPER_OF_SUB, notes.append), notes

    return made


def test_indices_and_names_are_read_alike(read) -> None:  # type: ignore[no-untyped-def]
    by_index, _ = read("a.png,0,1\nb.png,1,2\nc.png,0,3\nd.png,2,3\ne.png,1,\n")
    by_name, _ = read(
        "a.png, bird ,jay\nb.png,dog,husky\nc.png,bird,novel\nd.png,novel,novel\ne.png,dog,\n"
    )
    by_float, _ = read("a.png,0,1.0\nb.png,1,2.0\nc.png,0,3.0\nd.png,novel,3.0\ne.png,1,\n")
    for labels in (by_index, by_name, by_float):
        assert labels.images == ("a.png", "b.png", "c.png", "d.png", "e.png")
        assert labels.superclass.tolist() == [0, 1, 0, 2, 1]
        assert labels.subclass.tolist() == [1, 2, 3, 3, -1]
        assert labels.true_class.tolist() == [1, 2, -1, -1, -1]


def test_true_class_tells_novel_images_apart_and_other_columns_are_left_alone(read) -> None:  # type: ignore[no-untyped-def]
    header = "who,subclass_index,true_class,image,superclass_index\n"
    labels, _ = read("me,0,anything,a,0\nme,3,owl,b,0\nme,3,carp,c,2\nme,3,owl,d,0\n", header)
    assert labels.true_class.tolist() == [0, 3, 4, 3]


def test_numbers_are_indices_as_predict_writes_them_also_where_classes_have_such_names(
    tmp_path: Path,
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(HEADER + "a,0,2\nb,0,1\n")
    notes: list[str] = []
    labels = read_labels(file, ("x",), ("1", "2", "10"), {}, notes.append)
    assert labels.subclass.tolist() == [2, 1]
    assert len(notes) == 1
    assert "subclass_index is read as indices" in notes[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,3,0\n", "superclass_index must be an index of 0 to 2, of which 2 is novel, but a has"),
        (
            "a,0,4\n",
            "subclass_index must be an index of 0 to 3, of which 3 is novel, but a has '4'",
        ),
        ("a,-1,0\n", "superclass_index must be an index of 0 to 2"),
        ("a,0.5,0\n", "superclass_index must be a class of the model, or novel, but a has '0.5'"),
        ("a,brid,0\n", "but a has 'brid' .did you mean 'bird'?"),
        ("a,bird,0\nb,1,0\n", "must be a class of the model, or novel, but b has '1'"),
        ("a,,0\nb,0,0\n", "superclass_index must not be empty, but is for a"),
        ("a,0,0\nb,0,0\na,0,1\nb,0,1\nc,0,0\n", "must have one row, but a, b have more"),
        ("a,bird,husky\n", "a is bird and husky, which is a dog"),
        ("a,novel,husky\n", "a is novel and husky, which is a dog"),
        ("", "there must be a row for each labelled image"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(read, rows: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        read(rows)


def test_file_without_a_column_or_without_a_file_is_named(read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"it lacks subclass_index; it has image, superclass_index"):
        read("a,0\n", "image,superclass_index\n")
    with pytest.raises(DataError, match="No such file"):
        read_labels(tmp_path / "none.csv", SUPERS, SUBS, SUPER_OF_SUB)
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80" * 9)
    for name in ("empty.csv", "binary.csv"):
        with pytest.raises(DataError, match="no readable CSV"):
            read_labels(tmp_path / name, SUPERS, SUBS, SUPER_OF_SUB)


def test_images_without_rows_and_rows_without_images_are_counted(read) -> None:  # type: ignore[no-untyped-def]
    labels, _ = read("a,0,0\nb,0,1\ngone,1,2\n")
    notes: list[str] = []
    assert matched(labels, ["b", "x", "a", "y", "z", "w"], notes.append) == ["b", "a"]
    assert notes == [
        "1 row of images that are not there: gone",
        "4 images without a row, not judged: x, y, z and 1 more",
    ]
    assert labels.of(["b", "a"]).subclass.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"rows name a, b, gone, images are called test/a"):
        matched(labels, ["test/a"], notes.append)
