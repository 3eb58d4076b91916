"""Builds tokenizer.json from a list of byte-pair ranks, with Phi-4-multimodal's special tokens.

A rank list says which byte strings are tokens and in which order they were learned, not which pair each was
made of. That pair is what the encoding itself leaves when it encodes the token with earlier ranks alone, so
merges are recovered by doing just that; a token that does not end in two parts is never reached by merging,
only as a whole word, for which `ignore_merges` stands.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

# o200k's way of cutting text: words by case, contractions with them, digits by three, punctuation, spaces.
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
FULL_RANKS = 199_998
VOCABULARY_TAIL = 66  # ids past the ranks of the published vocabulary of 200,064
# Names at their distance from the end of the ranks; from `endoftext10` on, white space after them vanishes.
_SPECIAL = {
    1: "<|endoftext|>", 12: "<|endoftext10|>", 13: "<|endoftext11|>", 20: "<|endofprompt|>",
    21: "<|assistant|>", 22: "<|end|>",
    23: "<|user|>", 24: "<|system|>", 25: "<|tool|>", 26: "<|/tool|>", 27: "<|tool_call|>",
    28: "<|/tool_call|>", 29: "<|tool_response|>", 30: "<|tag|>",
}  # fmt: skip
_TRIMMING = range(21, 31)
_PLAIN = range(25, 30)  # special to no one: their text shows


def special_id(name: str, ranks: int) -> int:
    """The id of a special token beside that many ranks; 200010 for `<|endoftext10|>` beside all of them."""
    return ranks + next(offset for offset, token in _SPECIAL.items() if token == name)


def byte_letters() -> list[str]:
    """The character that byte-level BPE writes for each byte: its own where it is visible in Latin-1, else
    the next one from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]


def read_ranks(path: Path, count: int = FULL_RANKS) -> dict[bytes, int]:
    """The first `count` tokens of a .tiktoken file, which has one base64 token and its rank a line."""
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        if int(rank) < count:
            ranks[base64.b64decode(token)] = int(rank)
    assert sorted(ranks.values()) == list(range(count)), f"{path} has not all ranks up to {count}"
    return ranks


def parts_of(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """What is left of `token` when only merges into tokens of a rank under `below` are done, lowest first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        candidates = [ranks.get(parts[i] + parts[i + 1], below) for i in range(len(parts) - 1)]
        lowest = min(candidates)
        if lowest >= below:
            break
        at = candidates.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def tokenizer_json(ranks: dict[bytes, int]) -> str:
    """The text of tokenizer.json: byte-level BPE over these ranks, special tokens behind them."""
    letter = byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letter[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = parts_of(token, ranks, rank)
        if len(parts) == 2:
            merges.append([spelled(parts[0]), spelled(parts[1])])
    added = [
        {
            "id": len(ranks) + offset, "content": name, "single_word": False, "lstrip": False,
            "rstrip": offset in _TRIMMING, "normalized": False, "special": offset not in _PLAIN,
        }
        for offset, name in _SPECIAL.items()
    ]  # fmt: skip
    # Ids have gaps before and between the special tokens, which only a vocabulary can say.
    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    vocabulary |= {token["content"]: token["id"] for token in added}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": vocabulary, "merges": merges,
        },
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False)
