"""Pass: rows of a table in stored blocks are gathered as bytes and made numbers by elementary operators,
where there is no GatherBlockQuantized.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.variants.rewriter import Rewriter, Values, integer, name_of

_BYTE = 8


def _gathered(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    """[ids.., columns] from codes [rows, bytes] and scales [rows, blocks]."""
    g, name, bits = r.g, name_of(node), integer(node, "bits", 4)
    codes, ids, scales = inputs[:3]
    block = integer(node, "block_size", 32)
    numbers = g.Cast(g.Gather(codes, ids, axis=0, name=f"{name}.bytes"), to=int(ir.DataType.FLOAT))
    parts = []
    for _ in range(_BYTE // bits - 1):  # the lowest bits of a byte come first
        above = g.Floor(g.Mul(numbers, g.constant(np.float32(2.0**-bits), f"{name}.share")))
        parts.append(g.Sub(numbers, g.Mul(above, g.constant(np.float32(2.0**bits), f"{name}.times"))))
        numbers = above
    parts.append(numbers)
    last = g.constant([-1], f"{name}.last", "int64")
    if len(parts) > 1:
        numbers = g.Concat(*(g.Unsqueeze(part, last) for part in parts), axis=-1, name=f"{name}.codes")
    blocks = g.Reshape(numbers, g.constant([1, -1, _blocks(node), block], f"{name}.blocks", "int64"))
    signed = g.Sub(blocks, g.constant(np.float32(2.0 ** (bits - 1)), f"{name}.middle"))
    steps = g.Unsqueeze(g.Gather(scales, ids, axis=0, name=f"{name}.steps"), last)
    joined = g.constant([1, -1, _blocks(node) * block], f"{name}.columns", "int64")
    return [g.Reshape(g.Mul(signed, steps), joined, name=name)]


def _blocks(node: ir.Node) -> int:
    """Blocks in a row of the table."""
    codes = node.inputs[0]
    assert codes is not None and codes.shape is not None
    count = codes.shape[1]
    assert isinstance(count, int)
    return count * _BYTE // integer(node, "bits", 4) // integer(node, "block_size", 32)


RULES = {"GatherBlockQuantized": _gathered}
