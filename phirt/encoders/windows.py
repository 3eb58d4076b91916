"""A recording as windows of one size, for speech encoders whose graph takes no other: which frames each sees,
and which of its keys count.

Knows frames and tokens. Knows nothing of sessions or of how frames are made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

# Tokens at either side of a window whose frames the convolutions of its own tokens reach into.
CONTEXT_TOKENS = 1
_EXCLUDED = -1e4

Frames = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """What the graph takes, by name, and how many of the rows that it gives are the recording's."""

    inputs: dict[str, npt.NDArray[Any]]
    tokens: int


def windows(frames: Frames, tokens: int, subsampling: int, *, whole: bool) -> Iterator[Window]:
    """The windows of frames float32 [n, mels], `tokens` tokens each.

    A recording that fits in one window attends to its own tokens only. A longer one is cut, and what fills up
    its last window is attended to, as Phi-4-multimodal does; `whole` says that windows are of the size that
    the model itself cuts to.
    """
    count = -(-len(frames) // subsampling)
    assert whole or count <= tokens
    margin = CONTEXT_TOKENS * subsampling
    size = tokens * subsampling + 2 * margin
    for first in range(0, count, tokens):
        begin = first * subsampling - margin
        piece = np.zeros((1, size, frames.shape[1]), np.float32)
        mask = np.zeros((1, 1, size, 1), np.float32)
        start, stop = max(begin, 0), min(begin + size, len(frames))
        piece[0, start - begin : stop - begin] = frames[start:stop]
        mask[0, 0, start - begin : stop - begin] = 1
        own = min(tokens, count - first)
        bias = np.zeros((1, 1, 1, tokens), np.float32)
        if count <= tokens:
            bias[..., own:] = _EXCLUDED
        yield Window({"audio_embeds": piece, "frames_mask": mask, "key_bias": bias}, own)
