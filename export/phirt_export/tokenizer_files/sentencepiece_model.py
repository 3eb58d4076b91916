"""tokenizer.model of sentencepiece: pieces read from its protocol buffer, and the BPE that they are.

Knows the few fields that are needed (sentencepiece_model.proto of github.com/google/sentencepiece) and how a
field is coded (protobuf.dev/programming-guides/encoding). Everything in a file is taken for hostile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError

_MAX_BYTES = 64 << 20
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_PIECES, _TRAINER = 1, 2  # of the model
_TEXT, _KIND = 1, 3  # of a piece
_MODEL_TYPE = 3  # of the trainer's settings
_BPE = 2
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "▁"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token and its kind: 1 normal, 2 unknown, 3 control, 4 defined by the user, 6 a byte."""

    text: str
    kind: int


def read_pieces(path: Path) -> list[Piece]:
    """All pieces of a BPE model, in the order of their ids.

    Raises:
        ConfigError: the file is none, or its model is no BPE.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        pieces, kind = [], 1
        for number, value in _fields(raw):
            if number == _PIECES and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == _TRAINER and isinstance(value, bytes):
                kind = next((v for n, v in _fields(value) if n == _MODEL_TYPE and isinstance(v, int)), kind)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no sentencepiece model that can be read: {error}; fetch it again"
        ) from error
    if not pieces or kind != _BPE:
        made = f"t.AutoTokenizer.from_pretrained('{path.parent}').save_pretrained('{path.parent}')"
        raise ConfigError(
            f"{path} is no BPE of sentencepiece, which alone is converted; transformers makes a "
            f'tokenizer.json of it: python -c "import transformers as t; {made}"'
        )
    return pieces


def document(pieces: list[Piece], prepends: str) -> dict[str, Any]:
    """The tokenizer.json of these pieces. `prepends` says where a space is written before words: `always`
    before each text between special tokens, `first` at the beginning alone, `never`.
    """
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prepends != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": _SPACE, "prepend_scheme": prepends, "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": _merges(vocabulary), "byte_fallback": True,
            "fuse_unk": True,
        },
        "added_tokens": [
            added_token(index, piece.text, special=piece.kind == _CONTROL)
            for index, piece in enumerate(pieces)
            if piece.kind in (_CONTROL, _USER_DEFINED)
        ],
    }  # fmt: skip


def added_token(index: int, name: str, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": index, "content": name, **plain, **flags}


def _merges(vocabulary: dict[str, int]) -> list[list[str]]:
    """Each pair that makes a piece, in the order of the pieces, which sentencepiece numbers by scores."""
    pairs = []
    for whole, rank in vocabulary.items():
        for at in range(1, len(whole)):
            left, right = whole[:at], whole[at:]
            if left in vocabulary and right in vocabulary:
                pairs.append((rank, len(left), len(right), vocabulary[left], vocabulary[right], left, right))
    return [[left, right] for *_, left, right in sorted(pairs)]


def _piece(raw: bytes) -> Piece:
    text, kind = "", _NORMAL
    for number, value in _fields(raw):
        if number == _TEXT and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == _KIND and isinstance(value, int):
            kind = value
    return Piece(text, kind)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message. Raises ValueError where it is cut off or no message."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(raw, at)
        elif wire in (_FIXED_32, _FIXED_64):
            size = 4 if wire == _FIXED_32 else 8
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if at + size > len(raw):
            raise ValueError("it is cut off")
        yield number, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise ValueError("it is cut off")
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
