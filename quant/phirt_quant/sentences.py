"""Sentences of English prose, and paragraphs as far as they fit.

Knows how sentences end. Knows nothing of files or tasks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# No sentence ends behind an initial or one of these titles.
_END = re.compile(r"(?<=[a-z0-9)\]\"'][.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)\s+(?=[A-Z\"'])")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return _END.split(text)


def first_sentences(text: str, count: int) -> str:
    """So many sentences from the beginning of a text."""
    return " ".join(split_sentences(" ".join(text.split()))[:count])


def whole_paragraphs(paragraphs: Sequence[str], most: int) -> str:
    """As many of the first paragraphs as have at most `most` characters together."""
    kept: list[str] = []
    for paragraph in paragraphs:
        if sum(map(len, kept)) + len(paragraph) > most:
            break
        kept.append(paragraph)
    return "\n\n".join(kept)
