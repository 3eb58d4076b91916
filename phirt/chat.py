"""Messages to token ids through the bundle's chat template; tool calls out of answers.

Knows roles, templates and media placeholders. Knows nothing of encoders, the decoder or sampling.

The template never sees content. It is rendered with private marks in its place, and content is encoded on its
own, without control tokens, where its mark ended up. So typed control tokens and typed `<|image_1|>` markers
stay plain text, and an answer's ids return to the next prompt exactly as they were generated, which keeps the
cache valid.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.sandbox
import numpy as np
import numpy.typing as npt

from phirt.errors import BundleError, ConfigError
from phirt.manifest import Tokens
from phirt.media import Media
from phirt.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant", "tool"]

CALL_OPEN, CALL_CLOSE = "<|tool_call|>", "<|/tool_call|>"
# They belong in an answer's text whether or not the tokenizer calls them special.
VISIBLE_TOKENS = (CALL_OPEN, CALL_CLOSE)

_MAX_TEMPLATE_CHARACTERS = 1 << 16
_CALL_BLOCK = re.compile(f"{re.escape(CALL_OPEN)}(.*?)(?:{re.escape(CALL_CLOSE)}|$)", re.DOTALL)


@dataclasses.dataclass(frozen=True, eq=False)
class Message:
    """One turn. `media` stands before the text. `ids` are an answer's generated ids, where they stand for its
    text.
    """

    role: Role
    content: str
    media: tuple[Media, ...] = ()
    ids: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt: ids int64 [T] with placeholders in place, and where each of the media starts."""

    ids: npt.NDArray[np.int64]
    media: tuple[tuple[int, Media], ...]


class ChatTemplate:
    """A bundle's jinja template, compiled once in a sandbox. Raises BundleError where it is broken."""

    def __init__(self, source: str, tokenizer: Tokenizer, tokens: Tokens) -> None:
        if len(source) > _MAX_TEMPLATE_CHARACTERS:
            raise BundleError(
                f"the chat template is longer than {_MAX_TEMPLATE_CHARACTERS} characters; export the bundle "
                "again"
            )
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_from_template
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # also what Python says about the code that it becomes
            raise BundleError(f"the chat template is broken: {error}; export the bundle again") from error
        self._tokenizer = tokenizer
        self._placeholders = {"image": tokens.image, "audio": tokens.audio}

    def encode(self, messages: Sequence[Message], tools: str | None = None) -> Encoded:
        """Ids of the conversation up to where the assistant answers."""
        pieces = _Pieces()
        text = self._render([pieces.as_dict(message, tools) for message in messages])
        parts = pieces.split(text)
        wanted = [item for message in messages for item in message.media]
        if [part for part in parts if isinstance(part, Media)] != wanted:
            raise BundleError("the chat template drops, repeats or reorders media; export the bundle again")
        ids: list[int] = []
        media = []
        for index, part in enumerate(parts):
            if isinstance(part, Media):
                media.append((len(ids), part))
                placeholder = self._placeholders[part.kind]
                assert placeholder is not None
                ids.extend([placeholder] * part.num_tokens)
            elif isinstance(part, _Content):
                ids.extend(self._encode_content(part.text, ids, parts[index + 1 :]))
            elif isinstance(part, tuple):
                ids.extend(part)
            else:
                ids.extend(self._tokenizer.encode_control(part))
        if not ids:
            raise BundleError("the chat template makes an empty prompt; export the bundle again")
        return Encoded(np.array(ids, dtype=np.int64), tuple(media))

    def _encode_content(self, content: str, before: list[int], after: list[_Part]) -> list[int]:
        """Encodes content as in the whole text: some control tokens swallow the whitespace beside them."""
        if before and self._tokenizer.trims_after(before[-1]):
            content = content.lstrip()
        if after and isinstance(after[0], str):
            following = self._tokenizer.encode_control(after[0])
            if following and self._tokenizer.trims_before(following[0]):
                content = content.rstrip()
        return self._tokenizer.encode_content(content)

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=True)
        except Exception as error:  # whatever expressions in a template can raise
            raise BundleError(f"the chat template fails: {error}; export the bundle again") from error


@dataclasses.dataclass(frozen=True)
class _Content:
    """Text from outside, as opposed to text of the template."""

    text: str


_Piece = _Content | Media | tuple[int, ...]  # what a mark stands for
_Part = str | _Piece


class _Pieces:
    """Hands out marks for content and finds them again in what the template made of them."""

    def __init__(self) -> None:
        # Private-use characters around a random number: content cannot contain a mark that it does not know.
        self._nonce = secrets.token_hex(8)
        self._pieces: list[_Piece] = []

    def as_dict(self, message: Message, tools: str | None) -> dict[str, str]:
        """The message as the template sees it: true role, marks for everything else."""
        marks = [self._mark(item) for item in message.media]
        if message.ids is not None:
            marks.append(self._mark(message.ids))
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
                parts.append(self._pieces[int(part)])
            elif part:
                parts.append(part)
        return parts

    def _mark(self, piece: _Piece) -> str:
        self._pieces.append(piece)
        return f"\ue000{self._nonce}:{len(self._pieces) - 1}\ue001"


def _raise_from_template(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def tools_to_json(tools: Sequence[Mapping[str, Any]] | None) -> str | None:
    """The JSON that the template puts between the tool tokens. Raises ConfigError for what is no list of
    objects.
    """
    if not tools:
        return None
    if isinstance(tools, str | bytes | Mapping) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ConfigError("tools must be a list of dicts, each with at least a 'name'")
    if not all(isinstance(tool.get("name"), str) for tool in tools):
        raise ConfigError("every tool needs a 'name' that is a string")
    try:
        return json.dumps([dict(tool) for tool in tools], ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"tools cannot be written as JSON: {error}; use plain dicts, lists and values"
        ) from error


def parse_tool_calls(text: str) -> tuple[dict[str, Any], ...]:
    """The calls in an answer as {"name": str, "arguments": dict}; what is malformed stays text and gives
    none.
    """
    calls: list[dict[str, Any]] = []
    for block in _CALL_BLOCK.findall(text):
        try:
            document = json.loads(block, parse_constant=_refuse_constant, parse_float=_finite)
        except (ValueError, RecursionError):
            continue
        found = [_as_call(item) for item in (document if isinstance(document, list) else [document])]
        if all(call is not None for call in found):
            calls.extend(call for call in found if call is not None)
    return tuple(calls)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _as_call(item: object) -> dict[str, Any] | None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return None
    arguments = item.get("arguments", item.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return {"name": item["name"], "arguments": arguments}
