"""tekken.json of Mistral: bytes in the order of their ranks, special tokens before them, and how a
conversation is written with these.

Knows the file and its versions (as mistral-common reads them) and that merges follow from ranks.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from phirt.fields import Fields
from phirt_export.containers import read_json
from phirt_export.gguf_files.pre_tokenizers import BYTE_LEVEL
from phirt_export.tokenizer_files.sentencepiece_model import added_token

NAME = "tekken.json"
_MAX_BYTES = 256 << 20
_MAX_TOKENS = 1 << 21
# Files of the first versions do not name their special tokens, which are these (as in mistral-common).
_UNNAMED = ("v1", "v2", "v3", "v7")
_FIRST_NAMES = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip

_TURNS = (
    "{% elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content.rstrip(' ') + '</s>' }}{% endif %}{% endfor %}"
)
# Version 3 writes the system's message before what the user said last, those from 7 to 13 between marks.
_V3 = (
    "{% set ns = namespace(system='', last=-1) %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' and loop.index0 == ns.last %}"
    "{{ '[INST]' + ns.system + m.content + '[/INST]' }}" + _TURNS
)
_V7 = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}" + _TURNS
)
_TEMPLATES = {"v3": _V3, "v7": _V7, "v11": _V7, "v13": _V7}


def find_conversation_template(folder: Path) -> str | None:
    """The chat template of a checkpoint with a tekken.json, by the file's version, for text without tools;
    None where there is no such file, or none of a version that is known.
    """
    if not (folder / NAME).is_file():
        return None
    version = _read(folder / NAME).child("config").raw("version")
    return _TEMPLATES.get(version) if isinstance(version, str) else None


def _read(path: Path) -> Fields:
    return read_json(path, "fetch the checkpoint's own tekken.json", _MAX_BYTES)


def document(path: Path) -> dict[str, Any]:
    """The tokenizer.json of a tekken.json.

    Raises:
        ConfigError: the file is damaged, or names no special tokens where its version has none of its own.
    """
    root = _read(path)
    config = root.child("config")
    named = _names(root, config)
    count = config.optional_integer("default_num_special_tokens", len(named), _MAX_TOKENS) or len(named)
    specials = [*named, *(f"<SPECIAL_{rank}>" for rank in range(len(named), count))]
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


def _names(root: Fields, config: Fields) -> list[str]:
    """Names of special tokens, by their ranks."""
    if not root.has("special_tokens"):
        version = config.text("version")
        if version not in _UNNAMED:
            raise root.refusal(
                f"it does not name its special tokens, as only versions {', '.join(_UNNAMED)} may do, not "
                f"{version[:80]!r}"
            )
        return list(_FIRST_NAMES)
    entries = root.children("special_tokens", _MAX_TOKENS)
    ranked = {entry.integer("rank", 0, _MAX_TOKENS): entry.text("token_str") for entry in entries}
    if sorted(ranked) != list(range(len(entries))):
        raise root.refusal("the ranks of 'special_tokens' are not 0, 1, 2 and so on")
    return [ranked[rank] for rank in range(len(ranked))]


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
