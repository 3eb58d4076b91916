"""The search for rotary factors on a real model: nano's decoder at four times the length that it was trained
at, on pages of Wikipedia.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import phirt
from phirt.bundle.files import load_manifest
from phirt_export.layer_divergence import StoredMatrices
from phirt_export.model_scorer import ModelScorer
from phirt_export.reference import DecoderConfig, Model, ModelConfig, RopeConfig, TokenConfig
from phirt_quant.evaluation import BundleScorer
from phirt_quant.text_files import read_records
from phirt_train.rope_fitness import Passage, long_passages, passage_fitness, perplexity
from phirt_train.rope_search import SearchSettings, extended, search_long_factors

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


@pytest.fixture(scope="module")
def model(nano):
    return nano_decoder(nano)


@pytest.fixture
def pages(nano, shared_data) -> list[list[int]]:
    encode = phirt.load(nano).generator.tokenizer.encode_content
    records = read_records(shared_data / "text/wikipedia.val.jsonl.xz", limit=30)
    return [list(encode(f"{record['title']}\n\n{record['text']}")) for record in records]


def test_the_decoder_is_the_bundles(nano, model):
    ids = phirt.load(nano).generator.tokenizer.encode_content("The ferry leaves the harbour at seven.")
    bundle = np.stack([row.copy() for row in BundleScorer(phirt.load(nano)).score(ids, 1)])
    own = np.stack(list(ModelScorer(model, [0], 9999).score(ids, 1)))
    assert np.abs(bundle - own).max() < 0.5  # the bundle's kernels round activations to 8 bits
    assert np.abs(bundle - own).mean() < 0.05 < bundle.std()


def test_the_search_beats_yarn_at_four_times_the_length(model, pages):
    rope, length = model.config.decoder.rope, 4 * TRAINED
    documents = long_passages(pages, length, count=2)
    settings = SearchSettings(population=6, rounds=2, seed=0)
    found = search_long_factors(rope, length, passage_fitness(model, documents), settings)
    plain = perplexity(model, documents, extended(rope, length, (1.0,) * (rope.rotary_dim // 2)))
    at_home = perplexity(model, [Passage(page.token_ids[:TRAINED]) for page in documents])
    print(f"at {TRAINED}: {at_home:.2f}; at {length}: plain {plain:.2f}", end=", ")
    print(f"YaRN {found.first_fitness:.2f}, found {found.fitness:.2f}")
    assert found.fitness < found.first_fitness < plain
