"""Vectors that lie in blocks of a feature range each, wherever tasks run: inner products and linear
combinations, which is all that the optimiser asks for.

Every sum is formed in a fixed tree order by elementwise additions, so that its bits depend neither on the
number of workers nor on a processor's way of adding. Knows blocks and tasks. Knows nothing of what a vector
means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from phirt_train.curate.executor import Executor, Handle

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Vector:
    """A vector as its blocks, which are float64 arrays behind handles."""

    blocks: tuple[Handle, ...]


Term = tuple[float, Vector]


@dataclasses.dataclass
class Work:
    """What an optimiser has asked for.

    Attributes:
        passes: rounds over the blocks, each of which waits for the one before.
        products: inner products.
        combinations: vectors made.
    """

    passes: int = 0
    products: int = 0
    combinations: int = 0


def feature_edges(features: int, blocks: int) -> tuple[int, ...]:
    """Where each block of features begins, and the end of the last: equal ranges, but for one feature."""
    return tuple(features * number // blocks for number in range(blocks + 1))


class VectorSpace:
    """All vectors with the same blocks.

    Attributes:
        edges: where each block begins, and the end of the last.
        work: what was asked for.
    """

    def __init__(self, executor: Executor, edges: Sequence[int]) -> None:
        self.executor = executor
        self.edges = tuple(edges)
        self.work = Work()

    def zeros(self) -> Vector:
        """The vector of zeros."""
        sizes = np.diff(self.edges).tolist()
        return Vector(tuple(self.executor.submit(_zeros, size)[0] for size in sizes))

    def dot(self, pairs: Sequence[tuple[Vector, Vector]]) -> list[float]:
        """The inner product of each pair, in one pass."""
        vectors: list[Vector] = []
        places: dict[int, int] = {}
        for vector in (one for pair in pairs for one in pair):
            if id(vector) not in places:
                places[id(vector)] = len(vectors)
                vectors.append(vector)
        indices = tuple((places[id(left)], places[id(right)]) for left, right in pairs)
        self.work.passes += 1
        self.work.products += len(pairs)
        parts = [
            self.executor.submit(_dots, indices, *(vector.blocks[number] for vector in vectors))[0]
            for number in range(len(self.edges) - 1)
        ]
        return [float(one) for one in tree_sum(np.stack(self.executor.collect(parts)))]

    def combine(self, *sums: Sequence[Term]) -> list[Vector]:
        """The sum of scaled vectors, for each list of terms, in one pass."""
        self.work.passes += 1
        self.work.combinations += len(sums)
        return [Vector(tuple(self._combined(terms))) for terms in sums]

    def _combined(self, terms: Sequence[Term]) -> Iterator[Handle]:
        scales = tuple(scale for scale, _ in terms)
        for number in range(len(self.edges) - 1):
            blocks = (vector.blocks[number] for _, vector in terms)
            yield self.executor.submit(_combine, scales, *blocks)[0]


def tree_sum(values: Floats) -> Floats:
    """The sum over the first axis: the second half is added to the first until one row is left."""
    if not len(values):
        return np.zeros(values.shape[1:])
    while len(values) > 1:
        half = len(values) // 2
        folded = values[:half] + values[half : 2 * half]
        if len(values) % 2:
            folded[0] += values[-1]
        values = folded
    return np.asarray(values[0])


def _zeros(size: int) -> Floats:
    return np.zeros(size)


def _dots(pairs: Sequence[tuple[int, int]], *blocks: Floats) -> Floats:
    return np.array([float(tree_sum(blocks[left] * blocks[right])) for left, right in pairs])


def _combine(scales: Sequence[float], *blocks: Floats) -> Floats:
    total = scales[0] * blocks[0]
    for scale, block in zip(scales[1:], blocks[1:], strict=True):
        total += scale * block
    return total
