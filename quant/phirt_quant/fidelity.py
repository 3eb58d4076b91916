"""How close a quantized model's predictions are to the original's, from two streams of logits.

Knows logits and target ids. Knows nothing of models, sessions or text. All sums are in float64.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from phirt.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Agreement over all positions seen.

    Attributes:
        positions: how many positions were compared.
        mean_difference: mean of |candidate - reference| over all logits.
        max_difference: the largest of them.
        mean_kl: mean of KL(reference || candidate), nats.
        median_kl: the median of the same.
        p99_kl: 99th percentile of the same.
        top1_agreement: share of positions where both rank the same token first, 0 to 1.
        reference_perplexity: exp of the reference's mean negative log-likelihood of the targets; None without
            targets.
        candidate_perplexity: the candidate's.
    """

    positions: int
    mean_difference: float
    max_difference: float
    mean_kl: float
    median_kl: float
    p99_kl: float
    top1_agreement: float
    reference_perplexity: float | None
    candidate_perplexity: float | None


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float64, over the last axis."""
    shifted: np.ndarray = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def kl_divergence(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """KL(reference || candidate) in nats, float64 [n], of logits [n, vocab]."""
    p, q = log_softmax(reference), log_softmax(candidate)
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(axis=-1)
    return divergence


class FidelityMeter:
    """Accumulates comparisons chunk by chunk; a position costs a few bytes, whatever the vocabulary."""

    def __init__(self) -> None:
        self._kl: list[float] = []
        self._agreed = 0
        self._differences = 0.0
        self._largest = 0.0
        self._logits = 0
        self._losses = np.zeros(2, dtype=np.float64)
        self._targets = 0

    def add(self, reference: np.ndarray, candidate: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Compare logits float [n, vocab] of the same n positions.

        Args:
            targets: int64 [n], the token that followed each position; -1 where none did.

        Raises:
            ConfigError: shapes differ, or logits are not finite.
        """
        if reference.shape != candidate.shape or reference.ndim != 2:
            raise ConfigError(
                f"logits of shapes {list(reference.shape)} and {list(candidate.shape)} cannot be compared; "
                "both models need the same vocabulary and positions"
            )
        if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
            raise ConfigError("the logits hold values that are not finite; one of the models is damaged")
        for i, rows in enumerate(zip(reference, candidate, strict=True)):
            self._add_position(*rows, -1 if targets is None else int(targets[i]))

    def _add_position(self, reference: np.ndarray, candidate: np.ndarray, target: int) -> None:
        """One position at a time: its float64 copies stay in the processor's cache."""
        p, q = log_softmax(reference), log_softmax(candidate)
        self._kl.append(float((np.exp(p) * (p - q)).sum()))
        differences = np.abs(candidate - reference)
        self._differences += float(differences.sum(dtype=np.float64))
        self._largest = max(self._largest, float(differences.max(initial=0.0)))
        self._logits += differences.size
        self._agreed += int(reference.argmax() == candidate.argmax())
        if target >= 0:
            self._losses -= (p[target], q[target])
            self._targets += 1

    @property
    def divergences(self) -> np.ndarray:
        """KL in nats, float64 [n], of all positions so far, in the order in which they were added."""
        return np.array(self._kl, dtype=np.float64)

    def result(self) -> Fidelity:
        """Figures over everything added so far.

        Raises:
            ConfigError: nothing was added.
        """
        kl = self.divergences
        if not kl.size:
            raise ConfigError("no positions were compared; give at least one token of text")
        perplexities = [math.exp(loss / self._targets) if self._targets else None for loss in self._losses]
        return Fidelity(
            positions=kl.size,
            mean_difference=self._differences / self._logits,
            max_difference=self._largest,
            mean_kl=float(kl.mean()),
            median_kl=float(np.median(kl)),
            p99_kl=float(np.percentile(kl, 99)),
            top1_agreement=self._agreed / kl.size,
            reference_perplexity=perplexities[0],
            candidate_perplexity=perplexities[1],
        )
