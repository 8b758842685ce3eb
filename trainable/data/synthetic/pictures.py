"""A picture: a scene, a subject in some pose and place, and light."""

import math

import numpy as np
from numpy.random import Generator
from PIL import Image

from trainable.data.synthetic.pen import RGB, Painter, Pen, any_colour

SIZE = 64  # pixels a side
_DRAWN = 2 * SIZE  # pixels a side while drawing: halving at the end smooths the edges

# (upper colour, lower colour, height of the join as a fraction, strength of the mottling)
_SCENES: dict[str, tuple[RGB, RGB, float, float]] = {
    "sky": ((96, 152, 216), (206, 224, 236), 0.6, 8),
    "grass": ((172, 200, 220), (96, 140, 64), 0.35, 12),
    "sand": ((216, 206, 180), (198, 168, 118), 0.4, 8),
    "noise": ((128, 128, 128), (128, 128, 128), 0.5, 26),
}


def _background(rng: Generator) -> Image.Image:
    """Return a `_DRAWN` square RGB scene: one of `_SCENES`, a gradient or a heap of blobs."""
    kind = str(rng.choice([*_SCENES, "gradient", "blobs"]))
    upper, lower, join, mottle = _SCENES.get(kind, (any_colour(rng), any_colour(rng), 0.5, 8))
    soft = 0.05 if kind in ("grass", "sand") else 0.5
    height = np.linspace(0, 1, SIZE)
    blend = np.clip((height - join - rng.uniform(-0.15, 0.15)) / soft + 0.5, 0, 1)[:, None, None]
    scene = np.asarray(upper) * (1 - blend) + np.asarray(lower) * blend
    cells = int(rng.integers(4, 17))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    cloud = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=float)
    scene = scene + (cloud - 128) * mottle / 64
    pixels = np.clip(scene, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels).resize((_DRAWN, _DRAWN), Image.Resampling.BILINEAR)
    if kind == "blobs":
        pen = Pen(image=image, matrix=np.eye(2) * SIZE, centre=np.full(2, SIZE))
        for _ in range(9):
            x, y, wide, high = rng.uniform((-1, -1, 0.1, 0.1), (1, 1, 0.4, 0.4)).tolist()
            pen.blob((x, y), (wide, high), any_colour(rng), x)
    return image


def _light(image: Image.Image, rng: Generator) -> Image.Image:
    """Return the image under another exposure, tint and direction of light, with sensor noise."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    slope = rng.uniform(-0.22, 0.22, 2)
    ramp = (1 + slope[0] * x + slope[1] * y)[:, :, None]
    gain = rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)
    noise = rng.normal(0, rng.uniform(1, 6), (SIZE, SIZE, 3))
    return Image.fromarray(
        np.clip(np.asarray(image, dtype=float) * ramp * gain + noise, 0, 255).astype(np.uint8)
    )


def draw(painter: Painter, rng: Generator) -> Image.Image:
    """Return one `SIZE` square RGB picture of what `painter` draws."""
    image = _background(rng)
    scale, turn = rng.uniform(0.72, 1.0) * SIZE, rng.normal(0, 0.12)
    c, s = math.cos(turn), math.sin(turn)
    matrix = scale * np.array([[c, -s], [s, c]]) * (rng.choice([-1, 1]), 1)
    painter(Pen(image=image, matrix=matrix, centre=SIZE + rng.uniform(-9, 9, 2)), rng)
    return _light(image.reduce(2), rng)
