"""No file is left out, and no picture loses what it shows, without a word."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainable.data.dataset import image_blocks, load_images
from trainable.errors import DataError

SIZE = 8
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def decoded(file: Path, size: int = SIZE) -> np.ndarray:
    names, images = load_images(str(file.parent), size)
    return images[names.index(file.name)].numpy().astype(int)


def png16(file: Path, values: np.ndarray) -> Path:
    """Write 16-bit values (H, W, channels): grey, grey and alpha, RGB or RGBA, by the channels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return file


# --- Which files are images --------------------------------------------------------------------

OTHER_NAMES = [
    ("JPEG", "1.jfif"), ("JPEG", "2.jpe"), ("JPEG", "3.JPG"), ("JPEG", "4"), ("PNG", "5.jpg"),
    ("AVIF", "6.avif"), ("WEBP", "7.img"), ("GIF", "8.jpeg"), ("TIFF", "9"), ("BMP", "10.dib"),
    ("MPO", "11.jpg"), ("PNG", "12.photo"),
]  # fmt: skip


@pytest.mark.parametrize("is_zip", [False, True])
def test_images_by_any_name_are_read_and_the_rest_is_counted_by_suffix(
    tmp_path: Path, is_zip: bool
) -> None:
    path = tmp_path
    for kind, name in OTHER_NAMES:
        with (tmp_path / name).open("wb") as file:
            Image.fromarray(COLOURS).save(file, kind)
    (tmp_path / "raw.nef").write_bytes((tmp_path / "9").read_bytes())  # a TIFF with a thumbnail
    for name in ("BMW list.txt", "notes.txt", "Thumbs.db", ".DS_Store", "._1.jpg", "inner.zip"):
        (tmp_path / name).write_bytes(b"BM and no image")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    for folder in (".h/in it", "__MACOSX"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.PNG").write_bytes(b"")
    if is_zip:
        path = tmp_path / "all.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for each in tmp_path.rglob("*"):
                if each != path and each.is_file():
                    archive.write(each, each.relative_to(tmp_path))
    notes: list[str] = []
    names, images = load_images(str(path), SIZE, notes.append)
    assert names == [name for _, name in OTHER_NAMES]
    assert np.abs(images.numpy().astype(int) - COLOURS).mean((1, 2, 3)).max() < 60
    assert len(notes) == 2
    assert "images by their content, by suffix: 2 without suffix, 1 .img, 1 .photo" in notes[0]
    assert (
        "left out, as no images: 2 .txt, 1 .db, 1 .nef, 1 .zip, hidden 1 .jpg, 1 .png" in notes[1]
    )


def test_all_broken_images_are_named_at_once_and_may_be_left_out(tmp_path: Path) -> None:
    for i in range(30):
        content = b"" if i % 5 else b"\xff\xd8\xffcut"
        (tmp_path / f"{i}.jpg").write_bytes(content)
    Image.fromarray(COLOURS).save(tmp_path / "30.png")
    (tmp_path / "31").write_bytes(b"\xff\xd8\xffcut")  # begins as a JPEG does
    with pytest.raises(
        DataError, match=r"^31 images are broken: .*: 0.jpg is .*; and 11 more"
    ) as e:
        load_images(str(tmp_path), SIZE)
    assert "19.jpg is broken" in str(e.value)
    assert "20.jpg" not in str(e.value)
    assert "\n" not in str(e.value)
    broken: dict[str, str] = {}
    ((names, images),) = image_blocks(str(tmp_path), SIZE, broken)
    assert names == ["30.png"]
    assert np.array_equal(images[0].numpy(), COLOURS)
    assert set(broken) == {*(f"{i}.jpg" for i in range(30)), "31"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF"])
def test_a_file_of_which_the_second_half_is_lost_is_broken(tmp_path: Path, kind: str) -> None:
    colours = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / "0.png"
    Image.fromarray(colours).save(file, kind)
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"0.png is broken or no image \(\w.*\); replace"):
        load_images(str(tmp_path), SIZE)


def test_an_avif_without_its_pixels_is_broken(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "0.avif")
    raw = (tmp_path / "0.avif").read_bytes()
    start = raw.index(b"mdat") + 4
    (tmp_path / "0.avif").write_bytes(raw[:start] + bytes(len(raw) - start))
    with pytest.raises(DataError, match=r"0.avif is broken or no image \(Failed to decode"):
        load_images(str(tmp_path), SIZE)


# --- Pictures that hold more, or less, than 8 bits ---------------------------------------------

GREY = RNG.integers(0, 256, (SIZE, SIZE, 1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("scale", "offset", "bits"), [(1, 0, 8), (16, 0, 12), (257, 0, 16), (1, 30_000, 0)]
)
def test_16_bits_are_scaled_by_what_the_image_holds(
    tmp_path: Path, channels: int, scale: int, offset: int, bits: int
) -> None:
    base = GREY if channels < 3 else COLOURS.astype(int)
    values = base * scale + offset
    alpha = np.full((SIZE, SIZE, 1), 65535)
    file = png16(tmp_path / "0.png", values if channels % 2 else np.dstack([values, alpha]))
    expected = values / (2**bits - 1 or 1) * 255
    if not bits:  # a range so small that hardly a level would remain
        expected = (values - values.min()) / (values.max() - values.min()) * 255
    assert np.abs(decoded(file) - expected).max() <= 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [
        ("u2", 1, 0), ("u2", 100, 0), ("i4", 1, 0), ("i4", 1, -400), ("i4", 10**6, 0),
        ("f4", 1 / 255, 0), ("f4", 1, 0), ("f4", 1e-6, 0), ("f4", 1e4, -1e5), ("f4", 1, 5000),
    ],
)  # fmt: skip
def test_integers_and_fractions_keep_their_shades(
    tmp_path: Path, dtype: str, scale: float, offset: float, compression: str | None
) -> None:
    values = (GREY[..., 0] * scale + offset).astype(dtype)
    Image.fromarray(values).save(tmp_path / "0.tif", compression=compression)
    grey = decoded(tmp_path / "0.tif")[..., 0]
    assert np.corrcoef(grey.ravel(), values.ravel().astype(float))[0, 1] > 0.999
    assert grey.max() - grey.min() > 90


def tiff_tags(order: str, place: int, *tags: tuple[int, int, int, bytes]) -> bytes:
    """Return a directory of (tag, type, count, value), its longer values behind it."""
    fixed, more = struct.pack(f"{order}H", len(tags)), b""
    behind = place + 2 + 12 * len(tags) + 4
    for tag, kind, count, value in tags:
        if len(value) > 4:
            offset, more = behind + len(more), more + value
            value = struct.pack(f"{order}I", offset)
        fixed += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    return fixed + bytes(4) + more


@pytest.mark.parametrize("order", ["<", ">"])
def test_dark_16_bit_colours_in_a_tiff_are_not_black(tmp_path: Path, order: str) -> None:
    pixels, short = COLOURS.astype(f"{order}u2").tobytes(), struct.Struct(f"{order}H").pack
    plain = {256: SIZE, 257: SIZE, 259: 1, 262: 2, 273: 8, 277: 3, 278: SIZE, 279: len(pixels)}
    tags = [(tag, 3, 1, short(value)) for tag, value in plain.items()]
    tags.insert(2, (258, 3, 3, short(16) * 3))
    place = 8 + len(pixels)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", place)
    (tmp_path / "0.tif").write_bytes(head + pixels + tiff_tags(order, place, *tags))
    assert np.array_equal(decoded(tmp_path / "0.tif"), COLOURS)


@pytest.mark.parametrize("alpha", [0, 1, 128])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "bmp"])
def test_transparency_that_is_the_same_throughout_is_ignored(
    tmp_path: Path, suffix: str, alpha: int
) -> None:
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == "webp" else {}
    pixels = np.dstack([COLOURS, np.full((SIZE, SIZE), alpha, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / f"0.{suffix}", **options)
    assert np.array_equal(decoded(tmp_path / f"0.{suffix}"), COLOURS)


@pytest.mark.parametrize("colour", [255, 0])
def test_a_shape_in_the_colour_of_its_paper_shows(tmp_path: Path, colour: int) -> None:
    pixels = np.full((SIZE, SIZE, 4), colour, np.uint8)
    pixels[2:6, 2:6, 3], pixels[:2, :, 3] = 255, 0
    pixels[6:, :, 3] = pixels[:, :2, 3] = pixels[:, 6:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "0.png")
    shape = decoded(tmp_path / "0.png")[..., 0]
    assert len(set(shape.ravel().tolist())) == 2
    assert len({shape[3, 3], *shape[2:6, 2:6].ravel()}) == 1


def test_a_palette_that_is_transparent_throughout_shows_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).quantize(16)
    image.save(tmp_path / "0.png", transparency=bytes(16))
    assert np.array_equal(decoded(tmp_path / "0.png"), np.asarray(image.convert("RGB")))


def test_of_an_animation_the_first_picture_is_taken(tmp_path: Path) -> None:
    for suffix in ("gif", "webp", "png", "mpo", "tif"):
        frames = [Image.fromarray(np.full((SIZE, SIZE, 3), 40 * i, np.uint8)) for i in (1, 2, 3)]
        frames[0].save(tmp_path / f"0.{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(load_images(str(tmp_path), SIZE)[1].numpy().astype(int) - 40).max() <= 2


# --- Orientation -------------------------------------------------------------------------------


SIX, RESOLUTION = (0x0112, 3, 1, b"\6\0"), 0x011A
ORIENTATIONS = {
    "plain": [SIX],
    "a text": [(0x0112, 2, 2, b"6\0")],
    "beside a text for a number": [SIX, (RESOLUTION, 2, 5, b"72.0\0")],
    "beside a number of no type": [SIX, (RESOLUTION, 99, 1, b"\0")],
    "beside what lies outside": [SIX, (RESOLUTION, 5, 9, b"\xff\xff\0\0")],
}


@pytest.mark.parametrize("kind", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_photograph_with_odd_exif_opens_upright(tmp_path: Path, suffix: str, kind: str) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tiff_tags("<", 8, *ORIENTATIONS[kind])
    Image.fromarray(pixels).save(tmp_path / f"0.{suffix}", exif=exif)
    upright = np.rot90(pixels, -1).astype(int)
    assert np.abs(decoded(tmp_path / f"0.{suffix}", 16) - upright).mean() < 5


@pytest.mark.parametrize("orientation", [b"\xff" * 8, b"", b"Exif\0\0II*\0"])
def test_exif_that_nobody_can_read_turns_nothing(tmp_path: Path, orientation: bytes) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "0.png", exif=orientation)
    assert np.array_equal(decoded(tmp_path / "0.png"), COLOURS)


def test_a_turned_tiff_is_turned_once(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "0.tif", tiffinfo={0x0112: 6})
    assert np.array_equal(decoded(tmp_path / "0.tif"), np.rot90(COLOURS, -1))
