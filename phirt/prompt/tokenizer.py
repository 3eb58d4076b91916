"""Text to ids and ids to text: control tokens kept apart from content, streamed decoding.

Knows tokenizer.json. Knows nothing of messages or media.

What a template writes and what a user writes are encoded by two tokenizers: the first recognises control
tokens such as `<|end|>`, the second does not know them, so that nobody can end a turn or fake a role by
typing one.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phirt.annotations import has_surrogate
from phirt.errors import BundleError, out_of_memory
from phirt.prompt.content_encoder import ContentEncoder

# What `lstrip` and `rstrip` of a control token swallow: Unicode's White_Space; Python's str.strip takes more.
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
_BPE_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")  # they would be shown as text
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_REMEDY = "export again with the model's own tokenizer.json"


@dataclasses.dataclass(frozen=True)
class ControlToken:
    """An added token: its name, whether answers hide it (`special`), which whitespace beside it vanishes."""

    name: str
    special: bool
    lstrip: bool
    rstrip: bool


class Tokenizer:
    """A tokenizer with control tokens: a BPE of the byte-level kind (Phi-4, Llama 3, Qwen) or with byte
    fallback (Phi-3, Llama 2), or a Unigram (llm-jp, Sarashina). Raises BundleError if the file cannot serve.

    `vocab_size` bounds the ids that the decoder accepts. `visible` names control tokens whose text belongs in
    answers.
    """

    def __init__(self, path: Path, vocab_size: int, visible: Iterable[str] = ()) -> None:
        document = _read(path)
        try:
            self._added = _control_tokens(document)
            self._content = ContentEncoder(document, {token.name for token in self._added.values()})
            highest = max([_highest_id(document["model"]["vocab"]), *self._added])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and its panics are none
            raise out_of_memory(error, "read the tokenizer") or BundleError(
                f"{path} is not a usable tokenizer: {error}; {_REMEDY}"
            ) from error
        if highest >= vocab_size:
            raise BundleError(
                f"{path} has ids up to {highest}, the decoder's vocabulary ends at {vocab_size - 1}"
            )
        self._visible = frozenset(visible)
        self._id_of = {token.name: index for index, token in self._added.items()}
        # The longest name first, as the library finds them.
        names = sorted(self._id_of, key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)")
        self._bytes_of = _bytes_by_level if _is_byte_level(document) else _bytes_by_fallback
        self.leading_space = not _is_byte_level(document) and _drops_first_space(document.get("decoder"))

    @property
    def control_tokens(self) -> Mapping[int, ControlToken]:
        """The added tokens by id."""
        return types.MappingProxyType(self._added)

    def split_control(self, text: str) -> list[str | int]:
        """Text of a template cut at its control tokens, which are replaced by their ids."""
        pieces = self._names.split(text)
        return [self._id_of.get(piece, piece) for piece in pieces if piece]

    def encode_content(self, text: str, begins: bool = False) -> list[int]:
        """Ids of text from outside: it never yields a control token. Lone surrogates become U+FFFD. `begins`
        says that nothing stands before it in the prompt, for tokenizers that write a space there and nowhere
        else.
        """
        clean = (
            text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if has_surrogate(text)
            else text
        )
        return self._content.encode(clean, begins)

    def control_places(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """Start, end and id of each control token that shows in the text of these ids."""
        decoder, places, length = StreamDecoder(self), [], 0
        for token in ids:
            length += len(decoder.feed(token))
            if token in self._added and self.token_bytes(token):
                places.append((length - len(self._added[token].name), length, token))
        return places

    def trims_after(self, token: int) -> bool:
        """Whether whitespace after this control token vanishes (its `rstrip`)."""
        return token in self._added and self._added[token].rstrip

    def trims_before(self, token: int) -> bool:
        """Whether whitespace before this control token vanishes (its `lstrip`)."""
        return token in self._added and self._added[token].lstrip

    def id_of(self, token: str) -> int | None:
        """The id of a token by its exact name."""
        return self._id_of[token] if token in self._id_of else self._content.id_of(token)

    def name_of(self, token: int) -> str:
        """The exact name of an id; empty for one that has none."""
        if token in self._added:
            return self._added[token].name
        return self._content.name_of(token)

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that an id stands for in an answer; none for control tokens that stay invisible."""
        control = self._added.get(token)
        if control is None:
            return self._bytes_of(self.name_of(token))
        return b"" if control.special and control.name not in self._visible else control.name.encode()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a whole answer, equal to what StreamDecoder yields for it in pieces."""
        decoder = StreamDecoder(self)
        return "".join(map(decoder.feed, ids))


class StreamDecoder:
    """Turns ids into text as they come: never half a character, never a changed space.

    Bytes wait until their character is complete; bytes that cannot become one turn into U+FFFD. What is still
    incomplete when the answer ends carries no character and is dropped, and so is the space before the first
    word where the tokenizer writes one before every word (`leading_space`).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begins = tokenizer.leading_space

    def feed(self, token: int) -> str:
        """The characters that this id completes; often none, sometimes several."""
        data = self._tokenizer.token_bytes(token)
        if data and self._begins:
            self._begins, data = False, data.removeprefix(b" ")
        return self._decoder.decode(data)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(f"{path} is larger than {_MAX_BYTES} bytes; {_REMEDY}")
        text = path.read_text("utf-8")
        document = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}; {_REMEDY}") from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise BundleError(f"{path} is not a tokenizer.json; {_REMEDY}")
    # They can come from escapes alone; a vocabulary of 200,000 names is not searched without need.
    if _SURROGATE_ESCAPE.search(text) and has_surrogate(document):
        raise BundleError(f"{path} has a name with a lone surrogate, which is no character; {_REMEDY}")
    model = document["model"]
    is_bpe = model.get("type", "BPE") == "BPE" and not any(map(model.get, _BPE_AFFIXES))
    writes_bytes = _is_byte_level(document) or "ByteFallback" in json.dumps(document.get("decoder"))
    if not (model.get("type") == "Unigram" or (is_bpe and writes_bytes)):
        raise BundleError(
            f"{path}: accepted are BPE models with a ByteLevel decoder or byte fallback, without prefixes or "
            f"suffixes of words, and Unigram models; {_REMEDY}"
        )
    return document


def _is_byte_level(document: dict[str, Any]) -> bool:
    return "ByteLevel" in json.dumps(document.get("decoder"))


def _drops_first_space(decoder: Any) -> bool:
    """Whether the space before the first word was written by the encoder, as the decoder says."""
    if not isinstance(decoder, dict):
        return False
    if isinstance(decoder.get("decoders"), list):
        return any(map(_drops_first_space, decoder["decoders"]))
    kind = decoder.get("type")
    if kind == "Metaspace":
        return (
            decoder.get("prepend_scheme", "always") != "never"
            and decoder.get("add_prefix_space") is not False
        )
    # Some files take it away by a pattern that holds at the beginning alone.
    return kind == "Strip" or (kind == "Replace" and decoder.get("content") == "")


def _highest_id(vocabulary: Any) -> int:
    """Of names with their ids, or of a list whose places are the ids."""
    return len(vocabulary) - 1 if isinstance(vocabulary, list) else max(vocabulary.values(), default=0)


def _control_tokens(document: dict[str, Any]) -> dict[int, ControlToken]:
    """The added tokens by id. Raises KeyError, TypeError or ValueError for entries that are none."""
    tokens = {}
    for entry in document.get("added_tokens") or []:
        index, name = entry["id"], entry["content"]
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ValueError(f"an added token has the id {index!r}")
        if not isinstance(name, str) or not name:
            raise ValueError(f"the added token {index} has the name {name!r}")
        flags = (entry.get(flag) is True for flag in ("special", "lstrip", "rstrip"))
        tokens[index] = ControlToken(name, *flags)
    return tokens


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
_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")


def _bytes_by_level(name: str) -> bytes:
    """What a token of a byte-level vocabulary stands for."""
    return bytes(_BYTE_OF[char] for char in name if char in _BYTE_OF)


def _bytes_by_fallback(name: str) -> bytes:
    """What a token of a vocabulary with byte fallback stands for: one byte, or text with "▁" for a space."""
    byte = _BYTE_NAME.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()
