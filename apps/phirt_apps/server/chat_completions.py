"""POST /v1/chat/completions: one answer, whole or as a stream of chunks.

Knows the shapes of that protocol's answers. What is asked, `chat_request` reads; what is said, `answers`
tells.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import phirt
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import ToolCall

from .answers import AnswerEvent, Begun, Ended, Piece, answer
from .chat_request import ChatRequest, read_chat
from .endpoint import Exchange
from .errors import as_api_error, stopping
from .jobs import Job
from .sampling import TokenChance
from .serving import Serving
from .sse import DONE, EventStream, data_event
from .tool_use import CallSplitter
from .turns import require_within

_Chances = tuple[TokenChance, ...]


async def chat_completions(serving: Serving, exchange: Exchange) -> None:
    """Answers the request."""
    settings, geometry = serving.settings, serving.model.manifest.geometry
    request = await exchange.parsed(lambda document: read_chat(document, settings.max_new_tokens))
    serving.require_model(request.model, serving.model.manifest.name)
    require_within(request.question.turns, geometry.context)
    work = answer(serving.model, request.question, serving.metrics)
    async with serving.job(exchange.receive, work) as job:
        if request.stream:
            chunks = _Chunks.of(serving, request)
            await EventStream(_stream(job, chunks)).send(exchange.send, after=Begun)
        else:
            await exchange.reply(await _whole(job, serving, request))


@dataclass(frozen=True)
class _Answer:
    """An answer as both forms tell it: `text` is None where it is nothing but calls."""

    text: str | None
    calls: tuple[ToolCall, ...]
    chances: _Chances
    result: phirt.Result

    @property
    def finish_reason(self) -> str:
        if self.calls:
            return "tool_calls"
        return "stop" if self.result.finish_reason == "stop" else "length"


async def _whole(job: Job[AnswerEvent], serving: Serving, request: ChatRequest) -> dict[str, Any]:
    splitter: CallSplitter[_Chances] = CallSplitter(request.question.tools.offered)
    pieces: list[tuple[str, _Chances]] = []
    async for event in job.events():
        if isinstance(event, Piece):
            pieces += splitter.feed(event.text, event.chances)
        elif isinstance(event, Ended):
            said = _ended(splitter, pieces, event, request)
    tokenizer = serving.model.generator.tokenizer
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    if said.calls:
        message["tool_calls"] = [_call(call) for call in said.calls]
    choice = {"index": 0, "message": message, "finish_reason": said.finish_reason, "logprobs": None}
    if request.with_chances:
        choice["logprobs"] = _logprobs(said.chances, tokenizer)
    return {
        **_head(serving, "chat.completion"),
        "choices": [choice],
        "usage": usage_of(said.result),
    }


def _ended(
    splitter: CallSplitter[_Chances], pieces: list[tuple[str, _Chances]], event: Ended, request: ChatRequest
) -> _Answer:
    if event.result.finish_reason == "cancelled":
        raise stopping()
    rest, calls = splitter.finish()
    pieces += rest
    text = "".join(text for text, _ in pieces)
    if not request.question.tools.parallel:
        calls = calls[:1]
    chances = (*(chance for _, some in pieces for chance in some), *(() if calls else event.chances))
    return _Answer(text or (None if calls else ""), calls, chances, event.result)


@dataclass(frozen=True)
class _Chunks:
    """Chunks of one stream, which share their head."""

    head: dict[str, Any]
    request: ChatRequest
    tokenizer: Tokenizer

    @classmethod
    def of(cls, serving: Serving, request: ChatRequest) -> _Chunks:
        return cls(_head(serving, "chat.completion.chunk"), request, serving.model.generator.tokenizer)

    def chunk(self, delta: dict[str, Any], finish: str | None = None, chances: _Chances = ()) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        if chances:
            choice["logprobs"] = _logprobs(chances, self.tokenizer)
        usage = {"usage": None} if self.request.include_usage else {}
        return data_event({**self.head, "choices": [choice], **usage})

    def end(self, result: phirt.Result) -> list[bytes]:
        if not self.request.include_usage:
            return [DONE]
        return [data_event({**self.head, "choices": [], "usage": usage_of(result)}), DONE]


async def _stream(job: Job[AnswerEvent], chunks: _Chunks) -> AsyncIterator[type[Begun] | bytes]:
    """The chunks of an answer. What goes wrong before `Begun` is raised; later it becomes a chunk."""
    begun = False
    splitter: CallSplitter[_Chances] = CallSplitter(chunks.request.question.tools.offered)
    try:
        async for event in job.events():
            if isinstance(event, Begun):
                begun = True
                yield Begun
                yield chunks.chunk({"role": "assistant", "content": "", "refusal": None})
            elif isinstance(event, Piece):
                for text, chances in splitter.feed(event.text, event.chances):
                    yield chunks.chunk({"content": text}, chances=chances)
            else:
                rest: list[tuple[str, _Chances]] = []
                said = _ended(splitter, rest, event, chunks.request)
                for text, chances in rest:
                    yield chunks.chunk({"content": text}, chances=chances)
                for at, call in enumerate(said.calls):
                    yield chunks.chunk({"tool_calls": [{"index": at, **_call(call)}]})
                yield chunks.chunk({}, said.finish_reason, () if said.calls else event.chances)
                for part in chunks.end(event.result):
                    yield part
    except Exception as error:
        if not begun:
            raise
        yield data_event(as_api_error(error).document)


def _head(serving: Serving, kind: str) -> dict[str, Any]:
    manifest = serving.model.manifest
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": manifest.name,
        "system_fingerprint": f"phirt-{manifest.fingerprint[:12]}",
    }


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _logprobs(chances: Sequence[TokenChance], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "content": [
            {
                **_token(chance.token, chance.logprob, tokenizer),
                "top_logprobs": [_token(token, logprob, tokenizer) for token, logprob in chance.top],
            }
            for chance in chances
        ],
        "refusal": None,
    }


def _token(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(token) or tokenizer.name_of(token).encode()
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def usage_of(result: phirt.Result) -> dict[str, Any]:
    """The tokens of an answer, as this protocol counts them."""
    usage = result.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.new_tokens,
        "total_tokens": usage.prompt_tokens + usage.new_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": usage.audio_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
