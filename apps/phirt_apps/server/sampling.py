"""Settings of an answer beyond the runtime's own: penalties, biases, probabilities of the tokens.

Knows logits. Knows nothing of requests; all of these are logits processors and a sampler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from phirt.generate.sampling import (
    GenerationConfig,
    Logits,
    LogitsProcessor,
    Sampler,
    categorical,
    greedy,
)

_LEAST = -9999.0  # in the place of minus infinity, which no JSON can say


@dataclass(frozen=True)
class TokenChance:
    """A token that was chosen, the logarithm of its probability, and the likeliest ones at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class ChanceRecorder:
    """Notes how likely each token is by the model's own logits, before anything is done to them."""

    def __init__(self, config: GenerationConfig, top: int) -> None:
        self._top = top
        self._sampler: Sampler = greedy if config.greedy else categorical(config.seed)
        self._logits: Logits | None = None
        self._chances: list[TokenChance] = []

    def process(self, logits: Logits, _: Sequence[int]) -> Logits:
        """A logits processor that changes nothing; the first."""
        self._logits = logits.copy()
        return logits

    def sample(self, logits: Logits) -> int:
        """The sampler that the settings ask for, with a note of what it takes."""
        token = self._sampler(logits)
        assert self._logits is not None
        raw = self._logits.astype(np.float64)
        best = raw.max()
        raw -= best + math.log(np.exp(raw - best).sum())
        count = min(self._top, len(raw))
        likeliest = np.argpartition(-raw, count - 1)[:count] if count else np.zeros(0, np.int64)
        likeliest = likeliest[np.argsort(-raw[likeliest], kind="stable")]
        top = tuple((int(one), max(float(raw[one]), _LEAST)) for one in likeliest)
        self._chances.append(TokenChance(token, max(float(raw[token]), _LEAST), top))
        return token

    def take(self, count: int) -> tuple[TokenChance, ...]:
        """The next `count` of those noted; all of them where so many are not there."""
        taken, self._chances = self._chances[:count], self._chances[count:]
        return tuple(taken)

    @property
    def noted(self) -> int:
        """How many are there to be taken."""
        return len(self._chances)


def penalties(presence: float, frequency: float) -> LogitsProcessor:
    """Lowers the logits of tokens that the answer has already: each by `presence`, and by `frequency` for
    every time.
    """
    begin: list[int] = []

    def process(logits: Logits, ids: Sequence[int]) -> Logits:
        if not begin:
            begin.append(len(ids))
        said = ids[begin[0] :]
        if said:
            tokens, counts = np.unique(np.asarray(said), return_counts=True)
            logits[tokens] -= presence + frequency * counts.astype(np.float32)
        return logits

    return process


def biases(values: Mapping[int, float]) -> LogitsProcessor:
    """Adds to the logits of some tokens."""
    tokens = np.array(list(values), np.int64)
    added = np.array(list(values.values()), np.float32)

    def process(logits: Logits, _: Sequence[int]) -> Logits:
        logits[tokens] += added
        return logits

    return process
