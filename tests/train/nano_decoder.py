"""nano's decoder in the reference implementation, from its bundle: what rotary factors are searched on."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch

from phirt.bundle.files import load_manifest
from phirt_export.layer_divergence import StoredMatrices
from phirt_export.reference import DecoderConfig, Model, ModelConfig, RopeConfig, TokenConfig

TRAINED = 256  # tokens of a row when nano's text stage ran


def nano_decoder(folder: Path) -> Model:
    """The decoder without adapters, as the bundle stores it; its rotary embedding has the trained length."""
    manifest = load_manifest(folder)
    g = manifest.geometry
    ones = (1.0,) * (g.rope.rotary_dim // 2)
    rope = RopeConfig(g.rope.theta, g.rope.rotary_dim, TRAINED, TRAINED, ones, ones)
    sizes = (g.num_layers, g.hidden_size, g.num_heads, g.num_kv_heads, g.head_dim, g.intermediate_size)
    decoder = DecoderConfig(*sizes, g.vocab_size, 1e-5, rope)
    tokens = TokenConfig(manifest.tokens.bos, manifest.tokens.pad, manifest.tokens.eos, None, None)
    model, stored = Model(ModelConfig(decoder, tokens, None, None, {})), StoredMatrices(manifest)
    graph = ir.load(manifest.path(manifest.graphs["decoder"].file)).graph
    values = {name: value.const_value for name, value in graph.initializers.items()}

    def norm(name: str) -> torch.Tensor:
        value = values[f"{name}.weight"]
        assert value is not None
        return torch.from_numpy(value.numpy().copy())

    def matrix(name: str, columns: int) -> torch.Tensor:
        found = stored.matrix(name, columns)
        assert found is not None
        return found

    backbone, before = model.model, "embed.norm"
    with torch.no_grad():
        backbone.embed_tokens.weight.copy_(matrix("embed", g.hidden_size))
        for index, layer in enumerate(backbone.layers):
            names = {
                "attn.qkv": layer.self_attn.qkv_proj, "attn.o": layer.self_attn.o_proj,
                "mlp.gate_up": layer.mlp.gate_up_proj, "mlp.down": layer.mlp.down_proj,
            }  # fmt: skip
            for name, linear in names.items():
                weight = linear.base_layer.weight
                weight.copy_(matrix(f"layers.{index}.{name}", weight.shape[1]))
            layer.input_layernorm.weight.copy_(norm(before))
            layer.post_attention_layernorm.weight.copy_(norm(f"layers.{index}.attn.normed"))
            before = f"layers.{index}.mlp.normed"
        backbone.norm.weight.copy_(norm(before))
    return model.eval()
