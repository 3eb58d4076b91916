"""Between the passes: which documents of all shards go, because they have occurred before or score too low.

Tasks compare keys, each a bucket and a part of the range of keys, and return pairs; the driver joins them.
Knows keys, scores and numbers of documents. Knows nothing of texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phirt_train.curate.duplicates import (
    Clusters,
    Keys,
    Numbers,
    equal_pairs,
    in_part,
    repeated_places,
)
from phirt_train.curate.executor import Done, Executor

KEPT, EXACT, NEAR, LOW_SCORE = 0, 1, 2, 3
REASONS = {
    EXACT: "duplicate: the same words",
    NEAR: "duplicate: nearly the same words",
    LOW_SCORE: "low score",
}
_DOCUMENTS_AT_ONCE = 4_000_000  # whose keys a task compares: a few hundred megabytes at most

States = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class KeyFile:
    """A shard's keys: the file, its source, and its documents' numbers among all, from `first`."""

    path: str
    source: str
    first: int
    count: int


@dataclasses.dataclass(frozen=True)
class _Compared:
    """A task's input: which column of which keys (all for None), of which documents, which part of them."""

    files: tuple[KeyFile, ...]
    states: States
    kind: str
    column: int | None
    part: int
    parts: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Paragraphs:
    """A task's input: which part of the paragraphs' keys, of which documents."""

    files: tuple[KeyFile, ...]
    states: States
    part: int
    parts: int


def key_files(work: Path, stems: Sequence[tuple[str, str, int]]) -> tuple[KeyFile, ...]:
    """The shards' files in order, from their stem, source and number of documents."""
    found, first = [], 0
    for stem, source, count in stems:
        found.append(KeyFile(str(work / f"{stem}.npz"), source, first, count))
        first += count
    return tuple(found)


def find_duplicates(
    executor: Executor, files: tuple[KeyFile, ...], states: States, *, exact: bool, buckets: int, done: Done
) -> None:
    """Marks, in place, what has occurred before among the documents that are still KEPT: EXACT or NEAR."""
    total = len(states)
    parts = _parts(total)
    tasks = [_Compared(files, states, "exact", None, part, parts) for part in range(parts if exact else 0)]
    tasks += [
        _Compared(files, states, "near", bucket, part, parts)
        for bucket in range(buckets)
        for part in range(parts)
    ]
    pairs = executor.map(compare, tasks, done)
    clusters = Clusters(total)
    for state, kind in ((EXACT, "exact"), (NEAR, "near")):
        for task, found in zip(tasks, pairs, strict=True):
            if task.kind == kind:
                clusters.join(found)
        states[clusters.duplicates() & (states == KEPT)] = state


def drop_low_scores(
    files: tuple[KeyFile, ...], states: States, sources: Sequence[str], keep: float
) -> dict[str, float]:
    """Marks, in place, all but the best share of each source's documents. Returns the least score kept.

    It comes before the search for duplicates: what goes here is no reason for a copy in a later source to go.
    """
    thresholds = {}
    for source in dict.fromkeys(one.source for one in files if not sources or one.source in sources):
        of_source = [one for one in files if one.source == source]
        numbers = np.concatenate([np.arange(one.first, one.first + one.count) for one in of_source])
        scores = np.concatenate([_array(one, "scores") for one in of_source])
        if not len(numbers):
            continue
        order = np.lexsort((numbers, -scores))
        count = max(1, round(keep * len(order)))
        states[numbers[order[count:]]] = LOW_SCORE
        thresholds[source] = float(scores[order[count - 1]])
    return thresholds


def find_repeated_paragraphs(
    executor: Executor, files: tuple[KeyFile, ...], states: States, done: Done
) -> Numbers:
    """Paragraphs of kept documents that have occurred before: rows of document and paragraph, sorted."""
    parts = _parts(len(states))
    tasks = [_Paragraphs(files, states, part, parts) for part in range(parts)]
    found = np.concatenate([np.zeros((0, 2), np.int64), *executor.map(compare_paragraphs, tasks, done)])
    rows: Numbers = found[np.lexsort((found[:, 1], found[:, 0]))]
    return rows


def compare(task: _Compared) -> Numbers:
    """Pairs of documents with equal keys."""
    keys: list[Keys] = []
    numbers: list[Numbers] = []
    for file in task.files:
        of_file = _array(file, task.kind)
        of_file = of_file if task.column is None else of_file[:, task.column]
        kept = task.states[file.first : file.first + file.count] == KEPT
        chosen = in_part(of_file, task.part, task.parts) & kept
        keys.append(of_file[chosen])
        numbers.append(np.arange(file.first, file.first + file.count)[chosen])
    return equal_pairs(np.concatenate(keys), np.concatenate(numbers))


def compare_paragraphs(task: _Paragraphs) -> Numbers:
    """Places of paragraphs that have occurred before."""
    keys: list[Keys] = []
    places: list[Numbers] = []
    for file in task.files:
        counts, of_file = _array(file, "paragraph_counts"), _array(file, "paragraphs")
        documents = np.repeat(np.arange(file.first, file.first + file.count), counts)
        within = np.arange(len(of_file)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = in_part(of_file, task.part, task.parts) & (task.states[documents] == KEPT)
        keys.append(of_file[chosen])
        places.append(np.stack([documents, within], axis=1)[chosen])
    return repeated_places(np.concatenate(keys), np.concatenate(places))


def _parts(documents: int) -> int:
    return max(1, -(-documents // _DOCUMENTS_AT_ONCE))


def _array(file: KeyFile, name: str) -> npt.NDArray[np.uint64]:
    with np.load(file.path, allow_pickle=False) as arrays:
        found: npt.NDArray[np.uint64] = arrays[name]
    return found
