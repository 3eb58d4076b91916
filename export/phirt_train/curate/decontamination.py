"""What occurs in an evaluation set is taken out of the data, as lm-evaluation-harness' janitor defines it
(after T. Brown et al. 2020, appendix C).

A run of 13 words that a set holds is removed with 200 characters on both sides; pieces shorter than 200
characters go, and a document that falls into more than 10 pieces goes as a whole. Hits are counted for each
set. Knows texts and sets of hashes. Knows nothing of where they come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt

from phirt.fields import Range
from phirt_train.curate.words import Hashes, placed_words, run_hashes, word_hashes, words


@dataclasses.dataclass(frozen=True)
class DecontaminationConfig:
    """Lengths in words (`run`) and characters."""

    run: Annotated[int, Range(2, 256)] = 13
    margin: Annotated[int, Range(0, 1 << 20)] = 200
    least_piece: Annotated[int, Range(0, 1 << 20)] = 200
    most_pieces: Annotated[int, Range(1, 1 << 20)] = 10


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationRuns:
    """The runs of words of one evaluation set.

    Attributes:
        name: the set's.
        hashes: rising.
        texts, short: how many texts it has, and how many of them are shorter than a run and cannot be found.
    """

    name: str
    hashes: Hashes
    texts: int
    short: int


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """A document without what it shared.

    Attributes:
        pieces: what is left.
        hits: runs found, by set, in the sets' order.
        too_dirty: whether it fell into too many pieces, and nothing is left for that.
    """

    pieces: tuple[str, ...]
    hits: tuple[int, ...]
    too_dirty: bool


def evaluation_runs(name: str, texts: Iterable[str], run: int) -> EvaluationRuns:
    """All runs of a set's texts."""
    found: list[Hashes] = []
    count = short = 0
    for text in texts:
        hashes = run_hashes(word_hashes(words(text)), run)
        count, short = count + 1, short + (not len(hashes))
        found.append(hashes)
    merged = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint64)
    return EvaluationRuns(name, merged, count, short)


def decontaminate(text: str, sets: Sequence[EvaluationRuns], config: DecontaminationConfig) -> Cleaned:
    """Takes out of the text what the sets hold."""
    found, places = placed_words(text)
    hashes = run_hashes(word_hashes(found), config.run)
    hit = np.zeros(len(hashes), dtype=bool)
    hits = []
    for one in sets:
        of_set = _contains(one.hashes, hashes)
        hits.append(int(of_set.sum()))
        hit |= of_set
    if not hit.any():
        return Cleaned((text,), tuple(hits), False)
    starts = np.flatnonzero(hit)
    spans = np.stack([places[starts, 0], places[starts + config.run - 1, 1]], axis=1)
    pieces = [piece for piece in _around(text, spans, config.margin) if len(piece) >= config.least_piece]
    if len(pieces) > config.most_pieces:
        return Cleaned((), tuple(hits), True)
    return Cleaned(tuple(pieces), tuple(hits), False)


def _contains(known: Hashes, asked: Hashes) -> npt.NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(asked), dtype=bool)
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.asarray(known[at] == asked)


def _around(text: str, spans: npt.NDArray[np.int64], margin: int) -> list[str]:
    """What lies outside of the spans, which rise, and of the margin around each."""
    pieces, reached = [], 0
    for start, stop in spans.tolist():
        if start - margin > reached:
            pieces.append(text[reached : start - margin].strip())
        reached = max(reached, stop + margin)
    return [*pieces, text[reached:].strip()]
