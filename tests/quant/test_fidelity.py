"""Fidelity figures against scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from phirt.errors import ConfigError
from phirt_quant.fidelity import FidelityMeter, kl_divergence


def logits(seed: int, rows: int = 50, vocab: int = 30) -> np.ndarray:
    return (4 * np.random.default_rng(seed).standard_normal((rows, vocab))).astype(np.float32)


def test_kl_divergence_agrees_with_scipy():
    p, q = logits(0), logits(1)
    expected = rel_entr(softmax(p.astype(np.float64), -1), softmax(q.astype(np.float64), -1)).sum(-1)
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-10)


def test_large_logits_do_not_overflow():
    p = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)
    np.testing.assert_allclose(kl_divergence(p, p), 0.0)


def test_figures_do_not_depend_on_how_positions_are_chunked():
    p, q, targets = logits(2), logits(3), np.random.default_rng(4).integers(-1, 30, 50)
    whole, chunked = FidelityMeter(), FidelityMeter()
    whole.add(p, q, targets)
    for start in range(0, 50, 7):
        part = slice(start, start + 7)
        chunked.add(p[part], q[part], targets[part])
    a, b = whole.result(), chunked.result()
    assert a.positions == b.positions == 50
    for field in ("mean_kl", "p99_kl", "top1_agreement", "reference_perplexity", "candidate_perplexity"):
        assert getattr(a, field) == pytest.approx(getattr(b, field), rel=1e-12)
    known = targets >= 0
    probabilities = softmax(p.astype(np.float64), -1)[known, targets[known]]
    assert a.reference_perplexity == pytest.approx(np.exp(-np.log(probabilities).mean()))
    assert a.top1_agreement == (p.argmax(-1) == q.argmax(-1)).mean()
    assert a.p99_kl == pytest.approx(np.percentile(kl_divergence(p, q), 99))
    assert a.max_difference == b.max_difference == np.abs(p - q).max()
    assert a.mean_difference == pytest.approx(np.abs(p - q).mean()) == pytest.approx(b.mean_difference)


def test_a_model_agrees_with_itself_and_uniform_logits_have_the_vocabulary_as_perplexity():
    meter = FidelityMeter()
    meter.add(np.zeros((4, 30), np.float32), np.zeros((4, 30), np.float32), np.array([1, 2, 3, 4]))
    result = meter.result()
    assert (result.mean_kl, result.top1_agreement) == (0.0, 1.0)
    assert result.candidate_perplexity == pytest.approx(30.0)


def test_perplexity_is_absent_without_targets():
    meter = FidelityMeter()
    meter.add(logits(5), logits(6))
    assert meter.result().reference_perplexity is None


def test_incomparable_or_damaged_logits_are_refused():
    meter = FidelityMeter()
    with pytest.raises(ConfigError, match="same vocabulary"):
        meter.add(logits(0), logits(0, vocab=31))
    with pytest.raises(ConfigError, match="not finite"):
        meter.add(logits(0), logits(0) * np.float32(np.nan))
    with pytest.raises(ConfigError, match="no positions"):
        meter.result()
