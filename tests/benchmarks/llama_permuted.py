"""A llama checkpoint with its channels in another order: the same function, other blocks.

    python tests/benchmarks/llama_permuted.py CHECKPOINT OUTPUT

Weights that were dequantized from a file lie on that file's grid, so that a quantizer with the same blocks
finds them again and errs nowhere. Here the hidden channels, those of values inside a head, and the inner ones
of each feed-forward block are permuted, and no block is one of the file's any more. Prints how far the logits
of the two are apart. A GGUF file becomes a checkpoint by transformers' `from_pretrained(folder,
gguf_file=name)` and `save_pretrained`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

_READ_HIDDEN = ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def permuted(state: dict[str, Tensor], config) -> dict[str, Tensor]:
    """The state with every channel permuted that may be."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randperm(config.hidden_size, generator=generator)
    state = {name: _reorder_hidden(name, tensor, hidden) for name, tensor in state.items()}
    for i in range(config.num_hidden_layers):
        inner = torch.randperm(config.intermediate_size, generator=generator)
        value = torch.randperm(config.head_dim, generator=generator)
        layer = f"model.layers.{i}"
        for name in ("gate", "up"):
            state[f"{layer}.mlp.{name}_proj.weight"] = state[f"{layer}.mlp.{name}_proj.weight"][inner]
        down, out = f"{layer}.mlp.down_proj.weight", f"{layer}.self_attn.o_proj.weight"
        values = f"{layer}.self_attn.v_proj.weight"
        state[down] = state[down][:, inner]
        state[values] = state[values][_in_heads(value, config.num_key_value_heads)]
        state[out] = state[out][:, _in_heads(value, config.num_attention_heads)]
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _in_heads(order: Tensor, heads: int) -> Tensor:
    return torch.cat([head * len(order) + order for head in range(heads)])


def _reorder_hidden(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    return tensor[:, order] if name.split(".")[-2] in _READ_HIDDEN else tensor[order]


@torch.no_grad()
def main() -> None:
    """Write OUTPUT, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    config = AutoConfig.from_pretrained(options.checkpoint)
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        parser.error(f"{options.checkpoint} is no llama checkpoint without biases")
    shutil.copytree(options.checkpoint, options.output, ignore=shutil.ignore_patterns("*.safetensors*"))
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    ids = torch.arange(1000, 1256)[None]
    before = model(ids).logits
    state = permuted(model.state_dict(), config)
    model.load_state_dict(state)
    model.save_pretrained(options.output)
    print(f"largest difference of logits: {(model(ids).logits - before).abs().max():.2g}")


if __name__ == "__main__":
    main()
