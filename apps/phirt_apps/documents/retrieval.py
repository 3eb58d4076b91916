"""The passages that answer a question: by words (BM25), and by vectors where there is an encoder, both ranks
fused by their reciprocals (Cormack, Clarke and Büttcher, SIGIR 2009).

Knows an index and an encoder. Does not know what is done with the passages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import phirt

from .index import Entry, Index, spaced
from .updating import prompt_for

_RANKED = 50  # of each kind of search
_FUSION = 60  # the paper's constant: how little the first ranks stand out
_RELATED = 0.2  # the least cosine of a passage that has anything to do with the question
_FORMER = 0.3  # weight of a search that knows the question before as well
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
# Words that stand for what was named before: "How often is it washed?"
_REFERRING = frozenset(
    {"it", "its", "they", "them", "their", "he", "him", "his", "she", "her", "these", "those"}
)

Numbers = npt.NDArray[np.float32]


def search(
    index: Index, embedder: phirt.Embedder | None, question: str, former: str | None, most: int
) -> list[Entry]:
    """The passages that fit best, at most `most`, if any fit. `former` is the question before:
    it says more of what is asked, and what it alone finds counts only where the question goes on from it.
    """
    if former is None:
        return index.entries(
            fused([(1.0, ranking) for (ranking,) in _ranked(index, embedder, [question])])[:most]
        )
    rankings = _ranked(index, embedder, [question, f"{question} {former}"])
    if not _telling(question):  # "And why?" is about nothing but what came before
        return index.entries(fused([(1.0, both) for _, both in rankings])[:most])
    if not _REFERRING & set(_words(question)):
        found = {one for alone, _ in rankings for one in alone}
        rankings = [(alone, [one for one in both if one in found]) for alone, both in rankings]
    weighted = [(1.0, alone) for alone, _ in rankings] + [(_FORMER, both) for _, both in rankings]
    return index.entries(fused(weighted)[:most])


def _ranked(index: Index, embedder: phirt.Embedder | None, texts: list[str]) -> list[tuple[list[int], ...]]:
    """A ranking for each text, by words; and again by meaning, where there is an encoder."""
    queries = [fts_query(text) for text in texts]
    rankings = [tuple(index.matching(query, _RANKED) if query else [] for query in queries)]
    if embedder is not None:
        rankings.append(_nearest(index, embedder, texts))
    return rankings


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"\w+", spaced(text[:_MAX_CHARACTERS].lower()))))


def _telling(text: str) -> list[str]:
    """The words of a question that may stand in what answers it."""
    return [word for word in _words(text) if word not in _STOP]


def fts_query(text: str) -> str:
    """Any of the words of a question, in FTS5's language; empty where it has none."""
    telling = _telling(text) or _words(text)
    return " OR ".join(f'"{word}"' for word in telling[:_MAX_WORDS])


def fused(rankings: Sequence[tuple[float, Sequence[int]]]) -> list[int]:
    """All that is ranked, by the weighted sum of reciprocal ranks; earlier rankings decide ties."""
    scores: dict[int, float] = {}
    for weight, ranking in rankings:
        for rank, one in enumerate(ranking, 1):
            scores[one] = scores.get(one, 0.0) + weight / (_FUSION + rank)
    return sorted(scores, key=lambda one: -scores[one])


def _nearest(index: Index, embedder: phirt.Embedder, texts: list[str]) -> tuple[list[int], ...]:
    """For each text the ids of the passages whose vectors are nearest; lengths do not count."""
    ids, vectors = index.vectors(embedder.width)
    if not len(ids):
        return tuple([] for _ in texts)
    prompt = prompt_for(embedder, ("query", "question"))
    asked = embedder.embed([text[:_MAX_CHARACTERS] for text in texts], prompt)
    # Without a copy of all of them, as np.linalg.norm makes.
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return tuple([int(ids[place]) for place in _closest(vectors @ one, lengths, one)] for one in asked)


def _closest(products: Numbers, lengths: Numbers, asked: Numbers) -> Sequence[np.intp]:
    cosines = products / np.maximum(lengths * np.linalg.norm(asked), 1e-12)
    order = np.argsort(-cosines, kind="stable")[:_RANKED]
    return [place for place in order if cosines[place] >= _RELATED]
