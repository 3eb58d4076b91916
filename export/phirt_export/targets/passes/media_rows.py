"""Pass: rows of media features stand in the place of placeholders without a search for these, whose number a
GPU would have to tell the CPU in the middle of a run.

Every token gets the row that is counted up to it, and takes it where it is a placeholder. There must be one
row at least, for tokens before the first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt.bundle.manifest import SOME_ROWS
from phirt_export.variants.rewriter import Rewriter, Values, name_of


def _placed(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    embedded, _, media = inputs
    places = None if node.inputs[1] is None else node.inputs[1].producer()
    found = None if places is None or places.inputs[0] is None else places.inputs[0].producer()
    if found is None or found.op_type != "NonZero" or found.inputs[0] is None or media is None:
        return None
    g, name, is_placeholder = r.g, name_of(node), r.get(found.inputs[0])
    media.shape = ir.Shape([SOME_ROWS, *(media.shape or ())[1:]])
    ones = g.Cast(is_placeholder, to=int(ir.DataType.INT32), name=f"{name}.ones")
    count = g.CumSum(ones, g.constant(np.int32(1), f"{name}.along"), name=f"{name}.count")
    first = g.constant(np.int32(1), f"{name}.first")
    row = g.Max(g.Sub(count, first), g.constant(np.int32(0), f"{name}.zero"), name=f"{name}.row")
    rows = g.Gather(media, row, axis=0, name=f"{name}.rows")
    last = g.constant([-1], f"{name}.last", "int64")
    return [g.Where(g.Unsqueeze(is_placeholder, last), rows, embedded, name=name)]


RULES = {"ScatterND": _placed}
