"""Configurations and tensor names of decoders without media, as their published checkpoints have them."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

_LONG_FACTORS = [32.03 ** (i / 31) for i in range(32)] + [
    32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16,
    47.77,
]  # fmt: skip
_COMMON = {
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
}


def _sizes(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocab: int) -> Config:
    return {
        **_COMMON, "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": vocab,
    }  # fmt: skip


def _ids(bos: int, eos: int, pad: int | None = None) -> Config:
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}


def longrope(pairs: int, long: list[float] | None = None) -> Config:
    """Short factors of one, and long ones that rise as the published ones do."""
    rising = long or [1 + 0.7 * i for i in range(pairs)]
    return {"type": "longrope", "short_factor": [1.0] * pairs, "long_factor": rising}


PHI4_DECODER: Config = {
    **_sizes(32, 3072, 24, 8, 8192, 200064), **_ids(199999, 199999, 199999), "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75, "rope_scaling": longrope(48, _LONG_FACTORS), "sliding_window": 262144,
    "tie_word_embeddings": True, "attention_bias": False,
}  # fmt: skip
SMALL_PHI4_DECODER: Config = {
    **PHI4_DECODER, **_sizes(2, 256, 4, 2, 192, 400), **_ids(335, 335, 335), "max_position_embeddings": 16384,
    "original_max_position_embeddings": 4096, "rope_scaling": longrope(24),
}  # fmt: skip

FULL: dict[str, Config] = {
    "phi-4-mini": {"model_type": "phi3", **PHI4_DECODER},
    "phi-3-mini": {
        "model_type": "phi3", **_sizes(32, 3072, 32, 32, 8192, 32064), **_ids(1, 32000, 32000),
        "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0, "rope_scaling": None, "sliding_window": 2047, "tie_word_embeddings": False,
    },
    "phi-4": {
        "model_type": "phi3", **_sizes(40, 5120, 40, 10, 17920, 100352), **_ids(100257, 100265, 100349),
        "rms_norm_eps": 1e-5, "max_position_embeddings": 16384, "original_max_position_embeddings": 16384,
        "rope_theta": 250000.0, "rope_scaling": None, "sliding_window": None, "tie_word_embeddings": False,
    },
}  # fmt: skip

SMALL: dict[str, Config] = {
    "phi-4-mini": {"model_type": "phi3", **SMALL_PHI4_DECODER, "original_max_position_embeddings": 48,
                   "max_position_embeddings": 1024},
    "phi-3-mini": {**FULL["phi-3-mini"], **_sizes(2, 64, 4, 4, 96, 400), **_ids(335, 356, 335),
                   "sliding_window": 20, "max_position_embeddings": 256,
                   "original_max_position_embeddings": 256},
    "phi-4": {**FULL["phi-4"], **_sizes(2, 64, 4, 2, 96, 400), **_ids(335, 356, 335),
              "max_position_embeddings": 256, "original_max_position_embeddings": 256},
    "llama": {
        "model_type": "llama", **_sizes(2, 64, 4, 2, 96, 400), **_ids(335, 356), "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        "attention_bias": False, "mlp_bias": False,
    },
    "llama-biased": {
        "model_type": "llama", **_sizes(2, 64, 4, 4, 96, 400), **_ids(335, 356), "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "attention_bias": True, "mlp_bias": True,
    },
    "mistral": {
        "model_type": "mistral", **_sizes(2, 64, 4, 1, 96, 400), **_ids(335, 356), "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "sliding_window": 24, "head_dim": 32,
    },
    "qwen2": {
        "model_type": "qwen2", **_sizes(2, 64, 4, 2, 96, 400), **_ids(335, 356), "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        "use_sliding_window": False, "sliding_window": 32, "max_window_layers": 2,
    },
    "qwen3": {
        "model_type": "qwen3", **_sizes(2, 64, 4, 2, 96, 400), **_ids(335, 356), "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "head_dim": 32, "attention_bias": False, "use_sliding_window": False,
    },
}  # fmt: skip

# What speed is compared on: one rotary regime, and what every runtime's own converter wants to be told.
COMPARABLE: Config = {
    "architectures": ["Phi3ForCausalLM"], "max_position_embeddings": 8192,
    "original_max_position_embeddings": 8192, "rope_scaling": None, "sliding_window": None,
}  # fmt: skip
BENCHMARK: dict[str, Config] = {
    "phi-4-mini": {
        **FULL["phi-4-mini"], **_sizes(8, 3072, 24, 8, 8192, 32064), **_ids(31999, 31999, 31999),
        **COMPARABLE,
    },
}  # fmt: skip


def shapes(config: Config) -> Shapes:
    """Names and shapes of a decoder's tensors, in the order in which layers run."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    table: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        table |= {f"{layer}.{name}.weight": shape for name, shape in projections(config).items()}
        if config["model_type"] == "qwen2":
            biased = ("q_proj", "k_proj", "v_proj")
        else:
            biased = ("q_proj", "k_proj", "v_proj", "o_proj") if config.get("attention_bias") else ()
            biased += ("gate_proj", "up_proj", "down_proj") if config.get("mlp_bias") else ()
        table |= {
            f"{layer}.{name}.bias": shape[:1]
            for name, shape in projections(config).items()
            if name.split(".")[-1] in biased
        }
        if config["model_type"] == "qwen3":
            for name in ("q_norm", "k_norm"):
                table[f"{layer}.self_attn.{name}.weight"] = (config["head_dim"],)
        for name in ("input_layernorm", "post_attention_layernorm"):
            table[f"{layer}.{name}.weight"] = (hidden,)
    table["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        table["lm_head.weight"] = (vocab, hidden)
    return table


def projections(config: Config) -> Shapes:
    """Shapes of one layer's projections: fused in Phi models, separate in the others."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, config["num_key_value_heads"] * head_dim
    if config["model_type"] in ("phi3", "phi4mm", "phi4_multimodal"):
        attention = {"qkv_proj": (q + 2 * kv, hidden), "o_proj": (hidden, q)}
        forward = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}
    else:
        attention = {
            "q_proj": (q, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, q),
        }
        forward = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return {f"self_attn.{n}": s for n, s in attention.items()} | {f"mlp.{n}": s for n, s in forward.items()}
