"""Drawn pictures whose whole content is known: charts, shapes with their boxes, and lines of words.

Each has a caption and questions with short answers. A box is four numbers, left, top, right and bottom, in
percent of the picture's sides.

Knows how to draw from a random generator and what is true of the drawing. Knows nothing of files or tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..nano.questions import NUMBERS, with_article
from ..nano.shapes import COLOURS, SHAPES, WORDS, background, discs_apart, paint, tone

_INKS = tuple(name for name in COLOURS if name != "white")
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_MOST_BARS, _HIGHEST = 5, 9
_MOST_SHAPES = 3
_MOST_WORDS = 3


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture, what it shows, and questions with their answers."""

    image: Image.Image
    caption: str
    questions: tuple[tuple[str, str], ...]


def draw_chart(rng: np.random.Generator, size: int) -> Figure:
    """A bar chart of two to five bars, each in a colour of its own, their values from 1 to 9 above them or to
    be read off the lines.
    """
    count = int(rng.integers(2, _MOST_BARS + 1))
    names = [str(name) for name in rng.choice(_INKS, count, replace=False)]
    values = [int(value) for value in rng.choice(np.arange(1, _HIGHEST + 1), count, replace=False)]
    image = Image.new("RGB", (size, size), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(8, size // 11))
    left, bottom, unit = size * 0.12, size * 0.9, size * 0.75 / _HIGHEST
    is_labelled = bool(rng.random() < 0.5)
    for value in range(0, _HIGHEST + 1, 3):
        y = bottom - value * unit
        draw.line((left, y, size * 0.97, y), fill=(210, 210, 210))
        draw.text((size * 0.02, y - size * 0.06), str(value), font=font, fill=_INK)
    step = size * 0.85 / count
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        x = left + (index + 0.15) * step
        draw.rectangle((x, bottom - value * unit, x + 0.7 * step, bottom), fill=tone(rng, name))
        if is_labelled:
            draw.text((x + 0.2 * step, bottom - value * unit - size * 0.1), str(value), font=font, fill=_INK)
    draw.line((left, bottom, size * 0.97, bottom), fill=_INK)
    shown = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    pick = int(rng.integers(count))
    return Figure(
        image,
        f"a bar chart with {NUMBERS[count]} bars: {shown}",
        (
            (f"What is the value of the {names[pick]} bar?", str(values[pick])),
            ("Which bar is the tallest?", names[values.index(max(values))]),
            ("Which bar is the shortest?", names[values.index(min(values))]),
            ("How many bars are there?", NUMBERS[count]),
            ("Read the chart.", shown),
        ),
    )


def draw_boxed(rng: np.random.Generator, size: int) -> Figure:
    """One to three different shapes, each with its box."""
    count = int(rng.integers(1, _MOST_SHAPES + 1))
    pairs = rng.choice(len(SHAPES) * len(COLOURS), count, replace=False)
    kinds = [SHAPES[int(pair) % len(SHAPES)] for pair in pairs]
    colours = [list(COLOURS)[int(pair) // len(SHAPES)] for pair in pairs]
    image = background(rng, size, size, set(colours))
    draw, found = ImageDraw.Draw(image), []
    for disc, kind, colour in zip(discs_apart(rng, count, size, size), kinds, colours, strict=True):
        x, y, radius = disc
        paint(draw, kind, (x, y), radius, tone(rng, colour))
        edges = (x - radius, y - radius, x + radius, y + radius)
        box = " ".join(str(round(100 * edge / size)) for edge in edges)
        found.append((f"{colour} {kind}", box))
    name, box = found[int(rng.integers(count))]
    return Figure(
        image,
        " and ".join(f"{with_article(thing)} at {place}" for thing, place in sorted(found)),
        (
            (f"Where is the {name}? Give its box.", box),
            (f"What is at {box}?", with_article(name)),
        ),
    )


def draw_words(rng: np.random.Generator, size: int) -> Figure:
    """Two or three words, one below the other, each in its colour."""
    count = int(rng.integers(2, _MOST_WORDS + 1))
    words = [str(word) for word in rng.choice(WORDS, count, replace=False)]
    colours = [str(name) for name in rng.choice(list(COLOURS), count, replace=False)]
    image = background(rng, size, size, set(colours))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(int(size * rng.uniform(0.14, 0.2)))
    for index, (word, colour) in enumerate(zip(words, colours, strict=True)):
        width = draw.textbbox((0, 0), word, font=font)[2]
        x = rng.uniform(0, max(1, size - width))
        draw.text((x, (index + 0.2) * size / count), word, font=font, fill=COLOURS[colour])
    pick = int(rng.integers(count))
    return Figure(
        image,
        f"the words {' '.join(words)}",
        (
            ("Read all words.", " ".join(words)),
            (f"Which word is {colours[pick]}?", words[pick]),
            (f"What colour is the word {words[pick]}?", colours[pick]),
        ),
    )


# What each kind of source is called in a mixture, and what draws it.
FIGURES: Mapping[str, Callable[[np.random.Generator, int], Figure]] = {
    "charts": draw_chart,
    "boxes": draw_boxed,
    "lines": draw_words,
}
