"""The tokenizer of a GGUF file as tokenizer.json, and the names that templates use as tokenizer_config.json.

Knows the two kinds of vocabularies that the read architectures have: byte-level BPE (`gpt2`) and
sentencepiece's BPE with byte fallback (`llama`). Files do not say which white space beside a control token
vanishes; Phi's is known by its names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from phirt.fields import Fields
from phirt_export.gguf_files.pre_tokenizers import PRE_TOKENIZERS
from phirt_export.tokenizer_files.sentencepiece_file import Kind

_KEY = "tokenizer.ggml"
_MAX_TOKENS = 1 << 21
_MAX_TOKEN_CHARACTERS = 1024
_SPACE = "▁"
# Names that end a turn or a text wherever they are control tokens.
_ENDS = frozenset({
    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<end_of_turn>",
})  # fmt: skip
# Phi-3's and Phi-4-mini's turn tokens swallow the white space behind them.
_PHI_TRIMMING = frozenset({
    "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>", "<|tool_call|>",
    "<|/tool_call|>", "<|tool_response|>", "<|tag|>", "</s>", *(f"<|placeholder{n}|>" for n in range(1, 7)),
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """Contents of tokenizer.json and tokenizer_config.json, and the ids that config.json has."""

    tokenizer: dict[str, Any]
    config: dict[str, Any]
    ids: dict[str, Any]


def tokenizer_files(metadata: Fields, architecture: str, vocab_size: int) -> TokenizerFiles:
    """Read the tokenizer of a file whose token table has `vocab_size` rows.

    Raises:
        ConfigError: lists are missing, of other lengths or types, or the kind of tokenizer, or its way of
            cutting words, is not known.
    """
    tokens = _texts(metadata, f"{_KEY}.tokens")
    if len(tokens) > min(vocab_size, _MAX_TOKENS):
        raise metadata.refusal(f"it has {len(tokens)} tokens and a token table of {vocab_size} rows")
    kinds = _kinds(metadata, len(tokens))
    model = metadata.text(f"{_KEY}.model")
    if model == "gpt2":
        document = _byte_level(metadata, tokens, kinds)
    elif model == "llama":
        document = _byte_fallback(metadata, tokens, kinds)
    else:
        raise metadata.refusal(f"'{_KEY}.model' is {model[:80]!r}, accepted: gpt2, llama")
    trims = _PHI_TRIMMING if architecture == "phi3" else frozenset()
    document["added_tokens"] = _added(tokens, kinds, trims)
    ids = _ids(metadata, tokens, kinds)
    names: dict[str, str] = {
        f"{name}_token": tokens[index] for name, index in ids.items() if index is not None
    }
    ends = [i for i, kind in enumerate(kinds) if kind == Kind.CONTROL and tokens[i] in _ENDS]
    found = {f"{name}_token_id": index for name, index in ids.items() if name in ("bos", "pad")}
    own = [index for index in (ids["eos"], ids["eot"], ids["eom"]) if index is not None]
    if not (all_ends := list(dict.fromkeys(own + ends))):
        raise metadata.refusal(f"'{_KEY}.eos_token_id' is missing, and no token has an end's name")
    told = ("bos_token", "eos_token", "unk_token", "pad_token")
    config: dict[str, Any] = {key: names[key] for key in told if key in names}
    first = all_ends[0] if found["bos_token_id"] is None else found["bos_token_id"]
    return TokenizerFiles(document, config, {**found, "bos_token_id": first, "eos_token_id": all_ends})


def _texts(metadata: Fields, key: str) -> list[str]:
    texts = metadata.raw(key)
    if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
        raise metadata.refusal(f"{key!r} is missing, or no list of texts")
    if len(max(texts, key=len)) > _MAX_TOKEN_CHARACTERS:
        raise metadata.refusal(f"{key!r} has a text of more than {_MAX_TOKEN_CHARACTERS} characters")
    return texts


def _kinds(metadata: Fields, count: int) -> list[int]:
    kinds = metadata.raw(f"{_KEY}.token_type")
    if kinds is None:
        raise metadata.refusal(f"'{_KEY}.token_type' is missing, which tells control tokens from words")
    if not isinstance(kinds, list) or len(kinds) != count or not set(kinds) <= set(Kind):
        raise metadata.refusal(
            f"'{_KEY}.token_type' must have a number from 1 to 6 for each of {count} tokens"
        )
    return kinds


def _ids(metadata: Fields, tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, int | None]:
    keys = {
        "bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"
    }  # fmt: skip
    return {
        name: metadata.optional_integer(f"{_KEY}.{key}_token_id", 0, len(tokens) - 1)
        for name, key in keys.items()
    }


def _added(tokens: Sequence[str], kinds: Sequence[int], trims: frozenset[str]) -> list[dict[str, Any]]:
    marked = (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN)
    return [
        {
            "id": i, "content": tokens[i], "single_word": False, "lstrip": False,
            "rstrip": tokens[i] in trims, "normalized": False, "special": kind != Kind.USER_DEFINED,
        }
        for i, kind in enumerate(kinds)
        if kind in marked and tokens[i]
    ]  # fmt: skip


def _vocabulary(metadata: Fields, tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, int]:
    """Tokens by name. Those that only fill the table have no name of their own."""
    named = [(token, i) for i, token in enumerate(tokens) if kinds[i] != Kind.UNUSED]
    vocabulary = dict(named)
    if len(vocabulary) != len(named):
        raise metadata.refusal(f"'{_KEY}.tokens' has the same token twice")
    return vocabulary


def _byte_level(metadata: Fields, tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, Any]:
    name = metadata.text(f"{_KEY}.pre", "")
    if name not in PRE_TOKENIZERS:
        raise metadata.refusal(
            f"'{_KEY}.pre' is {name[:80]!r}, a way of cutting words that is not known here, accepted: "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    cut = PRE_TOKENIZERS[name]
    merges = _texts(metadata, f"{_KEY}.merges")
    vocabulary = _vocabulary(metadata, tokens, kinds)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if not all(len(pair) == 2 and {*pair, "".join(pair)} <= vocabulary.keys() for pair in pairs):
        raise metadata.refusal(f"'{_KEY}.merges' has an entry that is no two tokens which make a third")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _document(
        cut.normalizer,
        cut.pre_tokenizer,
        level,
        {"vocab": vocabulary, "merges": [list(pair) for pair in pairs], "ignore_merges": cut.ignore_merges},
    )


def _byte_fallback(metadata: Fields, tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, Any]:
    scores = metadata.raw(f"{_KEY}.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not _are_numbers(scores):
        raise metadata.refusal(f"'{_KEY}.scores' must have a number for each of {len(tokens)} tokens")
    vocabulary = _vocabulary(metadata, tokens, kinds)
    unknown = next((tokens[i] for i, kind in enumerate(kinds) if kind == Kind.UNKNOWN), None)
    prefixed = metadata.raw(f"{_KEY}.add_space_prefix") is not False
    spaces: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, spaces]}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefixed:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    merges = _merges(tokens, kinds, scores, vocabulary)
    model = {
        "vocab": vocabulary,
        "merges": merges,
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": unknown,
    }
    return _document(
        normalizer if prefixed else spaces, None, {"type": "Sequence", "decoders": decoders}, model
    )


def _are_numbers(scores: list[Any]) -> bool:
    return all(type(score) is float and score == score for score in scores)


def _merges(
    tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float], vocabulary: dict[str, int]
) -> list[list[str]]:
    """Sentencepiece joins the neighbours whose union has the highest score: pairs in the order of the scores
    of what they make, as transformers' conversion writes them.
    """
    ordinary = (Kind.NORMAL, Kind.USER_DEFINED)

    def halves(token: str) -> Iterator[tuple[int, int]]:
        for at in range(1, len(token)):
            left, right = vocabulary.get(token[:at]), vocabulary.get(token[at:])
            if (
                left is not None
                and right is not None
                and kinds[left] in ordinary
                and kinds[right] in ordinary
            ):
                yield left, right

    found: list[tuple[float, int, int]] = []
    for i, token in enumerate(tokens):
        if kinds[i] == Kind.NORMAL:
            found += ((-scores[i], left, right) for left, right in sorted(halves(token)))
    found.sort(key=lambda pair: pair[0])
    return [[tokens[left], tokens[right]] for _, left, right in found]


def _document(
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    model: dict[str, Any],
) -> dict[str, Any]:
    plain = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder,
        "model": {**plain, **model},
    }  # fmt: skip
