"""A drawn stand-in for real photographs, so that everything runs with no network.

Three superclasses of creatures, told apart by body plan, with eight subclasses each, told apart
by the attributes in `SEEN`; a novel pool of objects (`OBJECTS`); a test split that also shows
subclasses (`UNSEEN`) and a superclass (`FISH`) that training never had. Backgrounds, pose, scale,
place, direction, rotation and light vary in every image and say nothing about its class.

    python -m trainable.data.synthetic --out FOLDER [--seed N]
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from trainable.errors import DataError, Parser, UserError

SIZE = 64  # pixels a side
_DRAWN = 2 * SIZE  # pixels a side while drawing: halving at the end smooths the edges

# Made once: a picture draws about thirty ellipses and limbs.
_CIRCLE = np.stack([f(np.arange(24) * math.pi / 12) for f in (np.cos, np.sin)], axis=1)  # 24 x 2
_STEPS = np.linspace(0, 1, 9)[:, None]  # 9 x 1

Point = tuple[float, float]
Fill = tuple[int, int, int] | int  # RGB on the picture, 0 or 255 on a mask
RGB = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Creature:
    """One subclass: a body plan and the attributes that tell it from the others of that plan."""

    form: str
    """A key of `_FORMS`; for the known creatures, the superclass."""
    name: str
    coat: str
    """Colour of the body, a key of `_COLOURS`."""
    mark: str = "black"
    """Colour of the pattern, crest, spines or frill, a key of `_COLOURS`."""
    pattern: str = "plain"
    """plain, stripes, bands, spots, belly, saddle or collar."""
    top: str = "bare"
    """bare; crest (bird, fish), pointed or floppy ears (dog), spines or frill (reptile)."""
    snout: float = 1.0
    """Length of beak, muzzle or jaw; 1 is usual for the body plan, as in the next two."""
    tail: float = 1.0
    legs: float = 1.0


_COLOURS: dict[str, RGB] = {
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

_bird = partial(Creature, form="bird")
_dog = partial(Creature, form="dog")
_reptile = partial(Creature, form="reptile")
_fish = partial(Creature, form="fish")

# Every two rows of a form, seen or not, differ in at least two attributes that show.
SEEN: tuple[Creature, ...] = (
    _bird(name="robin", coat="brown", mark="red", pattern="belly"),
    _bird(name="thrush", coat="brown", mark="white", pattern="spots"),
    _bird(name="lark", coat="brown", mark="white", pattern="stripes", top="crest"),
    _bird(name="jay", coat="blue", mark="white", pattern="belly", top="crest", tail=1.6),
    _bird(name="kingfisher", coat="blue", mark="red", pattern="belly", snout=2.2, tail=0.5),
    _bird(name="crow", coat="black", snout=1.6),
    _bird(name="magpie", coat="black", mark="white", pattern="belly", tail=2.0),
    _bird(name="stork", coat="white", mark="black", pattern="saddle", snout=2.2, legs=1.9),
    _dog(name="labrador", coat="tan", top="floppy"),
    _dog(name="shepherd", coat="tan", mark="black", pattern="saddle", top="pointed"),
    _dog(name="beagle", coat="white", mark="brown", pattern="saddle", top="floppy"),
    _dog(name="dalmatian", coat="white", mark="black", pattern="spots", top="floppy"),
    _dog(name="husky", coat="grey", mark="white", pattern="belly", top="pointed", tail=1.6),
    _dog(name="greyhound", coat="grey", top="floppy", snout=1.8, legs=1.4),
    _dog(name="dachshund", coat="brown", top="floppy", snout=1.6, legs=0.5),
    _dog(name="brindle", coat="brown", mark="black", pattern="stripes", top="pointed", tail=0.4),
    _reptile(name="iguana", coat="green", mark="olive", top="spines", tail=1.5),
    _reptile(name="chameleon", coat="green", mark="yellow", pattern="stripes", legs=1.4),
    _reptile(name="crocodile", coat="olive", mark="black", top="spines", snout=2.4, legs=0.7),
    _reptile(name="skink", coat="olive", mark="yellow", pattern="bands", legs=0.5),
    _reptile(name="gecko", coat="yellow", mark="black", pattern="spots", tail=0.6),
    _reptile(name="agama", coat="yellow", mark="blue", pattern="collar", legs=1.2),
    _reptile(name="monitor", coat="grey", mark="yellow", pattern="spots", snout=1.6, tail=1.5),
    _reptile(name="dragon", coat="grey", mark="red", top="frill", legs=1.3),
)
UNSEEN: tuple[Creature, ...] = (
    _bird(name="hoopoe", coat="tan", mark="black", pattern="stripes", top="crest", snout=2.2),
    _bird(name="starling", coat="black", mark="white", pattern="spots", tail=0.6),
    _bird(name="heron", coat="grey", mark="blue", top="crest", snout=2.0, legs=1.9),
    _dog(name="collie", coat="black", mark="white", pattern="collar", top="pointed", tail=1.5),
    _dog(name="pug", coat="tan", top="floppy", snout=0.3, tail=0.5, legs=0.6),
    _dog(name="hyenadog", coat="tan", mark="brown", pattern="spots", top="pointed"),
    _reptile(name="tegu", coat="black", mark="white", pattern="stripes", tail=1.4),
    _reptile(name="basilisk", coat="green", mark="blue", pattern="bands", top="frill", legs=1.5),
    _reptile(name="tuatara", coat="brown", mark="white", pattern="spots", top="spines", tail=0.6),
)
FISH: tuple[Creature, ...] = (
    _fish(name="carp", coat="olive", mark="tan", pattern="belly"),
    _fish(name="clownfish", coat="rust", mark="white", pattern="stripes", tail=0.8),
    _fish(name="trout", coat="grey", mark="black", pattern="spots", snout=1.5),
    _fish(name="perch", coat="green", mark="black", pattern="stripes", top="crest", tail=1.4),
)


@dataclass(frozen=True, kw_only=True)
class _Pen:
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


Painter = Callable[[_Pen, Generator], None]


def _shade(colour: RGB, factor: float) -> RGB:
    r, g, b = (min(255, round(value * factor)) for value in colour)
    return r, g, b


def _colour(name: str, rng: Generator, spread: float = 14.0) -> RGB:
    """Return the named colour, moved by noise that neighbouring coats can overlap in."""
    r, g, b = np.clip(rng.normal(_COLOURS[name], spread), 0, 255).astype(int).tolist()
    return r, g, b


def _any_colour(rng: Generator) -> RGB:
    return _colour(str(rng.choice([*_COLOURS])), rng)


def _pattern(
    pen: _Pen, rng: Generator, pattern: str, fill: Fill, body: Callable[[_Pen, Fill], None]
) -> None:
    """Draw the pattern, cut to the shape that `body` draws."""
    if pattern == "plain":
        return
    size = pen.image.size
    inside, marks = (replace(pen, image=Image.new("L", size)) for _ in range(2))
    body(inside, 255)
    shift, wide = rng.uniform(-0.05, 0.05), rng.uniform(0.08, 0.12)
    match pattern:
        case "stripes":
            for x in np.arange(-1.5, 0.7, 0.24) + shift:
                marks.limb(((x, -0.6), (x + 0.1, 0), (x, 0.6)), (wide, wide), 255)
        case "bands":
            for y in np.arange(-0.25, 0.35, 0.17) + shift:
                marks.limb(((-1.5, y), (-0.3, y - 0.05), (0.7, y)), (0.06, 0.06), 255)
        case "spots":
            for x in np.arange(-1.4, 0.7, 0.21):
                for y in np.arange(-0.4, 0.5, 0.19):
                    dx, dy = rng.uniform(-0.05, 0.05, 2)
                    marks.blob((x + dx, y + dy), (wide * 0.6, wide * 0.6), 255)
        case "belly":
            marks.blob((0.15, 0.3 + shift), (0.6, 0.28), 255)
        case "saddle":
            marks.blob((-0.15 + shift, -0.14), (0.36, 0.26), 255)
        case "collar":
            marks.limb(((0.22, -0.5), (0.36, 0), (0.36, 0.5)), (0.2, 0.2), 255)
        case _:
            raise AssertionError(pattern)
    pen.image.paste(fill, mask=ImageChops.darker(inside.image, marks.image))


def _eye(pen: _Pen, at: Point, radius: float) -> None:
    pen.blob(at, (radius, radius), (240, 236, 214))
    pen.blob((at[0] + radius / 4, at[1]), (radius * 0.65, radius * 0.65), (14, 12, 12))


def _draw_bird(creature: Creature, pen: _Pen, rng: Generator) -> None:
    coat, mark = _colour(creature.coat, rng), _colour(creature.mark, rng)
    horn, dark = _shade(_colour("yellow", rng), 0.85), _shade(coat, 0.72)
    lean, nod = rng.uniform(-0.45, -0.1), rng.uniform(-0.06, 0.06)
    tall = 0.3 * (creature.legs - 1)  # long legs go with a long neck
    step, foot = rng.uniform(-0.12, 0.12), 0.3 + 0.42 * creature.legs
    head = (0.45 + nod, -0.42 - tall + nod)

    def body(on: _Pen, fill: Fill) -> None:
        on.blob((0, 0), (0.56, 0.36), fill, lean)
        on.limb(((0.25, -0.05), (0.42, -0.2), head), (0.5, 0.3), fill)

    for x, swing in ((-0.08, step), (0.1, -step)):
        pen.limb(((x, 0.25), (x + swing, foot / 2), (x + swing, foot)), (0.07, 0.06), horn)
        pen.blob((x + swing + 0.05, foot), (0.12, 0.035), horn)
    end = (-0.42 - 0.42 * creature.tail, 0.18 - 0.3 * lean * creature.tail + nod)
    pen.limb(((-0.25, 0.02), (-0.45, 0.1), end), (0.24, 0.2), dark)
    if creature.top == "crest":
        x, y = head
        pen.poly([(x + 0.12, y - 0.12), (x - 0.3, y - 0.42), (x - 0.2, y + 0.04)], mark)
    body(pen, coat)
    pen.blob(head, (0.24, 0.21), coat)
    _pattern(pen, rng, creature.pattern, mark, body)
    wing = lean - rng.uniform(-0.1, 0.2)
    pen.blob((-0.16, -0.02), (0.38, 0.17), dark, wing)
    x, y = head[0] + 0.17, head[1]
    pen.poly([(x, y - 0.08), (x + 0.1 + 0.22 * creature.snout, y + 0.05), (x, y + 0.11)], horn)
    _eye(pen, (x - 0.09, y - 0.04), 0.06)


def _draw_dog(creature: Creature, pen: _Pen, rng: Generator) -> None:
    coat, mark = _colour(creature.coat, rng), _colour(creature.mark, rng)
    dark, nod, wag = _shade(coat, 0.75), rng.uniform(-0.1, 0.1), rng.uniform(-0.15, 0.15)
    head, foot = (0.62, -0.45 + nod), 0.2 + 0.5 * creature.legs

    def body(on: _Pen, fill: Fill) -> None:
        on.blob((-0.08, 0), (0.52, 0.23), fill)
        on.blob((0.27, 0.01), (0.27, 0.28), fill)
        on.blob((-0.4, 0.0), (0.22, 0.24), fill)
        on.limb(((0.3, 0), (0.42, -0.25), head), (0.44, 0.24), fill)

    for x, fill in ((-0.36, dark), (0.22, dark), (-0.48, coat), (0.36, coat)):
        swing = rng.uniform(-0.16, 0.16)
        knee = (x - 0.06 + swing / 2, (0.1 + foot) / 2)
        pen.limb(((x, 0.05), knee, (x + swing, foot)), (0.2, 0.11), fill)
        pen.blob((x + swing + 0.05, foot + 0.01), (0.1, 0.05), fill)
    end = (-0.62 - 0.22 * creature.tail + wag, -0.15 - 0.42 * creature.tail)
    pen.limb(((-0.52, -0.08), (-0.62 - 0.25 * creature.tail, -0.1), end), (0.13, 0.06), coat)
    x, y = head
    if creature.top == "pointed":
        pen.poly([(x - 0.05, y - 0.1), (x + 0.02, y - 0.4), (x + 0.13, y - 0.1)], dark)
    body(pen, coat)
    _pattern(pen, rng, creature.pattern, mark, body)
    pen.blob(head, (0.2, 0.18), coat)
    nose = (x + 0.16 + 0.16 * creature.snout, y + 0.08)
    pen.limb(((x, y + 0.04), (x + 0.1, y + 0.06), nose), (0.26, 0.15), coat)
    pen.blob((nose[0] + 0.06, nose[1] - 0.03), (0.055, 0.05), (20, 18, 18))
    if creature.top == "pointed":
        pen.poly([(x - 0.18, y - 0.06), (x - 0.14, y - 0.4), (x + 0.02, y - 0.14)], coat)
    else:
        pen.blob((x - 0.15, y + 0.08), (0.1, 0.24), dark, rng.uniform(0.1, 0.4))
    _eye(pen, (x + 0.07, y - 0.04), 0.045)


def _draw_reptile(creature: Creature, pen: _Pen, rng: Generator) -> None:
    coat, mark = _colour(creature.coat, rng), _colour(creature.mark, rng)
    dark, nod, wave = _shade(coat, 0.75), rng.uniform(-0.08, 0.08), rng.uniform(-0.3, 0.3)
    head, foot = (0.66, -0.06 + nod), 0.14 + 0.26 * creature.legs
    end = (-0.55 - 0.48 * creature.tail, 0.12 + wave)

    def body(on: _Pen, fill: Fill) -> None:
        on.blob((0.05, 0.04), (0.5, 0.22), fill)
        on.limb(((0.3, 0.03), (0.45, 0), head), (0.28, 0.2), fill)
        on.limb(((-0.25, 0.05), (-0.6, 0.15 - wave), end), (0.3, 0.03), fill)

    for x, out, fill in ((-0.2, -1, dark), (0.28, 1, dark), (-0.3, -1, coat), (0.38, 1, coat)):
        swing = rng.uniform(-0.08, 0.14)
        toe = (x + out * (0.08 + swing), foot)
        pen.limb(((x, 0.1), (x + out * 0.26, 0.06), toe), (0.13, 0.08), fill)
        pen.limb((toe, toe, (toe[0] + 0.1, foot + 0.02)), (0.07, 0.04), fill)
    x, y = head
    if creature.top == "frill":
        pen.blob((x - 0.12, y), (0.13, 0.32), mark, rng.uniform(-0.2, 0.2))
    if creature.top == "spines":
        for at in np.linspace(-0.5, 0.5, 8):
            up = -0.13 * math.sqrt(max(0.0, 1 - (at / 0.55) ** 2))
            tip = (at - 0.08, up - 0.16)
            pen.poly([(at - 0.08, up + 0.1), tip, (at + 0.08, up + 0.1)], mark)
    body(pen, coat)
    _pattern(pen, rng, creature.pattern, mark, body)
    pen.blob(head, (0.19, 0.13), coat)
    jaw = (x + 0.1 + 0.14 * creature.snout, y + 0.04)
    pen.limb(((x, y + 0.02), (x + 0.1, y + 0.02), jaw), (0.22, 0.1), coat)
    pen.limb(((x + 0.04, y + 0.08), (x + 0.1, y + 0.07), jaw), (0.03, 0.02), _shade(coat, 0.45))
    _eye(pen, (x + 0.04, y - 0.07), 0.055)


def _draw_fish(creature: Creature, pen: _Pen, rng: Generator) -> None:
    coat, mark = _colour(creature.coat, rng), _colour(creature.mark, rng)
    dark, wave = _shade(coat, 0.75), rng.uniform(-0.12, 0.12)
    back = -0.6 - 0.3 * creature.tail

    def body(on: _Pen, fill: Fill) -> None:
        on.blob((0.05, 0), (0.62, 0.32), fill)
        on.limb(((-0.2, 0), (-0.45, 0), (-0.6, wave / 2)), (0.5, 0.12), fill)

    fork = (back + 0.16, wave)
    pen.poly([(-0.5, 0), (back, -0.34 + wave), fork, (back, 0.34 + wave)], dark)
    high = -0.6 if creature.top == "crest" else -0.44
    pen.poly([(0.25, -0.2), (-0.05, high), (-0.38, high + 0.12), (-0.3, -0.1)], dark)
    pen.poly([(0.1, 0.2), (-0.12, 0.48), (-0.2, 0.2)], dark)
    body(pen, coat)
    _pattern(pen, rng, creature.pattern, mark, body)
    lips = (0.6 + 0.1 * creature.snout, 0.04)
    pen.limb(((0.4, 0.02), (0.5, 0.02), lips), (0.36, 0.1), coat)
    pen.limb(((0.3, -0.2), (0.18, 0), (0.3, 0.2)), (0.03, 0.03), dark)
    pen.blob((0.02, 0.08 + wave / 2), (0.18, 0.08), dark, 0.4 + wave)
    _eye(pen, (0.46, -0.08), 0.07)


_FORMS = {"bird": _draw_bird, "dog": _draw_dog, "reptile": _draw_reptile, "fish": _draw_fish}


def _car(pen: _Pen, rng: Generator) -> None:
    paint, roof = _any_colour(rng), rng.uniform(-0.5, -0.3)
    back, front = rng.uniform(-0.6, -0.4), rng.uniform(0.2, 0.45)
    pen.poly([(back - 0.2, 0), (back, roof), (front, roof), (front + 0.25, 0)], paint)
    pen.poly([(-0.95, 0.25), (-0.9, -0.05), (0.85, -0.02), (0.95, 0.25)], paint)
    for a, b in ((back + 0.05, -0.12), (-0.04, front)):
        pen.poly([(a - 0.1, 0), (a, roof + 0.06), (b, roof + 0.06), (b, 0)], (190, 216, 230))
    for x in (-0.55, 0.55):
        pen.blob((x, 0.26), (0.2, 0.2), (28, 28, 30))
        pen.blob((x, 0.26), (0.09, 0.09), (170, 170, 174))


def _house(pen: _Pen, rng: Generator) -> None:
    wall, roof, door = (_any_colour(rng) for _ in range(3))
    wide, high = rng.uniform(0.45, 0.8), rng.uniform(0.4, 0.6)
    pen.poly([(-wide, 0.6), (-wide, -0.1), (wide, -0.1), (wide, 0.6)], wall)
    pen.poly([(-wide - 0.12, -0.1), (0, -0.1 - high), (wide + 0.12, -0.1)], roof)
    pen.poly([(-0.1, 0.6), (-0.1, 0.22), (0.1, 0.22), (0.1, 0.6)], door)
    for x in (-0.32, 0.2):
        pen.poly([(x, 0.2), (x, 0.02), (x + 0.15, 0.02), (x + 0.15, 0.2)], (232, 224, 150))


def _boat(pen: _Pen, rng: Generator) -> None:
    hull, sail = _any_colour(rng), _any_colour(rng)
    top, lean = rng.uniform(-0.95, -0.6), rng.uniform(-0.1, 0.1)
    pen.limb(((0, 0.3), (0, 0), (lean, top)), (0.06, 0.05), (92, 66, 44))
    pen.poly([(0.06, 0.2), (lean + 0.05, top), (rng.uniform(0.5, 0.75), 0.2)], sail)
    pen.poly([(-0.06, 0.2), (lean - 0.05, top + 0.15), (-0.5, 0.2)], _shade(sail, 0.8))
    pen.poly([(-0.85, 0.28), (0.9, 0.28), (0.6, 0.62), (-0.6, 0.62)], hull)


def _flower(pen: _Pen, rng: Generator) -> None:
    petal, heart, count = _any_colour(rng), _any_colour(rng), int(rng.integers(5, 10))
    stem, leaf = (70, 128, 58), rng.uniform(0.1, 0.4)
    pen.limb(((0, -0.3), (leaf - 0.25, 0.3), (0, 0.95)), (0.07, 0.09), stem)
    pen.blob((0.2, 0.5), (0.24, 0.09), stem, -leaf)
    for turn in np.linspace(0, 2 * math.pi, count, endpoint=False):
        at = (0.36 * math.cos(turn), -0.35 + 0.36 * math.sin(turn))
        pen.blob(at, (0.27, 0.95 / count), petal, turn)
    pen.blob((0, -0.35), (0.17, 0.17), heart)


def _plane(pen: _Pen, rng: Generator) -> None:
    paint, trim, sweep = _any_colour(rng), _any_colour(rng), rng.uniform(0.2, 0.5)
    far = _shade(trim, 0.7)
    pen.poly([(0.2, -0.02), (-0.1 - sweep, -0.5), (-0.3 - sweep, -0.5), (-0.2, 0)], far)
    pen.poly([(-0.6, 0), (-0.98, -0.42), (-0.8, -0.42), (-0.4, 0)], trim)
    pen.blob((0, 0), (0.92, 0.16), paint)
    pen.poly([(0.25, 0.04), (-0.2 - sweep, 0.62), (-0.4 - sweep, 0.62), (-0.2, 0.04)], trim)
    for x in np.arange(-0.4, 0.6, 0.17):
        pen.blob((x, -0.05), (0.04, 0.04), (36, 48, 66))


def _chair(pen: _Pen, rng: Generator) -> None:
    wood, seat = _any_colour(rng), _any_colour(rng)
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
    upper, lower, join, mottle = _SCENES.get(kind, (_any_colour(rng), _any_colour(rng), 0.5, 8))
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
        pen = _Pen(image=image, matrix=np.eye(2) * SIZE, centre=np.full(2, SIZE))
        for _ in range(9):
            x, y, wide, high = rng.uniform((-1, -1, 0.1, 0.1), (1, 1, 0.4, 0.4)).tolist()
            pen.blob((x, y), (wide, high), _any_colour(rng), x)
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


def _picture(painter: Painter, rng: Generator) -> Image.Image:
    """Return one `SIZE` square RGB picture of what `painter` draws."""
    image = _background(rng)
    scale, turn = rng.uniform(0.72, 1.0) * SIZE, rng.normal(0, 0.12)
    c, s = math.cos(turn), math.sin(turn)
    matrix = scale * np.array([[c, -s], [s, c]]) * (rng.choice([-1, 1]), 1)
    painter(_Pen(image=image, matrix=matrix, centre=SIZE + rng.uniform(-9, 9, 2)), rng)
    return _light(image.reduce(2), rng)


def _write_labelled(
    folder: Path, split: str, rows: Sequence[tuple[Creature, int, int]], count: int, key: list[int]
) -> None:
    """Write `count` pictures of each (creature, superclass index, subclass index), mixed.

    The test's table also names the creature, which is all that tells novel ones apart.
    """
    is_test = split == "test"
    (folder / f"{split}_images").mkdir()
    lines = ["image,superclass_index,subclass_index" + (",true_class" if is_test else "")]
    for number, job in enumerate(np.random.default_rng(key).permutation(len(rows) * count)):
        row, index = divmod(int(job), count)
        creature, superclass, subclass = rows[row]
        painter = partial(_FORMS[creature.form], creature)
        # Keyed by what is drawn, not by its place: more images leave the others as they were.
        picture = _picture(painter, np.random.default_rng([*key, row, index]))
        picture.save(folder / f"{split}_images" / f"{number}.png")
        named = f",{creature.name}" if is_test else ""
        lines.append(f"{number}.png,{superclass},{subclass}{named}")
    (folder / f"{split}_data.csv").write_text("\n".join(lines) + "\n")


def _write_all(folder: Path, seed: int, num_train: int, num_novel: int, num_test: int) -> None:
    supers = list(dict.fromkeys(creature.form for creature in SEEN))
    for name, classes in (("superclass", supers), ("subclass", [c.name for c in SEEN])):
        lines = [f"{index},{word}" for index, word in enumerate([*classes, "novel"])]
        (folder / f"{name}_mapping.csv").write_text("\n".join(["index,class", *lines]) + "\n")
    seen = [(creature, supers.index(creature.form), index) for index, creature in enumerate(SEEN)]
    unseen = [(creature, supers.index(creature.form), len(SEEN)) for creature in UNSEEN]
    fish = [(creature, len(supers), len(SEEN)) for creature in FISH]
    _write_labelled(folder, "train", seen, num_train, [seed, 0])
    _write_labelled(folder, "test", [*seen, *unseen, *fish], num_test, [seed, 1])
    for row, (name, painter) in enumerate(OBJECTS.items()):
        (folder / "novel_images" / name).mkdir(parents=True)
        for index in range(num_novel):
            picture = _picture(painter, np.random.default_rng([seed, 2, row, index]))
            picture.save(folder / "novel_images" / name / f"{index}.png")


def write(
    folder: Path,
    *,
    seed: int = 0,
    images_per_subclass: int = 32,
    novel_per_class: int = 300,
    test_per_class: int = 10,
) -> None:
    """Write the data set in the course's layout, whole or not at all.

    Args:
        folder: Where to; made where it is missing.
        seed: Decides every byte, at least 0.
        images_per_subclass: Training images of each of the 24 seen subclasses.
        novel_per_class: Pictures of each of the 6 objects in `novel_images/`.
        test_per_class: Test images of each seen subclass, unseen subclass and kind of fish.

    Raises:
        DataError: `folder` is a file or holds something, or a number is out of range.
    """
    counts = (images_per_subclass, novel_per_class, test_per_class)
    if seed < 0 or min(counts) < 1:
        raise DataError(
            f"`seed` must be at least 0 and every count at least 1, but got {seed=}, {counts=}"
        )
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise DataError(f"the folder to write to must be new or empty: {folder}; name another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".synthetic-") as scratch:
        draft = Path(scratch) / "draft"  # scratch itself is readable by its owner only
        draft.mkdir()
        _write_all(draft, seed, *counts)
        draft.rename(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the default data set to `--out`; return the exit code."""
    parser = Parser(
        prog="python -m trainable.data.synthetic",
        description="Write the built-in data set to a folder.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args(argv)
    try:
        write(arguments.out, seed=arguments.seed)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
