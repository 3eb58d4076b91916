"""Drawn films: a few frames in which a shape moves, appears, leaves or changes its colour.

Each has a question that no single frame answers. Knows how to draw from a random generator and what is true
of the frames. Knows nothing of files or tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from ..nano.questions import NUMBERS
from ..nano.shapes import COLOURS, SHAPES, background, discs_apart, paint, tone

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_RADIUS = 0.14
_TRAVEL = 0.28  # of a side, from the middle to where a moving shape ends
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclasses.dataclass(frozen=True)
class Film:
    """Frames in their order, a question about all of them, and its answer."""

    frames: tuple[Image.Image, ...]
    question: str
    answer: str


def draw_film(rng: np.random.Generator, size: int, frames: int) -> Film:
    """A film of so many frames, two at least."""
    assert 2 <= frames <= len(_ORDINALS), "a film has two to eight frames"
    kinds = (_moving, _counting, _changing)
    return kinds[int(rng.integers(len(kinds)))](rng, size, frames)


def _moving(rng: np.random.Generator, size: int, frames: int) -> Film:
    shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
    direction = str(rng.choice(list(_DIRECTIONS)))
    ground, fill = background(rng, size, size, {colour}), tone(rng, colour)
    offset, shown = rng.uniform(-0.15, 0.15), []
    for at in np.linspace(-_TRAVEL, _TRAVEL, frames):
        along, across = _DIRECTIONS[direction]
        x = 0.5 + (at * along if along else offset)
        y = 0.5 + (at * across if across else offset)
        image = ground.copy()
        paint(ImageDraw.Draw(image), shape, (x * size, y * size), _RADIUS * size, fill)
        shown.append(image)
    return Film(tuple(shown), f"Which way does the {shape} move?", direction)


def _counting(rng: np.random.Generator, size: int, frames: int) -> Film:
    """From frame to frame there is one more, or one less, or as many as before."""
    shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
    ground, fill = background(rng, size, size, {colour}), tone(rng, colour)
    counts = [int(rng.integers(1, 5))]
    while len(counts) < frames:
        counts.append(int(np.clip(counts[-1] + rng.integers(-1, 2), 1, 6)))
    discs, shown = discs_apart(rng, 6, size, size), []
    for count in counts:
        image = ground.copy()
        for x, y, radius in discs[:count]:
            paint(ImageDraw.Draw(image), shape, (x, y), radius, fill)
        shown.append(image)
    if rng.random() < 0.5:
        place = int(rng.integers(frames))
        return Film(
            tuple(shown), f"How many shapes are in the {_ORDINALS[place]} picture?", NUMBERS[counts[place]]
        )
    change = counts[-1] - counts[0]
    answer = "more" if change > 0 else "fewer" if change < 0 else "as many"
    return Film(tuple(shown), "Are there more or fewer shapes at the end than at the beginning?", answer)


def _changing(rng: np.random.Generator, size: int, frames: int) -> Film:
    """In one of the frames the shape takes another colour and keeps it."""
    shape = str(rng.choice(SHAPES))
    before, after = (str(name) for name in rng.choice(list(COLOURS), 2, replace=False))
    ground, turn = background(rng, size, size, {before, after}), int(rng.integers(1, frames))
    x, y = rng.uniform(0.3, 0.7, 2) * size
    shown = []
    for index in range(frames):
        image = ground.copy()
        fill = COLOURS[after if index >= turn else before]
        paint(ImageDraw.Draw(image), shape, (float(x), float(y)), _RADIUS * size, fill)
        shown.append(image)
    if rng.random() < 0.5:
        return Film(tuple(shown), f"In which picture has the {shape} changed?", _ORDINALS[turn])
    return Film(tuple(shown), f"What happens to the {shape}?", f"it turns from {before} to {after}")
