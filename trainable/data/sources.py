"""Where images come from: a folder or a zip, read in place, and nothing in it is trusted."""

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import struct
import time
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar
from zipfile import ZIP_DEFLATED, ZIP_STORED

from trainable.checkpoint import write_atomically
from trainable.errors import DataError, nearest
from trainable.urls import without_file_scheme

MAX_ENTRY_BYTES = 200_000_000
MAX_ENTRIES = 2_000_000
SETTLED_NS = 2 * 10**9
"""A file that changed less than this ago may change again under the same time."""
BLOCK_IMAGES = 1024  # worked on at a time: at most 154 MB at 224 px

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng",
    ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff",
)  # fmt: skip
# What Pillow and zipfile raise on damaged bytes: most were seen in 200,000 randomly damaged images,
# RuntimeError in AVIF.
UNREADABLE: tuple[type[Exception], ...]
UNREADABLE = (OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError)
UNREADABLE += (ArithmeticError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
UTF8_NAME = 0x800  # flag of a zip entry whose name is UTF-8
UNICODE_PATH = 0x7075  # extra field of a zip entry: its name again, in UTF-8

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one folder or zip, hidden ones left out, under relative names with `/`.

    Names are in Unicode's composed form (NFC), so that a zip from a Mac names what its folder does.
    """

    name: str
    """As the user wrote it, for messages."""

    place: Path
    """Where it is, links resolved."""

    stamps: dict[str, str]
    """For each entry, a text that changes with its content, see `_stamp`; empty where none can."""

    folders: set[str]
    """Every folder in it, also empty ones."""

    hidden: list[str]
    """Entries that are images by their suffix, and hidden by a dot before their own name or a
    folder's.
    """

    open: Callable[[str], IO[bytes]]
    """Opens one entry, by its name."""

    peek: Callable[[str], bytes]
    """Returns the first 16 bytes of one entry."""

    remarks: tuple[str, ...] = ()
    """What was assumed in reading the names, a line each."""

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


@dataclass(kw_only=True)
class _Listing:
    """What is found in a folder or zip while it is listed."""

    name: str
    entries: dict[str, tuple[str, str | zipfile.ZipInfo]] = field(default_factory=dict)
    """Stamp, and the path or ZipInfo, of each entry by its shown name."""
    folders: set[str] = field(default_factory=set)
    hidden: list[str] = field(default_factory=list)

    def add(self, shown: str, stamp: str, what: str | zipfile.ZipInfo) -> None:
        """Take an entry in.

        Raises:
            DataError: There is one of that name, or there are too many.
        """
        if shown in self.entries:
            raise DataError(
                f"{self.name}: every file must have a name of its own, there are two {shown!r} "
                "(that look alike, or of which one replaces the other); rename or remove one"
            )
        self.entries[shown] = (stamp, what)
        if len(self.entries) > MAX_ENTRIES:
            raise DataError(
                f"{self.name}: at most {MAX_ENTRIES:,} files are read, this has more: split it"
            )


def source_path(text: str | Path) -> Path:
    """Return the path that the user wrote, `~` expanded.

    Raises:
        DataError: It is empty, as from a variable that is not set.
    """
    if not str(text).strip():
        raise DataError("a folder or a .zip is needed, got an empty text: is a variable not set?")
    try:
        return Path(without_file_scheme(str(text))).expanduser()
    except RuntimeError as error:  # nobody of that name
        raise DataError(f"there must be a folder or a .zip at {str(text)!r}: {error}") from error


@contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """List a folder or a zip and keep it open for reading; a zip is never extracted.

    Raises:
        DataError: Nothing there, not a zip, a name that is refused (an absolute path or one with
            `..`, two that look alike), or an entry that is (over `MAX_ENTRY_BYTES`, encrypted, a
            link to nowhere), or one entry more than `MAX_ENTRIES`.
    """
    root, name = source_path(path), str(path)
    if root.is_dir():
        listing = _Listing(name=name)
        try:
            _list_folder(listing, root)
        except OSError as error:
            raise DataError(f"{name}: cannot be listed ({error})") from error
        paths = {shown: str(what) for shown, (_, what) in listing.entries.items()}
        yield Source(
            name=name,
            place=root.resolve(),
            stamps={shown: stamp for shown, (stamp, _) in listing.entries.items()},
            folders=listing.folders,
            hidden=listing.hidden,
            open=lambda entry: (root / paths[entry]).open("rb"),
            peek=lambda entry: _head(root / paths[entry]),
        )
        return
    if not root.is_file():
        hint = nearest(name, ("synthetic", "cifar100"))
        raise DataError(f"there must be a folder or a .zip at {name!r}, found neither{hint}")
    try:
        stamp = _stamp(root.stat())
        archive = zipfile.ZipFile(root)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"{name} must be a folder or a .zip, and is no readable zip ({error})"
        ) from error
    with archive:
        listing = _Listing(name=name)
        remarks = _list_zip(listing, archive, stamp)
        infos = {n: i for n, (_, i) in listing.entries.items() if isinstance(i, zipfile.ZipInfo)}
        yield Source(
            name=name,
            place=root.resolve(),
            stamps={shown: stamp for shown, (stamp, _) in listing.entries.items()},
            folders=listing.folders,
            hidden=listing.hidden,
            open=lambda entry: _unpack(archive, infos[entry]),
            peek=lambda entry: _unpacked_head(archive, infos[entry]),
            remarks=remarks,
        )


def natural_key(name: str) -> tuple[str, str]:
    """Sort key that reads digits as numbers: 2.jpg before 10.jpg."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), name), name


def by_suffix(names: Iterable[str]) -> str:
    """Return how many of the names have which suffix, such as "2 .heic, 1 .txt"."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    most_first = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{count:,} {suffix}" for suffix, count in most_first)


# --- Listing -----------------------------------------------------------------------------------


def _stamp(status: os.stat_result) -> str:
    """Return a text that another content of the file would not have; empty if it is too new.

    Names and mtime can be given to any content. Nobody gives a ctime, it is the kernel's.
    """
    if time.time_ns() - max(status.st_ctime_ns, status.st_mtime_ns) < SETTLED_NS:
        return ""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _is_hidden_image(*parts: str) -> bool:
    """Return whether a file that is hidden, or in a hidden folder, is worth a word.

    ._x.jpg holds what a Mac knows about x.jpg, and __MACOSX nothing else.
    """
    is_of_mac = "__MACOSX" in parts or parts[-1].startswith("._")
    return not is_of_mac and parts[-1].lower().endswith(IMAGE_SUFFIXES)


def _hidden_images(entry: "os.DirEntry[str]", shown: str) -> list[str]:
    """Return the shown names of what are images in a hidden entry: itself, or those below it."""
    if not entry.is_dir(follow_symlinks=False):
        return [shown] if _is_hidden_image(entry.name) else []
    top = shown.removesuffix(entry.name)
    return [
        top + os.path.relpath(folder, Path(entry.path).parent) + "/" + name
        for folder, _, names in os.walk(entry.path)
        for name in names
        if _is_hidden_image(*Path(folder).parts, name)
    ]


def _composed(name: str, where: str) -> str:
    """Return a file's name as it is shown.

    Raises:
        DataError: It is not UTF-8, so that it could be neither shown nor stored.
    """
    if name.isascii():
        return name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: names of files must be UTF-8, {name!a} is not; rename it"
        ) from error
    return unicodedata.normalize("NFC", name)


def _list_folder(listing: _Listing, root: Path) -> None:
    pending = [("", "")]  # of each folder its path and its shown name
    while pending:
        prefix, shown_prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                shown = shown_prefix + _composed(entry.name, listing.name)
                if _is_hidden(entry.name):
                    listing.hidden += _hidden_images(entry, shown)
                    continue
                _check_link(listing.name, root, path, shown, entry)
                if entry.is_dir():
                    listing.folders.add(shown)
                    pending.append((path + "/", shown + "/"))
                    continue
                status = entry.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(f"{listing.name}: {shown} is no regular file; remove it")
                listing.add(shown, _stamp(status), path)


def _check_link(where: str, root: Path, path: str, shown: str, entry: "os.DirEntry[str]") -> None:
    if not entry.is_symlink():
        return
    target = Path(os.path.realpath(root / path))
    if not target.exists():
        raise DataError(f"{where}: {shown} is a link to nothing ({target}); mend or remove it")
    if Path(os.path.realpath((root / path).parent)).is_relative_to(target):
        raise DataError(f"{where}: {shown} is a link to a folder that it is in; remove it")


def _list_zip(listing: _Listing, archive: zipfile.ZipFile, stamp: str) -> tuple[str, ...]:
    """List the entries of a zip; return what was assumed."""
    assumed: list[str] = []
    for info in archive.infolist():
        name, is_sure = _zip_name(info)
        written = name.replace("\\", "/")
        parts = [part for part in written.split("/") if part not in ("", ".")]
        is_cut = "\0" in info.orig_filename  # Python's zipfile drops what follows
        if written.startswith("/") or ".." in parts or written[1:2] == ":" or is_cut:
            raise DataError(
                f"{listing.name}: the zip must hold relative paths without '..' or NUL, got "
                f"{info.orig_filename!r}; do not trust it, or zip the folder again"
            )
        shown = _composed("/".join(parts), listing.name)
        if any(map(_is_hidden, parts)):
            if not written.endswith("/") and _is_hidden_image(*parts):
                listing.hidden.append(shown)
            continue
        if not is_sure:
            assumed.append(shown)
        folder = shown if written.endswith("/") else shown.rpartition("/")[0]
        while folder and folder not in listing.folders:
            listing.folders.add(folder)
            folder = folder.rpartition("/")[0]
        if written.endswith("/"):
            continue
        _check_entry(listing.name, info)
        listing.add(shown, stamp and f"{stamp} {info.CRC:08x}", info)
    if not assumed:
        return ()
    return (
        f"{listing.name}: {len(assumed):,} names are not in UTF-8 and read as code page 437, such "
        f"as {assumed[0]!r}: zip the folder again if that is wrong",
    )


def _zip_name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """Return an entry's name, and whether its encoding is sure.

    A Mac's archives are in UTF-8 without the flag that says so, and old ones in the code page of
    some computer. The name may be there twice, the second time in UTF-8.
    """
    if info.flag_bits & UTF8_NAME or info.filename.isascii():
        return info.filename, True
    raw = info.filename.encode("cp437")
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field_bytes, extra = extra[4 : 4 + size], extra[4 + size :]
        # A version, the checksum of the name that it repeats, and the name.
        if kind == UNICODE_PATH and field_bytes[1:5] == struct.pack("<I", zlib.crc32(raw)):
            raw = field_bytes[5:]
    try:
        return raw.decode(), True
    except UnicodeDecodeError:
        return info.filename, False


def _check_entry(where: str, info: zipfile.ZipInfo) -> None:
    if info.file_size > MAX_ENTRY_BYTES:
        raise DataError(
            f"{where}: an entry must unpack to at most {MAX_ENTRY_BYTES:,} bytes, "
            f"{info.filename!r} declares {info.file_size:,}; remove it"
        )
    # zipfile bounds what it unpacks for these two methods only. Bit 0 says encrypted.
    if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise DataError(
            f"{where}: entries must be stored or deflated, without a password, "
            f"{info.filename!r} is not; zip the folder again"
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(
            f"{where}: links in a zip lead nowhere, {info.filename!r} is one; zip the folder again "
            "with the files themselves"
        )


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    with archive.open(info) as file:
        # Whole, so that the CRC is checked, and by the declared size: without it, zipfile would
        # unpack an entry that lies about its size to the end before it says so.
        return io.BytesIO(file.read(info.file_size))


def _unpacked_head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(16)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


# --- Digests -----------------------------------------------------------------------------------


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
    fresh = dict(zip(wanted, in_threads(lambda name: _digest(source, name), wanted), strict=True))
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


def in_threads(function: Callable[[str], T], names: list[str]) -> Iterator[T]:
    """Yield what `function` returns for each name, in order; a block of names is under way."""
    # Pillow releases the GIL. More threads than cores were slower (64 px, 2 cores: 6 by a half).
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(names), BLOCK_IMAGES):
            yield from pool.map(function, names[start : start + BLOCK_IMAGES])
