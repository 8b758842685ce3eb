"""A source says of each image what it shows, the same from every container, or it is refused."""

import os
import shutil
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image

from tests.made_data import SIZE, course, picture
from trainable.data.dataset import Data, load_data
from trainable.errors import DataError


class Case:
    """A tree of known images, a pool, and what is noted while they are loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known, self.pool = folder, folder / "known", folder / "pool"
        for i, name in enumerate(("bird/robin", "bird/wren", "dog/boxer")):
            picture(self.known / name / "0.png", i)
            picture(self.known / name / "1.png", 10 + i)
        for i, name in enumerate(("car", "ship")):
            picture(self.pool / name / "0.png", 20 + i)
        self.notes: list[str] = []

    def load(self, known: Path | str | None = None, novel: Path | str | None = None) -> Data:
        self.notes.clear()
        source, borrowed = str(known or self.known), str(novel or self.pool)
        return load_data(source, borrowed, self.folder / "cache", note=self.notes.append)

    def noted(self, part: str) -> bool:
        return any(part in note for note in self.notes)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def tables(folder: Path, second: str = "boxer") -> Path:
    """Two classes of two images as the course's tables."""
    classes = [("animal", "robin"), ("animal", second)]
    return course(folder / "course", classes, images=4, tests=(), is_plain=True, seed=40)


# --- Classes that would vanish -----------------------------------------------------------------


@pytest.mark.parametrize("files", [[], ["0.heic", "1.heic", "notes.txt"]])
@pytest.mark.parametrize("folder", ["known/bird/crow", "known/fish", "pool/bus"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_a_class_folder_without_an_image_is_an_error(
    case: Case, folder: str, files: list[str], as_zip: bool
) -> None:
    empty = case.folder / folder
    empty.mkdir(parents=True)
    for name in files:
        (empty / name).write_bytes(b"ftypheic")
    sources = case.known, case.pool
    if as_zip:
        sources = tuple(Path(shutil.make_archive(str(s), "zip", s)) for s in sources)  # type: ignore[assignment]
    inside = "2 .heic, 1 .txt" if files else "nothing"
    name = folder.partition("/")[2]
    with pytest.raises(DataError, match=rf"1 hold none: {name}/ \(in the first: {inside}\)"):
        case.load(*sources)


def test_a_class_of_images_by_another_name_is_read(case: Case) -> None:
    for i, file in enumerate(("0.jfif", "1")):
        picture(case.known / "bird/crow/x.jpg", 30 + i).rename(case.known / "bird/crow" / file)
    data = case.load()
    assert data.subclasses == ("boxer", "crow", "robin", "wren")
    assert data.num_known == 8
    assert case.noted("images by their content, by suffix: 1 without suffix")


def test_what_is_left_out_is_counted(case: Case) -> None:
    for name in ("a.txt", "b.txt", "Thumbs.db"):
        (case.known / "bird" / "robin" / name).write_text("no image")
    (case.pool / "car" / "0.heic").write_text("no image")
    case.load()
    assert case.noted("known: left out, as no images: 2 .txt, 1 .db (such as bird/robin/Thumbs.db)")
    assert case.noted("pool: left out, as no images: 1 .heic")
    known = tables(case.folder)
    picture(known / "train_images" / "9.png", 99)
    case.load(known)
    assert case.noted(
        "left out, as without a row in train_data.csv: 1 .png (such as train_images/9"
    )


# --- Errors that name what is wrong ------------------------------------------------------------


@pytest.mark.parametrize(
    "odd", ["bird/wren/old/2.png", "bird/2.png", "2.png", "more/bird/crow/2.png"]
)
def test_the_image_at_the_wrong_depth_is_named(case: Case, odd: str) -> None:
    picture(case.known / odd, 50)
    with pytest.raises(DataError, match=rf"such as '{odd}', unlike 'bird/robin/0.png' \(1 so\)"):
        case.load()


@pytest.mark.parametrize("name", ["bird/robin/2.png", "bird/crow", "fish"])
def test_a_link_to_nothing_is_named(case: Case, name: str) -> None:
    (case.known / name).symlink_to(case.folder / "gone")
    with pytest.raises(DataError, match=rf"known: {name} is a link to nothing \(.*gone\)"):
        case.load()


def test_a_link_to_its_own_folder_is_named(case: Case) -> None:
    (case.known / "bird" / "again").symlink_to(case.known)
    with pytest.raises(DataError, match="known: bird/again is a link to a folder that it is in"):
        case.load()


def test_a_link_in_a_zip_is_refused(case: Case) -> None:
    archive = Path(shutil.make_archive(str(case.known), "zip", case.known))
    with zipfile.ZipFile(archive, "a") as file:
        info = zipfile.ZipInfo("bird/crow")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "../elsewhere")
    with pytest.raises(DataError, match="links in a zip lead nowhere, 'bird/crow' is one"):
        case.load(archive)


def test_a_pipe_is_not_waited_for(case: Case) -> None:
    os.mkfifo(case.known / "bird" / "robin" / "2.png")
    with pytest.raises(DataError, match=r"bird/robin/2.png is no regular file"):
        case.load()


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_path_is_an_error_and_never_this_folder(case: Case, text: str) -> None:
    with pytest.raises(DataError, match=r"a folder or a .zip is needed, got an empty text"):
        load_data(text, str(case.pool), case.folder / "cache")
    with pytest.raises(DataError, match=r"a folder or a .zip is needed, got an empty text"):
        load_data(str(case.known), text, case.folder / "cache")


def test_the_home_folder_is_expanded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(case.folder))
    assert case.load("~/known", "~/pool").num_known == 6
    with pytest.raises(DataError, match="at '~nobody-of-that-name/x'"):
        case.load("~nobody-of-that-name/x")


# --- Known and borrowed, and one image twice ---------------------------------------------------


def test_the_same_source_twice_is_refused(case: Case) -> None:
    (case.folder / "link").symlink_to(case.known)
    for novel in (case.known, case.folder / "link", case.known / "bird" / ".."):
        with pytest.raises(DataError, match="--data and --novel must differ, both are "):
            case.load(novel=novel)
    archive = shutil.make_archive(str(case.folder / "copy"), "zip", case.known)
    with pytest.raises(DataError, match="3 have the name of one: bird/robin"):
        case.load(novel=archive)


def test_known_images_among_the_borrowed_are_named_whatever_their_name(case: Case) -> None:
    shutil.copy(case.known / "bird/robin/0.png", case.pool / "car" / "photo.png")
    with Image.open(case.known / "dog/boxer/1.png") as image:
        image.save(case.pool / "ship" / "other.bmp")  # other bytes, the same pixels
    with pytest.raises(
        DataError,
        match=r"2 of 4 borrowed images are known ones too: bird/robin/0.png = car/photo.png, "
        r"dog/boxer/1.png = ship/other.bmp; take them out",
    ):
        case.load()


@pytest.mark.parametrize("name", ["robin", "Robin", "bird", "animals/wren"])
def test_a_borrowed_class_with_the_name_of_a_known_one_is_refused(case: Case, name: str) -> None:
    picture(case.pool / name / "5.png", 60)
    with pytest.raises(DataError, match=f"1 have the name of one: {name}; take them out"):
        case.load()


@pytest.mark.parametrize("names", [["robin"], ["x/Bird/crow", "x/Bird/gull"]])
def test_a_pool_that_is_all_in_a_folder_with_the_name_of_a_known_class_is_refused(
    case: Case, names: list[str]
) -> None:
    shutil.rmtree(case.pool)
    for level, name in enumerate(names):
        picture(case.pool / name / "5.png", 60 + level)
    with pytest.raises(DataError, match=r"all images are in .*/, which has the name of one; take"):
        case.load()


def test_one_image_in_two_known_classes_is_an_error_that_lists_it(case: Case) -> None:
    shutil.copy(case.known / "bird/robin/0.png", case.known / "dog/boxer/9.png")
    with pytest.raises(
        DataError,
        match=r"an image must be of one class, 1 are in two or more: "
        r"bird/robin/0.png \(robin\) = dog/boxer/9.png \(boxer\); remove the wrong ones",
    ):
        case.load()


def test_copies_within_a_class_are_known_as_such(case: Case) -> None:
    shutil.copy(case.known / "bird/robin/0.png", case.known / "bird/robin/9.png")
    shutil.copy(case.pool / "car/0.png", case.pool / "car/1.png")
    shutil.copy(case.pool / "car/0.png", case.pool / "ship/7.png")
    for _ in range(2):  # also where it was decoded before
        data = case.load()
        assert data.copies == ((0, 2), (7, 8, 10))
        assert data.borrowed_class[7:].tolist() == [0, 0, 1, 0]
        assert case.noted("copies of another image of their kind: 3;")
        assert case.noted("of these in two borrowed classes, and counted as of the first: 1")


def test_images_of_one_colour_are_counted(case: Case) -> None:
    for i in range(2):
        Image.new("RGB", (SIZE, SIZE), (i, 0, 0)).save(case.known / "bird/robin" / f"7{i}.png")
    Image.new("RGB", (SIZE, SIZE), "white").save(case.pool / "car" / "7.png")
    for _ in range(2):
        case.load()
        assert case.noted("2 of 8 known images are of one colour throughout")
        assert case.noted("1 of 3 borrowed images are of one colour throughout")


# --- Names of classes --------------------------------------------------------------------------

ACCENTS = ("bird/caf\u00e9", "bird/\u00c5land", "dog/z\u00fcrich", "dog/zz", "bird/\u4e2d\u6587")


Form = Literal["NFC", "NFD"]


def mac_zip(folder: Path, form: Form, *, is_flagged: bool) -> Path:
    """Zip a folder with UTF-8 names in a Unicode form, with or without the flag that says so."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            name = unicodedata.normalize(form, file.relative_to(folder).as_posix())
            archive.writestr(f"__MACOSX/{name}", b"no image")
            archive.writestr(name, file.read_bytes())
    if not is_flagged:
        raw = bytearray(path.read_bytes())
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = raw.find(mark)
            while at >= 0:
                raw[at + offset + 1] &= 0xF7  # bit 11
                at = raw.find(mark, at + 4)
        path.write_bytes(raw)
    return path


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("is_flagged", [True, False])
def test_a_zip_of_a_mac_gives_the_classes_of_its_folder(
    case: Case, form: Form, is_flagged: bool
) -> None:
    folder = case.folder / "accents"
    for i, name in enumerate(ACCENTS):
        picture(folder / name / f"{unicodedata.normalize('NFD', 'é')}.png", 70 + i)
    expected = case.load(folder)
    found = case.load(mac_zip(folder, form, is_flagged=is_flagged))
    assert set(expected.subclasses) == {name.partition("/")[2] for name in ACCENTS}
    assert found.subclasses == expected.subclasses
    assert found.fingerprint == expected.fingerprint
    decomposed = case.folder / "decomposed"
    for file in folder.rglob("*.png"):
        name = unicodedata.normalize("NFD", file.relative_to(folder).as_posix())
        (decomposed / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, decomposed / name)
    assert case.load(decomposed).fingerprint == expected.fingerprint


def test_a_name_in_an_old_code_page_is_read_as_437_with_a_word(case: Case) -> None:
    folder = case.folder / "old"
    for i, name in enumerate(("bird/caf\u00e9", "bird/tit")):
        picture(folder / name / "0.png", 80 + i)
    path = mac_zip(folder, "NFC", is_flagged=False)
    path.write_bytes(path.read_bytes().replace("caf\u00e9".encode(), b"caf\x82x"))
    assert case.load(path).subclasses == ("caféx", "tit")
    assert case.noted("1 names are not in UTF-8 and read as code page 437, such as 'bird/caféx/0")


def test_the_unicode_name_beside_the_other_is_taken(case: Case) -> None:
    path = case.folder / "extra.zip"
    raw, name = b"bird/caf\xb3/0.png", "bird/caf\u0142/0.png"  # code page 1250
    repeated = b"\1" + struct.pack("<I", zlib.crc32(raw)) + name.encode()
    info = zipfile.ZipInfo("bird/cafX/0.png")
    info.extra = struct.pack("<HH", 0x7075, len(repeated)) + repeated
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, picture(case.folder / "one.png", 85).read_bytes())
        archive.writestr("bird/tit/0.png", picture(case.folder / "one.png", 86).read_bytes())
    path.write_bytes(path.read_bytes().replace(b"bird/cafX", raw[:9]))
    assert case.load(path).subclasses == ("caf\u0142", "tit")


def test_a_class_in_two_unicode_forms_is_one_class(case: Case) -> None:
    forms: tuple[Form, ...] = ("NFC", "NFD")
    for i, form in enumerate(forms):
        picture(case.known / "bird" / unicodedata.normalize(form, "café") / f"{i}.png", 90 + i)
    data = case.load()
    assert data.subclasses.count("caf\u00e9") == 1
    assert int((data.subclass == data.subclasses.index("caf\u00e9")).sum()) == 2
    picture(case.known / "bird" / unicodedata.normalize("NFD", "café") / "0.png", 95)
    with pytest.raises(DataError, match="every file must have a name of its own, there are two"):
        case.load()


@pytest.mark.parametrize(
    "other", ["Robin", "robin\u200b", "robin ", "ro\u00a0bin", "r\u043ebin", "\uff52obin", "ROBIN"]
)
def test_class_names_that_print_alike_are_refused(case: Case, other: str) -> None:
    name = "ro bin" if "\u00a0" in other else "robin"
    if name != "robin":
        (case.known / "bird/robin").rename(case.known / "bird" / name)
    picture(case.known / "bird" / other / "3.png", 96)
    with pytest.raises(DataError, match="names of subclasses must differ by more than case"):
        case.load()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CAT", "\u0421\u0410\u0422"),  # Cyrillic capitals
        ("AB", "\u0391\u0392"),  # Greek ones
        ("\u0412at", "\u0432at"),  # one Cyrillic word, by case
        ("sj", "\u0455\u0458"),
        ("robin", "ro\u034fbin\ufe0f"),
        ("a-b", "a\u2010b"),
        ("Steller's jay", "Steller\u2019s jay"),
    ],
)
def test_names_in_other_scripts_and_signs_that_print_alike_are_refused(
    case: Case, one: str, other: str
) -> None:
    for i, name in enumerate((one, other)):
        picture(case.known / "bird" / name / f"{i}.png", 97 + i)
    with pytest.raises(DataError, match="letters that look alike"):
        case.load()


def test_class_names_of_the_tables_are_held_to_the_same(case: Case) -> None:
    with pytest.raises(DataError, match="got 'robin' and 'Robin'; rename one"):
        case.load(tables(case.folder, "Robin"))


@pytest.mark.parametrize("name", ["Novel", "NOVEL "])
def test_a_class_called_novel_in_any_case_is_refused(case: Case, name: str) -> None:
    picture(case.known / "bird" / name / "3.png", 96)
    with pytest.raises(DataError, match=f"must not be named '{name}'"):
        case.load()


def test_a_zip_entry_whose_name_holds_a_nul_is_refused(case: Case) -> None:
    path = case.folder / "cut.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bird/tit/0.png", picture(case.folder / "one.png", 85).read_bytes())
        archive.writestr("bird/X/0.png", picture(case.folder / "one.png", 86).read_bytes())
    path.write_bytes(path.read_bytes().replace(b"bird/X/", b"bird/\0/"))
    with pytest.raises(DataError, match=r"without '\.\.' or NUL, got 'bird/\\x00/0\.png'"):
        case.load(path)


def test_names_that_are_not_utf_8_are_refused(case: Case) -> None:
    file = picture(case.known / "bird/robin/5.png", 97)
    file.rename(file.with_name(os.fsdecode(b"caf\x82.png")))
    with pytest.raises(DataError, match=r"must be UTF-8, 'caf\\udc82.png' is not; rename it"):
        case.load()


def test_numbered_classes_are_in_natural_order_with_a_word(case: Case) -> None:
    for i in (1, 2, 10):
        picture(case.folder / "numbered" / str(i) / f"kind {i}" / "0.png", 100 + i)
        picture(case.pool / f"class{i}" / "0.png", 120 + i)
    data = case.load(case.folder / "numbered")
    assert data.superclasses == ("1", "2", "10")
    assert data.subclasses == ("kind 1", "kind 2", "kind 10")
    assert data.borrowed_classes == ("car", "class1", "class2", "class10", "ship")
    assert case.noted("superclasses are numbered in natural order, 1, 2, 10")
    case.load()
    assert not case.noted("natural order")


# --- Tables as spreadsheets write them ---------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_may_be_as_a_spreadsheet_writes_them(
    case: Case, delimiter: str, line_end: str, mark: str
) -> None:
    known = tables(case.folder)
    expected = case.load(known)
    for table in known.glob("*.csv"):
        text = table.read_text().replace("\r\n", "\n").replace(",", f"{delimiter} ")
        table.write_bytes((mark + text.replace("\n", line_end)).encode())
    found = case.load(known)
    assert found.fingerprint == expected.fingerprint
    assert torch.equal(found.subclass, expected.subclass)


def test_an_image_with_two_rows_is_named_with_both_lines(case: Case) -> None:
    known = tables(case.folder)
    with (known / "train_data.csv").open("a") as file:
        file.write("1.png,0,0\n")
    with pytest.raises(
        DataError, match=r"line 6: an image must have one row, '1.png' has two, the other in line 3"
    ):
        case.load(known)
