"""Messages to token ids through the bundle's chat template.

Knows roles, templates and media placeholders. Knows nothing of encoders, the decoder or sampling.

The template never sees content. It is rendered with private marks in its place; control tokens are recognised
in what the template itself wrote and nowhere else, and the text between two of them is encoded in one piece,
as if the whole prompt were. So typed control tokens and typed `<|image_1|>` markers stay plain text, and an
answer's ids return to the next prompt exactly as they were generated, which keeps the cache valid.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import types
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox
import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import Tokens
from phirt.errors import BundleError
from phirt.prompt.messages import Media, Message, Role
from phirt.prompt.tokenizer import WHITESPACE, Tokenizer

_MAX_TEMPLATE_CHARACTERS = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt: ids int64 [T] with placeholders in place, and where each of the media starts."""

    ids: npt.NDArray[np.int64]
    media: tuple[tuple[int, Media], ...]


class ChatTemplate:
    """A bundle's jinja template, compiled once in a sandbox. Raises BundleError where it is broken.

    `placeholders` has the token that stands for a row of features, by the encoder's name.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        tokens: Tokens,
        placeholders: Mapping[str, int] = types.MappingProxyType({}),
    ) -> None:
        if len(source) > _MAX_TEMPLATE_CHARACTERS:
            raise BundleError(
                f"the chat template is longer than {_MAX_TEMPLATE_CHARACTERS} characters; export the bundle "
                "again"
            )
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_from_template
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # also what Python says about the code that it becomes
            raise BundleError(f"the chat template is broken: {error}; export the bundle again") from error
        self._tokenizer = tokenizer
        self._placeholders = placeholders
        self._names = {
            "bos_token": tokenizer.name_of(tokens.bos),
            # Of several ids that end an answer, the one that ends a text; Phi-4 begins texts with it as well.
            "eos_token": tokenizer.name_of(tokens.bos if tokens.bos in tokens.eos else tokens.eos[0]),
        }

    @property
    def tool_role(self) -> Role:
        """The role of a turn with tools' results: "tool_response" where the tokenizer has
        `<|tool_response|>`, as Phi-4's has, else "tool", which other families' templates know.
        """
        return "tool" if self._tokenizer.id_of("<|tool_response|>") is None else "tool_response"

    def encode(self, messages: Sequence[Message], tools: str | None = None) -> Encoded:
        """Ids of the conversation up to where the assistant answers."""
        pieces = _Pieces()
        parts = pieces.split(self._render([pieces.as_dict(message, tools) for message in messages]))
        wanted = [item for message in messages for item in message.media]
        if [part for part in parts if isinstance(part, Media)] != wanted:
            raise BundleError("the chat template drops, repeats or reorders media; export the bundle again")
        if not pieces.each_found_once:
            raise BundleError(
                "the chat template drops or repeats a message, or the tools; leave out what it has no place "
                "for (a system message, tools), or export the bundle with another template"
            )
        ids: list[int] = []
        media = []
        for part in self._joined(parts):
            if isinstance(part, Media):
                media.append((len(ids), part))
                ids.extend([self._placeholders[part.encoder]] * part.num_tokens)
            elif isinstance(part, str):
                ids.extend(self._tokenizer.encode_content(part))
            else:
                ids.extend(part)
        if not ids:
            raise BundleError("the chat template makes an empty prompt; export the bundle again")
        return Encoded(np.array(ids, dtype=np.int64), tuple(media))

    def _joined(self, parts: Sequence[_Part]) -> list[_Joined]:
        """The parts with the template's control tokens as ids and everything between them as one text.

        Some control tokens swallow the whitespace beside them, whoever wrote it.
        """
        joined: list[_Joined] = []
        for part in parts:
            for piece in self._tokenizer.split_control(part) if isinstance(part, str) else (part,):
                text = piece.text if isinstance(piece, _Content) else piece
                if isinstance(text, int):
                    if joined and isinstance(joined[-1], str) and self._tokenizer.trims_before(text):
                        joined[-1] = joined[-1].rstrip(WHITESPACE)
                    joined.append((text,))
                elif isinstance(text, str):
                    last = joined[-1] if joined else ""
                    if isinstance(last, tuple) and self._tokenizer.trims_after(last[-1]):
                        text = text.lstrip(WHITESPACE)
                    if isinstance(last, str) and joined:
                        joined[-1] = last + text
                    elif text:
                        joined.append(text)
                elif text:
                    joined.append(text)
        return joined

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._names)
        except Exception as error:  # whatever expressions in a template can raise
            raise BundleError(f"the chat template fails: {error}; export the bundle again") from error


@dataclasses.dataclass(frozen=True)
class _Content:
    """Text from outside, as opposed to text of the template."""

    text: str


_Piece = _Content | Media | tuple[int, ...]  # what a mark stands for
_Part = str | _Piece
_Joined = str | Media | tuple[int, ...]


class _Pieces:
    """Hands out marks for content and finds them again in what the template made of them."""

    def __init__(self) -> None:
        # Private-use characters around a random number: content cannot contain a mark that it does not know.
        self._nonce = secrets.token_hex(8)
        self._pieces: list[_Piece] = []
        self._found: list[int] = []

    def as_dict(self, message: Message, tools: str | None) -> dict[str, str]:
        """The message as the template sees it: true role, marks for everything else."""
        marks = [self._mark(item) for item in message.media]
        if message.token_ids is not None:
            marks.append(self._mark(message.token_ids))
        elif message.content:
            marks.append(self._mark(_Content(message.content)))
        shown = {"role": str(message.role), "content": "".join(marks)}
        if tools is not None and message.role == "system":
            shown["tools"] = self._mark(_Content(tools))
        return shown

    def split(self, text: str) -> list[_Part]:
        """The rendered text cut at the marks, which are replaced by what they stand for."""
        parts: list[_Part] = []
        for index, part in enumerate(re.split(f"\ue000{self._nonce}:([0-9]+)\ue001", text)):
            if index % 2:
                self._found.append(int(part))
                parts.append(self._pieces[int(part)])
            elif part:
                parts.append(part)
        return parts

    @property
    def each_found_once(self) -> bool:
        """Whether `split` has found every mark, and none twice."""
        return sorted(self._found) == list(range(len(self._pieces)))

    def _mark(self, piece: _Piece) -> str:
        self._pieces.append(piece)
        return f"\ue000{self._nonce}:{len(self._pieces) - 1}\ue001"


def _raise_from_template(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """The filter `tojson` as chat templates expect it: plain JSON; jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
