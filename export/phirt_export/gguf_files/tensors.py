"""Tensors of GGUF files under the names of published checkpoints: rows as float32, or the blocks as they are.

Knows names, and that rows of queries and keys are interleaved for the `llama` architecture. What blocks hold
is `blocks`' matter.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES

from phirt.errors import ConfigError
from phirt_export.gguf_files.blocks import KEPT_TYPES, READ, KeptType, to_float
from phirt_export.gguf_files.header import GgufFile, TensorEntry
from phirt_quant.blockwise import BlockQuantized, pack

Values = npt.NDArray[np.float32]

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# Phi-3's fused gate and up are called ffn_up.
_FUSED_UP = "phi3"
# From this size on, pages that were read are given back: reading a file once must not keep it in memory.
_RELEASED_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One tensor of an opened file, to be read like a `StoredTensor`: as float32, whatever it is stored as.

    `interleaved_heads` is the number of heads whose rows lie in pairs (first of one half, first of the other,
    second of one half ...); they are read half after half.
    """

    entry: TensorEntry
    data: mmap.mmap
    interleaved_heads: int = 0

    @property
    def dtype(self) -> str:
        """What is read."""
        return "F32"

    @property
    def kind(self) -> str:
        """What is stored: the block type's name."""
        return str(self.entry.kind.name)

    @property
    def bits(self) -> float:
        """Bits that an element takes in the file."""
        block, size = GGML_QUANT_SIZES[self.entry.kind]
        return float(8 * size / block)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.entry.shape

    @property
    def kept_type(self) -> KeptType | None:
        """How its blocks can be kept; None where they cannot, and for one that is no matrix."""
        return KEPT_TYPES.get(self.entry.kind) if len(self.shape) == 2 else None

    def rows(self, start: int, stop: int) -> Values:
        """Rows start..stop-1 along the first axis, float32; little more is read from the file."""
        values = to_float(self._raw(start, stop), self.entry.kind)
        return values.reshape(stop - start, *self.shape[1:])

    def tensor(self) -> Values:
        """The whole tensor, float32."""
        return self.rows(0, self.shape[0])

    def kept_rows(self, start: int, stop: int, bits: int, has_minimums: bool, dtype: str) -> BlockQuantized:
        """The blocks of rows start..stop-1, their codes in `bits`, which may be more than they need.

        Raises:
            ConfigError: a scale is not finite.
        """
        form = self.kept_type
        assert form is not None and bits >= form.bits and has_minimums >= form.has_minimums
        size = GGML_QUANT_SIZES[self.entry.kind][1]
        found = form.unpack(self._raw(start, stop).reshape(stop - start, -1, size))
        codes, scales, minimums = found.levels, found.scales.astype(dtype), found.minimums
        if form.has_minimums:
            assert minimums is not None
            minimums = minimums.astype(dtype)
        elif has_minimums:
            minimums = scales * scales.dtype.type(-form.zero)
        else:
            codes = codes + np.uint8(2 ** (bits - 1) - form.zero)
        if not np.isfinite(scales).all() or (minimums is not None and not np.isfinite(minimums).all()):
            raise ConfigError("the weights hold scales that are not finite; the checkpoint is damaged")
        return BlockQuantized(pack(codes, bits), scales, self.shape[1], bits, form.block_size, minimums)

    def _raw(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes of rows uint8 [n, bytes], those of interleaved heads put in order."""
        if not self.interleaved_heads:
            return self._stretch(start, stop)
        width = self.shape[0] // self.interleaved_heads
        first, last = start - start % width, stop + -stop % width
        wanted = np.arange(start, stop)
        half, place = np.divmod(wanted % width, width // 2)
        rows = self._stretch(first, last)
        return np.ascontiguousarray(rows[wanted - wanted % width - first + 2 * place + half])

    def _stretch(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        row = (self.entry.stop - self.entry.start) // self.shape[0]
        first, last = self.entry.start + start * row, self.entry.start + stop * row
        raw = np.frombuffer(self.data, np.uint8, last - first, first).reshape(stop - start, row).copy()
        if last - first >= _RELEASED_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            page = first - first % mmap.PAGESIZE
            self.data.madvise(mmap.MADV_DONTNEED, page, last - page)
        return raw


def published_tensors(
    files: Iterable[GgufFile], architecture: str, heads: int, kv_heads: int
) -> Mapping[str, GgufTensor]:
    """The tensors of a model's files by published names, rotary factors left out.

    Raises:
        ConfigError: a tensor is in two files, is of a type that is not read, or belongs to no decoder of this
            kind.
    """
    found: dict[str, GgufTensor] = {}
    for file in files:
        for name, entry in file.tensors.items():
            if name in ROPE_FACTORS:
                continue
            published = _published_name(name, architecture)
            if published is None:
                raise ConfigError(
                    f"{file.path} holds the tensor {name[:80]!r}, which decoders of the architecture "
                    f"{architecture!r} have not here; export the model's original checkpoint"
                )
            if entry.kind not in READ:
                raise ConfigError(
                    f"{file.path}: the tensor {name[:80]!r} is of the type {entry.kind.name}, which is not "
                    "read; accepted: " + ", ".join(kind.name for kind in READ)
                )
            if published in found:
                raise ConfigError(f"{file.path} repeats the tensor {name[:80]!r} of another shard")
            turned = {"q_proj": heads, "k_proj": kv_heads} if architecture == "llama" else {}
            interleaved = turned.get(published.split(".")[-2], 0)
            if interleaved and entry.shape[0] % (2 * interleaved):
                raise ConfigError(
                    f"{file.path}: the tensor {name[:80]!r} has {entry.shape[0]} rows, no whole number for "
                    f"{interleaved} heads; fetch the file again"
                )
            found[published] = GgufTensor(entry, file.data, interleaved)
    return found


def _published_name(name: str, architecture: str) -> str | None:
    if name in _WHOLE:
        return _WHOLE[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        return None
    inner = "mlp.gate_up_proj" if (match[2], architecture) == ("ffn_up", _FUSED_UP) else _IN_LAYER[match[2]]
    return f"model.layers.{match[1]}.{inner}.{match[3]}"
