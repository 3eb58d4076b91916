"""Words of a text and numbers for them: one normal form for all that compares texts, 64-bit hashes of words
and of runs of words.

Hashes are the same in every process and on every machine. Knows text. Knows nothing of documents or tasks.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

# Where a script has no blanks between words, each character is one, as what looks at runs of words needs
# them.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: 2^64 by the golden ratio
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finalizer
_SHIFT = np.uint64(33)


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case, compatible forms made equal; punctuation is left out."""
    found = _WORD.findall(text)
    if text.isascii():
        return [word.lower() for word in found]
    return [_folded(word) for word in found]


def placed_words(text: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The words, and where each begins and ends in the text: int64 [words, 2]."""
    matches = list(_WORD.finditer(text))
    places = np.array([match.span() for match in matches], dtype=np.int64).reshape(-1, 2)
    return [_folded(match[0]) for match in matches], places


def _folded(word: str) -> str:
    return word.lower() if word.isascii() else unicodedata.normalize("NFKC", word).lower()


def normalized(text: str) -> str:
    """The text as its words, with one blank between: what counts as the same text."""
    return " ".join(words(text))


def digest(text: str) -> bytes:
    """SHA-256 of the normal form."""
    return hashlib.sha256(normalized(text).encode("utf-8")).digest()


@functools.lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def word_hashes(found: Sequence[str]) -> Hashes:
    """uint64 [words]."""
    return np.fromiter(map(_hash, found), dtype=np.uint64, count=len(found))


def run_hashes(hashes: Hashes, length: int) -> Hashes:
    """A hash of each run of `length` words, from theirs; empty where there are fewer words."""
    count = len(hashes) - length + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(length):  # a polynomial modulo 2^64: order matters
        total = total * _BASE + hashes[offset : offset + count]
    return mixed(total)


def mixed(values: Hashes) -> Hashes:
    """A permutation of 64-bit numbers under which near numbers come to lie far apart."""
    for factor in _MIX:
        values = (values ^ (values >> _SHIFT)) * factor
    return values ^ (values >> _SHIFT)
