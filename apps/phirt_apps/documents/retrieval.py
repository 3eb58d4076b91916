"""The passages that answer a question: by words (BM25), and by vectors where there is an encoder, both ranks
fused by their reciprocals (Cormack, Clarke and Büttcher, SIGIR 2009).

Knows an index and an encoder. Does not know what is done with the passages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

import phirt

from .index import Entry, Index, spaced
from .updating import prompt_for

_RANKED = 50  # of each kind of search
_FUSION = 60  # the paper's constant: how little the first ranks stand out
_RELATED = 0.2  # the least cosine of a passage that has anything to do with the question
_FORMER = 0.3  # weight of a search that knows the question before, which the next one may be about
_MAX_WORDS = 48
_MAX_CHARACTERS = 4_000
# Words of questions, which seldom stand in what answers them and so would count for much there.
_WORDS = """
a an and are as at be been but by can could did do does for from had has have he her his how i if in
into is it its me my of on or our she should so that the their them then there they this to us was
we were what when where which who whom whose why will with would you your tell explain describe
please about
"""
_STOP = frozenset(_WORDS.split())


def search(
    index: Index, embedder: phirt.Embedder | None, question: str, former: str | None, most: int
) -> list[Entry]:
    """The passages that fit best, at most `most`, if any fit. `former` is the question before."""
    rankings: list[tuple[float, Sequence[int]]] = []
    for weight, text in ((1.0, question), (_FORMER, f"{former} {question}" if former else "")):
        if query := fts_query(text):
            rankings.append((weight, index.matching(query, _RANKED)))
        if embedder is not None and text.strip():
            rankings.append((weight, _nearest(index, embedder, text)))
    return index.entries(fused(rankings)[:most])


def fts_query(text: str) -> str:
    """Any of the words of a question, in FTS5's language; empty where it has none."""
    words = list(dict.fromkeys(re.findall(r"\w+", spaced(text[:_MAX_CHARACTERS].lower()))))
    telling = [word for word in words if word not in _STOP] or words
    return " OR ".join(f'"{word}"' for word in telling[:_MAX_WORDS])


def fused(rankings: Sequence[tuple[float, Sequence[int]]]) -> list[int]:
    """All that is ranked, by the weighted sum of reciprocal ranks; earlier rankings decide ties."""
    scores: dict[int, float] = {}
    for weight, ranking in rankings:
        for rank, one in enumerate(ranking, 1):
            scores[one] = scores.get(one, 0.0) + weight / (_FUSION + rank)
    return sorted(scores, key=lambda one: -scores[one])


def _nearest(index: Index, embedder: phirt.Embedder, text: str) -> list[int]:
    """Ids of the passages whose vectors are nearest; lengths do not count."""
    ids, vectors = index.vectors(embedder.width)
    if not len(ids):
        return []
    (asked,) = embedder.embed([text[:_MAX_CHARACTERS]], prompt_for(embedder, ("query", "question")))
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
    cosines = vectors @ asked / np.maximum(lengths, 1e-12)
    order = np.argsort(-cosines, kind="stable")[:_RANKED]
    return [int(ids[place]) for place in order if cosines[place] >= _RELATED]
