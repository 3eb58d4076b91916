"""Which operators GPU providers have kernels for, in the form that exported graphs use them: float16,
integers for sizes and ids.

From onnxruntime's own list (docs/OperatorKernels.md on its main branch, for CUDA and DirectML) and from the
kernels that its sources register or refuse (contrib_ops/webgpu/webgpu_contrib_kernels.cc,
core/providers/webgpu, core/providers/dml/DmlExecutionProvider/src/Operators). Only operators that exported
graphs have are here: one that is not is reported, and is then to be looked up.

Arithmetic of sizes, positions and conditions, on integers that onnxruntime keeps in the CPU's memory, may run
there for every provider. Knows nodes. Knows nothing of how graphs are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from phirt_export.variants.rewriter import attribute, integer, name_of

Objection = Callable[[ir.Node], str | None]
_PACKED, _BIAS, _KEY_MASK = 1, 5, 4


def _any(node: ir.Node) -> str | None:
    return None


def _whole_blocks(node: ir.Node) -> str | None:
    bits, columns, block = integer(node, "bits", 4), integer(node, "K", 0), integer(node, "block_size", 32)
    if bits not in (4, 8):
        return f"{bits} bits"
    if columns % block:
        return f"{columns} columns are no multiple of blocks of {block}"
    if len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None:
        return "a bias"
    return None


def _separate(node: ir.Node) -> str | None:
    if node.inputs[_PACKED] is None:
        return "packed queries, keys and values"
    if integer(node, "do_rotary", 0):
        return "do_rotary, which would be left undone"
    if integer(node, "local_window_size", -1) > 0:
        return "a sliding window"
    return _float_cache(node)


def _float_cache(node: ir.Node) -> str | None:
    return "a cache of int8" if str(attribute(node, "k_quant_type", "NONE")) != "NONE" else None


def _half_cache(node: ir.Node) -> str | None:
    past = node.inputs[3]
    if past is not None and past.dtype not in (None, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return f"keys and values in {past.dtype}"
    return _float_cache(node)


def _whole_heads(node: ir.Node) -> str | None:
    return "a part of each head" if integer(node, "rotary_embedding_dim", 0) else None


def _without_key_mask(node: ir.Node) -> str | None:
    masked = len(node.inputs) > _KEY_MASK and node.inputs[_KEY_MASK] is not None
    return "a mask of keys" if masked else None


_COMMON = (
    "Add", "And", "Cast", "Clip", "Concat", "Conv", "CumSum", "Div", "Equal", "Expand", "Floor", "Gather",
    "Gelu", "Gemm", "Greater", "GreaterOrEqual", "Identity", "If", "LayerNormalization", "MatMul", "Max",
    "Min", "Mul", "Not", "Or", "Pad",
    "QuickGelu", "Range", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape",
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Slice", "Split", "Squeeze", "Sub",
    "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
_EVERYWHERE: Mapping[str, Objection] = dict.fromkeys(_COMMON, _any)

KERNELS: Mapping[str, Mapping[str, Objection]] = {
    "CUDAExecutionProvider": {
        **_EVERYWHERE,
        "GatherBlockQuantized": _any,
        "GroupQueryAttention": _half_cache,
        "MatMulNBits": _whole_blocks,
        "MultiHeadAttention": _any,
    },
    "DmlExecutionProvider": {
        **_EVERYWHERE,
        "GroupQueryAttention": _separate,
        "MatMulNBits": _whole_blocks,
        "MultiHeadAttention": _any,
        "RotaryEmbedding": _whole_heads,
    },
    "WebGpuExecutionProvider": {
        **_EVERYWHERE,
        "GatherBlockQuantized": _any,
        "GroupQueryAttention": _float_cache,
        "MatMulNBits": _whole_blocks,
        "MultiHeadAttention": _without_key_mask,
    },
}


def objections(model: ir.Model, provider: str) -> Iterator[str]:
    """What a provider has no kernel for in a graph, one line for each node; those of branches included."""
    known = KERNELS[provider]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type not in known:
            yield f"{name_of(node)}: {provider} has no kernel for {node.op_type} that is known"
        elif (cause := known[node.op_type](node)) is not None:
            yield f"{name_of(node)}: the {node.op_type} of {provider} does not take {cause}"


def weights_in_branches(model: ir.Model) -> list[str]:
    """Names of weights that belong to a branch: onnxruntime-web does not find those in another file."""
    return [name for graph in model.graph.subgraphs() for name in graph.initializers]
