"""Which file a checkpoint's tokenizer lies in, and its tokenizer.json.

Knows the names of files, what tokenizer_config.json says of added tokens, and the classes whose way of
cutting words is known. A tokenizer.json that is there is taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError
from phirt.fields import Fields
from phirt_export.containers import read_json
from phirt_export.gguf_files.pre_tokenizers import PRE_TOKENIZERS
from phirt_export.tokenizer_files import sentencepiece_model, tekken
from phirt_export.tokenizer_files.sentencepiece_file import SentencePieceModel, read_model
from phirt_export.tokenizer_files.sentencepiece_model import Prefix, added_token

_MAX_BYTES = 256 << 20
_MAX_TOKENS = 1 << 21
_SENTENCEPIECE, _VOCABULARY, _MERGES = "tokenizer.model", "vocab.json", "merges.txt"
# Of transformers: they take everything from the file itself.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def find_tokenizer(folder: Path) -> str | None:
    """The file that `converted` reads; None where there is none."""
    if (folder / tekken.NAME).is_file():
        return tekken.NAME
    if (folder / _SENTENCEPIECE).is_file():
        return _SENTENCEPIECE
    both = (folder / _VOCABULARY).is_file() and (folder / _MERGES).is_file()
    return f"{_VOCABULARY} and {_MERGES}" if both else None


def converted(folder: Path, names: dict[str, str]) -> bytes:
    """The bytes of a tokenizer.json that gives the ids which transformers' fast tokenizer gives; `names` are
    those of its special tokens.

    Raises:
        ConfigError: there is no such file, or it is damaged or of a kind that is not read.
    """
    config = _read(folder, "tokenizer_config.json") or Fields({}, str(folder), ConfigError, "")
    name = find_tokenizer(folder)
    if name == tekken.NAME:
        document = tekken.document(folder / tekken.NAME)
    elif name == _SENTENCEPIECE:
        model = read_model(folder / _SENTENCEPIECE)
        document = sentencepiece_model.document(model, _prefix(config, model))
    elif name is not None:
        document = _byte_level(folder, config)
    else:
        raise ConfigError(
            f"{folder} holds no tokenizer: accepted are tokenizer.json, {_SENTENCEPIECE}, {tekken.NAME}, or "
            f"{_VOCABULARY} and {_MERGES}; put the model's own beside the weights"
        )
    _add_tokens(document, folder, config, names)
    around = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    return json.dumps({"version": "1.0"} | around | document, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def _read(folder: Path, name: str) -> Fields | None:
    if not (folder / name).is_file():
        return None
    return read_json(folder / name, f"fetch the checkpoint's own {name}", _MAX_BYTES)


def _prefix(config: Fields, model: SentencePieceModel) -> Prefix:
    """Where a space is written before a text. Classes without a way of their own follow sentencepiece, unless
    `legacy` is denied, and so does a Unigram, which Llama's class cannot hold.
    """
    if config.raw("add_prefix_space") is False or not model.adds_space:
        return sentencepiece_model.NO_PREFIX
    follows = model.is_unigram or config.raw("tokenizer_class") in _PLAIN_CLASSES
    legacy = config.raw("legacy")
    if not (legacy if isinstance(legacy, bool) else follows):
        return sentencepiece_model.FIRST_PREFIX
    return sentencepiece_model.PREPENDED_PREFIX if follows else sentencepiece_model.METASPACE_PREFIX


def ids_by_name(model: Mapping[str, Any]) -> dict[str, int]:
    """The vocabulary of a tokenizer.json: a Unigram's is a list whose places are the ids."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        named = (entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary)
        return {name: index for index, name in enumerate(named) if isinstance(name, str)}
    return dict(vocabulary) if isinstance(vocabulary, dict) else {}


def _rename(model: dict[str, Any], names: Mapping[int, str]) -> None:
    """Gives pieces the names that added tokens of their ids have."""
    if isinstance(model["vocab"], list):
        for index, name in names.items():
            if index < len(model["vocab"]):
                model["vocab"][index][0] = name
    else:
        kept = {name: index for name, index in model["vocab"].items() if index not in names}
        found = {name: index for index, name in names.items() if index in model["vocab"].values()}
        model["vocab"] = kept | found


def _byte_level(folder: Path, config: Fields) -> dict[str, Any]:
    """A vocabulary and its merges; the class, or else the family, tells how words are cut."""
    vocabulary = _read(folder, _VOCABULARY)
    assert vocabulary is not None
    ids = dict(vocabulary.items())
    if not all(type(index) is int and 0 <= index < _MAX_TOKENS for index in ids.values()):
        raise vocabulary.refusal("it must give each token an id")
    try:
        text = (folder / _MERGES).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / _MERGES} cannot be read: {error}; fetch it again") from error
    merges = [line.split(" ") for line in text.split("\n") if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise ConfigError(f"{folder / _MERGES} has a line that is no pair of tokens; fetch it again")
    kind = str(config.raw("tokenizer_class"))
    family = str((_read(folder, "config.json") or config).raw("model_type"))
    is_qwen = kind.startswith("Qwen2") or (family.startswith("qwen") and not kind.startswith("GPT2"))
    cut = PRE_TOKENIZERS["qwen2" if is_qwen else "gpt-2"]
    return {
        "normalizer": cut.normalizer,
        "pre_tokenizer": cut.pre_tokenizer,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": merges},
        "added_tokens": [],
    }


def _add_tokens(document: dict[str, Any], folder: Path, config: Fields, names: dict[str, str]) -> None:
    """Tokens that other files add: with their ids where these are given, else behind all others."""
    added = {entry["id"]: entry for entry in document["added_tokens"]}
    ids = ids_by_name(document["model"]) | {e["content"]: i for i, e in added.items()}
    if config.has("added_tokens_decoder"):
        for index, entry in config.mapping("added_tokens_decoder").items():
            if not index.isdecimal() or int(index) >= _MAX_TOKENS:
                raise config.refusal(f"'added_tokens_decoder' has the id {index[:40]!r}")
            flags = {flag: entry.raw(flag) is True for flag in _FLAGS}
            added[int(index)] = added_token(int(index), entry.text("content"), **flags)
            ids[entry.text("content")] = int(index)
    elif (older := _read(folder, "added_tokens.json")) is not None:
        for name, _ in older.items():
            ids[name] = older.integer(name, 0, _MAX_TOKENS)
            added[ids[name]] = added_token(ids[name], name)
    special = [names[key] for key in _NAMED if key in names] + _further_names(config)
    for text in special:
        place = ids.setdefault(text, max(ids.values(), default=-1) + 1)
        added[place] = {**added.get(place, added_token(place, text)), "special": True}
    _rename(document["model"], {place: entry["content"] for place, entry in added.items()})
    document["added_tokens"] = [added[place] for place in sorted(added)]


def _further_names(config: Fields) -> list[str]:
    """Special tokens without a role."""
    listed = config.raw("additional_special_tokens")
    if not isinstance(listed, list):
        return []
    names = [one.get("content") if isinstance(one, dict) else one for one in listed]
    return [name for name in names if isinstance(name, str) and name]
