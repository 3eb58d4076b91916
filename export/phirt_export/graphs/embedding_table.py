"""The table that embeds tokens and scores them, from one stored copy.

Knows rows of several formats, and which of them an id finds its own in. Knows nothing of how rows are
quantized or stored.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from phirt_export.graphs.linear import Matrix, WeightStore, row_name
from phirt_export.graphs.weight_format import RowFormat, WeightFormat


class EmbeddingTable:
    """A table [vocab, hidden], stored once: `embed` gathers rows from it, `score` multiplies by it."""

    def __init__(self, store: WeightStore, tensor: str, form: WeightFormat) -> None:
        self._store, self._weight, self._form = store, Matrix(store.source, tensor), form
        self._rows = store.formats_of(tensor, form)

    def embed(self, ids: ir.Value) -> ir.Value:
        """int64 [...] -> float32 [..., hidden]."""
        g, store, (only, *others) = self._store.g, self._store, self._rows
        if not only.form.is_quantized:
            return g.Gather(store.dense(self._weight).value(g, "embed.weight"), ids, name="embed")
        if not others:
            return self._unpadded(store.blocks(self._weight, only.form).gather(g, ids, "embed"), "embed")
        found = self._gathered(ids, only)[1]
        for rows in others:
            here, values = self._gathered(ids, rows)
            found = g.Where(here, values, found, name=row_name("embed.found", rows.first))
        return found

    def _gathered(self, ids: ir.Value, rows: RowFormat) -> tuple[ir.Value, ir.Value]:
        """For each id whether its row is among these or behind them, bool [..., 1], and that row, or any."""
        g, name = self._store.g, row_name("embed", rows.first)
        zero, first, last = (
            g.constant(np.int64(at), f"{name}.{end}", "int64")
            for end, at in (("zero", 0), ("first", rows.first), ("last", rows.stop - rows.first - 1))
        )
        at = g.Sub(ids, first, name=f"{name}.at")
        here = g.GreaterOrEqual(at, zero, name=f"{name}.here")
        stored = self._store.blocks(
            dataclasses.replace(self._weight, first=rows.first, stop=rows.stop), rows.form
        )
        values = stored.gather(g, g.Clip(at, zero, last, name=f"{name}.inside"), name)
        axis = g.constant([-1], f"{name}.axis", "int64")
        return g.Unsqueeze(here, axis, name=f"{name}.rows"), self._unpadded(values, name)

    def _unpadded(self, rows: ir.Value, name: str) -> ir.Value:
        """Rows without the zeros that may fill up their last block."""
        g, columns = self._store.g, self._weight.shape[1]
        if not any(columns % of.form.block_for(columns) for of in self._rows):
            return rows
        first, last = (
            g.constant([at], f"{name}.{end}", "int64") for end, at in (("begin", 0), ("stop", columns))
        )
        return g.Slice(rows, first, last, g.constant([-1], f"{name}.along", "int64"), name=f"{name}.whole")

    def score(self, x: ir.Value) -> ir.Value:
        """float32 [1, n, hidden] -> logits float32 [1, n, vocab]."""
        g = self._store.g
        if self._rows[0].form.is_quantized:
            return self._store.linear(x, self._weight.name, self._form, "head")
        # Gemm reads the table as it lies; a MatMul would need a second, transposed copy in the file.
        flat = g.Squeeze(x, g.constant([0], "head.axis", "int64"), name="head.flat")
        scores = g.Gemm(flat, self._store.dense(self._weight).value(g, "head.weight"), transB=1, name="head")
        return g.Unsqueeze(scores, g.constant([0], "head.axis", "int64"), name="head.batched")
