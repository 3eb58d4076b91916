"""A conversation as a chat template sees it: the messages and tools of transformers, their text traced.

Knows the keys of messages, calls and results. Knows nothing of templates beyond what they were found to read,
and nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from phirt.prompt.messages import Media, Message
from phirt.prompt.tools import ToolCall, Tools, find_tool_calls
from phirt.prompt.traced_text import changed_piece, joined, mapped, piece_text, spans_of

_PLACE_OF_MEDIA = "￼"  # one character of no meaning; what it stands for is known by its origin
_RESULT_ROLE = "tool"


@dataclasses.dataclass(frozen=True)
class Content:
    """Text from outside; `token_ids` are those that an answer was generated with."""

    text: str
    token_ids: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a template looks at: the variable `tools`, the key `tool_calls` of an answer, `function` of a
    tool.
    """

    tools: bool = False
    tool_calls: bool = False
    functions: bool = False


class ShownMessages:
    """The messages of one prompt, and the pieces of text and media that their characters belong to.

    Attributes:
        pieces: what stands behind each piece's number.
        required: the pieces that must not be lost: whatever was said but answers, of which templates cut.
        tools: the value of the variable `tools`.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        tools: str | None,
        reads: Reads,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self.pieces: list[Content | Media] = []
        self.required: set[int] = set()
        self.tools: list[Any] | None = None
        self._reads = reads
        self._decode = decode
        offered = None if tools is None else Tools.from_json(tools)
        self._shown: list[dict[str, Any]] = []
        self._calls: tuple[ToolCall, ...] = ()
        for message in messages:
            self._shown += self._as_dicts(message, offered)
        if tools is not None:
            self._offer(tools)

    def messages(self, text_arguments: bool = False) -> list[dict[str, Any]]:
        """The messages; the arguments of calls as JSON text, for templates that take them so."""
        if not text_arguments:
            return self._shown
        return [self._with_text_arguments(message) for message in self._shown]

    def _as_dicts(self, message: Message, offered: Tools | None) -> list[dict[str, Any]]:
        if message.role == _RESULT_ROLE and (results := self._results(message)):
            return results
        media = [self._piece(item, _PLACE_OF_MEDIA) for item in message.media]
        text = message.content
        if message.token_ids is not None and not text:
            text = self._decode(message.token_ids)
        said = self._content(text, message)
        shown: dict[str, Any] = {"role": str(message.role), "content": joined([*media, said])}
        if message.role == "assistant":
            begin, self._calls = find_tool_calls(text, offered)
            if self._calls and self._reads.tool_calls:
                shown["content"] = said[:begin].rstrip()
                shown["tool_calls"] = [self._call(call, said, at) for at, call in enumerate(self._calls)]
        return [shown]

    def _content(self, text: str, message: Message) -> str:
        if not text:
            return ""
        said = self._piece(Content(text, message.token_ids), text)
        if message.role != "assistant" and text.strip():
            self.required.add(len(self.pieces) - 1)
        return said

    def _call(self, call: ToolCall, said: str, at: int) -> dict[str, Any]:
        """A call as transformers has it, its text from the answer that it stands in."""
        piece = spans_of(said)[0].piece
        arguments = mapped(dict(call.arguments), lambda text: changed_piece(text, piece))
        function = {"name": changed_piece(call.name, piece), "arguments": arguments}
        return {"type": "function", "id": _call_id(at), "function": function}

    def _results(self, message: Message) -> list[dict[str, Any]]:
        """What each of the calls before has returned, as a message of its own; none where it is no such
        list.
        """
        try:
            values = json.loads(message.content)
        except (ValueError, RecursionError):
            return []
        if not isinstance(values, list) or len(values) != len(self._calls) or message.media:
            return []
        shown = []
        for at, (call, value) in enumerate(zip(self._calls, values, strict=True)):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            name = self._piece(Content(call.name), call.name)
            said = self._content(text, message)
            shown.append({"role": _RESULT_ROLE, "name": name, "tool_call_id": _call_id(at), "content": said})
        return shown

    def _offer(self, tools: str) -> None:
        """Puts tools where the template looks for them."""
        piece = len(self.pieces)
        self.required.add(piece)
        whole = self._piece(Content(tools), tools)
        if not self._reads.tools:
            if not self._shown or self._shown[0]["role"] != "system":
                self._shown.insert(0, {"role": "system", "content": ""})
            self._shown[0]["tools"] = whole
            return
        listed = mapped(json.loads(tools), lambda text: changed_piece(text, piece))
        if self._reads.functions:
            listed = [
                tool if "function" in tool else {"type": "function", "function": tool} for tool in listed
            ]
        self.tools = listed

    def _piece(self, piece: Content | Media, text: str) -> str:
        self.pieces.append(piece)
        return piece_text(text, len(self.pieces) - 1)

    def _with_text_arguments(self, message: dict[str, Any]) -> dict[str, Any]:
        if "tool_calls" not in message:
            return message
        calls = []
        for call in message["tool_calls"]:
            function = call["function"]
            text = json.dumps(function["arguments"], ensure_ascii=False)
            arguments = changed_piece(text, spans_of(function["name"])[0].piece)
            calls.append({**call, "function": {**function, "arguments": arguments}})
        return {**message, "tool_calls": calls}


def _call_id(at: int) -> str:
    """Nine letters or digits, which is what Mistral's templates accept."""
    return f"call{at:05d}"
