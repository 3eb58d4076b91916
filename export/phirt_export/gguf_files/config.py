"""GGUF metadata as the config.json that published checkpoints of the same family have.

Knows the keys of both. Knows nothing of tensors' content but the rotary factors, which stand for scalings
that metadata do not name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from phirt.fields import Fields

# The architectures that are read, and the `model_type` that each is. Files of Mistral and SmolLM are `llama`.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3"}
_MAX_LAYERS, _MAX_HEADS, _MAX_CONTEXT = 1024, 1024, 1 << 40
_DEFAULT_THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class Stored:
    """What tensors say about a configuration: rows of the token table, whether there is a head, which biases
    there are (`attn_q`, `ffn_up` ...), and rotary factors by the tensor's name.
    """

    vocab_size: int
    has_head: bool
    biases: frozenset[str]
    factors: Mapping[str, Sequence[float]]


def architecture_of(metadata: Fields) -> str:
    """The architecture, which must be one of those above."""
    architecture = metadata.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise metadata.refusal(
            f"the architecture {architecture[:80]!r} is not read, accepted: {', '.join(ARCHITECTURES)}"
        )
    return architecture


def head_counts(metadata: Fields, architecture: str) -> tuple[int, int]:
    """Heads of queries, and of keys and values; the same in all layers."""
    heads = _same(metadata, f"{architecture}.attention.head_count", _MAX_HEADS)
    key = f"{architecture}.attention.head_count_kv"
    return heads, _same(metadata, key, _MAX_HEADS) if metadata.has(key) else heads


def configuration(metadata: Fields, stored: Stored) -> dict[str, Any]:
    """The config.json of the model, without token ids.

    Raises:
        ConfigError: a key is missing or out of range, or asks for what is not built here.
    """
    a = architecture_of(metadata)
    heads, kv_heads = head_counts(metadata, a)
    if metadata.raw(f"{a}.expert_count"):
        raise metadata.refusal(f"'{a}.expert_count' is set: mixtures of experts are not read")
    hidden = metadata.integer(f"{a}.embedding_length", 1)
    head_dim = metadata.optional_integer(f"{a}.attention.key_length", 1) or hidden // heads
    if metadata.optional_integer(f"{a}.attention.value_length", 1) not in (None, head_dim):
        raise metadata.refusal(f"'{a}.attention.value_length' differs from '{a}.attention.key_length'")
    attention = "attn_output" in stored.biases
    return {
        "model_type": ARCHITECTURES[a],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "num_hidden_layers": metadata.integer(f"{a}.block_count", 1, _MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": _same(metadata, f"{a}.feed_forward_length", 1 << 20),
        "vocab_size": stored.vocab_size,
        "rms_norm_eps": _short(metadata.number(f"{a}.attention.layer_norm_rms_epsilon", 1e-12, 1e-2)),
        "max_position_embeddings": metadata.integer(f"{a}.context_length", 1, _MAX_CONTEXT),
        "tie_word_embeddings": not stored.has_head,
        "attention_bias": attention,
        "mlp_bias": "ffn_down" in stored.biases,
        "sliding_window": metadata.optional_integer(f"{a}.attention.sliding_window", 0) or None,
        **_rope(metadata, a, head_dim, stored.factors),
    }


def _same(metadata: Fields, key: str, high: int) -> int:
    """A number that may be given for each layer, but must be the same for all."""
    if not isinstance(metadata.raw(key), list):
        return metadata.integer(key, 1, high)
    values = set(metadata.integers(key, 1, high))
    if len(values) != 1:
        raise metadata.refusal(f"{key!r} differs between layers, which is not built here")
    return values.pop()


def _short(value: float) -> float:
    """The shortest decimal that is the same in float32: metadata have 1e-5 in it."""
    return float(f"{value:.7g}")


def _rope(metadata: Fields, a: str, head_dim: int, factors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    theta_key, dims_key = f"{a}.rope.freq_base", f"{a}.rope.dimension_count"
    theta = _short(metadata.number(theta_key, 1.0, 1e12)) if metadata.has(theta_key) else _DEFAULT_THETA
    turned = metadata.integer(dims_key, 2, head_dim) if metadata.has(dims_key) else head_dim
    found: dict[str, Any] = {"rope_theta": theta}
    if turned != head_dim:
        share = turned / head_dim
        found["partial_rotary_factor"] = (
            share if int(head_dim * share) == turned else (turned + 0.5) / head_dim
        )
    scaling = _scaling(metadata, a, factors)
    return found if scaling is None else {**found, "rope_scaling": scaling}


def _scaling(metadata: Fields, a: str, factors: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    scaling = f"{a}.rope.scaling"
    context = metadata.integer(f"{a}.context_length", 1, _MAX_CONTEXT)
    original = metadata.optional_integer(f"{scaling}.original_context_length", 2, _MAX_CONTEXT)
    magnitude = f"{scaling}.attn_factor"
    if "rope_factors_long.weight" in factors and "rope_factors_short.weight" in factors:
        lists = {f"{key}_factor": list(factors[f"rope_factors_{key}.weight"]) for key in ("short", "long")}
        found: dict[str, Any] = {"rope_type": "longrope", **lists}
        if metadata.has(magnitude):
            found["attention_factor"] = _short(metadata.number(magnitude, 1e-3, 1e3))
        return {**found, "original_max_position_embeddings": original or context}
    if "rope_freqs.weight" in factors:
        # Llama 3's scaling, reduced to its factors: the same at every length.
        same = list(factors["rope_freqs.weight"])
        return {
            "rope_type": "longrope", "short_factor": same, "long_factor": same, "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }  # fmt: skip
    old = f"{a}.rope.scale_linear"
    kind = metadata.text(f"{scaling}.type", "linear" if metadata.has(old) else "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise metadata.refusal(
            f"'{scaling}.type' is {kind[:80]!r}, accepted: none, linear, yarn, and longrope with its factors"
        )
    factor = metadata.number(f"{scaling}.factor" if metadata.has(f"{scaling}.factor") else old, 1e-3, 1e6)
    if kind == "linear":
        return {"rope_type": "linear", "factor": _short(factor)}
    found = {"rope_type": "yarn", "factor": _short(factor)}
    for key in ("beta_fast", "beta_slow"):
        if metadata.has(f"{scaling}.yarn_{key}"):
            found[key] = _short(metadata.number(f"{scaling}.yarn_{key}", 1e-3, 1e6))
    if metadata.has(magnitude):
        # Beside what YaRN itself prescribes.
        share = metadata.number(magnitude, 1e-3, 1e3)
        found["attention_factor"] = _short(share * (1 + 0.1 * math.log(max(1.0, factor))))
    return {**found, "original_max_position_embeddings": original or context}
