"""Pages of the web and entries of reference works in other words: what stands in a page as an exchange, a
summary, or a lesson with an exercise.

A large model would rewrite; here forms do, so each is plain. Knows pages, entries and forms. A text is a
function of its source and a generator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

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


def word_lessons(entries: Sequence[Mapping[str, Any]], count: int, seed: int) -> Iterator[str]:
    """Pages of a schoolbook on words: a few meanings with their uses, then questions with answers."""
    rng = np.random.default_rng((seed, 73))
    useful = [entry for entry in entries if entry.get("example")]
    for number in range(1, count + 1):
        if not useful:
            return
        chosen = [useful[int(i)] for i in rng.integers(0, len(useful), 5)]
        lines = [f"Lesson {number}. Words and what they mean.\n"]
        for entry in chosen:
            lines.append(
                f'The {entry["part"]} "{entry["word"]}" means: {entry["definition"]}. '
                f"For example: {entry['example']}."
            )
        lines.append("\nQuestions.")
        for index, entry in enumerate(chosen, 1):
            lines.append(f"{index}. Which word means: {entry['definition']}? Answer: {entry['word']}.")
        yield "\n".join(lines)


def number_lessons(count: int, seed: int) -> Iterator[str]:
    """Pages of a schoolbook on sums: a rule, worked examples, exercises with solutions."""
    rng = np.random.default_rng((seed, 74))
    for _ in range(count):
        kind = int(rng.integers(3))
        a, b = (int(x) for x in rng.integers(2, 60, 2))
        a, b = max(a, b), min(a, b)
        rule, sign, value = (
            ("To add two numbers, count on from the larger one", "+", a + b),
            ("To take a number away, count back from the larger one", "-", a - b),
            ("To multiply, add a number to itself as often as the other says", "*", a * b),
        )[kind]
        lines = [f"{rule}. Example: {a} {sign} {b} = {value}.\n", "Exercises and their solutions."]
        for _ in range(5):
            c, d = sorted((int(x) for x in rng.integers(1, 40, 2)), reverse=True)
            result = (c + d, c - d, c * d)[kind]
            lines.append(f"{c} {sign} {d} = {result}")
        yield "\n".join(lines)
