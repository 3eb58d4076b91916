"""A llama model of transformers as a float32 GGUF file, and what the matrices of such a file take.

Knows llama.cpp's names, its order of rows, and the sizes that it asks for. Writes no tokenizer: whoever runs
the file gives ids. Takes models with one rotary regime and no biases.
"""

from __future__ import annotations

import collections
from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel

ARCHITECTURE = "llama"


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """All tensors in float32, under the path's name once they are complete."""
    config = model.config
    require_plain(config)
    staging = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(staging, ARCHITECTURE)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    name_of = gguf_names(config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        projection = name.split(".")[-2]
        if projection in heads:
            values = interleaved(values, heads[projection])
        writer.add_tensor(f"{name_of(name.removesuffix('.weight'))}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    staging.rename(path)


def require_plain(config) -> None:
    """Ends the program where the model has what is not written."""
    kind = config.rope_parameters["rope_type"]
    if config.model_type != ARCHITECTURE or kind != "default" or config.attention_bias or config.mlp_bias:
        raise SystemExit(
            f"no llama model with the default rope and without biases: {config.model_type}, {kind}"
        )


def gguf_names(layers: int):
    """From a module's name in transformers to llama.cpp's."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)

    def name_of(module: str) -> str:
        name = names.get_name(module)
        assert name is not None, module
        return name

    return name_of


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in llama.cpp's order. transformers rotates channel i of a head with channel
    i + head_dim / 2, llama.cpp two neighbours.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def matrix_sizes(path: Path) -> tuple[float, str]:
    """Bits a weight over all matrices of a file (a tied head is the token table), and their types by number
    of matrices and share of weights. Norms are not counted.
    """
    matrices = [tensor for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1]
    weights = sum(int(tensor.n_elements) for tensor in matrices)
    stored = sum(int(tensor.n_bytes) for tensor in matrices)
    counts: collections.Counter[str] = collections.Counter()
    shares: collections.Counter[str] = collections.Counter()
    for tensor in matrices:
        counts[tensor.tensor_type.name] += 1
        shares[tensor.tensor_type.name] += int(tensor.n_elements)
    types = [f"{counts[name]} {name} ({100 * share / weights:.0f} %)" for name, share in shares.most_common()]
    return 8 * stored / weights, ", ".join(types)
