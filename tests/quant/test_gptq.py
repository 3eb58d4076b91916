"""Error-compensating quantization: a case computed by hand, what it must never lose, and odd inputs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_quant.blockwise import BlockQuantized, block_levels, dequantize, num_blocks, quantize
from phirt_quant.gptq import DAMPING, ErrorCompensation


def correlated(columns: int, seed: int = 0, samples: int = 400) -> np.ndarray:
    """Inputs [samples, columns] with a few strong directions and channels of different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, 8)) @ rng.standard_normal((8, columns))
    return (mixed + 0.3 * rng.standard_normal((samples, columns))) * rng.uniform(0.2, 3, columns)


def moments(inputs: np.ndarray) -> np.ndarray:
    return inputs.T @ inputs / len(inputs)


def weights(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def levels_of(quantized: BlockQuantized) -> np.ndarray:
    """Whole-number levels [N, blocks * block_size]."""
    half = 2 ** (quantized.bits - 1)
    unit = BlockQuantized(
        quantized.codes,
        np.ones_like(quantized.scales),
        quantized.scales.shape[1] * quantized.block_size,
        quantized.bits,
        quantized.block_size,
    )
    values = dequantize(unit)
    assert values.min() >= -half and values.max() < half
    return values


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 64, 128])
@pytest.mark.parametrize("columns", [128, 200])
def test_outputs_err_less_than_without_a_look_at_the_inputs(bits, block_size, columns):
    inputs, matrix = correlated(columns), weights(60, columns)
    compensation = ErrorCompensation(moments(inputs))

    def error(quantized: BlockQuantized) -> float:
        return float(np.square(inputs @ (matrix - dequantize(quantized)).T).sum())

    rounded, searched = (error(quantize(matrix, bits, block_size, method)) for method in ("rtn", "mse"))
    assert error(compensation.quantize(matrix, bits, block_size)) < 0.5 * min(rounded, searched)


def test_a_case_computed_by_hand():
    """Two weights of 0.4 whose inputs nearly agree: rounded alone both are lost, together one stands for
    both. The weight of -8 makes the step 1.
    """
    row = np.zeros((1, 16), np.float32)
    row[0, :3] = -8, 0.4, 0.4
    hessian = np.eye(16)
    hessian[1, 2] = hessian[2, 1] = 0.9
    quantized = ErrorCompensation(hessian, damping=0.01).quantize(row, 4, 16)
    # Column 1 becomes 0. Its error of 0.4 adds 0.4 · 0.9 / 1.01 to column 2, and 0.756 becomes 1.
    np.testing.assert_array_equal(levels_of(quantized)[0], [-8, 0, 1] + [0] * 13)
    # The scale that is best for these levels c is cᵀHw / cᵀHc.
    best = (64 * 1.01 + 0.4 * 1.01 + 0.9 * 0.4) / (65 * 1.01)
    assert quantized.scales[0, 0] == pytest.approx(best, rel=1e-6)
    np.testing.assert_array_equal(levels_of(quantize(row, 4, 16))[0], [-8] + [0] * 15)


@given(st.integers(1, 70), st.integers(0, 1000), st.sampled_from([4, 8]), st.sampled_from([16, 32]))
@settings(max_examples=30, deadline=None)
def test_independent_inputs_leave_rounding_to_nearest(columns, seed, bits, block_size):
    rng = np.random.default_rng(seed)
    matrix, squares = weights(5, columns, seed), rng.uniform(0.1, 9, columns)
    quantized = ErrorCompensation(np.diag(squares)).quantize(matrix, bits, block_size)
    count = num_blocks(columns, block_size)
    padded = np.zeros((5, count * block_size), np.float64)
    padded[:, :columns] = matrix
    nearest = block_levels(padded.reshape(5, count, -1), quantized.scales.astype(np.float64), bits)
    np.testing.assert_array_equal(levels_of(quantized), nearest.reshape(5, -1))
    damped = squares + DAMPING * squares.mean()

    def error(quantized: BlockQuantized) -> float:
        return float((np.square(matrix - dequantize(quantized)) * damped).sum())

    assert error(quantized) <= 1.0001 * error(quantize(matrix, bits, block_size))


def test_padding_takes_no_part():
    inputs, matrix = correlated(40), weights(7, 40)
    quantized = ErrorCompensation(moments(inputs)).quantize(matrix, 4, 32)
    assert quantized.codes.shape == (7, 2, 16) and quantized.scales.shape == (7, 2)
    assert dequantize(quantized).shape == (7, 40)
    assert (levels_of(quantized)[:, 40:] == 0).all()


def test_an_input_that_never_comes_is_rounded_to_nearest():
    inputs, matrix = correlated(64), weights(9, 64)
    dead = [3, 20, 63]
    inputs[:, dead] = 0
    quantized = ErrorCompensation(moments(inputs)).quantize(matrix, 4, 32)
    scales = np.repeat(quantized.scales, 32, axis=1).astype(np.float64)[:, dead]
    nearest = np.clip(np.rint(matrix[:, dead] / scales), -8, 7)
    np.testing.assert_array_equal(levels_of(quantized)[:, dead], nearest)


@pytest.mark.parametrize("hessian", [np.zeros((32, 32)), np.ones((32, 32)), 1e-30 * np.eye(32)])
def test_moments_without_full_rank_are_taken(hessian):
    matrix = weights(4, 32)
    quantized = ErrorCompensation(hessian).quantize(matrix, 4, 32)
    assert np.isfinite(quantized.scales).all()
    assert np.abs(dequantize(quantized) - matrix).max() < np.abs(matrix).max()


def test_a_matrix_of_zeros_stays_zero():
    quantized = ErrorCompensation(moments(correlated(64))).quantize(np.zeros((3, 64), np.float32), 4, 32)
    assert not dequantize(quantized).any() and np.isfinite(quantized.scales).all()


def test_damping_bounds_what_rare_directions_do():
    """Few samples: the stronger the damping, the nearer to the weights, and the farther from the samples."""
    inputs, matrix = correlated(64, samples=10), weights(20, 64)
    distances, errors = [], []
    for damping in (1e-4, DAMPING, 1.0, 1e6):
        stored = dequantize(ErrorCompensation(moments(inputs), damping).quantize(matrix, 4, 32))
        distances.append(np.square(stored - matrix).sum())
        errors.append(np.square(inputs @ (stored - matrix).T).sum())
    assert distances == sorted(distances, reverse=True) and errors == sorted(errors)


def test_the_same_inputs_give_the_same_bytes():
    inputs, matrix = correlated(200), weights(30, 200)
    first, second = (ErrorCompensation(moments(inputs)).quantize(matrix, 4, 64) for _ in range(2))
    assert first.codes.tobytes() == second.codes.tobytes()
    assert first.scales.tobytes() == second.scales.tobytes()


def test_memory_is_a_small_multiple_of_the_moments():
    matrix, hessian = weights(64, 1024), moments(correlated(1024))
    tracemalloc.start()
    try:
        ErrorCompensation(hessian).quantize(matrix, 4, 128)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * hessian.nbytes


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value):
    hessian, matrix = np.eye(32), weights(2, 32)
    matrix[1, 3] = value
    with pytest.raises(ConfigError, match="weights"):
        ErrorCompensation(hessian).quantize(matrix, 4, 32)
    hessian[2, 2] = value
    with pytest.raises(ConfigError, match="activations"):
        ErrorCompensation(hessian)


def test_an_unsupported_format_is_refused():
    with pytest.raises(ConfigError, match="power of two"):
        ErrorCompensation(np.eye(32)).quantize(weights(2, 32), 4, 24)


def test_what_remains_of_an_error_is_the_variance_that_later_inputs_leave():
    hessian = moments(correlated(12))
    remaining = ErrorCompensation(hessian, damping=1e-12).remaining
    for k in range(12):
        given_later = 1 / np.linalg.inv(hessian[k:, k:])[0, 0]
        assert remaining[k] == pytest.approx(given_later / hessian[k, k], rel=1e-5)
    assert remaining[-1] == pytest.approx(1)
