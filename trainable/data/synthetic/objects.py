"""How the things are drawn that are borrowed as novel."""

import math

import numpy as np
from numpy.random import Generator

from trainable.data.synthetic.pen import Painter, Pen, any_colour, shade


def _car(pen: Pen, rng: Generator) -> None:
    paint, roof = any_colour(rng), rng.uniform(-0.5, -0.3)
    back, front = rng.uniform(-0.6, -0.4), rng.uniform(0.2, 0.45)
    pen.poly([(back - 0.2, 0), (back, roof), (front, roof), (front + 0.25, 0)], paint)
    pen.poly([(-0.95, 0.25), (-0.9, -0.05), (0.85, -0.02), (0.95, 0.25)], paint)
    for a, b in ((back + 0.05, -0.12), (-0.04, front)):
        pen.poly([(a - 0.1, 0), (a, roof + 0.06), (b, roof + 0.06), (b, 0)], (190, 216, 230))
    for x in (-0.55, 0.55):
        pen.blob((x, 0.26), (0.2, 0.2), (28, 28, 30))
        pen.blob((x, 0.26), (0.09, 0.09), (170, 170, 174))


def _house(pen: Pen, rng: Generator) -> None:
    wall, roof, door = (any_colour(rng) for _ in range(3))
    wide, high = rng.uniform(0.45, 0.8), rng.uniform(0.4, 0.6)
    pen.poly([(-wide, 0.6), (-wide, -0.1), (wide, -0.1), (wide, 0.6)], wall)
    pen.poly([(-wide - 0.12, -0.1), (0, -0.1 - high), (wide + 0.12, -0.1)], roof)
    pen.poly([(-0.1, 0.6), (-0.1, 0.22), (0.1, 0.22), (0.1, 0.6)], door)
    for x in (-0.32, 0.2):
        pen.poly([(x, 0.2), (x, 0.02), (x + 0.15, 0.02), (x + 0.15, 0.2)], (232, 224, 150))


def _boat(pen: Pen, rng: Generator) -> None:
    hull, sail = any_colour(rng), any_colour(rng)
    top, lean = rng.uniform(-0.95, -0.6), rng.uniform(-0.1, 0.1)
    pen.limb(((0, 0.3), (0, 0), (lean, top)), (0.06, 0.05), (92, 66, 44))
    pen.poly([(0.06, 0.2), (lean + 0.05, top), (rng.uniform(0.5, 0.75), 0.2)], sail)
    pen.poly([(-0.06, 0.2), (lean - 0.05, top + 0.15), (-0.5, 0.2)], shade(sail, 0.8))
    pen.poly([(-0.85, 0.28), (0.9, 0.28), (0.6, 0.62), (-0.6, 0.62)], hull)


def _flower(pen: Pen, rng: Generator) -> None:
    petal, heart, count = any_colour(rng), any_colour(rng), int(rng.integers(5, 10))
    stem, leaf = (70, 128, 58), rng.uniform(0.1, 0.4)
    pen.limb(((0, -0.3), (leaf - 0.25, 0.3), (0, 0.95)), (0.07, 0.09), stem)
    pen.blob((0.2, 0.5), (0.24, 0.09), stem, -leaf)
    for turn in np.linspace(0, 2 * math.pi, count, endpoint=False):
        at = (0.36 * math.cos(turn), -0.35 + 0.36 * math.sin(turn))
        pen.blob(at, (0.27, 0.95 / count), petal, turn)
    pen.blob((0, -0.35), (0.17, 0.17), heart)


def _plane(pen: Pen, rng: Generator) -> None:
    paint, trim, sweep = any_colour(rng), any_colour(rng), rng.uniform(0.2, 0.5)
    far = shade(trim, 0.7)
    pen.poly([(0.2, -0.02), (-0.1 - sweep, -0.5), (-0.3 - sweep, -0.5), (-0.2, 0)], far)
    pen.poly([(-0.6, 0), (-0.98, -0.42), (-0.8, -0.42), (-0.4, 0)], trim)
    pen.blob((0, 0), (0.92, 0.16), paint)
    pen.poly([(0.25, 0.04), (-0.2 - sweep, 0.62), (-0.4 - sweep, 0.62), (-0.2, 0.04)], trim)
    for x in np.arange(-0.4, 0.6, 0.17):
        pen.blob((x, -0.05), (0.04, 0.04), (36, 48, 66))


def _chair(pen: Pen, rng: Generator) -> None:
    wood, seat = any_colour(rng), any_colour(rng)
    back, deep = rng.uniform(-0.95, -0.65), rng.uniform(0.35, 0.55)
    for x, foot in ((-0.4, 0.8), (deep, 0.8), (-0.2, 0.65), (deep + 0.15, 0.65)):
        pen.limb(((x, 0.05), (x, 0.4), (x, foot)), (0.1, 0.08), wood)
    for x in (-0.42, -0.2):
        pen.limb(((x, 0.1), (x, -0.4), (x - 0.08, back)), (0.09, 0.09), wood)
    for y in np.linspace(back + 0.1, -0.2, 3):
        pen.limb(((-0.45, y), (-0.3, y), (-0.22, y - 0.04)), (0.1, 0.1), wood)
    pen.poly([(-0.48, 0.12), (-0.25, -0.06), (deep + 0.2, -0.06), (deep + 0.02, 0.12)], seat)


OBJECTS: dict[str, Painter] = {
    "boat": _boat,
    "car": _car,
    "chair": _chair,
    "flower": _flower,
    "house": _house,
    "plane": _plane,
}
