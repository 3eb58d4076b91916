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
from phirt_export.graphs.embedding_table import EmbeddingTable
from phirt_export.graphs.linear import Matrix, WeightStore
from phirt_export.graphs.weight_format import KEPT, RowFormat, WeightFormat
from phirt_quant.blockwise import BlockQuantized, dequantize, from_levels, pack, quantize

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
        names = ("codes", "scales", "minimums", "low_codes")
        arrays = {name: array[start:stop] for name in names if (array := getattr(b, name)) is not None}
        return dataclasses.replace(b, **arrays)


def random_blocks(bits: int, scale_type: str, has_minimums: bool) -> BlockQuantized:
    rng = np.random.default_rng(bits)
    if bits == 6:
        levels = rng.integers(-34, 30, (ROWS, BLOCKS * BLOCK))
        return from_levels(levels, (0.01 + rng.random((ROWS, BLOCKS))).astype(scale_type), bits, BLOCK)
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


CASES = [
    (4, "float16", True), (4, "float16", False), (6, "float16", False), (6, "float32", False),
    (8, "float16", False), (8, "float32", True),
]  # fmt: skip


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
    assert bits != 6 or blocks.low_codes.tobytes() in raw
    assert store.errors[0].noise == 0
    assert store.sizes[0].bytes == form.stored_bytes(ROWS, BLOCKS * BLOCK)


@pytest.mark.parametrize(
    ("bits", "activations", "error"),
    [(4, "float32", 1e-6), (8, "int8_twice", 1e-4), (6, "int8_twice", 1e-4), (4, "int8_twice", 1e-4)],
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


@pytest.mark.parametrize("columns", [96, 80])
def test_rows_of_several_formats_are_one_table(tmp_path, columns):
    """Ids on both sides of every edge; a width that no block divides; the head scores in the same order."""
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((ROWS, columns)).astype(np.float32)
    forms = [
        WeightFormat(6, 32, "rtn", "float16"),
        WeightFormat(4, 16),
        WeightFormat(8, 32, "rtn", "float16"),
    ]
    edges = [0, 5, 6, ROWS]
    rows = tuple(RowFormat(a, b, form) for a, b, form in zip(edges, edges[1:], forms, strict=False))
    expected = np.concatenate(
        [
            dequantize(quantize(weights[of.first : of.stop], of.form.bits, of.form.block_for(columns),
                                scale_type=of.form.scale_type))
            for of in rows
        ]
    )  # fmt: skip

    class Source:
        def shape(self, name):
            return weights.shape

        def rows(self, name, start, stop):
            return weights[start:stop]

    ids = np.array([[0, 4, 5, 6, 7, ROWS - 1, 0]])
    x = rng.standard_normal((1, 3, columns)).astype(np.float32)
    with DataFile(tmp_path / "d.data") as data:
        g = GraphBuilder("g", data)
        store = WeightStore(g, Source(), chosen={"w": rows})
        table = EmbeddingTable(store, "w", WeightFormat(4, 32))
        g.output(table.embed(g.input("ids", "int64", [1, "n"])), "rows", "float32", [1, "n", columns])
        g.output(table.score(g.input("x", "float32", [1, "m", columns])), "y", "float32", [1, "m", ROWS])
        for start, stop in ((0, ROWS), (3, 6), (5, 20)):
            np.testing.assert_array_equal(store.read_back("w", start, stop), expected[start:stop])
    assert sum(size.weights for size in store.sizes) == weights.size
    ir.save(g.model("test"), tmp_path / "g.onnx")
    session = ort.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
    found, y = session.run(None, {"ids": ids, "x": x})
    np.testing.assert_allclose(found, expected[ids], rtol=1e-6, atol=1e-6)
    wanted = x.astype(np.float64) @ expected.T.astype(np.float64)
    np.testing.assert_allclose(y, wanted, atol=0.02 * np.abs(wanted).max())


def test_rows_that_are_not_all_stored_yet_are_not_read_back(tmp_path):
    source = Kept(random_blocks(4, "float16", False))
    with DataFile(tmp_path / "d.data") as data:
        store = WeightStore(GraphBuilder("g", data), source)
        store.blocks(Matrix(source, "w", first=0, stop=10), WeightFormat(4, BLOCK))
        assert store.read_back("w", 0, 10) is not None and store.read_back("w", 8, 11) is None
        assert store.read_back("v", 0, 1) is None
