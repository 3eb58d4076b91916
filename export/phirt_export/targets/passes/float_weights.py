"""Pass: products by stored blocks become plain products by float32 matrices, which are computed from the
blocks when they are asked for.

What exported graphs do for the sake of one kernel goes with it: inputs that are rounded twice, rows of
several formats, 6 bits as 4 and 2.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from phirt.errors import ConfigError
from phirt_export.variants.constants import constant_of
from phirt_export.variants.rewriter import Rewriter, Values, integer, is_called, name_of, producer


def _multiplied(r: Rewriter, node: ir.Node, inputs: Values) -> Values:
    """MatMulNBits as MatMul [.., K] x [K, N]."""
    codes, scales = node.inputs[1], node.inputs[2]
    assert codes is not None and scales is not None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        raise ConfigError(f"{node.name} has zero points of its own, which no target but cpu takes")
    weight = lazy_matrix(codes, scales, node)
    matrix = r.g.keep(_once(r, codes, weight), f"{stem(codes)}.weight")
    x = inputs[0]
    y = r.g.MatMul(x, matrix, name=node.name or "product")
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    return [y] if bias is None else [r.g.Add(y, inputs[5], name=f"{node.name}.biased")]


def lazy_matrix(codes: ir.Value, scales: ir.Value, node: ir.Node) -> ir.LazyTensor:
    """The matrix [K, N] of a MatMulNBits node."""
    rows, columns = integer(node, "N", 0), integer(node, "K", 0)
    bits, block = integer(node, "bits", 4), integer(node, "block_size", 32)

    def computed() -> ir.TensorProtocol:
        stored, steps = constant_of(codes), constant_of(scales)
        assert stored is not None and steps is not None
        whole = unpacked(stored.reshape(rows, -1), bits).reshape(rows, -1, block)
        values = whole * steps.astype(np.float32).reshape(rows, -1, 1)
        return ir.tensor(np.ascontiguousarray(values.reshape(rows, -1)[:, :columns].T))

    return ir.LazyTensor(computed, ir.DataType.FLOAT, ir.Shape((columns, rows)))


def unpacked(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes float32 [rows, n] of bytes [rows, m]; the lowest bits of a byte come first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (codes[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(len(codes), -1).astype(np.float32) - np.float32(1 << (bits - 1))


def _scored(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    """A product by a matrix that lies the other way round, as an unquantized token table does."""
    weight = node.inputs[1]
    plain = len(node.inputs) == 2 and integer(node, "transB", 0) and not integer(node, "transA", 0)
    if weight is None or weight.const_value is None or not plain:
        return None
    table = weight.const_value
    turned = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(table.numpy().T)),
        ir.DataType.FLOAT,
        ir.Shape(table.shape.numpy()[::-1]),
    )
    return [r.g.MatMul(inputs[0], r.g.keep(turned, f"{node.name}.weight"), name=name_of(node))]


def _joined(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    """Rows of several formats, multiplied one by one, as one product."""
    products = [_product(value) for value in inputs]
    known = [product for product in products if product is not None]
    if len(known) < len(products) or len({id(x) for x, _ in known}) != 1:
        return None
    weights = [weight for _, weight in known]
    rows = sum(weight.shape.numpy()[1] for weight in weights)
    columns = weights[0].shape.numpy()[0]
    together = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([weight.numpy() for weight in weights], axis=1)),
        ir.DataType.FLOAT,
        ir.Shape((columns, rows)),
    )
    matrix = r.g.keep(together, f"{node.name}.weight")
    return [r.g.MatMul(known[0][0], matrix, name=node.name or "joined")]


def _summed(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    """Upper and lower bits, multiplied one by one, as one product."""
    products = [_product(value) for value in inputs]
    if any(product is None for product in products):
        return None
    known = [product for product in products if product is not None]
    (x, first), (other, second) = known
    if x is not other or first.shape.numpy() != second.shape.numpy() or not is_called(node, ".both"):
        return None
    whole = ir.LazyTensor(
        lambda: ir.tensor(first.numpy() + second.numpy()),
        ir.DataType.FLOAT,
        ir.Shape(first.shape.numpy()),
    )
    return [r.g.MatMul(x, r.g.keep(whole, f"{node.name}.weight"), name=name_of(node))]


def _rounded_twice(r: Rewriter, node: ir.Node, inputs: Values) -> Values | None:
    """The sum over a batch of what rounding keeps of the inputs and what it leaves: the inputs themselves."""
    product = _product(inputs[0])
    if product is None or not is_called(node, ".whole"):
        return None
    pair, weight = product
    if (x := twice_rounded(pair)) is None:
        return None
    return [r.g.MatMul(x, r.g.keep(weight, f"{node.name}.weight"), name=name_of(node))]


def twice_rounded(value: ir.Value | None) -> ir.Value | None:
    """What was rounded, of a pair of what rounding keeps and what it leaves; None for any other value."""
    pair = producer(value, "Reshape")
    both = None if pair is None else producer(pair.inputs[0], "Concat")
    rest = None if both is None else producer(both.inputs[1], "Sub")
    blocks = None if rest is None else producer(rest.inputs[0], "Reshape")
    return None if blocks is None else blocks.inputs[0]


def _product(value: ir.Value | None) -> tuple[ir.Value, ir.TensorProtocol] | None:
    """Of a product by a weight what is multiplied, and the weight."""
    node = producer(value, "MatMul")
    if node is None or node.inputs[1] is None or node.inputs[1].const_value is None:
        return None
    x = node.inputs[0]
    assert x is not None
    return x, node.inputs[1].const_value


def _once(r: Rewriter, codes: ir.Value, weight: ir.LazyTensor) -> ir.TensorProtocol:
    """The same tensor for all products by the same codes."""
    return r.shared.setdefault(("float", codes.name), weight)


def stem(codes: ir.Value) -> str:
    """The name of the matrix that has these codes."""
    return (codes.name or "matrix").removesuffix(".codes")


RULES = {
    "MatMulNBits": _multiplied,
    "Gemm": _scored,
    "Concat": _joined,
    "Add": _summed,
    "ReduceSum": _rounded_twice,
}
