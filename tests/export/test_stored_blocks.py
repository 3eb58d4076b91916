"""Blocks with scales in float16 and minimums: what graphs compute with them, and what the data file holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.data_file import DataFile
from phirt_export.graphs.linear import KEPT, EmbeddingTable, WeightFormat, WeightStore
from phirt_quant.blockwise import BlockQuantized, dequantize, pack

ROWS, BLOCKS, BLOCK = 24, 3, 32


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """A source of one matrix that has blocks."""

    blocks: BlockQuantized

    def shape(self, name: str) -> tuple[int, ...]:
        return ROWS, BLOCKS * BLOCK

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return dequantize(self.blocks)[start:stop]

    def tensor(self, name: str) -> np.ndarray:
        return dequantize(self.blocks)

    def kept_rows(self, name: str, start: int, stop: int) -> BlockQuantized:
        b = self.blocks
        low = None if b.minimums is None else b.minimums[start:stop]
        return dataclasses.replace(b, codes=b.codes[start:stop], scales=b.scales[start:stop], minimums=low)


def random_blocks(bits: int, scale_type: str, has_minimums: bool) -> BlockQuantized:
    rng = np.random.default_rng(bits)
    levels = rng.integers(0, 2**bits, (ROWS, BLOCKS, BLOCK), np.uint8)
    scales = (0.01 + rng.random((ROWS, BLOCKS))).astype(scale_type)
    low = rng.normal(-5, 2, (ROWS, BLOCKS)).astype(scale_type) if has_minimums else None
    return BlockQuantized(pack(levels, bits), scales, BLOCKS * BLOCK, bits, BLOCK, low)


def run(folder: Path, source: Kept, form: WeightFormat, build, feeds):
    with DataFile(folder / "d.data") as data:
        g = GraphBuilder("g", data)
        store = WeightStore(g, source, kept=source)
        build(g, store, form)
        np.testing.assert_array_equal(store.read_back("w", 3, 9), dequantize(source.blocks)[3:9])
    ir.save(g.model("test"), folder / "g.onnx")
    session = ort.InferenceSession(str(folder / "g.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0], store, (folder / "d.data").read_bytes()


CASES = [(4, "float16", True), (4, "float16", False), (8, "float16", False), (8, "float32", True)]


@pytest.mark.parametrize(("bits", "scale_type", "has_minimums"), CASES)
def test_products_are_those_of_the_dequantized_matrix(tmp_path, bits, scale_type, has_minimums):
    source = Kept(random_blocks(bits, scale_type, has_minimums))
    form = WeightFormat(bits, BLOCK, KEPT, scale_type, has_minimums)
    x = np.random.default_rng(1).standard_normal((1, 5, BLOCKS * BLOCK)).astype(np.float32)

    def build(g, store, form):
        value = g.input("x", "float32", [1, "n", BLOCKS * BLOCK])
        g.output(store.linear(value, "w", form, "w"), "y", "float32", [1, "n", ROWS])

    y, store, raw = run(tmp_path, source, form, build, {"x": x})
    wanted = x.astype(np.float64) @ dequantize(source.blocks).astype(np.float64).T
    # Inputs are rounded to 8 bits, but only where they meet the codes: what minimums add is exact.
    np.testing.assert_allclose(y, wanted, atol=0.02 * np.abs(wanted).max())
    blocks = source.blocks
    assert raw.startswith(blocks.codes.tobytes())
    assert blocks.scales.tobytes() in raw
    assert not has_minimums or blocks.minimums.tobytes() in raw
    assert store.errors[0].noise == 0
    assert store.sizes[0].bytes == form.stored_bytes(ROWS, BLOCKS * BLOCK)


@pytest.mark.parametrize(
    ("bits", "activations", "error"), [(4, "float32", 1e-6), (8, "int8_twice", 1e-4), (4, "int8_twice", 1e-4)]
)
def test_inputs_are_as_exact_as_asked_for(tmp_path, bits, activations, error):
    source = Kept(random_blocks(bits, "float16", bits == 4))
    form = WeightFormat(bits, BLOCK, KEPT, "float16", bits == 4, activations)
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((1, 3, BLOCKS * BLOCK)) * 10.0 ** rng.integers(-3, 3, (1, 3, 1))).astype("f4")
    x[0, 1, :BLOCK] = 0  # a block of zeros has no step
    bias = rng.standard_normal(ROWS).astype(np.float32)

    def build(g, store, form):
        value = g.input("x", "float32", [1, "n", BLOCKS * BLOCK])
        g.output(store.linear(value, "w", form, "w", bias=bias), "y", "float32", [1, "n", ROWS])

    y, _, _ = run(tmp_path, source, form, build, {"x": x})
    wanted = x.astype(np.float64) @ dequantize(source.blocks).astype(np.float64).T + bias
    size = np.linalg.norm(wanted, axis=-1)
    assert (np.linalg.norm(y - wanted, axis=-1) <= error * size).all()


@pytest.mark.parametrize(("bits", "scale_type", "has_minimums"), CASES)
def test_gathered_rows_are_those_of_the_dequantized_matrix(tmp_path, bits, scale_type, has_minimums):
    source = Kept(random_blocks(bits, scale_type, has_minimums))
    form = WeightFormat(bits, BLOCK, KEPT, scale_type, has_minimums)

    def build(g, store, form):
        ids = g.input("ids", "int64", [1, "n"])
        g.output(EmbeddingTable(store, "w", form).embed(ids), "y", "float32", [1, "n", BLOCKS * BLOCK])

    y, _, _ = run(tmp_path, source, form, build, {"ids": np.array([[5, 0, 23]])})
    np.testing.assert_allclose(y[0], dequantize(source.blocks)[[5, 0, 23]], rtol=1e-6, atol=1e-5)


def test_what_weights_become_is_computed_once_for_all_branches(tmp_path):
    source = Kept(random_blocks(4, "float16", True))
    form = WeightFormat(4, BLOCK, KEPT, "float16", True)
    x = np.ones((1, 2, BLOCKS * BLOCK), np.float32)

    def build(g, store, form):
        value = g.input("x", "float32", [1, "n", BLOCKS * BLOCK])
        flag = g.input("flag", "bool", [1])

        def branch():
            return [store.linear(value, "w", form, "w", outer=True)]

        (y,) = g.if_else(flag, branch, branch, "either")
        g.output(y, "y", "float32", [1, "n", ROWS])
        outside = [node.op_type for node in g.model("test").graph]
        assert sorted(outside) == ["Add", "Cast", "Cast", "If", "Mul", "Transpose"]

    y, _, _ = run(tmp_path, source, form, build, {"x": x, "flag": np.array([True])})
    wanted = dequantize(source.blocks).sum(axis=1)
    np.testing.assert_allclose(y[0], [wanted, wanted], atol=0.02 * np.abs(wanted).max())
