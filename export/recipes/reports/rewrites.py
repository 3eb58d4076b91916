"""Pages of the web in other words: what stands in a page as an exchange, as notes, or as an exercise.

A large model would rewrite; here forms do, so each is plain. Knows pages and forms. A text is a
function of its source and a generator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_MIN_WORDS = 6


def sentences(text: str) -> list[str]:
    """Sentences of some length."""
    found = (one.strip() for line in text.splitlines() for one in _SENTENCE_END.split(line))
    return [one for one in found if len(one.split()) >= _MIN_WORDS and one[-1] in ".!?"]


def rewrite(title: str, text: str, rng: np.random.Generator) -> str | None:
    """A page as an exchange, as notes, or as a text with a gap; None where it has too few sentences."""
    said = sentences(text)
    if len(said) < 4:
        return None
    form = int(rng.integers(3))
    if form == 0:
        more = "\n".join(f"Student: And what else?\nTeacher: {one}" for one in said[1:6])
        asked = f"Student: What can you tell me about {title}?"
        return f"{asked}\nTeacher: {said[0]}\n{more}\nStudent: Thank you."
    if form == 1:
        notes = "\n".join(f"- {one}" for one in said[1:7])
        return f"{title} in short\n\n{said[0]}\n\nWhat to keep in mind:\n{notes}"
    words = [word for word in said[0].split() if len(word.strip(".,;")) > 4]
    gap = words[int(rng.integers(len(words)))].strip(".,;") if words else said[0].split()[-1].strip(".")
    context = " ".join(said[1:5])
    return (
        f"Read about {title}. {said[0]} {context}\n\nExercise: fill the gap.\n"
        f"{said[0].replace(gap, '____', 1)}\nSolution: {gap}."
    )


def rewrites(pages: Iterable[tuple[str, str]], seed: int) -> Iterator[str]:
    """What forms make of pages (title and text)."""
    rng = np.random.default_rng((seed, 72))
    for title, text in pages:
        if (made := rewrite(title, text, rng)) is not None:
            yield made
