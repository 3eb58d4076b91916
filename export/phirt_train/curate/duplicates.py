"""Which documents, and which paragraphs, have occurred before.

Documents are numbered through all shards in their order, and of those that are the same the first stays.
Keys are compared a part of their range at a time, so that no task sees more than its part. Knows keys,
numbers and clusters; where keys come from is `minhash`'s matter, or a hash's of the normal form.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from phirt_train.curate.words import digest, normalized

Numbers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

MIN_PARAGRAPH_WORDS = 8  # shorter ones, such as headings, may repeat
_PARAGRAPH = re.compile(r"\n\s*\n|\n")


def exact_key(text: str) -> Keys:
    """uint64 [2]: the first half of the SHA-256 of the normal form."""
    return np.frombuffer(digest(text)[:16], dtype="<u8").astype(np.uint64)


def paragraphs(text: str) -> list[str]:
    """What line ends part."""
    return [part for part in _PARAGRAPH.split(text) if part.strip()]


def paragraph_keys(text: str) -> Keys:
    """uint64 [paragraphs]: of each, from the SHA-256 of its normal form; 0 for those that may repeat."""
    return np.array([_paragraph_key(part) for part in paragraphs(text)], dtype=np.uint64)


def _paragraph_key(paragraph: str) -> int:
    plain = normalized(paragraph)
    if plain.count(" ") + 1 < MIN_PARAGRAPH_WORDS:
        return 0
    return int.from_bytes(hashlib.sha256(plain.encode("utf-8")).digest()[:8], "little") | 1


def without_paragraphs(text: str, repeated: Iterable[int]) -> str:
    """The text without the paragraphs of these numbers; the others stand a line each."""
    gone = set(repeated)
    return "\n".join(part for number, part in enumerate(paragraphs(text)) if number not in gone)


def equal_pairs(keys: Keys, numbers: Numbers) -> Numbers:
    """Pairs of documents with equal keys: int64 [pairs, 2], each the cluster's first and another one.

    Args:
        keys: [documents] or [documents, columns].
        numbers: the documents' numbers, rising.
    """
    columns = keys if keys.ndim > 1 else keys[:, None]
    order = np.lexsort((numbers, *columns.T[::-1]))
    if not len(order):
        return np.zeros((0, 2), dtype=np.int64)
    ordered = columns[order]
    begins = np.concatenate([[True], np.any(ordered[1:] != ordered[:-1], axis=1)])
    firsts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    pairs: Numbers = np.stack([numbers[order][firsts], numbers[order]], axis=1)[~begins]
    return pairs


def in_part(keys: Keys, part: int, parts: int) -> npt.NDArray[np.bool_]:
    """Which keys belong to a part of the range of keys; by the first column."""
    first = keys[:, 0] if keys.ndim > 1 else keys
    return np.asarray(first % np.uint64(parts) == np.uint64(part))


class Clusters:
    """Sets of documents that are the same; the one with the least number stands for a set (union-find)."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def join(self, pairs: Numbers) -> None:
        """Each pair's two sets become one."""
        for left, right in pairs.tolist():
            first, second = self._root(left), self._root(right)
            if first != second:
                self._parents[max(first, second)] = min(first, second)

    def duplicates(self) -> npt.NDArray[np.bool_]:
        """Which documents are not their set's first."""
        return np.array([self._root(one) != one for one in range(len(self._parents))], dtype=bool)

    def _root(self, one: int) -> int:
        parents = self._parents
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        return one


def repeated_places(keys: Keys, places: Numbers) -> Numbers:
    """The places, [keys, 2] of document and paragraph, whose key has occurred at a place before; 0 is no
    key.
    """
    real = keys != 0
    keys, places = keys[real], places[real]
    order = np.lexsort((places[:, 1], places[:, 0], keys))
    again = (
        np.concatenate([[False], keys[order][1:] == keys[order][:-1]]) if len(order) else np.zeros(0, bool)
    )
    found: Numbers = places[order][again]
    return found
