"""What the quality classifier sees of a text: its words and pairs of words, hashed into a fixed number of
features.

A row has a value for each feature that occurs, 1 + ln(count), scaled to length 1; feature 0 is always 1 (the
bias). Knows words and sparse rows. Knows nothing of labels or training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phirt_train.curate.logistic import SparseBlock
from phirt_train.curate.words import mixed, run_hashes, word_hashes, words

MAX_WORDS = 20_000  # of a text that are looked at
_BIAS = 0


def text_features(text: str, features: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Indices, rising and from 0 to `features` - 1, and values of one text."""
    hashes = word_hashes(words(text)[:MAX_WORDS])
    # The remainder of a hash; feature 0 stays free for the bias.
    grams = np.concatenate([mixed(hashes), run_hashes(hashes, 2)])
    found, counts = np.unique(grams % np.uint64(features - 1), return_counts=True)
    values = 1.0 + np.log(counts)
    length = float(np.sqrt(np.sum(values * values))) or 1.0
    indices = np.concatenate([[_BIAS], found.astype(np.int64) + 1])
    return indices, np.concatenate([[1.0], values / length]).astype(np.float32)


def feature_blocks(texts: Sequence[str], edges: Sequence[int]) -> list[SparseBlock]:
    """The texts' rows, as a block for each range of features."""
    indices, values = [], []
    for text in texts:
        index, value = text_features(text, edges[-1])
        indices.append(index)
        values.append(value)
    rows = np.repeat(np.arange(len(texts), dtype=np.int32), [len(index) for index in indices])
    columns = np.concatenate(indices) if indices else np.zeros(0, dtype=np.int64)
    entries = np.concatenate(values) if values else np.zeros(0, dtype=np.float32)
    blocks = []
    for start, stop in itertools.pairwise(edges):
        inside = (columns >= start) & (columns < stop)
        columns_inside = (columns[inside] - start).astype(np.int32)
        blocks.append(SparseBlock((len(texts), stop - start), rows[inside], columns_inside, entries[inside]))
    return blocks
