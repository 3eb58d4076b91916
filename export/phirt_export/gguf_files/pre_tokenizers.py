"""How byte-level vocabularies cut text into words before merging, by the name that GGUF files give it.

Knows the names, and the `normalizer`, `pre_tokenizer` and `ignore_merges` that the tokenizer.json of the
families have for them. Knows nothing of vocabularies.
"""

from __future__ import annotations

import dataclasses
from typing import Any

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2 = {**BYTE_LEVEL, "use_regex": True}
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"


def _by_letters(digits: str) -> str:
    """Contractions, words, `digits`, punctuation, white space: cl100k, Llama 3, Qwen."""
    words = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    return f"{_CONTRACTION}|{words}|{_SPACES}"


def _by_case(ending: str, digits: str) -> str:
    """Words cut where small letters end, with `ending` behind them: o200k, Tekken."""
    first = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{first}[{_UPPER}]*[{_LOWER}]+{ending}|{first}[{_UPPER}]+[{_LOWER}]*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """Parts of a tokenizer.json. `ignore_merges`: a word that is a token is one, whatever merges say."""

    pre_tokenizer: dict[str, Any]
    ignore_merges: bool = False
    normalizer: dict[str, Any] | None = None


def _split(pattern: str, ignore_merges: bool = False, nfc: bool = False) -> PreTokenizer:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    both = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    return PreTokenizer(both, ignore_merges, {"type": "NFC"} if nfc else None)


_DIGITS = {"type": "Digits", "individual_digits": True}
_GPT_2 = PreTokenizer(_GPT2)
_SMOLLM = PreTokenizer({"type": "Sequence", "pretokenizers": [_DIGITS, _GPT2]})
_LLAMA_3 = _split(_by_letters(r"\p{N}{1,3}"), ignore_merges=True)
_QWEN_2 = _split(_by_letters(r"\p{N}"), nfc=True)
_O200K = _split(_by_case(f"{_CONTRACTION}?", r"\p{N}{1,3}"), ignore_merges=True)
_TEKKEN = _split(_by_case("", r"\p{N}"), ignore_merges=True)
_CL100K = _split(_by_letters(r"\p{N}{1,3}"))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": _GPT_2,
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "qwen2": _QWEN_2,
    "deepseek-r1-qwen": _split(_by_letters(r"\p{N}")),
    "gpt-4o": _O200K,
    "tekken": _TEKKEN,
    "dbrx": _CL100K,
}
