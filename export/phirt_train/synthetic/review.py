"""A review of made texts: by rules, and by how likely a model finds them. What is dropped is
listed, with why.

Knows texts and reviewers. Knows nothing of how a text was made; a model is a function that scores.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from phirt_train.data.messages import write_lines

T = TypeVar("T")
Reviewer = Callable[[str], str | None]  # why a text is dropped; None where it is kept

_SLOT = re.compile(r"\{[a-z_]*\}|\bNone\b|\bnan\b|<<missing>>|\[object ")
_WORD = re.compile(r"[^\W\d_]+")
_MOST_REPEATED = 0.3
_LEAST_LETTERS = 0.5


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A text that was dropped, and why."""

    text: str
    reason: str


class Review(Generic[T]):
    """Goes over made items; `dropped` grows as they are read.

    Args:
        text_of: what of an item is reviewed.
        reviewers: the first that objects has the word.
    """

    def __init__(self, text_of: Callable[[T], str], reviewers: Sequence[Reviewer]) -> None:
        self._text_of, self._reviewers = text_of, reviewers
        self.dropped: list[Dropped] = []

    def keep(self, items: Iterable[T]) -> Iterator[T]:
        """The items to which nobody objects."""
        for item in items:
            text = self._text_of(item)
            objections = (reviewer(text) for reviewer in self._reviewers)
            reason = next((one for one in objections if one is not None), None)
            if reason is None:
                yield item
            else:
                self.drop(text, reason)

    def drop(self, text: str, reason: str) -> None:
        """Lists a text as dropped."""
        self.dropped.append(Dropped(text, reason))

    def counts(self) -> dict[str, int]:
        """How many were dropped for what."""
        return dict(Counter(one.reason for one in self.dropped).most_common())

    def write(self, path: Path) -> None:
        """Lists what was dropped as JSON lines."""
        write_lines(path, (dataclasses.asdict(one) for one in self.dropped))


def length(least: int, most: int) -> Reviewer:
    """Objects to texts with fewer or more words."""

    def review(text: str) -> str | None:
        count = len(text.split())
        return "too short" if count < least else "too long" if count > most else None

    return review


def unfilled(text: str) -> str | None:
    """Objects to the places of a template where nothing was put in."""
    return "a place was not filled" if _SLOT.search(text) else None


def repetitive(text: str) -> str | None:
    """Objects where many lines or runs of three words occur again."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = text.lower().split()
    threes = list(zip(words, words[1:], words[2:], strict=False))
    for items in (lines, threes):
        if len(items) >= 5 and 1 - len(set(items)) / len(items) > _MOST_REPEATED:
            return "repeats itself"
    return None


def unfinished(text: str) -> str | None:
    """Objects to a text that does not end as one."""
    return None if text.rstrip().endswith((".", "!", "?", '"', ")", "`", ":")) else "does not end"


def few_letters(text: str) -> str | None:
    """Objects to what is mostly signs and digits."""
    letters = sum(map(len, _WORD.findall(text)))
    filled = sum(not character.isspace() for character in text)
    return "few letters" if letters < _LEAST_LETTERS * max(1, filled) else None


def words_of(texts: Iterable[str]) -> frozenset[str]:
    """All words of texts, in lower case."""
    return frozenset(word for text in texts for word in _WORD.findall(text.lower()))


def strange_words(known: frozenset[str], most: float) -> Reviewer:
    """Objects where more than this share of the words is in none of the texts whose words are known: a model
    that has learnt little makes them up, and finds them likely.
    """

    def review(text: str) -> str | None:
        words = _WORD.findall(text.lower())
        strange = sum(word not in known for word in words)
        return "strange words" if strange > most * len(words) else None

    return review


def seen_before() -> Reviewer:
    """Objects to a text that it has seen, spaces and case left out."""
    seen: set[bytes] = set()

    def review(text: str) -> str | None:
        digest = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()
        if digest in seen:
            return "seen before"
        seen.add(digest)
        return None

    return review


def likely(score: Callable[[str], float], least: float, most: float) -> Reviewer:
    """Objects by a model's word: `score` gives bits for a byte of text. What is cheaper than `least` says
    nothing new, what is dearer than `most` makes no sense to it.
    """

    def review(text: str) -> str | None:
        bits = score(text)
        return "too predictable" if bits < least else "too unlikely" if bits > most else None

    return review


RULES: tuple[Reviewer, ...] = (length(20, 2000), unfilled, repetitive, unfinished, few_letters)
