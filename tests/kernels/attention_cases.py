"""Cases of grouped-query attention: a graph of one node, what it is fed, and how it is run.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
defines the operator. Knows nothing of the kernels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from phirt.runtime.ort import ort

Array = npt.NDArray[Any]
INPUTS = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos", "sin",
    "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale",
)  # fmt: skip
OUTPUTS = ("output", "present_key", "present_value")
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}


def said(name: str, array: Array) -> list[int | None]:
    """What a graph says of an input's sizes: of caches, the size of a head."""
    if name.startswith("past"):
        return [None, None, None, array.shape[-1]]
    return [None] * array.ndim


@dataclasses.dataclass(frozen=True)
class Attention:
    """A node; `rotary` is how many channels of a head turn, `scales` how int8 is scaled."""

    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    rotary: int = 0
    window: int = -1
    scale: float = 0.0
    packed: bool = True
    cache: str = "float32"
    scales: str = "PER_CHANNEL"
    positions: bool = False
    batch: int = 1

    def feed(self, past: int, rows: int, spare: int, seed: int) -> dict[str, Array]:
        """Inputs; the cache has room for `spare` more positions."""
        rng = np.random.default_rng(seed)
        b, kv, d, room = self.batch, self.kv_heads, self.head_dim, past + rows + spare

        def rows_of(heads: int) -> Array:
            return rng.normal(size=(b, rows, heads * d)).astype(np.float32)

        if self.packed:
            fed = {"query": rows_of(self.heads + 2 * kv)}
        else:
            fed = {"query": rows_of(self.heads), "key": rows_of(kv), "value": rows_of(kv)}
        for name in ("past_key", "past_value"):
            if self.cache == "int8":
                fed[name] = rng.integers(-128, 128, (b, kv, room, d)).astype(np.int8)
            else:
                fed[name] = rng.normal(size=(b, kv, room, d)).astype(self.cache)
        fed["seqlens_k"] = np.full(b, past + rows - 1, np.int32)
        fed["total_sequence_length"] = np.array(past + rows, np.int32)
        if self.rotary:
            angles = rng.uniform(0, 7, (room + 3, self.rotary // 2)).astype(np.float32)
            fed |= {"cos": np.cos(angles), "sin": np.sin(angles)}
        if self.positions:
            fed["position_ids"] = np.tile(np.arange(past + 3, past + rows + 3), (b, 1))
        if self.cache == "int8":
            shape = (1,) if self.scales == "PER_TENSOR" else (1, kv, 1, d)
            fed |= {
                name: rng.uniform(0.01, 0.03, shape).astype(np.float32) for name in ("k_scale", "v_scale")
            }
        return fed

    def model(self, fed: dict[str, Array], domain: str = "com.microsoft", **attributes: Any) -> bytes:
        inputs = [name if name in fed else "" for name in INPUTS]
        while not inputs[-1]:
            inputs.pop()
        attributes |= {"num_heads": self.heads, "kv_num_heads": self.kv_heads, "scale": self.scale}
        attributes |= {"local_window_size": self.window, "do_rotary": int(self.rotary > 0)}
        if self.cache == "int8":
            attributes |= {"kv_cache_bit_width": 8, "k_quant_type": self.scales, "v_quant_type": self.scales}
        node = helper.make_node("GroupQueryAttention", inputs, OUTPUTS, domain=domain, **attributes)
        taken = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), said(name, array)
            )
            for name, array in fed.items()
        ]
        kinds = (TensorProto.FLOAT, TYPES[self.cache], TYPES[self.cache])
        given = [
            helper.make_tensor_value_info(name, kind, None) for name, kind in zip(OUTPUTS, kinds, strict=True)
        ]
        graph = helper.make_graph([node], "attention", taken, given)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def without_leftovers(fed: dict[str, Array]) -> dict[str, Array]:
    """The same inputs with no numbers in float caches behind the positions that are known."""
    changed = dict(fed)
    for name in ("past_key", "past_value"):
        if fed[name].dtype != np.int8:
            changed[name] = fed[name].copy()
            changed[name][:, :, int(fed["total_sequence_length"]) :] = np.nan
    return changed


def session(graph: bytes, library: Path | None = None, threads: int = 1) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_in_place(opened: Any, fed: dict[str, Array]) -> list[Array]:
    """Output, keys and values, where past and present are one buffer."""
    binding = opened.io_binding()
    binding.bind_output("output")
    for name, array in fed.items():
        if name.startswith("past"):
            buffer = ort.OrtValue.ortvalue_from_numpy(array.copy())
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past", "present"), buffer)
        else:
            binding.bind_cpu_input(name, array)
    opened.run_with_iobinding(binding)
    outputs: list[Array] = binding.copy_outputs_to_cpu()  # in the order in which they were bound
    return outputs
