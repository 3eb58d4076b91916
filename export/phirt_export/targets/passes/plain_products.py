"""Pass: products by stored blocks in the form that every GPU's MatMulNBits takes: inputs as they are, 4 or 8
bits, whole blocks, and the bias added behind.

What exported graphs do for the CPU's kernels goes: inputs that are rounded twice, and 6 bits as 4 and 2,
which become 8 with the same values. Codes stay where they lie, in the bundle's own files.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt_export.targets.passes.float_weights import stem, twice_rounded, unpacked
from phirt_export.variants.constants import constant_of
from phirt_export.variants.rewriter import Rewriter, Values, integer, is_called, name_of, producer

_LOW_BITS = 2


def _plain(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    name = name_of(node)
    y = _multiplied(r, inputs[:3], node, integer(node, "bits", 4), name)
    bias = inputs[5] if len(inputs) > 5 else None
    return [y if bias is None else r.g.Add(y, bias, name=f"{name}.biased")]


def _multiplied(r: Rewriter, inputs: Values, sizes: ir.Node, bits: int, name: str) -> ir.Value:
    """The product of inputs by codes and scales, of the sizes that a node of the old graph has."""
    g, (x, codes, scales) = r.g, inputs
    rows, columns, block = _sizes(sizes)
    whole = -(-columns // block) * block
    if whole != columns:
        pads = g.constant([0, 0, 0, 0, 0, whole - columns], f"{name}.pads", "int64")
        x = g.Pad(x, pads, name=f"{name}.padded")
    return g.MatMulNBits(x, codes, scales, name=name, N=rows, K=whole, bits=bits, block_size=block)


def _together(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    """Upper and lower bits as one matrix, or one table, of 8 bits."""
    if not is_called(node, ".both") or len(node.inputs) != 2:
        return None
    upper, lower = (None if value is None else value.producer() for value in node.inputs)
    if upper is None or lower is None or upper.op_type != lower.op_type:
        return None
    if upper.op_type == "MatMulNBits":
        x, scales = lower.inputs[0], lower.inputs[2]
        assert x is not None and scales is not None
        rows, columns, block = _sizes(upper)
        codes = _joined(r, upper, lower, 1, (rows, -(-columns // block), block))
        return [_multiplied(r, [r.get(x), codes, r.get(scales)], upper, 8, name_of(node))]
    if upper.op_type == "GatherBlockQuantized":
        high, ids, scales = upper.inputs[0], lower.inputs[1], lower.inputs[2]
        assert high is not None and high.shape is not None and ids is not None and scales is not None
        (rows, width), block = high.shape.numpy(), integer(upper, "block_size", 32)
        codes = _joined(r, upper, lower, 0, (rows, width * 8 // integer(upper, "bits", 4)))
        gathered = r.g.GatherBlockQuantized(
            codes, r.get(ids), r.get(scales), name=name_of(node), bits=8, block_size=block, gather_axis=0,
            quantize_axis=1,
        )  # fmt: skip
        return [gathered]
    return None


def _joined(r: Rewriter, upper: ir.Node, lower: ir.Node, place: int, shape: tuple[int, ...]) -> ir.Value:
    """Codes of 8 bits that stand for upper and lower ones of two nodes, with the steps of the lower ones."""
    high, low = upper.inputs[place], lower.inputs[place]
    assert high is not None and low is not None
    bits = integer(upper, "bits", 4), integer(lower, "bits", _LOW_BITS)

    def computed() -> ir.TensorProtocol:
        parts = []
        for value, width in zip((high, low), bits, strict=True):
            array = constant_of(value)
            assert array is not None
            parts.append(unpacked(array.reshape(shape[0], -1), width))
        values = (1 << bits[1]) * parts[0] + parts[1] + 128
        return ir.tensor(values.astype(np.uint8).reshape(shape))

    tensor = ir.LazyTensor(computed, ir.DataType.UINT8, ir.Shape(shape))
    return r.g.keep(r.shared.setdefault(("joined", high.name), tensor), f"{stem(high)}.eight")


def _sizes(node: ir.Node) -> tuple[int, int, int]:
    """Rows, columns and the columns of a block."""
    return integer(node, "N", 0), integer(node, "K", 0), integer(node, "block_size", 32)


def _as_they_are(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    """The product of the inputs themselves, where their two roundings were multiplied and summed."""
    if not is_called(node, ".whole"):
        return None
    product = producer(inputs[0], "MatMulNBits")
    x = None if product is None else twice_rounded(product.inputs[0])
    return None if product is None or x is None else _plain(r, product, [x, *product.inputs[1:]])


RULES = {"MatMulNBits": _plain, "Add": _together, "ReduceSum": _as_they_are}
