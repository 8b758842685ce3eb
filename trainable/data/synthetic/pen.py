"""Draws shapes and colours in a subject's own frame."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Made once: a picture draws about thirty ellipses and limbs.
_CIRCLE = np.stack([f(np.arange(24) * math.pi / 12) for f in (np.cos, np.sin)], axis=1)  # 24 x 2
_STEPS = np.linspace(0, 1, 9)[:, None]  # 9 x 1

Point = tuple[float, float]
Fill = tuple[int, int, int] | int  # RGB on the picture, 0 or 255 on a mask
RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "black": (42, 40, 46),
    "white": (236, 232, 222),
    "grey": (132, 136, 142),
    "brown": (122, 84, 52),
    "tan": (204, 164, 108),
    "rust": (178, 88, 42),
    "red": (196, 48, 40),
    "yellow": (226, 192, 58),
    "green": (84, 138, 62),
    "olive": (112, 116, 60),
    "blue": (62, 108, 184),
}


@dataclass(frozen=True, kw_only=True)
class Pen:
    """Draws in a subject's own frame: x forward, y down, the subject within about -1 to 1."""

    image: Image.Image
    matrix: NDArray[np.float64]
    """2 x 2, from the subject's frame to pixels: scale, rotation and direction."""
    centre: NDArray[np.float64]
    """(x, y) in pixels of the frame's origin."""

    def poly(self, points: Sequence[Point] | NDArray[np.float64], fill: Fill) -> None:
        """Fill the polygon with these corners."""
        corners = np.asarray(points) @ self.matrix.T + self.centre
        ImageDraw.Draw(self.image).polygon(corners.ravel().tolist(), fill=fill)

    def blob(self, at: Point, radii: Point, fill: Fill, tilt: float = 0.0) -> None:
        """Fill an ellipse, turned by `tilt` radians (positive lowers its front)."""
        c, s = math.cos(tilt), math.sin(tilt)
        self.poly(_CIRCLE * radii @ np.array([[c, s], [-s, c]]) + at, fill)

    def limb(self, path: tuple[Point, Point, Point], widths: Point, fill: Fill) -> None:
        """Fill a band along the quadratic Bezier curve of `path`, from one width to the other."""
        a, b, c = np.asarray(path)
        t = _STEPS
        line = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        along = (1 - t) * (b - a) + t * (c - b)
        normal = along[:, ::-1] * (-1, 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
        half = normal * (widths[0] + t * (widths[1] - widths[0])) / 2
        self.poly(np.concatenate([line + half, (line - half)[::-1]]), fill)
        self.blob(path[2], (widths[1] / 2, widths[1] / 2), fill)


Painter = Callable[[Pen, Generator], None]


def shade(colour: RGB, factor: float) -> RGB:
    r, g, b = (min(255, round(value * factor)) for value in colour)
    return r, g, b


def colour(name: str, rng: Generator, spread: float = 14.0) -> RGB:
    """Return the named colour, moved by noise that neighbouring coats can overlap in."""
    r, g, b = np.clip(rng.normal(COLOURS[name], spread), 0, 255).astype(int).tolist()
    return r, g, b


def any_colour(rng: Generator) -> RGB:
    return colour(str(rng.choice([*COLOURS])), rng)
