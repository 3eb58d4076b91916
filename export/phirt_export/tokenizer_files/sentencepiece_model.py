"""A model of sentencepiece as tokenizer.json: the BPE or the Unigram that it is.

Knows what sentencepiece does to a text, and which parts of a tokenizer.json do the same. Knows nothing of
files.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from typing import Any

from phirt_export.tokenizer_files.sentencepiece_file import Kind, Piece, SentencePieceModel, is_plain_symbol

_SPACE = "▁"
_METASPACE: dict[str, Any] = {"type": "Metaspace", "replacement": _SPACE, "split": False}


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Where a space is written before a text: the steps that do it."""

    normalizers: tuple[dict[str, Any], ...] = ()
    pre_tokenizers: tuple[dict[str, Any], ...] = ()


NO_PREFIX = Prefix()
# Before the very first text alone.
FIRST_PREFIX = Prefix(pre_tokenizers=({**_METASPACE, "prepend_scheme": "first"},))
# Before every text between special tokens; the first of both adds none where the text begins with one.
METASPACE_PREFIX = Prefix(pre_tokenizers=({**_METASPACE, "prepend_scheme": "always"},))
PREPENDED_PREFIX = Prefix(normalizers=({"type": "Prepend", "prepend": _SPACE},))


def document(model: SentencePieceModel, prefix: Prefix) -> dict[str, Any]:
    """The tokenizer.json of a model. Pieces that a user defined are control tokens, except for white space
    and digits, which are found in any text.
    """
    whole = [p.text for p in model.pieces if is_plain_symbol(p)]
    pre_tokenizers = [*prefix.pre_tokenizers]
    if whole and not model.is_unigram:
        pattern = "|".join(map(re.escape, sorted(whole, key=len, reverse=True)))
        pre_tokenizers.append(
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        )
    decoders: list[dict[str, Any]] = [
        _replacement({"String": _SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix != NO_PREFIX:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*_normalizers(model), *prefix.normalizers]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers} if pre_tokenizers else None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _unigram(model.pieces) if model.is_unigram else _bpe(model.pieces, bool(whole)),
        "added_tokens": [
            added_token(index, piece.text, special=piece.kind == Kind.CONTROL)
            for index, piece in enumerate(model.pieces)
            if piece.kind in (Kind.CONTROL, Kind.USER_DEFINED) and not is_plain_symbol(piece)
        ],
    }


def added_token(index: int, name: str, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": index, "content": name, **plain, **flags}


def _normalizers(model: SentencePieceModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        table = base64.b64encode(model.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if model.removes_spaces:
        steps += [_replacement({"Regex": r"\A +| +\z"}, ""), _replacement({"Regex": " {2,}"}, " ")]
    return [*steps, _replacement({"String": " "}, _SPACE)]


def _replacement(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _unigram(pieces: tuple[Piece, ...]) -> dict[str, Any]:
    """Pieces by score. Those that are never found in a text get the lowest one, so that what an unknown
    character costs, which follows from the lowest, stays as it is.
    """
    scores = [piece.score for piece in pieces if piece.kind == Kind.NORMAL]
    lowest, highest = min(scores), max(scores)

    def entry(piece: Piece) -> list[Any]:
        if is_plain_symbol(piece):  # as good as the best pieces for each of its characters
            return [piece.text, len(piece.text) * highest - 0.1]
        # No text has a space any more when it is cut: the unused can have no other way to be found.
        name = piece.text + " " if piece.kind == Kind.UNUSED else piece.text
        return [name, piece.score if piece.kind == Kind.NORMAL else lowest]

    unknown = next((i for i, piece in enumerate(pieces) if piece.kind == Kind.UNKNOWN), None)
    vocabulary = [entry(piece) for piece in pieces]
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": True}


def _bpe(pieces: tuple[Piece, ...], keeps_words: bool) -> dict[str, Any]:
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    return {
        "type": "BPE", "vocab": vocabulary, "merges": _merges(pieces), "byte_fallback": True,
        "fuse_unk": True, "ignore_merges": keeps_words,
    }  # fmt: skip


def _merges(pieces: tuple[Piece, ...]) -> list[list[str]]:
    """Each pair that makes a piece, the one with the highest score first."""
    normal = {piece.text for piece in pieces if piece.kind == Kind.NORMAL}
    pairs = []
    for rank, piece in enumerate(pieces):
        whole = piece.text if piece.kind == Kind.NORMAL else ""
        for at in range(1, len(whole)):
            if whole[:at] in normal and whole[at:] in normal:
                pairs.append((-piece.score, rank, at, whole[:at], whole[at:]))
    return [[left, right] for *_, left, right in sorted(pairs)]
