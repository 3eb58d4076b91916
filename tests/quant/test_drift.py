"""What a matrix aims at behind quantized ones: cases with a known answer, and what must never get worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt_quant.drift import DriftCorrection, InputMoments, _whitening

ROWS, COLUMNS = 6, 8
MANY = 100_000_000


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def moments(x: np.ndarray, y: np.ndarray, e: np.ndarray | None, positions: int) -> InputMoments:
    """Of inputs x and y [positions, K] and sums that lack e [positions, n]."""

    def mean(u: np.ndarray) -> np.ndarray:
        return (u.T @ x / len(x)).astype(np.float32)

    return InputMoments(mean(x), positions, mean(y - x), None if e is None else mean(e))


def weights() -> np.ndarray:
    return drawn(1, ROWS, COLUMNS).astype(np.float32)


def test_drift_that_follows_from_the_inputs_is_undone():
    """y = A x, so that W y = (W A) x; and e = B x adds B."""
    x, mixing, lacking = drawn(2, 500, COLUMNS), drawn(3, COLUMNS, COLUMNS), drawn(4, ROWS, COLUMNS)
    y, e, matrix = x @ mixing.T, x @ lacking.T, weights()
    moved = DriftCorrection(moments(x, y, None, MANY), 1e-9, 1.0).moved(matrix, 0)
    np.testing.assert_allclose(moved, matrix @ mixing, atol=1e-4)
    half = DriftCorrection(moments(x, y, None, MANY), 1e-9, 0.5).moved(matrix, 0)
    np.testing.assert_allclose(half, (matrix + matrix @ mixing) / 2, atol=1e-4)
    moved = DriftCorrection(moments(x, y, e, MANY), 1e-9, 1.0).moved(matrix, 0)
    np.testing.assert_allclose(moved, matrix @ mixing + lacking, atol=1e-4)
    assert moved.dtype == np.float32


def test_without_drift_weights_stay():
    x, matrix = drawn(2, 500, COLUMNS), weights()
    assert DriftCorrection(InputMoments(x.T @ x / 500, 500), 0.01).moved(matrix, 0) is matrix
    moved = DriftCorrection(moments(x, x, np.zeros((500, ROWS)), 500), 0.01).moved(matrix, 0)
    np.testing.assert_array_equal(moved, matrix)


def test_slabs_are_parts_of_the_whole():
    x, y, e, matrix = drawn(2, 90, COLUMNS), drawn(3, 90, COLUMNS), drawn(4, 90, ROWS), weights()
    correction = DriftCorrection(moments(x, y, e, 90), 0.01)
    whole = correction.moved(matrix, 0)
    for start, stop in ((0, 2), (2, 5), (5, 6)):
        np.testing.assert_allclose(
            correction.moved(matrix[start:stop], start), whole[start:stop], rtol=1e-6, atol=1e-6
        )


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.0, 0.01, 0.1]))
def test_outputs_never_get_worse_on_the_positions_seen(seed, positions, damping):
    """Also where there are fewer positions than inputs."""
    x, noise, e = (
        drawn(seed, positions, COLUMNS),
        drawn(seed + 1, positions, COLUMNS),
        drawn(seed + 2, positions, ROWS),
    )
    y, matrix = x + 0.3 * noise, weights()
    moved = DriftCorrection(moments(x, y, e, positions), damping).moved(matrix, 0)
    wanted = y @ matrix.T + e
    before, after = (float(np.square(wanted - x @ m.T).sum()) for m in (matrix, moved))
    assert after <= before * (1 + 1e-5) + 1e-9


def test_chance_is_not_followed():
    """Noise that has nothing to do with the inputs, on as many positions as inputs: unseen ones, on which
    any step does harm, must suffer little.
    """
    x, e, matrix = drawn(2, COLUMNS, COLUMNS), drawn(3, COLUMNS, ROWS), weights()
    honest, trusting = (
        DriftCorrection(moments(x, x, e, positions), 1e-6).moved(matrix, 0) - matrix
        for positions in (COLUMNS, MANY)
    )
    unseen = drawn(5, 1000, COLUMNS)
    harm = [float(np.square(unseen @ step.T).mean()) for step in (honest, trusting)]
    assert harm[0] < 1.0 < harm[1] and harm[0] < 0.1 * harm[1]


@pytest.mark.parametrize("with_sums", [False, True])
def test_inputs_that_are_always_zero_change_nothing(with_sums):
    zeros, matrix = np.zeros((10, COLUMNS)), weights()
    e = drawn(3, 10, ROWS) if with_sums else None
    np.testing.assert_array_equal(
        DriftCorrection(moments(zeros, zeros, e, 10), 0.01).moved(matrix, 0), matrix
    )


@pytest.mark.parametrize("size", [3, 512, 513, 1500])
def test_a_large_matrix_is_inverted_in_parts(size):
    mixing = drawn(4, size, 40)
    matrix = (mixing @ mixing.T / 40 + 0.1 * np.eye(size)).astype(np.float32)
    expected = np.linalg.inv(matrix.astype(np.float64) + 0.05 * np.eye(size))
    root = _whitening(matrix, 0.05)
    assert not np.triu(root, 1).any()
    np.testing.assert_allclose(root.T @ root, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
