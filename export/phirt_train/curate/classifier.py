"""The quality classifier: how likely a text is one of those that were called good.

Trained on shards of good and of bad texts, with weights that lie in blocks of features and are written block
by block by the tasks that hold them; whoever trains it never has the whole vector. Scoring maps the blocks
from their files. Knows labels, features and the two halves of a training. Knows nothing of where tasks run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from phirt.errors import ConfigError
from phirt.fields import Fields, Length, Range, parse_json, read_dataclass, write_dataclass
from phirt.runtime.atomic_file import atomic_write, write_text
from phirt_train.curate.executor import Executor, Handle
from phirt_train.curate.features import feature_blocks, text_features
from phirt_train.curate.logistic import LogisticLoss, RowBlock
from phirt_train.curate.minimize import Iteration, Stopping, minimize
from phirt_train.curate.records import TextSource, read_texts
from phirt_train.curate.shards import Shard
from phirt_train.curate.vector_free import VectorFree
from phirt_train.curate.vectors import Floats, VectorSpace, Work, feature_edges

FACTS_NAME = "classifier.json"
_REMEDY = "train it again"
_FORMAT = 1
GOOD, BAD = 1.0, -1.0


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How a classifier is trained.

    Attributes:
        features: hashed words and pairs of words.
        blocks: ranges of features that are worked on apart; the bits of the result depend on it.
        l2: strength of the regularisation.
        history: pairs that L-BFGS keeps.
        iterations: at most.
    """

    features: Annotated[int, Range(1 << 10, 1 << 30)] = 1 << 20
    blocks: Annotated[int, Range(1, 4096)] = 4
    l2: Annotated[float, Range(0, 1e3)] = 1e-5
    history: Annotated[int, Range(1, 64)] = 10
    iterations: Annotated[int, Range(1, 10_000)] = 60


@dataclasses.dataclass(frozen=True)
class BlockFile:
    """A file of weights: float64 in numpy's own format."""

    name: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class ClassifierFacts:
    """What is written beside the weights.

    Attributes:
        format: of this file and of the features.
        edges: where each block of features begins, and the end of the last.
        blocks: the files.
        options: how it was trained.
        good, bad: texts that it was trained on.
        loss: the value that was reached.
    """

    format: int
    edges: Annotated[tuple[int, ...], Length(2, 4097)]
    blocks: Annotated[tuple[BlockFile, ...], Length(1, 4096)]
    options: TrainingOptions
    good: int
    bad: int
    loss: float

    def __post_init__(self) -> None:
        if self.format != _FORMAT:
            raise ValueError(f"has the format {self.format}, accepted: {_FORMAT}")
        if len(self.edges) != len(self.blocks) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("the edges of its blocks do not fit their files")
        if any(Path(block.name).name != block.name for block in self.blocks):
            raise ValueError("a block's file must lie in the same folder")


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training was: its facts, why it ended, and what it asked of the cluster."""

    facts: ClassifierFacts
    iterations: int
    reason: str
    work: Work
    products: tuple[int, ...]


class Classifier:
    """A trained classifier, its weights mapped from their files.

    Raises:
        ConfigError: the folder holds none, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.facts = _read_facts(folder)
        self._blocks = [_mapped(folder / block.name) for block in self.facts.blocks]
        for block, start, stop in zip(self._blocks, self.facts.edges, self.facts.edges[1:], strict=False):
            if block.shape != (stop - start,) or block.dtype != np.float64:
                raise ConfigError(f"{folder}: a block of weights has the shape {block.shape}; {_REMEDY}")

    def score(self, text: str) -> float:
        """The probability that the text is a good one, from 0 to 1."""
        indices, values = text_features(text, self.facts.edges[-1])
        cuts = np.searchsorted(indices, self.facts.edges)
        margin = 0.0
        for block, first, start, stop in zip(self._blocks, self.facts.edges, cuts, cuts[1:], strict=False):
            for weight, value in zip(block[indices[start:stop] - first], values[start:stop], strict=True):
                margin += float(weight) * float(value)
        return float(np.exp(-np.logaddexp(0.0, -margin)))


@functools.lru_cache(maxsize=2)
def opened(folder: str) -> Classifier:
    """The classifier of a folder, opened once in each process."""
    return Classifier(Path(folder))


def train(
    executor: Executor,
    good: Sequence[TextSource],
    bad: Sequence[TextSource],
    options: TrainingOptions,
    folder: Path,
    report: Callable[[Iteration], None] = lambda iteration: None,
) -> Training:
    """Trains a classifier and writes it to `folder`.

    Raises:
        ConfigError: a file cannot be read, or one of the two kinds has no text.
    """
    space = VectorSpace(executor, feature_edges(options.features, options.blocks))
    rows, counts = _rows(executor, (good, bad), space.edges)
    rule = VectorFree(space, options.history)
    loss = LogisticLoss(space, rows, options.l2, float(sum(counts)))

    stopping = Stopping(options.iterations)
    found = minimize(loss, space, rule, space.zeros(), stopping, lambda iteration, _: report(iteration))
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"weights-{number:05}.npy" for number in range(options.blocks)]
    written = [
        executor.submit(write_block, block, str(folder / name))[0]
        for block, name in zip(found.weights.blocks, names, strict=True)
    ]
    files = tuple(BlockFile(name, sha) for name, sha in zip(names, executor.collect(written), strict=True))
    facts = ClassifierFacts(_FORMAT, space.edges, files, options, counts[0], counts[1], found.value)
    write_text(folder / FACTS_NAME, json.dumps(write_dataclass(facts), indent=1) + "\n")
    return Training(facts, found.iterations, found.reason, space.work, tuple(rule.products))


def area_under_curve(good: npt.ArrayLike, bad: npt.ArrayLike) -> float:
    """The chance that a good text scores higher than a bad one (Mann and Whitney's U over all pairs); a tie
    is a half.
    """
    first, second = np.asarray(good, dtype=np.float64), np.sort(np.asarray(bad, dtype=np.float64))
    below = np.searchsorted(second, first, "left")
    upto = np.searchsorted(second, first, "right")
    return float(np.mean(below + upto) / (2 * len(second)))


def _rows(
    executor: Executor, kinds: Sequence[Sequence[TextSource]], edges: Sequence[int]
) -> tuple[list[RowBlock], list[int]]:
    """The rows of both kinds, which weigh the same as a whole, and how many texts each has."""
    loaded = [
        [
            executor.submit(load_rows, one, shard, tuple(edges), returns=len(edges))
            for one in kind
            for shard in one.shards
        ]
        for kind in kinds
    ]
    sizes = [executor.collect([handles[-1] for handles in kind]) for kind in loaded]
    counts = [int(sum(of)) for of in sizes]
    if not all(counts):
        raise ConfigError(
            "the classifier needs texts of both kinds; name files of 'positive' and 'negative' texts"
        )
    blocks = []
    for label, kind, of, count in zip((GOOD, BAD), loaded, sizes, counts, strict=True):
        weight = sum(counts) / (len(counts) * count)
        for handles, size in zip(kind, of, strict=True):
            (targets,) = executor.submit(constant_targets, int(size), label, weight)
            blocks.append(RowBlock(handles[:-1], targets))
    return blocks, counts


def load_rows(source: TextSource, shard: Shard, edges: tuple[int, ...]) -> tuple[Any, ...]:
    """A shard's SparseBlock for each range of features, and its number of texts."""
    texts = list(read_texts(source, shard))
    return (*feature_blocks(texts, edges), len(texts))


def constant_targets(count: int, label: float, weight: float) -> Floats:
    """See RowBlock."""
    return np.repeat(np.array([[label], [weight]]), count, axis=1)


def write_block(block: Floats, path: str) -> str:
    """Writes weights where they lie. Returns the file's SHA-256."""
    with atomic_write(Path(path)) as stream:
        np.save(stream, block, allow_pickle=False)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def scores_of(folder: str, source: TextSource, shard: Shard) -> npt.NDArray[np.float64]:
    """A shard's scores."""
    classifier = opened(folder)
    return np.array([classifier.score(text) for text in read_texts(source, shard)])


def score_all(executor: Executor, folder: Path, sources: Sequence[TextSource]) -> npt.NDArray[np.float64]:
    """The scores of all texts of the sources, in order."""
    tasks: Iterator[tuple[Handle, ...]] = (
        executor.submit(scores_of, str(folder), source, shard)
        for source in sources
        for shard in source.shards
    )
    found = executor.collect([handle for handles in tasks for handle in handles])
    return np.concatenate(found) if found else np.zeros(0)


def _read_facts(folder: Path) -> ClassifierFacts:
    path = folder / FACTS_NAME
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{folder} holds no classifier: {error.strerror}; {_REMEDY}") from error
    value = parse_json(raw, str(path), ConfigError, _REMEDY)
    return read_dataclass(ClassifierFacts, Fields(value, str(path), ConfigError, _REMEDY))


def _mapped(path: Path) -> Floats:
    try:
        block: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; {_REMEDY}") from error
    return block
