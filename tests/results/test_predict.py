"""Every file that `results.predict` was given is in its table, in its list of skipped, or named."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from results.predict import main
from tests.made_data import picture

MODEL = Path(__file__).parents[1] / "assets" / "v0_1" / "trials" / "00000"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images under four kinds of names."""
    for i, name in enumerate(("1.jpg", "2.avif", "3.jfif", "4.png")):
        picture(tmp_path / "images" / name, i, (32, 32))
    return tmp_path / "images"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def predict(images: Path | str, out: Path, *more: str) -> int:
    return main(["--model", str(MODEL), "--images", str(images), "--out", str(out), *more])


def test_every_image_gets_a_row_and_what_is_none_is_said(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "notes.txt").write_text("no image")
    (images / "5.heic").write_text("no image")
    assert predict(images, tmp_path / "out.csv") == 0
    table = rows(tmp_path / "out.csv")
    assert [row["image"] for row in table] == ["1.jpg", "2.avif", "3.jfif", "4.png"]
    assert list(table[0]) == ["image", "superclass_index", "subclass_index"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "answering the images"
    assert lines[1].endswith("left out, as no images: 1 .heic, 1 .txt (such as 5.heic)")
    assert ": 4 images, " in lines[2]


def test_names_and_scores_stand_behind_the_three_columns(images: Path, tmp_path: Path) -> None:
    assert predict(images, tmp_path / "plain.csv") == 0
    assert predict(images, tmp_path / "scores.csv", "--scores") == 0
    plain, scores = rows(tmp_path / "plain.csv"), rows(tmp_path / "scores.csv")
    more = ["superclass", "subclass", "super_score", "sub_score"]
    assert list(scores[0]) == [*plain[0], *more]
    assert [{k: v for k, v in row.items() if k not in more} for row in scores] == plain
    assert all(row["superclass"] for row in scores)
    assert all(np.isfinite(float(row["super_score"])) for row in scores)


def test_broken_images_are_all_named_and_skipped_when_asked(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole.csv"
    assert predict(images, whole, "--scores") == 0
    shutil.copy(images / "4.png", images / "5.png")
    for name in ("0.jpg", "10.png"):
        (images / name).write_bytes(b"")
    out = tmp_path / "out.csv"
    capsys.readouterr()
    assert predict(images, out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 2 images are broken: ")
    assert "0.jpg is broken" in line
    assert "10.png is broken" in line
    assert line.endswith("replace or remove each, or pass --skip-broken")
    assert not out.exists()
    assert predict(images, out, "--skip-broken", "--scores") == 0
    assert [row["image"] for row in rows(out)] == ["1.jpg", "2.avif", "3.jfif", "4.png", "5.png"]
    assert rows(out)[:4] == rows(whole)
    skipped = tmp_path / "out.skipped.csv"
    assert [row["image"] for row in rows(skipped)] == ["0.jpg", "10.png"]
    assert all("cannot identify" in row["reason"] for row in rows(skipped))
    assert f"wrote {skipped}: 2 broken images skipped" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["", "~/images"])
def test_an_empty_path_is_an_error_and_home_is_expanded(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(images)
    assert predict(given, tmp_path / "out.csv") == (0 if given else 2)
    assert (tmp_path / "out.csv").exists() == bool(given)
