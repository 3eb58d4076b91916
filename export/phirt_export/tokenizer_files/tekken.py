"""tekken.json of Mistral: bytes in the order of their ranks, special tokens before them.

Knows the file (as mistral-common reads it) and that merges follow from ranks. Knows nothing of templates.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from phirt_export.containers import read_json
from phirt_export.gguf_files.pre_tokenizers import BYTE_LEVEL
from phirt_export.tokenizer_files.sentencepiece_model import added_token

_MAX_BYTES = 256 << 20
_MAX_TOKENS = 1 << 21


def document(path: Path) -> dict[str, Any]:
    """The tokenizer.json of a tekken.json.

    Raises:
        ConfigError: the file is damaged, or of the first format, which does not name its special tokens.
    """
    root = read_json(path, "fetch the checkpoint's own tekken.json", _MAX_BYTES)
    config = root.child("config")
    if not root.has("special_tokens"):
        raise root.refusal("it does not name its special tokens (an older format)")
    entries = root.children("special_tokens", _MAX_TOKENS)
    ranked = {entry.integer("rank", 0, _MAX_TOKENS): entry.text("token_str") for entry in entries}
    if sorted(ranked) != list(range(len(entries))):
        raise root.refusal("the ranks of 'special_tokens' are not 0, 1, 2 and so on")
    count = config.optional_integer("default_num_special_tokens", len(entries), _MAX_TOKENS) or len(entries)
    specials = [ranked.get(rank, f"<SPECIAL_{rank}>") for rank in range(count)]
    size = config.optional_integer("default_vocab_size", count)
    words = root.children("vocab", _MAX_TOKENS)
    try:
        ranks = {
            base64.b64decode(word.text("token_bytes"), validate=True): rank
            for rank, word in enumerate(words[: None if size is None else size - count])
        }
    except (binascii.Error, ValueError) as error:
        raise root.refusal(f"'token_bytes' is no base64: {error}") from error
    vocabulary = {name: rank for rank, name in enumerate(specials)}
    vocabulary |= {_printable(word): rank + count for word, rank in ranks.items()}
    pattern = {"Regex": config.text("pattern")}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": _merges(ranks), "ignore_merges": True},
        "added_tokens": [added_token(rank, name, special=True) for rank, name in enumerate(specials)],
    }


def _merges(ranks: dict[bytes, int]) -> list[list[str]]:
    """Each pair of tokens that makes one, in the order of what they make."""
    pairs = []
    for whole, rank in ranks.items():
        for at in range(1, len(whole)):
            left, right = ranks.get(whole[:at]), ranks.get(whole[at:])
            if left is not None and right is not None:
                pairs.append((rank, left, right, whole[:at], whole[at:]))
    return [[_printable(left), _printable(right)] for *_, left, right in sorted(pairs)]


_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHARACTERS = {byte: chr(byte) for byte in _PRINTABLE} | {b: chr(256 + n) for n, b in enumerate(_OTHERS)}


def _printable(word: bytes) -> str:
    """Bytes in the characters that stand for them in byte-level vocabularies, as GPT-2's has them."""
    return "".join(_CHARACTERS[byte] for byte in word)
