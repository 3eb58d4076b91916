"""GGUF files of published checkpoints by the `gguf` library's writer, as llama.cpp's converter makes them.

Names come from the library's own table; what the converter does beside it (interleaved rows of queries and
keys, rotary factors as tensors, magnitudes) is written down here once more, independently of the reader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3"}


def write_gguf(
    checkpoint: Path,
    path: Path,
    kind: Callable[[str], Kind] = lambda name: Kind.F32,
    *,
    pre: str = "gpt-4o",
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    **options: Any,
) -> Path:
    """Write the checkpoint's GGUF file; matrices have the type that `kind` says for their GGUF names.
    `change` adds keys; `options` are the writer's.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, architecture, **options)
    _write_sizes(writer, config)
    _write_tokenizer(writer, checkpoint, config, pre)
    change(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    tensors = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        tensors |= {name: tensor.float().numpy() for name, tensor in load_file(file).items()}
    for name, array in [*_rope_tensors(config).items(), *tensors.items()]:
        stem, ending = name.rsplit(".", 1)
        own = name if stem.startswith("rope") else f"{names.get_name(stem)}.{ending}"
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config["num_attention_heads" if stem.endswith("q_proj") else "num_key_value_heads"]
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        wanted = kind(own) if array.ndim == 2 else Kind.F32
        raw = _random_blocks(array, wanted) if wanted in _HALVES else gguf.quants.quantize(array, wanted)
        writer.add_tensor(own, raw, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Block types that the library does not make: where in a block its float16 numbers lie.
_HALVES = {Kind.Q4_K: (0, 2), Kind.Q6_K: (208,)}


def _random_blocks(array: np.ndarray, kind: Kind) -> np.ndarray:
    """Blocks of any bytes, with scales that give weights of a decoder's size."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(array.shape)
    raw = rng.integers(0, 256, (array.shape[0], array.shape[1] // block, size), np.uint8)
    for place in _HALVES[kind]:
        scales = (1e-4 * (1 + rng.random(raw.shape[:2]))).astype(np.float16)
        raw[..., place : place + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(array.shape[0], -1)


def _write_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1.0)))
    if "head_dim" in config:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config["model_type"] == "phi3":
        writer.add_sliding_window(config["sliding_window"] or 0)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if kind == "longrope":
        original = config["original_max_position_embeddings"]
        growth = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(growth) / math.log(original)))


def _rope_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(scaling[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if kind != "llama3":
        return {}
    dims = config["hidden_size"] // config["num_attention_heads"]
    frequencies = 1.0 / (config["rope_theta"] ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims))
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for wave in (2 * math.pi / frequencies).tolist():
        if wave < original / high:
            factors.append(1.0)
        elif wave > original / low:
            factors.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def _write_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, config: dict[str, Any], pre: str) -> None:
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    byte_level = "ByteLevel" in json.dumps(document["decoder"])
    added = {token["id"]: token for token in document["added_tokens"]}
    by_id = {index: token for token, index in document["model"]["vocab"].items()}
    by_id |= {index: token["content"] for index, token in added.items()}
    tokens, kinds = [], []
    for index in range(config["vocab_size"]):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        if index not in by_id:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in added:
            special = added[index]["special"]
            kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            is_byte = not byte_level and by_id[index].startswith("<0x")
            kinds.append(gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if byte_level:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
    else:
        rank = {merge.replace(" ", ""): i for i, merge in reversed(list(enumerate(merges)))}
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([float(-rank.get(token, 10**6)) for token in tokens])
    generation = {}
    if (checkpoint / "generation_config.json").is_file():
        generation = json.loads((checkpoint / "generation_config.json").read_text())
    ends = generation.get("eos_token_id", config["eos_token_id"])
    ends = ends if isinstance(ends, list) else [ends]
    writer.add_bos_token_id(generation.get("bos_token_id", config["bos_token_id"]))
    writer.add_eos_token_id(ends[0])
    template = json.loads((checkpoint / "tokenizer_config.json").read_text()).get("chat_template")
    if template is not None:
        writer.add_chat_template(template)
