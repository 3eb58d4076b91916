"""Writes a phi3 checkpoint as a GGUF file with Q4_0 weights, for llama.cpp: `peers.py` runs it.

    python tests/benchmarks/peers_gguf.py CHECKPOINT FILE

Every matrix and the embedding table become Q4_0 (a tied head is the table), norms stay float32; there is no
tokenizer in the file. Needs `gguf`, `safetensors` and `torch`, which reads bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

ARCHITECTURE = "phi3"
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """llama.cpp's name for a checkpoint's tensor."""
    base = name.removesuffix(".weight")
    if base in _TOP:
        return f"{_TOP[base]}.weight"
    layer, part = base.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_LAYER[part]}.weight"


def add_sizes(writer: gguf.GGUFWriter, config: dict) -> None:
    """The hyperparameters that llama.cpp asks for."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(config.get("partial_rotary_factor", 1.0) * hidden // heads))
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("none")


def add_tensors(writer: gguf.GGUFWriter, checkpoint: Path) -> None:
    """All tensors, quantized one at a time; the writer keeps them in temporary files until the end."""
    q4 = gguf.GGMLQuantizationType.Q4_0
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                values = file.get_tensor(name).float().numpy()
                if values.ndim == 1:
                    writer.add_tensor(gguf_name(name), values)
                    continue
                quantized = gguf.quants.quantize(np.ascontiguousarray(values), q4)
                writer.add_tensor(gguf_name(name), quantized, raw_dtype=q4)


def main() -> None:
    """Write the file under its name when it is complete."""
    checkpoint, output = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((checkpoint / "config.json").read_text())
    if config["model_type"] != ARCHITECTURE or config["rope_scaling"] is not None:
        sys.exit(f"{checkpoint} is no {ARCHITECTURE} checkpoint with one rotary regime")
    staging = output.with_name(f".{output.name}.partial")
    writer = gguf.GGUFWriter(staging, ARCHITECTURE, use_temp_file=True)
    add_sizes(writer, config)
    add_tensors(writer, checkpoint)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    staging.rename(output)


if __name__ == "__main__":
    main()
