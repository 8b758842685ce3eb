"""Which creatures there are, told apart by body plan and attributes, and how each is drawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops

from trainable.data.synthetic.pen import Fill, Pen, Point, colour, shade


@dataclass(frozen=True, kw_only=True)
class Creature:
    """One subclass: a body plan and the attributes that tell it from the others of that plan."""

    form: str
    """A key of `FORMS`; for the known creatures, the superclass."""
    name: str
    coat: str
    """Colour of the body, a key of `COLOURS`."""
    mark: str = "black"
    """Colour of the pattern, crest, spines or frill, a key of `COLOURS`."""
    pattern: str = "plain"
    """plain, stripes, bands, spots, belly, saddle or collar."""
    top: str = "bare"
    """bare; crest (bird, fish), pointed or floppy ears (dog), spines or frill (reptile)."""
    snout: float = 1.0
    """Length of beak, muzzle or jaw; 1 is usual for the body plan, as in the next two."""
    tail: float = 1.0
    legs: float = 1.0


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


def _pattern(
    pen: Pen, rng: Generator, pattern: str, fill: Fill, body: Callable[[Pen, Fill], None]
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


def _eye(pen: Pen, at: Point, radius: float) -> None:
    pen.blob(at, (radius, radius), (240, 236, 214))
    pen.blob((at[0] + radius / 4, at[1]), (radius * 0.65, radius * 0.65), (14, 12, 12))


def _draw_bird(creature: Creature, pen: Pen, rng: Generator) -> None:
    coat, mark = colour(creature.coat, rng), colour(creature.mark, rng)
    horn, dark = shade(colour("yellow", rng), 0.85), shade(coat, 0.72)
    lean, nod = rng.uniform(-0.45, -0.1), rng.uniform(-0.06, 0.06)
    tall = 0.3 * (creature.legs - 1)  # long legs go with a long neck
    step, foot = rng.uniform(-0.12, 0.12), 0.3 + 0.42 * creature.legs
    head = (0.45 + nod, -0.42 - tall + nod)

    def body(on: Pen, fill: Fill) -> None:
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


def _draw_dog(creature: Creature, pen: Pen, rng: Generator) -> None:
    coat, mark = colour(creature.coat, rng), colour(creature.mark, rng)
    dark, nod, wag = shade(coat, 0.75), rng.uniform(-0.1, 0.1), rng.uniform(-0.15, 0.15)
    head, foot = (0.62, -0.45 + nod), 0.2 + 0.5 * creature.legs

    def body(on: Pen, fill: Fill) -> None:
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


def _draw_reptile(creature: Creature, pen: Pen, rng: Generator) -> None:
    coat, mark = colour(creature.coat, rng), colour(creature.mark, rng)
    dark, nod, wave = shade(coat, 0.75), rng.uniform(-0.08, 0.08), rng.uniform(-0.3, 0.3)
    head, foot = (0.66, -0.06 + nod), 0.14 + 0.26 * creature.legs
    end = (-0.55 - 0.48 * creature.tail, 0.12 + wave)

    def body(on: Pen, fill: Fill) -> None:
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
    pen.limb(((x + 0.04, y + 0.08), (x + 0.1, y + 0.07), jaw), (0.03, 0.02), shade(coat, 0.45))
    _eye(pen, (x + 0.04, y - 0.07), 0.055)


def _draw_fish(creature: Creature, pen: Pen, rng: Generator) -> None:
    coat, mark = colour(creature.coat, rng), colour(creature.mark, rng)
    dark, wave = shade(coat, 0.75), rng.uniform(-0.12, 0.12)
    back = -0.6 - 0.3 * creature.tail

    def body(on: Pen, fill: Fill) -> None:
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


FORMS = {"bird": _draw_bird, "dog": _draw_dog, "reptile": _draw_reptile, "fish": _draw_fish}
