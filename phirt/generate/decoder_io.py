"""The arrays that every run of a decoder reads and writes, made once, and the OrtValues on their memory.

Knows names, shapes and dtypes of the decoder graph's small inputs and of its logits. Knows nothing of what is
run, or of the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from phirt.generate.sequence import Features
from phirt.runtime.tensor import empty_array, ort_value

Logits = npt.NDArray[np.float32]

_SLAB_ROWS = 128  # positions whose logits are asked for together: what kernels like, within _SLAB_BYTES
_SLAB_BYTES = 64 << 20


class DecoderIO:
    """Inputs and logits of runs of up to `longest` decoded ids, features and logits in the graph's type.
    `logits` is [longest, vocab]; only rows that are written take memory. `least_rows` are those that features
    have where there are no media.
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, longest: int, dtype: str = "float32", least_rows: int = 0
    ) -> None:
        self._vocab_size, self._dtype = vocab_size, np.dtype(dtype)
        self.slab_rows = max(longest, min(_SLAB_ROWS, _SLAB_BYTES // (4 * vocab_size)))
        self._slab: Logits | None = None
        self.tokens = np.zeros(longest, dtype=np.int64)
        self.no_media: Features = np.zeros((least_rows, hidden_size), dtype=self._dtype)
        self.no_media_value = ort_value(self.no_media)
        self.logits: Logits = empty_array((longest, vocab_size), self._dtype)
        self.route = np.zeros(1, dtype=np.int64)
        self._num_logits = np.zeros(1, dtype=np.int64)
        self._seqlens_k = np.zeros(1, dtype=np.int32)
        self._total = np.zeros(1, dtype=np.int32)
        self.values = {
            "route": ort_value(self.route),
            "num_logits": ort_value(self._num_logits),
            "seqlens_k": ort_value(self._seqlens_k),
            "total_sequence_length": ort_value(self._total),
        }

    def tokens_value(self, count: int) -> Any:
        """The first `count` of `tokens` as graph input [1, count]."""
        return ort_value(self.tokens[:count].reshape(1, count))

    def logits_value(self, count: int) -> Any:
        """The first `count` rows of `logits` as graph output [1, count, vocab]."""
        return ort_value(self.logits[:count].reshape(1, count, self._vocab_size))

    @property
    def slab(self) -> Logits:
        """A second buffer of logits, float32 [slab_rows, vocab], made when it is first wanted: for texts that
        are scored position by position.
        """
        if self._slab is None:
            self._slab = empty_array((self.slab_rows, self._vocab_size), self._dtype)
        return self._slab

    def slab_value(self, count: int) -> Any:
        """The first `count` rows of `slab` as graph output [1, count, vocab]."""
        return ort_value(self.slab[:count].reshape(1, count, self._vocab_size))

    def row(self, index: int) -> Logits:
        """The logits [vocab] in row `index`, valid until the next run."""
        row: Logits = self.logits[index].astype(np.float32, copy=False)
        return row

    def set_lengths(self, length: int, announced: int, num_logits: int) -> None:
        """`length` positions after this run; `announced` is the total by which the graph picks its rotary
        factors; logits of the last `num_logits` positions are asked for.
        """
        self._seqlens_k[0] = length - 1
        self._total[0] = announced
        self._num_logits[0] = num_logits
