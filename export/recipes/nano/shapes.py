"""Rendered scenes: coloured shapes to count, name, and place, and words to read.

Knows how to draw a scene from a random generator and what is true of it. Knows nothing of prompts or tensors.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (214, 40, 40),
    "green": (42, 157, 70),
    "blue": (38, 84, 200),
    "yellow": (250, 205, 40),
    "orange": (244, 130, 30),
    "purple": (130, 60, 170),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
POSITIONS = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
WORDS = [
    "apple",
    "bread",
    "water",
    "house",
    "stone",
    "light",
    "music",
    "river",
    "green",
    "table",
    "chair",
    "paper",
    "clock",
    "horse",
    "sugar",
    "tiger",
    "ocean",
    "plant",
    "smile",
    "money",
    "train",
    "glass",
    "heart",
    "night",
    "cloud",
    "fruit",
    "open",
    "closed",
    "exit",
    "stop",
    "sale",
    "milk",
    "coffee",
    "tea",
    "hello",
    "thanks",
    "welcome",
    "north",
    "south",
    "east",
    "west",
    "left",
    "right",
    "push",
    "pull",
    "free",
    "fresh",
    "start",
    "end",
]


@dataclasses.dataclass(frozen=True)
class Thing:
    """One drawn shape: its kind, colour, and the third of the picture (row, column) its centre lies in."""

    shape: str
    colour: str
    row: int
    column: int

    @property
    def position(self) -> str:
        """The third as words."""
        return POSITIONS[self.row][self.column]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and what it shows: shapes, or a word."""

    image: Image.Image
    things: tuple[Thing, ...]
    word: str | None

    def without_image(self) -> Scene:
        """What the picture shows, without its pixels."""
        return dataclasses.replace(self, image=Image.new("RGB", (1, 1)))


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    def polar(angles: Sequence[float], radii: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (x + r * k * math.sin(a), y - r * k * math.cos(a)) for a, k in zip(angles, radii, strict=True)
        ]

    if shape == "square":
        return [
            (x - r * 0.85, y - r * 0.85),
            (x + r * 0.85, y - r * 0.85),
            (x + r * 0.85, y + r * 0.85),
            (x - r * 0.85, y + r * 0.85),
        ]
    if shape == "triangle":
        return polar([0, 2 * math.pi / 3, 4 * math.pi / 3], [1, 1, 1])
    if shape == "star":
        return polar([k * math.pi / 5 for k in range(10)], [1 if k % 2 == 0 else 0.42 for k in range(10)])
    if shape == "heart":
        turns = [2 * math.pi * k / 40 for k in range(40)]
        return [
            (
                x + r / 17 * 16 * math.sin(t) ** 3,
                y - r / 17 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
            )
            for t in turns
        ]
    a, b = r * 0.32, r
    return [
        (x - a, y - b), (x + a, y - b), (x + a, y - a), (x + b, y - a), (x + b, y + a), (x + a, y + a),
        (x + a, y + b), (x - a, y + b), (x - a, y + a), (x - b, y + a), (x - b, y - a), (x - a, y - a),
    ]  # fmt: skip


def paint(
    draw: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    fill: tuple[int, int, int],
) -> None:
    """Draw one shape."""
    x, y = centre
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        draw.polygon(_outline(shape, x, y, radius), fill=fill)


def background(rng: np.random.Generator, width: int, height: int, avoid: set[str]) -> Image.Image:
    """A plain or shaded ground that differs from every colour in use."""
    pale = "white" not in avoid and rng.random() < 0.3
    while True:
        ground = rng.integers(225 if pale else 60, 256, 3)
        if all(np.abs(ground - np.array(COLOURS[name])).sum() > 130 for name in avoid):
            break
    slope = rng.uniform(-25, 25, (2, 3)) if rng.random() < 0.5 else np.zeros((2, 3))
    ys, xs = np.mgrid[0:height, 0:width]
    shaded = ground + (ys / height - 0.5)[..., None] * slope[0] + (xs / width - 0.5)[..., None] * slope[1]
    return Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8))


def tone(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """A shade near the named colour."""
    red, green, blue = np.clip(np.array(COLOURS[colour]) + rng.integers(-18, 19, 3), 0, 255).tolist()
    return red, green, blue


def discs_apart(
    rng: np.random.Generator, count: int, width: int, height: int
) -> list[tuple[float, float, float]]:
    """Centres and radii of `count` shapes in different ninths, in pixels; few shapes may be large, and none
    touch.
    """
    side = min(width, height)
    # More than three stay so small that neighbours cannot touch; three are drawn again until they do not.
    largest, shift = (0.25, 0.12) if count <= 3 else (0.135, 0.09)
    while True:
        cells = rng.choice(9, count, replace=False)
        radii = side * rng.uniform(0.10, largest, count)
        discs = []
        for cell, radius in zip(cells, radii, strict=True):
            row, column = divmod(int(cell), 3)
            # A third is 0.33 of a side: large shapes keep clear of the picture's edge.
            x = np.clip((column + 0.5 + rng.uniform(-shift, shift)) * width / 3, radius, width - radius)
            y = np.clip((row + 0.5 + rng.uniform(-shift, shift)) * height / 3, radius, height - radius)
            discs.append((float(x), float(y), float(radius)))
        pairs = itertools.combinations(discs, 2)
        if all(math.hypot(a[0] - b[0], a[1] - b[1]) > a[2] + b[2] for a, b in pairs):
            return discs


def draw_scene(rng: np.random.Generator, size: int, max_things: int = 6) -> Scene:
    """One to `max_things` shapes in different ninths of a picture whose longer side is `size` pixels; things
    are in reading order.
    """
    width, height = size, size
    if rng.random() < 0.3:
        height = int(size * rng.uniform(0.7, 1.0))
    count = 1 if rng.random() < 0.35 else int(rng.integers(1, max_things + 1))
    names = [str(name) for name in rng.choice(list(COLOURS), count)]
    kinds = [str(name) for name in rng.choice(SHAPES, count)]
    if count > 1 and rng.random() < 0.5:
        kinds = [kinds[0]] * count
    image = background(rng, width, height, set(names))
    draw = ImageDraw.Draw(image)
    things = []
    for (x, y, radius), kind, colour in zip(
        discs_apart(rng, count, width, height), kinds, names, strict=True
    ):
        paint(draw, kind, (x, y), radius, tone(rng, colour))
        things.append(Thing(kind, colour, int(y * 3 / height), int(x * 3 / width)))
    return Scene(image, tuple(sorted(things, key=lambda thing: (thing.row, thing.column))), None)


def draw_word(rng: np.random.Generator, size: int) -> Scene:
    """A word in one colour on a plain ground."""
    word = str(rng.choice(WORDS))
    shown = word.upper() if rng.random() < 0.3 else word.capitalize() if rng.random() < 0.3 else word
    colour = str(rng.choice(list(COLOURS)))
    height = int(size * rng.uniform(0.4, 1.0))
    image = background(rng, size, height, {colour})
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(int(size * rng.uniform(0.16, 0.26)))
    left, top, right, bottom = draw.textbbox((0, 0), shown, font=font)
    x = rng.uniform(0, max(1, size - (right - left))) - left
    y = rng.uniform(0, max(1, height - (bottom - top))) - top
    draw.text((x, y), shown, font=font, fill=COLOURS[colour])
    return Scene(image, (), word)
