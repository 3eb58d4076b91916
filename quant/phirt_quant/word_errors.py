"""Word errors of a transcript: how many words must change to make what was heard what was said.

Knows words, and which differences in writing are none. Knows nothing of recordings.
"""

from __future__ import annotations

import re


def word_errors(wanted: str, heard: str) -> int:
    """Levenshtein distance in words: substitutions, insertions and deletions count one each."""
    a, b = wanted.split(), heard.split()
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def spoken_words(text: str) -> str:
    """The text in lower case, without punctuation and apostrophes, single spaces between words: what one
    hears of it.
    """
    return " ".join(re.sub(r"[^\w\s]|_", " ", re.sub("['’]", "", text.lower())).split())
