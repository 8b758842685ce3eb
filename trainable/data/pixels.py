"""How a file becomes pixels: which files are images, and each as square RGB, upright."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from trainable.data.sources import (
    BLOCK_IMAGES,
    IMAGE_SUFFIXES,
    UNREADABLE,
    Source,
    by_suffix,
    in_threads,
    natural_key,
)
from trainable.errors import DataError

MAX_PIXELS = 50_000_000
BROKEN_LISTED = 20

# Only these decoders: Pillow would hand an EPS named .jpg to Ghostscript.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF")
# Told by their first bytes under any name. BMP has two letters there, which begin many a text, and
# TIFF is also what cameras keep their raw pixels in, with a thumbnail as its first picture.
TOLD_BY_CONTENT = ("JPEG", "PNG", "GIF", "WEBP", "AVIF")

BROKEN: tuple[type[Exception], ...] = (*UNREADABLE, Image.DecompressionBombError)
"""What is raised on an image that is broken, or refused."""

FEWEST_LEVELS = 16
"""Grey levels below which a picture of more bits is stretched over all 8 bits."""
WEBP_NOISE = 4
ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B"))
}
"""Layouts of 16-bit colours, of which Pillow keeps a byte, and the one that gives the other."""


# --- Which files are images --------------------------------------------------------------------


def find_images(source: Source, note: Callable[[str], None], prefix: str = "") -> list[str]:
    """Return the entries under `prefix` that are images, in natural order.

    They are told by their suffix, and those of other suffixes by their first bytes. `note` gets a
    line about those told by content, and one about what is left out.
    """
    names = sorted((n for n in source.stamps if n.startswith(prefix)), key=natural_key)
    by_name = {name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}
    Image.init()
    others = [name for name in names if name not in by_name]
    told = zip(others, _are_images(source, others), strict=True)
    by_content = {name for name, is_one in told if is_one}
    if by_content:
        note(f"{source.name}: images by their content, by suffix: {by_suffix(by_content)}")
    left_out = [name for name in others if name not in by_content]
    hidden = [name for name in source.hidden if name.startswith(prefix)]
    if left_out or hidden:
        kinds = [by_suffix(left_out)] if left_out else []
        kinds += [f"hidden {by_suffix(hidden)}"] if hidden else []
        first = (left_out or hidden)[0]
        note(f"{source.name}: left out, as no images: {', '.join(kinds)} (such as {first})")
    return [name for name in names if name in by_name or name in by_content]


def _are_images(source: Source, names: list[str]) -> Iterator[bool]:
    def is_image(name: str) -> bool:
        formats = TOLD_BY_CONTENT if PurePosixPath(name).suffix else (*TOLD_BY_CONTENT, "TIFF")
        try:
            head = source.peek(name)
            # Pillow returns a text where it knows the format and lacks its decoder.
            return any(accept(head) is True for f in formats if (accept := Image.OPEN[f][1]))
        except UNREADABLE:
            return False

    return in_threads(is_image, names)


# --- Decoding ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some decoded images."""

    pixels: npt.NDArray[np.uint8]
    """(N, size, size, 3) RGB."""
    sides: list[int]
    """(N,) the shorter side in pixels that each came with."""
    digests: list[bytes]
    """(N,) SHA-256 of the pixels of each."""


@contextmanager
def _opened(source: Source, name: str) -> Iterator[Image.Image]:
    """Open an image, its header checked and its pixels not yet decoded."""
    with source.open(name) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height}")
        yield image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"at most {MAX_PIXELS:,} pixels are read, and it has more: {error}"
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify its format"  # Pillow's words end in an address
    return str(error) or type(error).__name__


def decode(source: Source, name: str, size: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Return an image as (size, size, 3) RGB, and the shorter side that it came with.

    Upright, its shorter side resized, centre cropped; of an animation the first picture. Raises
    one of `UNREADABLE` or DecompressionBombError on a broken image, or one over `MAX_PIXELS`.
    """
    with _opened(source, name) as image:
        side = min(image.size)
        # A JPEG is decoded at 1/2, 1/4 or 1/8 while that leaves twice the size: 12 megapixels
        # to 224 px in a quarter of the time, pixels differ by 0.2 of 255 on average.
        image.draft(None, (2 * size, 2 * size))
        rgb = _to_rgb(image, lambda: _other_bytes(source, name))
        if turn := _TURNS.get(_orientation(image)):
            rgb = rgb.transpose(turn)
        fitted = ImageOps.fit(rgb, (size, size), method=Image.Resampling.BICUBIC)
        return np.asarray(fitted), side


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that is loaded, 1 where that cannot be told.

    Not ImageOps.exif_transpose: it writes the other tags anew, and dies of one of a wrong type.
    """
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except UNREADABLE:
        return 1


def _to_rgb(image: Image.Image, other_bytes: Callable[[], Image.Image]) -> Image.Image:
    """Return any image as RGB, and of one colour only if it is.

    Where colours have 16 bits, `other_bytes` gives the byte of each that Pillow leaves out.
    """
    layout = _layout(image)
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if layout in _OTHER_BYTE:
        upper, lower = (np.asarray(each).astype(np.uint16) for each in (image, other_bytes()))
        values = upper << 8 | lower
        colours = _to_8_bits(values[..., :3])
        if values.shape[2] == 3:
            return Image.fromarray(colours)
        return _on_paper(Image.fromarray(np.dstack([colours, values[..., 3:] >> 8]).astype("u1")))
    if layout == "LA;16B":  # both bytes of both, as four channels
        grey_hi, grey_lo, alpha, _ = np.moveaxis(np.asarray(other_bytes()), -1, 0)
        grey = _to_8_bits(grey_hi.astype(np.uint16) << 8 | grey_lo)
        return _on_paper(Image.fromarray(np.dstack([grey, grey, grey, alpha])))
    if image.has_transparency_data:
        return _on_paper(image.convert("RGBA"))
    return image.convert("RGB")


def _layout(image: Image.Image) -> str:
    """Return how the pixels of a file lie in it, in Pillow's words, before they are loaded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _other_bytes(source: Source, name: str) -> Image.Image:
    """Decode an image of 16 bits a colour again, for the bytes that were left out."""
    with _opened(source, name) as image:
        layout = _layout(image)
        if layout == "LA;16B":
            image._mode = "RGBA"
        wanted = _OTHER_BYTE.get(layout, "RGBA")
        image.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(wanted, *tile.args[1:]) if isinstance(tile.args, tuple) else wanted)
            for tile in image.tile  # type: ignore[attr-defined]
        ]
        image.load()
        return image.copy()


def _to_8_bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Return values of any range as 0 to 255, scaled by what they hold.

    Black stays black. White is the largest number of as many bits as the largest value has, at
    least 8; for fractions it is 1. Where hardly a level would remain, or values are negative, the
    smallest becomes black and the largest white.

    Raises:
        ValueError: Values that are not finite.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("its pixels must be finite numbers")
    is_fraction = values.dtype.kind == "f" and high <= 1
    white = 1.0 if is_fraction else 2.0 ** max(8, int(high).bit_length()) - 1
    levels = (high - low) * 255 / white
    loses_levels = levels < FEWEST_LEVELS and (values.dtype.kind == "f" or white > 255)
    if high > low and (low < 0 or loses_levels):
        black, white = low, high - low
    else:
        black = min(low, 0.0)
    scaled = (values.astype(np.float64) - black) * (255 / white)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _on_paper(image: Image.Image) -> Image.Image:
    """Return an RGBA image on white, the page that such pictures are drawn for.

    The same transparency throughout says nothing and is ignored (many programs leave the fourth
    byte at 0), unless there is nothing else; what would be white on white is put on black.
    """
    colours = image.convert("RGB")
    if len(set(image.getchannel("A").getextrema())) == 1:
        # WEBP gives the colour of what is transparent throughout some noise.
        spread = max(high - low for low, high in colours.getextrema())  # type: ignore[misc]
        if spread > WEBP_NOISE:
            return colours
    for paper in ("white", "black"):
        page = Image.new("RGBA", image.size, paper)
        shown = Image.alpha_composite(page, image).convert("RGB")
        if not is_one_colour(shown):
            return shown
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def is_one_colour(image: Image.Image | npt.NDArray[np.uint8]) -> bool:
    """Return whether all pixels of an RGB image are the same."""
    if isinstance(image, Image.Image):
        return all(low == high for low, high in image.getextrema())  # type: ignore[misc]
    return bool((image[0] == image[0, 0]).all() and (image == image[0, 0]).all())


def shorter_sides(source: Source, names: list[str]) -> list[int]:
    """Return each image's shorter side in pixels, from its header; 0 where it cannot be read."""

    def shorter_side(name: str) -> int:
        try:
            with _opened(source, name) as image:
                return min(image.size)
        except BROKEN:
            return 0  # decoding it says why

    return list(in_threads(shorter_side, names))


def decode_blocks(
    source: Source, names: list[str], size: int, broken: dict[str, str]
) -> Iterator[Block]:
    """Yield the images in order, up to BLOCK_IMAGES at a time.

    One that cannot be decoded is black and of side 0, and its name gets the reason in `broken`.
    """

    def decoded(name: str) -> tuple[npt.NDArray[np.uint8], int, bytes]:
        try:
            pixels, side = decode(source, name, size)
        except BROKEN as error:
            broken[name] = _reason(error)
            pixels, side = np.zeros((size, size, 3), np.uint8), 0
        return pixels, side, hashlib.sha256(pixels.data).digest()

    images = in_threads(decoded, names)
    while block := list(itertools.islice(images, BLOCK_IMAGES)):
        pixels, sides, digests = zip(*block, strict=True)
        yield Block(pixels=np.stack(pixels), sides=list(sides), digests=list(digests))


def check_whole(broken: Mapping[str, Mapping[str, str]], remedy: str) -> None:
    """Check that no image is broken: `broken` has the reason by name, for each source.

    Raises:
        DataError: Some are. It lists the first `BROKEN_LISTED`, and says what to do, `remedy`.
    """
    number = sum(len(reasons) for reasons in broken.values())
    if not number:
        return
    each = [
        f"{source}: {name} is broken or no image ({reasons[name]})"
        for source, reasons in broken.items()
        for name in sorted(reasons, key=natural_key)
    ]
    more = f"; and {number - BROKEN_LISTED:,} more" if number > BROKEN_LISTED else ""
    counted = f"{number:,} images are broken: " if number > 1 else ""
    raise DataError(f"{counted}{'; '.join(each[:BROKEN_LISTED])}{more}; {remedy}")
