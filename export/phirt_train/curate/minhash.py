"""Near duplicates: MinHash signatures of a text's runs of five words, cut into buckets (A. Broder 1997;
locality sensitive hashing as in J. Leskovec, A. Rajaraman, J. Ullman, Mining of Massive Datasets, section
3.4).

Two texts that share a part J of their runs have each of the minima equal with the chance J, so they meet in
at least one of b buckets of r minima with the chance 1 - (1 - J^r)^b: 0.924 for J = 0.8 with the 14 x 8 that
FineWeb uses (G. Penedo et al. 2024). Knows texts and keys. What meets is `duplicates`' matter.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated

import numpy as np
import numpy.typing as npt

from phirt.fields import Range
from phirt_train.curate.words import Hashes, mixed, run_hashes, word_hashes, words

_ROWS_AT_ONCE = 4096  # runs of words that are hashed together: a few megabytes


@dataclasses.dataclass(frozen=True)
class MinHashConfig:
    """How alike texts must be: `run` words make a run, `buckets` times `minima` hashes a signature."""

    run: Annotated[int, Range(1, 64)] = 5
    buckets: Annotated[int, Range(1, 1024)] = 14
    minima: Annotated[int, Range(1, 256)] = 8
    seed: Annotated[int, Range(0, (1 << 31) - 1)] = 1

    @property
    def threshold(self) -> float:
        """The likeness at which about half of the pairs meet."""
        return float((1 / self.buckets) ** (1 / self.minima))

    def catch_rate(self, likeness: float) -> float:
        """The chance that texts with this Jaccard likeness meet."""
        return float(1 - (1 - likeness**self.minima) ** self.buckets)


def runs(text: str, length: int) -> Hashes:
    """Hashes of the text's different runs of words; of the whole where it has fewer words; none of none."""
    hashes = word_hashes(words(text))
    return np.unique(run_hashes(hashes, min(length, len(hashes)))) if len(hashes) else hashes


def signature(found: Hashes, config: MinHashConfig) -> Hashes:
    """The least value of each hash function over the runs: uint64 [buckets * minima]."""
    factors, offsets = _functions(config)
    least = np.full(len(factors), np.iinfo(np.uint64).max, dtype=np.uint64)
    for at in range(0, len(found), _ROWS_AT_ONCE):
        some = found[at : at + _ROWS_AT_ONCE, None]
        least = np.minimum(least, mixed(some * factors + offsets).min(axis=0))
    return least


def bucket_keys(text: str, config: MinHashConfig) -> Hashes:
    """A key for each bucket: uint64 [buckets]. Texts without a word have keys that nothing else has."""
    least = signature(runs(text, config.run), config).reshape(config.buckets, config.minima)
    keys = np.zeros(config.buckets, dtype=np.uint64)
    for column in least.T:
        keys = mixed(keys ^ column)
    return keys


def likeness(left: str, right: str, run: int) -> float:
    """The Jaccard likeness of two texts' runs of words."""
    first, second = set(runs(left, run).tolist()), set(runs(right, run).tolist())
    return len(first & second) / max(1, len(first | second))


@functools.cache
def _functions(config: MinHashConfig) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Odd factors and offsets of permutations of 64-bit numbers."""
    count = config.buckets * config.minima
    drawn = np.random.default_rng(config.seed).integers(0, 1 << 64, size=(2, count), dtype=np.uint64)
    return drawn[0] | np.uint64(1), drawn[1]
