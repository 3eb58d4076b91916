"""Bits that a byte of text costs a bundle: what `review.likely` asks.

Knows the runtime. Knows nothing of what the figure is used for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import phirt
from phirt.errors import ConfigError
from phirt_quant.evaluation import passages, score_text


def bits_of(model: phirt.Model, tokens: int = 512) -> Callable[[str], float]:
    """A function that scores a text by its first `tokens` tokens; infinite for less than two of them."""

    def score(text: str) -> float:
        try:
            cases = passages(model, [text], tokens)
        except ConfigError:
            return math.inf
        return score_text(model, cases).bits_per_byte

    return score
