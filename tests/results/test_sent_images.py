"""Images of a request become the pixels that their files become, or are named with the reason."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from results.sent_images import RequestError, decoded
from trainable.data.dataset import load_images

SIZE = 24
SHAPES = {
    "grey": (30, 41), "grey_channel": (41, 30, 1), "rgb": (24, 24, 3), "wide": (20, 90, 3),
    "rgba": (33, 26, 4), "tiny": (2, 2, 3),
}  # fmt: skip


def drawn(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def file_of(array: Any, kind: str = "PNG", **options: Any) -> bytes:
    with io.BytesIO() as file:
        shown = array[..., 0] if array.shape[2:] == (1,) else array
        Image.fromarray(shown).save(file, kind, **options)
        return file.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def sent(images: Any) -> Any:
    """Return images as MLflow's server gives them to the model: from JSON, as an array."""
    return np.array(json.loads(json.dumps(images)), dtype=object)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Files of several kinds, also on the disk in `tmp_path`."""
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {f"{i}.png": file_of(drawn(shape)) for i, shape in enumerate(SHAPES.values())}
    made["6.jpg"] = file_of(drawn((50, 30, 3)), "JPEG", exif=turned)
    made["7.webp"] = file_of(drawn((40, 40, 4)), "WEBP")
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    return made


def test_files_as_base64_are_the_pixels_that_the_files_are(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    _, expected = load_images(str(tmp_path), SIZE, print)
    texts = [text_of(content) for content in files.values()]
    pixels = decoded(sent(texts), SIZE)
    assert pixels.shape == (len(files), SIZE, SIZE, 3)
    np.testing.assert_array_equal(pixels, expected.numpy())
    url_safe = [f"data:image/x;base64,{t.replace('+', '-').replace('/', '_')}\n" for t in texts]
    for other in (pd.DataFrame({"image": texts}), sent(url_safe), [*files.values()]):
        np.testing.assert_array_equal(decoded(other, SIZE), pixels)
    np.testing.assert_array_equal(decoded(np.array(texts[0], dtype=object), SIZE), pixels[:1])


def test_arrays_of_any_shape_are_the_pixels_that_their_files_are() -> None:
    arrays = [drawn(shape) for shape in SHAPES.values()]
    expected = decoded([file_of(each) for each in arrays], SIZE)
    together = sent([each.tolist() for each in arrays])
    np.testing.assert_array_equal(decoded(together, SIZE), expected)
    for place, array in enumerate(arrays):
        for given in (sent([array.tolist()]), array[None]):
            np.testing.assert_array_equal(decoded(given, SIZE), expected[place : place + 1])
    mixed = sent([arrays[0].tolist(), text_of(file_of(arrays[1])), arrays[2].tolist()])
    np.testing.assert_array_equal(decoded(mixed, SIZE), expected[:3])


GOOD = [[[0, 10, 20], [5, 6, 7]], [[0, 10, 255], [5, 6, 7]]]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (text_of(b"no image at all"), "cannot identify its format"),
        (text_of(file_of(drawn((64, 64, 3)))[:300]), "truncated"),
        ("robin.jpg", "must be the bytes of an image file as base64, but got 'robin.jpg'"),
        ("https://example.org/rötkehlchen.jpg", "as base64, but got 'https://example"),
        ("", "cannot identify its format"),
        ([[0.5] * 9] * 9, r"whole numbers from 0 to 255, but got 0.5 to 0.5 \(float64\)"),
        ([[256] * 9] * 9, r"but got 256 to 256"),
        ([[-1] * 9] * 9, r"but got -1 to -1"),
        ([[float("nan")] * 9] * 9, "but got nan to nan"),
        ([[True] * 9] * 9, "but got others"),
        ([["a"] * 9] * 9, "but got others"),
        ([[1, 2, 3, 4, 5], [1, 2]], "must all have the same length"),
        ([[[1, 2]] * 9] * 9, r"or with a last axis of .*, but got \(9, 9, 2\)"),
        ([[[1] * 9] * 9] * 3, r"but got \(3, 9, 9\)"),
        ([[[[1] * 3] * 9] * 9], r"but got \(1, 9, 9, 3\)"),
        ([1, 2, 3], r"but got \(3,\); a single image goes into a list of one"),
        ([], r"but got \(0,\)"),
        (7, r"but got \(\)"),
        (None, r"but got \(\)"),
        ({"b64": "abc"}, r"but got \(\)"),
    ],
)
def test_broken_image_is_named_with_its_reason(image: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as raised:
        decoded(sent([GOOD, image, text_of(file_of(drawn((9, 9, 3))))]), SIZE)
    head = "1 of 3 images cannot be read (the first is image 0): image 1: "
    assert str(raised.value).startswith(head)
    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"  # 400


def test_all_broken_images_are_named_but_not_endlessly() -> None:
    with pytest.raises(RequestError) as raised:
        decoded(sent(["?"] * 30), SIZE)
    message = str(raised.value)
    assert message.startswith("30 of 30 images cannot be read")
    assert "; image 19: " in message
    assert message.endswith("; and 10 more")


def test_one_image_without_a_list_around_it_is_not_taken_for_its_rows() -> None:
    for shape in ((40, 50, 3), (40, 50)):
        with pytest.raises(RequestError, match="a single image goes into a list of one"):
            decoded(sent(drawn(shape).tolist()), SIZE)


@pytest.mark.parametrize("nothing", [[], pd.DataFrame({"image": []})])
def test_request_without_images_is_refused(nothing: Any) -> None:
    with pytest.raises(RequestError, match="there must be images in the request"):
        decoded(nothing, SIZE)


def test_server_is_told_the_reason_without_the_images() -> None:
    error = RequestError("the reason")
    error.message = f"Failed to predict data '{'A' * 100}'. \nError: {error.message}"
    answer = json.loads(error.serialize_as_json())
    assert answer["message"] == "the reason"


def test_list_of_arrays_of_several_shapes_is_taken() -> None:
    grey, colour = np.full((8, 8), 40, np.uint8), np.full((8, 12, 3), 40, np.uint8)
    assert decoded([grey, colour], 8).shape == (2, 8, 8, 3)
