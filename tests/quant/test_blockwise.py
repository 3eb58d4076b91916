"""Block quantization: exact round trips, the formula written out by hand, and the operators that read the
codes.
"""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from phirt.errors import ConfigError
from phirt_quant.blockwise import BlockQuantized, dequantize, num_blocks, quantize

BITS = st.sampled_from([4, 6, 8])
BLOCKS = st.sampled_from([32, 64])
LEVELS = {4: (-8, 7), 6: (-34, 29), 8: (-128, 127)}
MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=90),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def by_hand(row: np.ndarray, bits: int, block_size: int) -> tuple[list[int], list[float]]:
    """Codes and scales of one row, element by element, from the definition."""
    lowest, highest = LEVELS[bits]
    codes: list[int] = []
    scales: list[float] = []
    for start in range(0, len(row), block_size):
        block = [float(v) for v in row[start : start + block_size]]
        extreme = max(block, key=abs)
        scale = extreme / lowest
        if bits == 6:
            others = [abs(v) for v in block if (v < 0) != (extreme < 0)]
            scale = math.copysign(max([abs(scale), *(v / highest for v in others)]), scale)
        scales.append(scale)
        for value in block + [0.0] * (block_size - len(block)):
            level = round(value / scale) if scale else 0
            codes.append(min(max(level, lowest), highest) - lowest)
    return codes, scales


def unpacked(quantized: BlockQuantized) -> np.ndarray:
    """Levels [N, blocks, block_size] from the lowest on, one a byte."""
    if quantized.bits == 8:
        return quantized.codes
    codes = np.empty((*quantized.codes.shape[:2], quantized.block_size), np.uint8)
    codes[..., 0::2] = quantized.codes % 16
    codes[..., 1::2] = quantized.codes // 16
    if quantized.low_codes is None:
        return codes
    low = np.empty_like(codes)
    for place in range(4):
        low[..., place::4] = quantized.low_codes // 4**place % 4
    return 4 * codes + low


@given(MATRICES, BITS, BLOCKS)
@settings(max_examples=60, deadline=None)
def test_requantizing_dequantized_values_changes_nothing(matrix, bits, block_size):
    first = quantize(matrix, bits, block_size)
    second = quantize(dequantize(first), bits, block_size)
    np.testing.assert_array_equal(dequantize(first), dequantize(second))
    if bits != 6:  # of it, a block whose extremes mirror each other has two forms
        np.testing.assert_array_equal(first.codes, second.codes)
        np.testing.assert_array_equal(first.scales, second.scales)


@given(MATRICES, BITS, BLOCKS)
@example(np.array([[2.47464e-40]], np.float32), 8, 16)
@settings(max_examples=60, deadline=None)
def test_error_is_bounded_and_the_extreme_is_exact(matrix, bits, block_size):
    quantized = quantize(matrix, bits, block_size)
    values = dequantize(quantized)
    count = num_blocks(matrix.shape[1], block_size)
    # A subnormal scale is a whole number of the smallest float32; its rounding is multiplied by the code.
    rounding = 2 ** (bits - 1) * 0.5 * float(np.finfo(np.float32).smallest_subnormal)
    assert values.shape == matrix.shape
    assert quantized.codes.shape == (matrix.shape[0], count, block_size * (4 if bits == 6 else bits) // 8)
    for row in range(matrix.shape[0]):
        for block in range(count):
            part = slice(block * block_size, (block + 1) * block_size)
            scale = abs(float(quantized.scales[row, block]))
            given_block, kept = matrix[row, part].astype(np.float64), values[row, part].astype(np.float64)
            at = np.abs(given_block).argmax()
            if bits != 6:
                assert kept[at] == pytest.approx(given_block[at], rel=1e-6, abs=rounding)
            # Half a step, or a whole one for the value that mirrors the extreme: its code does not exist.
            assert np.abs(kept - given_block).max() <= scale * (1 + 1e-5) + rounding


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("columns", [32, 50, 96])
def test_codes_and_scales_follow_the_definition(bits, columns):
    matrix = np.random.default_rng(columns).standard_normal((5, columns)).astype(np.float32)
    quantized = quantize(matrix, bits, 32)
    for row in range(5):
        codes, scales = by_hand(matrix[row], bits, 32)
        np.testing.assert_array_equal(unpacked(quantized)[row].reshape(-1), codes)
        np.testing.assert_allclose(quantized.scales[row], scales, rtol=1e-7)


def test_six_bits_are_a_quarter_of_the_error_of_four():
    """On one grid: a step of 6 bits is 8/34 of one of 4 bits, or 8/29 where both signs reach far."""
    matrix = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    errors = {bits: np.square(dequantize(quantize(matrix, bits, 64)) - matrix).mean() for bits in (4, 6)}
    assert (8 / 34) ** 2 < errors[6] / errors[4] < (8 / 29) ** 2


def test_rows_do_not_influence_each_other():
    matrix = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    whole = quantize(matrix, 4, 32)
    slabs = [quantize(matrix[start : start + 2], 4, 32) for start in range(0, 9, 2)]
    np.testing.assert_array_equal(whole.codes, np.concatenate([slab.codes for slab in slabs]))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_searched_scales_are_never_worse(bits):
    matrix = np.random.default_rng(2).standard_t(3, (40, 128)).astype(np.float32)
    rounded, searched = (dequantize(quantize(matrix, bits, 64, method)) for method in ("rtn", "mse"))
    errors = [np.square(m - matrix).reshape(40, 2, 64).sum(-1) for m in (rounded, searched)]
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    if bits == 4:
        assert errors[1].sum() < 0.95 * errors[0].sum()


@pytest.mark.parametrize(
    ("bits", "block_size", "method", "named"),
    [
        (3, 32, "rtn", "4, 6 or 8"),
        (4, 24, "rtn", "power of two"),
        (4, 8, "rtn", "16"),
        (6, 16, "rtn", "from 32 to 128"),
        (6, 256, "rtn", "from 32 to 128"),
        (4, 32, "best", "rtn, mse"),
    ],
)
def test_unsupported_formats_are_refused(bits, block_size, method, named):
    with pytest.raises(ConfigError, match=named):
        quantize(np.ones((2, 32), np.float32), bits, block_size, method)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    matrix = np.ones((2, 32), np.float32)
    matrix[1, 3] = value
    with pytest.raises(ConfigError, match="not finite"):
        quantize(matrix, 4, 32)


def run_node(op: str, feeds: dict[str, np.ndarray], **attributes: int) -> np.ndarray:
    """One contrib node run by onnxruntime."""
    kinds = {np.float32: TensorProto.FLOAT, np.uint8: TensorProto.UINT8, np.int64: TensorProto.INT64}
    node = helper.make_node(op, list(feeds), ["y"], domain="com.microsoft", **attributes)
    inputs = [helper.make_tensor_value_info(k, kinds[v.dtype.type], v.shape) for k, v in feeds.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", inputs, [output]), opset_imports=imports, ir_version=10
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("columns", [128, 200])
@pytest.mark.parametrize("rows", [1, 7])
def test_matmulnbits_multiplies_by_the_dequantized_matrix(bits, block_size, columns, rows):
    rng = np.random.default_rng(bits * columns)
    quantized = quantize(rng.standard_normal((48, columns)).astype(np.float32), bits, block_size)
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    feeds = {"x": x, "codes": quantized.codes, "scales": quantized.scales}
    attributes = {"K": columns, "N": 48, "bits": bits, "block_size": block_size}
    expected = x.astype(np.float64) @ dequantize(quantized).T.astype(np.float64)
    exact = run_node("MatMulNBits", feeds, **attributes, accuracy_level=1)
    np.testing.assert_allclose(exact, expected, atol=2e-4)
    fast = run_node("MatMulNBits", feeds, **attributes, accuracy_level=4)
    assert np.abs(fast - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [4, 8])
def test_gather_reads_the_same_bytes_as_two_dimensional_codes(bits):
    rng = np.random.default_rng(5)
    quantized = quantize(rng.standard_normal((20, 96)).astype(np.float32), bits, 32)
    ids = np.array([[3, 0, 19, 3]], np.int64)
    feeds = {"codes": quantized.codes.reshape(20, -1), "ids": ids, "scales": quantized.scales}
    rows = run_node("GatherBlockQuantized", feeds, bits=bits, block_size=32, gather_axis=0, quantize_axis=1)
    np.testing.assert_array_equal(rows, dequantize(quantized)[ids])
