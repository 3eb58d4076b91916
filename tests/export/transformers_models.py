"""Small random checkpoints that transformers' own classes make and save, and what it says to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 400
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
WORDS = [
    "the",
    "sea",
    "is",
    "wide",
    "and",
    "old",
    "boats",
    "carry",
    "people",
    "over",
    "waves",
    "while",
    "wind",
]
CORPUS = [" ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(12)) + f". {i}" for i in range(200)]
DROP = object()


def byte_level(vocab: int = VOCAB, specials: tuple[str, ...] = SPECIALS) -> Tokenizer:
    """A byte-level BPE whose special tokens come last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    return tokenizer


def build(
    folder: Path,
    family: str = "Llama",
    *,
    template: Any = CHATML,
    names: dict[str, str] = NAMES,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    std: float = 0.3,
    **sizes: Any,
) -> Path:
    """A random model of a family, saved by transformers, with its tokenizer."""
    base: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 512,
        "initializer_range": std,
        "rope_parameters": dict(ROPE), "tie_word_embeddings": False, "bos_token_id": 397, "eos_token_id": 399,
    }  # fmt: skip
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**base, **sizes})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, weights in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weights, mean=1.0, std=0.2)
    model.eval().save_pretrained(folder)
    write_tokenizer(folder, tokenizer or byte_level(), template, **names)
    return folder


def write_tokenizer(folder: Path, tokenizer: Tokenizer, template: Any, **config: Any) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; DROP takes one out."""
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if value is DROP:
            document.pop(key, None)
        else:
            document[key] = value
    path.write_text(json.dumps(document))


def change_tensors(folder: Path, change: Any) -> None:
    """Rewrites the weights as `change` leaves them."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def answer(folder: Path, messages: list[dict[str, Any]], count: int = 16) -> tuple[list[int], list[int]]:
    """The prompt's ids and the greedy answer's of transformers, without the token that ends it."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    mask = torch.ones(1, len(ids), dtype=torch.long)
    whole = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=count, attention_mask=mask)
    answered = whole[0, len(ids) :].tolist()
    ends = model.generation_config.eos_token_id
    return ids, answered[:-1] if answered[-1] in (ends if isinstance(ends, list) else [ends]) else answered
