"""Where images come from: a folder or a zip, read in place, and nothing in it is trusted."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar
from zipfile import ZIP_DEFLATED, ZIP_STORED

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from trainable.checkpoint import write_atomically
from trainable.errors import DataError, nearest

MAX_PIXELS = 50_000_000
MAX_ENTRY_BYTES = 200_000_000
MAX_ENTRIES = 2_000_000
SETTLED_NS = 2 * 10**9
"""A file that changed less than this ago may change again under the same time."""
BLOCK_IMAGES = 1024  # decoded at a time: at most 154 MB at 224 px

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
# Only these decoders: Pillow would hand an EPS named .jpg to Ghostscript.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
# What Pillow and zipfile raise on damaged bytes: most were seen in 150,000 randomly damaged images.
UNREADABLE: tuple[type[Exception], ...]
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError)
UNREADABLE += (ArithmeticError, struct.error, zlib.error, zipfile.BadZipFile)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one folder or zip, hidden ones left out, under relative names with `/`."""

    name: str
    """As the user wrote it, for messages."""

    stamps: dict[str, str]
    """For each entry, a text that changes with its content, see `_stamp`; empty where none can."""

    place: Path
    """Where it is, links resolved."""

    open: Callable[[str], IO[bytes]]
    """Opens one entry, by its name."""

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry.

        Raises:
            DataError: It cannot be read.
        """
        try:
            with self.open(name) as file:
                return file.read()
        except UNREADABLE as error:
            raise DataError(f"{self.name}: {name} cannot be read ({error})") from error

    def images(self, prefix: str = "") -> list[str]:
        """Return the entries that are images by their suffix, in natural order."""
        names = [name for name in self.stamps if name.startswith(prefix)]
        return sorted((n for n in names if n.lower().endswith(IMAGE_SUFFIXES)), key=natural_key)


@contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """List a folder or a zip and keep it open for reading; a zip is never extracted.

    Raises:
        DataError: Nothing there, not a zip, or an entry that is refused: an absolute path or one
            with `..`, over `MAX_ENTRY_BYTES`, encrypted, or one entry more than `MAX_ENTRIES`.
    """
    root, name = Path(path).expanduser(), str(path)
    if root.is_dir():
        try:
            stamps = _list_folder(root, name)
        except OSError as error:
            raise DataError(f"{name}: cannot be listed ({error})") from error
        yield Source(
            name=name,
            stamps=stamps,
            place=root.resolve(),
            open=lambda entry: (root / entry).open("rb"),
        )
        return
    if not root.is_file():
        hint = nearest(name, ("synthetic", "cifar100"))
        raise DataError(f"there must be a folder or a .zip at {name!r}, found neither{hint}")
    try:
        stamp = _stamp(root.stat())
        archive = zipfile.ZipFile(root)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{name} must be a folder or a .zip, and is no readable zip") from error
    with archive:
        infos = _list_zip(archive, name)
        yield Source(
            name=name,
            stamps={entry: stamp and f"{stamp} {info.CRC:08x}" for entry, info in infos.items()},
            place=root.resolve(),
            open=lambda e: _unpack(archive, infos[e]),
        )


def natural_key(name: str) -> tuple[str, str]:
    """Sort key that reads digits as numbers: 2.jpg before 10.jpg."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), name), name


def _stamp(stat: os.stat_result) -> str:
    """Return a text that another content of the file would not have; empty if it is too new.

    Names and mtime can be given to any content. Nobody gives a ctime, it is the kernel's.
    """
    if time.time_ns() - max(stat.st_ctime_ns, stat.st_mtime_ns) < SETTLED_NS:
        return ""
    return f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _check_count(count: int, name: str) -> None:
    if count > MAX_ENTRIES:
        raise DataError(f"{name}: at most {MAX_ENTRIES:,} files are read, this has more: split it")


def _list_folder(root: Path, name: str) -> dict[str, str]:
    stamps: dict[str, str] = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    pending.append(f"{prefix}{entry.name}/")
                    continue
                stamps[prefix + entry.name] = _stamp(entry.stat())
        _check_count(len(stamps), name)
    return stamps


def _list_zip(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    infos: dict[str, zipfile.ZipInfo] = {}
    _check_count(len(archive.infolist()), name)
    for info in archive.infolist():
        written = info.filename.replace("\\", "/")
        path = PurePosixPath(written)
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", written):
            raise DataError(
                f"{name}: the zip must hold relative paths without '..', got {info.filename!r}; "
                "do not trust it, or zip the folder again"
            )
        if written.endswith("/") or any(map(_is_hidden, path.parts)):
            continue
        if info.file_size > MAX_ENTRY_BYTES:
            raise DataError(
                f"{name}: an entry must unpack to at most {MAX_ENTRY_BYTES:,} bytes, "
                f"{info.filename!r} declares {info.file_size:,}; remove it"
            )
        # zipfile bounds what it unpacks for these two methods only. Bit 0 says encrypted.
        if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise DataError(
                f"{name}: entries must be stored or deflated, without a password, "
                f"{info.filename!r} is not; zip the folder again"
            )
        infos[str(path)] = info
    return infos


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    with archive.open(info) as file:
        # Whole, so that the CRC is checked, and by the declared size: without it, zipfile would
        # unpack an entry that lies about its size to the end before it says so.
        return io.BytesIO(file.read(info.file_size))


def digests(source: Source, names: list[str], memory: Path) -> list[str]:
    """Return the SHA-256 of each entry's bytes, or a dash where it cannot be read.

    Args:
        source: A folder or a zip.
        names: Of its entries.
        memory: Folder where the digests of files are kept, to be used while the files have the
            same stamps.
    """
    place = hashlib.sha256(str(source.place).encode(errors="surrogateescape")).hexdigest()[:32]
    file = memory / f"{place}.json"
    try:
        kept: dict[str, list[str]] = json.loads(file.read_text())
    except (OSError, ValueError):
        kept = {}
    stamps = source.stamps
    wanted = [n for n in names if not stamps[n] or kept.get(n, ("", ""))[0] != stamps[n]]
    fresh = dict(zip(wanted, _in_threads(lambda name: _digest(source, name), wanted), strict=True))
    settled = {n: [stamps[n], digest] for n, digest in fresh.items() if stamps[n] and digest != "-"}
    if settled:
        kept = {name: each for name, each in kept.items() if name in stamps}
        with contextlib.suppress(OSError):  # they are read again the next time
            write_atomically(file, json.dumps(kept | settled).encode())
    return [fresh.get(name) or kept[name][1] for name in names]


def _digest(source: Source, name: str) -> str:
    try:
        with source.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except UNREADABLE:
        return "-"  # whoever decodes it says so


def _in_threads(function: Callable[[str], T], names: list[str]) -> Iterator[T]:
    """Yield what `function` returns for each name, in order; a block of names is under way."""
    # Pillow releases the GIL. More threads than cores were slower (64 px, 2 cores: 6 by a half).
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(names), BLOCK_IMAGES):
            yield from pool.map(function, names[start : start + BLOCK_IMAGES])


@contextmanager
def _opened(source: Source, name: str) -> Iterator[Image.Image]:
    """Open an image, its header checked and its pixels not yet decoded."""
    try:
        with source.open(name) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"it has {image.width} x {image.height}")
            yield image
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{source.name}: an image must have at most {MAX_PIXELS:,} pixels, {name} has more "
            f"({error}); make it smaller or remove it"
        ) from error
    except UNREADABLE as error:
        raise DataError(
            f"{source.name}: {name} is broken or no image ({error}); replace or remove it"
        ) from error


def decode(source: Source, name: str, size: int) -> npt.NDArray[np.uint8]:
    """Return an image as (size, size, 3) RGB: upright, shorter side resized, centre cropped.

    Transparent pixels show white, the page that such pictures are drawn for. 16-bit grey keeps
    its upper byte.

    Raises:
        DataError: A broken image, or one over `MAX_PIXELS`.
    """
    with _opened(source, name) as image:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 while that leaves twice the size: 12 megapixels
        # to 224 px in a quarter of the time, pixels differ by 0.2 of 255 on average.
        image.draft(None, (2 * size, 2 * size))
        ImageOps.exif_transpose(image, in_place=True)
        fitted = ImageOps.fit(_to_rgb(image), (size, size), method=Image.Resampling.BICUBIC)
        return np.asarray(fitted)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
        upper = np.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range: save it with 8 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def shorter_sides(source: Source, names: list[str]) -> list[int]:
    """Return each image's shorter side in pixels, from its header.

    Raises:
        DataError: The first that is no image or over `MAX_PIXELS`.
    """

    def shorter_side(name: str) -> int:
        with _opened(source, name) as image:
            return min(image.size)

    return list(_in_threads(shorter_side, names))


def decode_blocks(source: Source, names: list[str], size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the decoded images in order, as blocks of (up to BLOCK_IMAGES, size, size, 3).

    Raises:
        DataError: The first broken image.
    """
    images = _in_threads(lambda name: decode(source, name, size), names)
    while block := list(itertools.islice(images, BLOCK_IMAGES)):
        yield np.stack(block)
