"""Which nodes of a graph phirt-kernels computes as well as onnxruntime does: MatMulNBits over int8
activations, GroupQueryAttention over float32 and int8 caches. They keep inputs, outputs and attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from phirt.runtime.editable_graph import Graph, Node, TensorType

DOMAIN = b"phirt.kernels"
_THEIRS = b"com.microsoft"
PRODUCT = b"MatMulNBits"
_FLOAT32, _INT8 = 1, 3  # of TensorProto.DataType
_INT8_ACTIVATIONS = 4  # accuracy_level

_Types = Mapping[bytes, TensorType]


def take_nodes(graph: Graph) -> int:
    """Gives nodes of a graph, and of graphs inside it, their new domain. Returns how many."""
    count = 0
    for inside in graph.all_graphs():
        for node in inside.nodes:
            takes = _TAKES.get(node.kind)
            if takes is not None and node.domain == _THEIRS and takes(node, graph.inputs):
                node.domain = DOMAIN
                count += 1
    return count


# Of MatMulNBits. A graph that orders its groups (g_idx) is onnxruntime's.
SIZES = (b"N", b"K", b"bits", b"block_size")
_GROUPS = 4


def _takes_product(node: Node, _: _Types) -> bool:
    if node.attributes.get(b"accuracy_level") != _INT8_ACTIVATIONS:
        return False
    if not all(isinstance(node.attributes.get(name, 0), int) for name in SIZES):
        return False
    return not node.input(_GROUPS) and node.attributes.keys() <= {*SIZES, b"accuracy_level"}


# Attributes of GroupQueryAttention that the operator knows; others, by what value they do nothing.
_KNOWN = frozenset((b"num_heads", b"kv_num_heads", b"scale", b"do_rotary", b"local_window_size"))
_QUANTIZED = (b"k_quant_type", b"v_quant_type", b"kv_cache_bit_width")
_WITHOUT_EFFECT: Mapping[bytes, int] = {
    b"softcap": 0, b"rotary_interleaved": 0, b"smooth_softmax": 0, b"qk_output": 0, b"causal": 1,
    b"sliding_window_cache": 0,
}  # fmt: skip
_PAST = (3, 4)
_HEAD_DIMS = range(8, 513, 8)
_BIAS, _SINKS, _MOST_INPUTS = 10, 11, 14


def _takes_attention(node: Node, types: _Types) -> bool:
    kinds = [node.attributes.get(name, b"NONE") for name in _QUANTIZED[:2]]
    is_quantized = kinds != [b"NONE", b"NONE"]
    if is_quantized and (b"NONE" in kinds or node.attributes.get(_QUANTIZED[2]) != 8):
        return False
    for name, value in node.attributes.items():
        if name not in _KNOWN and name not in _QUANTIZED and value != _WITHOUT_EFFECT.get(name):
            return False
    inputs = node.inputs
    if not max(_PAST) < len(inputs) <= _MOST_INPUTS or any(inputs[_BIAS : _SINKS + 1]):
        return False
    if node.attributes.get(b"do_rotary") != 1:  # without, heads may have sizes that the operator lacks
        return False
    stored = _INT8 if is_quantized else _FLOAT32
    pasts = [types.get(inputs[i], (0, 0)) for i in _PAST]
    if any(element != stored or size not in _HEAD_DIMS for element, size in pasts):
        return False
    return len(node.outputs) == 3 and all(node.outputs)


_TAKES: Mapping[bytes, Callable[[Node, _Types], bool]] = {
    PRODUCT: _takes_product,
    b"GroupQueryAttention": _takes_attention,
}
