"""What a graph computes of weights alone, as arrays.

Knows the few operators that exported graphs apply to weights. Knows nothing of what they are for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

Array = np.ndarray


def constant_of(value: ir.Value) -> Array | None:
    """The array that a value is whatever is fed; None where that depends on an input of the graph, or on an
    operator that is not known here.
    """
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type not in _COMPUTED or len(node.outputs) != 1:
        return None
    arrays = []
    for one in node.inputs:
        array = None if one is None else constant_of(one)
        if array is None:
            return None
        arrays.append(array)
    return _COMPUTED[node.op_type](node, arrays)


def _cast(node: ir.Node, arrays: list[Array]) -> Array:
    dtype = ir.DataType(node.attributes["to"].as_int()).numpy()
    return np.asarray(arrays[0].astype(dtype))


def _transpose(node: ir.Node, arrays: list[Array]) -> Array:
    order = node.attributes.get("perm")
    return np.transpose(arrays[0], None if order is None else order.as_ints())


_COMPUTED: dict[str, Callable[[ir.Node, list[Array]], Array]] = {
    "Cast": _cast,
    "Transpose": _transpose,
    "Add": lambda _, arrays: np.asarray(arrays[0] + arrays[1]),
    "Mul": lambda _, arrays: np.asarray(arrays[0] * arrays[1]),
    "Reshape": lambda _, arrays: arrays[0].reshape(arrays[1].tolist()),
}
