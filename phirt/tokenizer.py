"""Text to ids and ids to text: control tokens kept apart from content, streamed decoding, stop strings.

Knows tokenizer.json. Knows nothing of messages or media.

What a template writes and what a user writes are encoded by two tokenizers: the first recognises control
tokens such as `<|end|>`, the second does not know them, so that nobody can end a turn or fake a role by
typing one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as _Tokenizer

from phirt.errors import BundleError

# What `lstrip` and `rstrip` of a control token swallow: Unicode's White_Space, which Python's str.strip exceeds.
WHITESPACE = "".join(
    map(
        chr,
        [
            *range(9, 14),
            32,
            0x85,
            0xA0,
            0x1680,
            *range(0x2000, 0x200B),
            0x2028,
            0x2029,
            0x202F,
            0x205F,
            0x3000,
        ],
    )
)

_MAX_BYTES = 256 << 20


class Tokenizer:
    """A byte-level BPE tokenizer with control tokens. Raises BundleError if the file cannot serve.

    `vocab_size` bounds the ids that the decoder accepts. `visible` names control tokens whose text belongs in
    answers.
    """

    def __init__(self, path: Path, vocab_size: int, visible: Iterable[str] = ()) -> None:
        document = _read(path)
        try:
            self._control = _Tokenizer.from_str(json.dumps(document))
            self._content = _Tokenizer.from_str(json.dumps(_without_control_tokens(document)))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(
                f"{path} is not a usable tokenizer: {error}; export the bundle again"
            ) from error
        for tokenizer in (self._control, self._content):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        self._added = self._control.get_added_tokens_decoder()
        highest = max(self._control.get_vocab(with_added_tokens=True).values(), default=0)
        if highest >= vocab_size:
            raise BundleError(
                f"{path} has ids up to {highest}, the decoder's vocabulary ends at {vocab_size - 1}"
            )
        self._visible = frozenset(visible)
        self._id_of = {str(token.content): index for index, token in self._added.items()}
        # The longest name first, as the library finds them.
        names = sorted(self._id_of, key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)")

    def encode_control(self, text: str) -> list[int]:
        """Ids of text that the template wrote: control tokens are recognised."""
        return list(self._control.encode(text, add_special_tokens=False).ids)

    def split_control(self, text: str) -> list[str | int]:
        """Text of a template cut at its control tokens, which are replaced by their ids."""
        pieces = self._names.split(text)
        return [self._id_of.get(piece, piece) for piece in pieces if piece]

    def encode_content(self, text: str) -> list[int]:
        """Ids of text from outside: it never yields a control token. Lone surrogates become U+FFFD."""
        clean = (
            text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if _has_surrogate(text)
            else text
        )
        return list(self._content.encode(clean, add_special_tokens=False).ids)

    def trims_after(self, token: int) -> bool:
        """Whether whitespace after this control token vanishes (its `rstrip`)."""
        return token in self._added and bool(self._added[token].rstrip)

    def trims_before(self, token: int) -> bool:
        """Whether whitespace before this control token vanishes (its `lstrip`)."""
        return token in self._added and bool(self._added[token].lstrip)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its exact name."""
        found: int | None = self._control.token_to_id(token)
        return found

    def name_of(self, token: int) -> str:
        """The exact name of an id; empty for one that has none."""
        return str(self._control.id_to_token(token) or "")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that an id stands for in an answer; none for control tokens that stay invisible."""
        if token in self._added:
            content = str(self._added[token].content)
            hidden = bool(self._added[token].special) and content not in self._visible
            return b"" if hidden else content.encode()
        name = self._control.id_to_token(token)
        if name is None:
            return b""
        return bytes(_BYTE_OF[char] for char in name if char in _BYTE_OF)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a whole answer, equal to what StreamDecoder yields for it in pieces."""
        decoder = StreamDecoder(self)
        return "".join(map(decoder.feed, ids))


class StreamDecoder:
    """Turns ids into text as they come: never half a character, never a changed space.

    Bytes wait until their character is complete; bytes that cannot become one turn into U+FFFD. What is still
    incomplete when the answer ends carries no character and is dropped.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The characters that this id completes; often none, sometimes several."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))


class StopStrings:
    """Cuts a stream of text before the first stop string, holding back what could still become one.

    The earliest end counts; of several that end there, the longest. The result does not depend on how the
    text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """The text that is safe to show now. After a hit nothing more comes."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        buffer = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := buffer.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return buffer[: min(found)[1]]
        keep = next(
            (n for n in range(min(self._longest - 1, len(buffer)), 0, -1) if self._could_begin(buffer[-n:])),
            0,
        )
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def finish(self) -> str:
        """What was held back, when the stream ends without a hit."""
        held, self._held = self._held, ""
        return held

    def _could_begin(self, tail: str) -> bool:
        return any(len(tail) < len(stop) and stop.startswith(tail) for stop in self._stops)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(f"{path} is larger than {_MAX_BYTES} bytes; export the bundle again")
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}; export the bundle again") from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise BundleError(f"{path} is not a tokenizer.json; export the bundle again")
    if document["model"].get("type", "BPE") != "BPE" or "ByteLevel" not in json.dumps(
        document.get("decoder")
    ):
        raise BundleError(
            f"{path}: accepted are BPE models with a ByteLevel decoder; export the bundle again"
        )
    return document


def _without_control_tokens(document: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without added tokens; their names also leave the vocabulary, so that no path leads
    to them.
    """
    added = document.get("added_tokens") or []
    names = {token["content"] for token in added}
    vocab = {name: index for name, index in document["model"].get("vocab", {}).items() if name not in names}
    return {
        **document,
        "added_tokens": [],
        "post_processor": None,
        "model": {**document["model"], "vocab": vocab},
    }


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the rest for U+0100 and up,
    in order.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _bytes_of_characters()
