"""Images as a request to a served model brings them, decoded as `results.predict` decodes files."""

import base64
import io
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image

from trainable.data.pixels import BROKEN_LISTED, decode_blocks
from trainable.data.sources import Source

SHAPES = "(height, width), or with a last axis of 1 (grey), 3 (RGB) or 4 (RGBA)"
_CHANNELS = (1, 3, 4)
_URL_SAFE = str.maketrans("-_", "+/")


class RequestError(MlflowException):
    """Images that cannot be answered; MLflow's server says it with the status 400."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=INVALID_PARAMETER_VALUE)
        self._reason = reason

    def serialize_as_json(self) -> str:
        """Return what the server sends: the reason, without all images of the request before it."""
        self.message = self._reason
        return str(super().serialize_as_json())  # type: ignore[no-untyped-call]


def decoded(images: Any, size: int) -> npt.NDArray[np.uint8]:
    """Return the images of a request as (N, size, size, 3) RGB.

    Args:
        images: One axis of images, each a base64 string of a file's bytes or an array of `SHAPES`
            with whole numbers from 0 to 255; also a table with one column of them.
        size: Side in pixels.

    Raises:
        RequestError: None of these, or a broken image; it counts them from 0.
    """
    sent = _listed(images)
    if not sent:
        raise RequestError("there must be images in the request, but got none")
    broken: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for number, image in enumerate(sent):
        try:
            files[str(number)] = _file(image)
        except ValueError as error:
            broken[str(number)] = str(error)
    pixels = [block.pixels for block in decode_blocks(_source(files), [*files], size, broken)]
    if broken:
        raise RequestError(_reason(broken, len(sent)))
    return np.concatenate(pixels)


def _listed(images: Any) -> list[Any]:
    """Return the images of a request one by one."""
    if isinstance(images, pd.DataFrame):
        if len(images.columns) != 1:
            raise RequestError(f"expected one column of images, but got {len(images.columns)}")
        return list(images.iloc[:, 0])
    if isinstance(images, list | tuple):
        return list(images)
    array = images if isinstance(images, np.ndarray) else np.array(images, dtype=object)
    return list(array) if array.ndim else [array.item()]


def _file(image: Any) -> bytes:
    """Return an image as the bytes of a file.

    Raises:
        ValueError: With the reason why it is none.
    """
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, str):
        return _from_base64(image)
    return _from_array(image)


def _from_base64(text: str) -> bytes:
    # Pages send data:image/png;base64,TEXT.
    _, comma, rest = text.partition(",") if text.startswith("data:") else ("", "", "")
    letters = "".join((rest if comma else text).split()).translate(_URL_SAFE)
    try:
        return base64.b64decode(letters, validate=True)
    except ValueError as error:
        raise ValueError(
            f"a text must be the bytes of an image file as base64, but got {text[:40]!r} ({error})"
        ) from error


def _from_array(image: Any) -> bytes:
    """Return an array as the bytes of a PNG, which keeps every pixel."""
    try:
        is_of_objects = isinstance(image, np.ndarray) and image.dtype == object
        array = np.array(image.tolist() if is_of_objects else image)
    except ValueError as error:
        raise ValueError("its rows and its pixels must all have the same length") from error
    is_grey = array.ndim == 2
    if not (is_grey or (array.ndim == 3 and array.shape[2] in _CHANNELS)) or 0 in array.shape:
        raise ValueError(_wrong_shape(array.shape))
    if is_grey and array.shape[1] in _CHANNELS:
        raise ValueError(_wrong_shape(array.shape))  # a row of one picture, sent without a list
    if array.dtype.kind not in "ui" or array.min() < 0 or array.max() > 255:
        what = f"{array.min()} to {array.max()}" if array.dtype.kind in "uif" else "others"
        raise ValueError(
            f"its pixels must be whole numbers from 0 to 255, but got {what} ({array.dtype})"
        )
    pixels = array.astype(np.uint8)
    with io.BytesIO() as file:
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
        picture.save(file, "PNG", compress_level=0)
        return file.getvalue()


def _wrong_shape(shape: tuple[int, ...]) -> str:
    return (
        f"an image must be a text, or an array of shape {SHAPES}, but got {shape}; a single image "
        "goes into a list of one"
    )


def _source(files: dict[str, bytes]) -> Source:
    """Return files in memory as a source of images."""

    def opened(name: str) -> IO[bytes]:
        return io.BytesIO(files[name])

    return Source(
        name="the request", place=Path(), stamps=dict.fromkeys(files, ""), folders=set(),
        hidden=[], open=opened, peek=lambda name: files[name][:16],
    )  # fmt: skip


def _reason(broken: dict[str, str], count: int) -> str:
    """Return which images of a request are broken, counted from 0, and why."""
    each = [f"image {name}: {broken[name]}" for name in sorted(broken, key=int)]
    more = f"; and {len(each) - BROKEN_LISTED} more" if len(each) > BROKEN_LISTED else ""
    head = f"{len(each)} of {count} images cannot be read (the first is image 0): "
    return head + "; ".join(each[:BROKEN_LISTED]) + more
