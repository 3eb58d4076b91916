"""tokenizer.model of sentencepiece, read from its protocol buffer.

Knows the few fields that are needed (sentencepiece_model.proto of github.com/google/sentencepiece), not how
they are written. Everything in a file is taken for hostile.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from collections.abc import Iterator
from pathlib import Path

from phirt.bundle.wire import Wire
from phirt.errors import ConfigError
from phirt.prompt.charsmap import Charsmap

_MAX_BYTES = 64 << 20
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # of the model
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_MODEL_TYPE, _SPACE_BEHIND = 3, 24  # of the trainer's settings
_CHARSMAP, _ADDS_SPACE, _REMOVES_SPACES, _ESCAPES_SPACES = 2, 3, 4, 5  # of the normalizer's
_UNIGRAM, _BPE = 1, 2

Value = int | bytes


class Kind(enum.IntEnum):
    """What a piece is; llama.cpp's `llama_token_type` has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token, its score and its kind."""

    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """All pieces in the order of their ids, and what happens to a text before it is cut: `charsmap` is the
    table that its characters are mapped by, empty for none; `removes_spaces` takes those at both ends and all
    but one of a run; `adds_space` writes one before it.
    """

    is_unigram: bool
    pieces: tuple[Piece, ...]
    charsmap: bytes
    adds_space: bool
    removes_spaces: bool


def is_plain_symbol(piece: Piece) -> bool:
    """Whether a piece that a user defined is white space or digits: text, where others are marks."""
    text = piece.text.replace("▁", " ").strip()
    return piece.kind == Kind.USER_DEFINED and (not text or (text.isascii() and text.isdecimal()))


def read_model(path: Path) -> SentencePieceModel:
    """The model of a file.

    Raises:
        ConfigError: the file is none, or its model is neither BPE nor Unigram.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        parts = list(_fields(raw))
        trainer, normalizer = (_message(parts, number) for number in (_TRAINER, _NORMALIZER))
        pieces = tuple(_piece(value) for n, value in parts if n == _PIECES and isinstance(value, bytes))
        charsmap = normalizer.get(_CHARSMAP, b"")
        charsmap = charsmap if isinstance(charsmap, bytes) else b""
        mapped = _mapped_symbols(charsmap, pieces)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no sentencepiece model that can be read: {error}; fetch it again"
        ) from error
    kind = trainer.get(_MODEL_TYPE, _UNIGRAM)
    normal = any(piece.kind == Kind.NORMAL for piece in pieces)
    unusual = mapped or trainer.get(_SPACE_BEHIND, 0) or not normalizer.get(_ESCAPES_SPACES, 1)
    if not normal or kind not in (_UNIGRAM, _BPE) or unusual:
        made = f"t.AutoTokenizer.from_pretrained('{path.parent}').save_pretrained('{path.parent}')"
        raise ConfigError(
            f"{path} is no BPE or Unigram of sentencepiece with spaces before words and symbols that stay as "
            f"they are, which alone is converted; transformers makes a tokenizer.json: "
            f'python -c "import transformers as t; {made}"'
        )
    return SentencePieceModel(
        is_unigram=kind == _UNIGRAM,
        pieces=pieces,
        charsmap=charsmap,
        adds_space=bool(normalizer.get(_ADDS_SPACE, 1)),
        removes_spaces=bool(normalizer.get(_REMOVES_SPACES, 1)),
    )


def _mapped_symbols(charsmap: bytes, pieces: tuple[Piece, ...]) -> bool:
    """Whether the table would change pieces that sentencepiece leaves alone, since a user defined them."""
    symbols = [piece.text for piece in pieces if is_plain_symbol(piece)]
    return bool(charsmap) and any(Charsmap(charsmap).normalize(symbol) != symbol for symbol in symbols)


def _message(parts: list[tuple[int, Value]], number: int) -> dict[int, Value]:
    """The last value of each field of the messages with this number, which are merged."""
    messages = [value for n, value in parts if n == number and isinstance(value, bytes)]
    return {field: value for message in messages for field, value in _fields(message)}


def _piece(raw: bytes) -> Piece:
    fields = dict(_fields(raw))
    text, score, kind = (fields.get(number) for number in (_TEXT, _SCORE, _KIND))
    if not isinstance(text, bytes) or not text:
        raise ValueError("a piece has no text")
    number = struct.unpack("<f", score)[0] if isinstance(score, bytes) and len(score) == 4 else 0.0
    if not math.isfinite(number):
        raise ValueError(f"a piece has the score {number}")
    return Piece(text.decode("utf-8"), number, kind if isinstance(kind, int) else Kind.NORMAL)


def _fields(raw: bytes) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a message. Raises ValueError where it is cut off or no message."""
    wire = Wire(raw, len(raw))
    for number, value in wire.fields(wire.whole()):
        yield number, wire.bytes_of(value) if isinstance(value, tuple) else value
