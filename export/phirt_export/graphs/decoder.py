"""The decoder graph: token ids, media features and an adapter in, logits of the last positions out, keys and
values in place.

Knows the layers of Phi-3 and its kin (transformers' `Phi3ForCausalLM`), their LoRA branches and the order of
nodes. Knows nothing of files or encoders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from phirt_export.graphs.builder import GraphBuilder
from phirt_export.graphs.embedding_table import EmbeddingTable
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.lora import AdapterInputs, Adapters, Branches
from phirt_export.graphs.rope import tables
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.reference.config import DecoderConfig, ModelConfig, TokenConfig


@dataclasses.dataclass(frozen=True)
class KVScales:
    """Of one layer's `key` and `value`, each float32 [kv_heads, head_dim]: a cached code times its scale is
    the value.
    """

    key: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]


def build_decoder(
    store: WeightStore,
    config: ModelConfig,
    base: WeightFormat,
    adapter: WeightFormat,
    embedding: WeightFormat | None = None,
    kv_scales: Sequence[KVScales] | None = None,
    takes_adapters: bool = False,
) -> None:
    """Append the whole decoder to the store's graph; inputs and outputs are those of the bundle's contract.

    Args:
        base: format of the base projections.
        adapter: format of the LoRA matrices.
        embedding: format of the table shared by embedding and head; None for `base`.
        kv_scales: of every layer, for keys and values in int8; None keeps them in float32.
        takes_adapters: whether a LoRA adapter of the user's can be fed, see `AdapterInputs`.
    """
    g, decoder = store.g, config.decoder
    cache = "float32" if kv_scales is None else "int8"
    inputs = _Inputs(g, decoder, cache)
    table = EmbeddingTable(store, "model.embed_tokens.weight", embedding or base)
    embedded = _with_media(g, table.embed(inputs.ids), inputs, config.tokens)
    user = AdapterInputs(g, decoder) if takes_adapters else None
    adapters = Adapters(store, config.adapters, adapter, inputs.route, user)
    stack = _Stack(store, decoder, base, adapters, inputs, kv_scales)
    hidden, *present = adapters.choose_stack(
        lambda branches: stack.build(embedded, branches), decoder.hidden_size
    )
    head = table if decoder.tied else EmbeddingTable(store, "lm_head.weight", embedding or base)
    g.output(head.score(hidden), "logits", "float32", [1, "logits", decoder.vocab_size])
    shape: list[int | str] = [1, decoder.num_kv_heads, "capacity", decoder.head_dim]
    for i in range(decoder.num_layers):
        for part, value in zip(("key", "value"), present[2 * i : 2 * i + 2], strict=True):
            g.output(value, f"present.{i}.{part}", cache, shape)


class _Inputs:
    """The graph inputs, declared in the order of the contract."""

    def __init__(self, g: GraphBuilder, config: DecoderConfig, cache: str) -> None:
        self.ids = g.input("input_ids", "int64", [1, "tokens"])
        self.media = g.input("media_features", "float32", ["rows", config.hidden_size])
        self.route = g.input("route", "int64", [1])
        self.num_logits = g.input("num_logits", "int64", [1])
        self.seqlens = g.input("seqlens_k", "int32", [1])
        self.total = g.input("total_sequence_length", "int32", [1])
        shape: list[int | str] = [1, config.num_kv_heads, "capacity", config.head_dim]
        self.past = [
            [g.input(f"past_key_values.{i}.{part}", cache, shape) for part in ("key", "value")]
            for i in range(config.num_layers)
        ]


def _with_media(g: GraphBuilder, embedded: ir.Value, inputs: _Inputs, tokens: TokenConfig) -> ir.Value:
    """Embeddings with the rows of placeholders replaced by media features; zero rows change nothing."""
    with g.scope("media"):
        found = [
            g.Equal(inputs.ids, g.constant([token], f"{kind}_id", "int64"), name=f"is_{kind}")
            for kind, token in (("image", tokens.image), ("audio", tokens.audio))
            if token is not None
        ]
        if not found:
            return embedded
        is_placeholder = found[0] if len(found) == 1 else g.Or(*found, name="is_placeholder")
        places = g.NonZero(is_placeholder, name="places")
        indices = g.Transpose(places, perm=[1, 0], name="indices")
        return g.ScatterND(embedded, indices, inputs.media, name="scattered")


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What all layers read, computed or stored once."""

    cos: ir.Value
    sin: ir.Value
    positions: ir.Value | None
    first_asked: ir.Value


class _Stack:
    """The layers and the final norm, built with or without branches over the same base weights."""

    def __init__(
        self,
        store: WeightStore,
        config: DecoderConfig,
        form: WeightFormat,
        adapters: Adapters,
        inputs: _Inputs,
        kv_scales: Sequence[KVScales] | None,
    ) -> None:
        self.store, self.config, self.form = store, config, form
        self.adapters, self.inputs, self.kv_scales = adapters, inputs, kv_scales
        g = self.g = store.g
        cos, sin = tables(config.rope)
        length = g.Shape(inputs.ids, start=1, end=2, name="length")
        self.shared = _Shared(
            cos=g.constant(cos, "rope.cos"),
            sin=g.constant(sin, "rope.sin"),
            positions=self._positions(length) if config.rope.has_long_regime else None,
            # Not a negative start: -0 would mean all positions where none is asked for.
            first_asked=g.Sub(length, inputs.num_logits, name="asked.first"),
        )

    def build(self, residual: ir.Value, branches: Branches) -> list[ir.Value]:
        """Layers over embeddings [1, T, hidden].

        Returns:
            Normalised hidden states of the asked positions, then key 0, value 0, key 1 and so on.
        """
        c = self.config
        present: list[ir.Value] = []
        weight = self.store.vector("model.layers.0.input_layernorm.weight", "embed.norm.weight")
        normed = self.g.SimplifiedLayerNormalization(
            residual, weight, name="embed.normed", axis=-1, epsilon=c.norm_eps
        )
        for i in range(c.num_layers):
            last = i + 1 == c.num_layers
            layer = f"model.layers.{i}"
            following = "model.norm.weight" if last else f"model.layers.{i + 1}.input_layernorm.weight"
            with self.g.scope(f"layers.{i}"):
                qkv = self._project(normed, f"{layer}.self_attn.qkv_proj", "attn.qkv", branches)
                attended, key, value = self._attend(i, self._heads(qkv, f"{layer}.self_attn"))
                present += [key, value]
                if last:
                    attended, residual = self._asked(attended, "attn.asked"), self._asked(residual, "asked")
                out = self._project(attended, f"{layer}.self_attn.o_proj", "attn.o", branches)
                norm = f"{layer}.post_attention_layernorm.weight"
                normed, residual = self._add_norm(out, residual, norm, "attn.normed")
                both = self._project(normed, f"{layer}.mlp.gate_up_proj", "mlp.gate_up", branches)
                gated = self._swiglu(both)
                down = self._project(gated, f"{layer}.mlp.down_proj", "mlp.down", branches)
                normed, residual = self._add_norm(down, residual, following, "mlp.normed")
        return [normed, *present]

    def _project(self, x: ir.Value, projection: str, name: str, branches: Branches) -> ir.Value:
        """The base projection, plus what the active adapter adds."""
        tensor = f"{projection}.base_layer"
        has_bias = projection.split(".")[-1] in self.config.biases
        bias = f"{tensor}.bias" if has_bias else None
        y = self.store.linear(x, f"{tensor}.weight", self.form, name, bias=bias, outer=True)
        return self.adapters.add(y, x, projection, name, branches)

    def _heads(self, qkv: ir.Value, attention: str) -> tuple[ir.Value | None, ...]:
        """Query, key and value as the attention takes them: packed in the first, or, where queries and keys
        are normalised head by head before they turn, three of them.
        """
        c, g = self.config, self.g
        if not c.qk_norm:
            return qkv, None, None
        sizes = [heads * c.head_dim for heads in (c.num_heads, c.num_kv_heads, c.num_kv_heads)]
        parts = g.Split(qkv, g.constant(sizes, "attn.sizes", "int64"), name="attn.heads", outputs=3, axis=-1)
        split = g.constant([0, 0, -1, c.head_dim], "attn.split.shape", "int64")
        merge = g.constant([0, 0, -1], "attn.merge.shape", "int64")
        normed = []
        for part, name in zip(parts[:2], ("q_norm", "k_norm"), strict=True):
            weight = self.store.vector(f"{attention}.{name}.weight", f"attn.{name}.weight")
            rows = g.SimplifiedLayerNormalization(
                g.Reshape(part, split), weight, name=f"attn.{name}", axis=-1, epsilon=c.norm_eps
            )
            normed.append(g.Reshape(rows, merge))
        return (*normed, parts[2])

    def _attend(self, index: int, qkv: tuple[ir.Value | None, ...]) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(attention output, key, value); present is written in place of past where both share a buffer."""
        c, inputs, shared = self.config, self.inputs, self.shared
        key, value = inputs.past[index]
        scales, stored_as = self._cache_scales(index)
        return self.g.GroupQueryAttention(
            *qkv, key, value, inputs.seqlens, inputs.total, shared.cos, shared.sin, shared.positions,
            None, None, *scales,  # no bias, no sinks
            name="attn.attend", outputs=3, num_heads=c.num_heads, kv_num_heads=c.num_kv_heads,
            do_rotary=1, scale=c.head_dim**-0.5, local_window_size=c.sliding_window or -1, **stored_as,
        )  # fmt: skip

    def _cache_scales(self, index: int) -> tuple[list[ir.Value], dict[str, int | str]]:
        """Inputs and attributes by which attention keeps int8; nothing where it keeps float32."""
        if self.kv_scales is None:
            return [], {}
        kinds: dict[str, int | str] = {"kv_cache_bit_width": 8}
        kinds |= dict.fromkeys(("k_quant_type", "v_quant_type"), "PER_CHANNEL")
        layer = self.kv_scales[index]
        parts = (("key", layer.key), ("value", layer.value))
        return [self.g.constant(scales, f"attn.{part}.scales") for part, scales in parts], kinds

    def _swiglu(self, both: ir.Value) -> ir.Value:
        """silu(gate) · up of the two halves; QuickGelu with alpha 1 is silu in one node."""
        g = self.g
        gate, up = g.Split(both, name="mlp.halves", outputs=2, axis=-1, num_outputs=2)
        return g.Mul(g.QuickGelu(gate, alpha=1.0, name="mlp.silu"), up, name="mlp.gated")

    def _add_norm(self, x: ir.Value, residual: ir.Value, norm: str, name: str) -> tuple[ir.Value, ir.Value]:
        """(RMSNorm(x + residual), x + residual) in one node."""
        weight = self.store.vector(norm, f"{name}.weight")
        normed, *statistics, total = self.g.SkipSimplifiedLayerNormalization(
            x, residual, weight, name=name, outputs=4, epsilon=self.config.norm_eps
        )
        for unused in statistics:
            unused.name = ""
        return normed, total

    def _asked(self, x: ir.Value, name: str) -> ir.Value:
        """The last `num_logits` positions of x [1, T, ...]: for the others the last layer computes keys and
        values only.
        """
        g = self.g
        end = g.constant([np.iinfo(np.int64).max], f"{name}.end", "int64")
        return g.Slice(x, self.shared.first_asked, end, g.constant([1], f"{name}.axis", "int64"), name=name)

    def _positions(self, length: ir.Value) -> ir.Value:
        """Rows of the rotary table for this run's tokens, int64 [1, T]; in the long regime the long rows.

        The place in the sequence comes from `seqlens_k` alone, so that a prompt that is prefilled in chunks
        can announce the long regime from its first chunk on by a `total_sequence_length` past the original
        context.
        """
        g, rope, int64 = self.g, self.config.rope, int(ir.DataType.INT64)
        with g.scope("rope"):
            last = g.Cast(self.inputs.seqlens, to=int64, name="last")
            total = g.Cast(self.inputs.total, to=int64, name="total")
            original = g.constant([rope.original_context], "original", "int64")
            is_long = g.Cast(g.Greater(total, original), to=int64, name="is_long")
            zero, one = g.constant(np.int64(0), "zero"), g.constant(np.int64(1), "one")
            steps = g.Range(zero, g.Squeeze(length, name="length"), one, name="steps")
            first = g.Add(g.Sub(last, length), g.constant([1], "next", "int64"), name="first")
            shifted = g.Add(first, g.Mul(is_long, original), name="first_row")
            return g.Unsqueeze(g.Add(steps, shifted), g.constant([0], "axis", "int64"), name="positions")
