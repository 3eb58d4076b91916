"""POST /v1/responses: one answer as a list of items, whole or as a stream of events.

Knows the shapes of that protocol's answers. What is asked, `responses_request` reads; what is said, `answers`
tells.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import phirt
from phirt.prompt.tools import ToolCall

from .answers import AnswerEvent, Begun, Ended, Piece, answer
from .endpoint import Exchange
from .errors import as_api_error, stopping
from .jobs import Job
from .responses_request import ResponsesRequest, read_responses
from .serving import Serving
from .sse import EventStream, data_event
from .tool_use import CallSplitter
from .turns import require_within

_INCOMPLETE = {"length": "max_output_tokens", "context": "max_output_tokens"}


async def responses(serving: Serving, exchange: Exchange) -> None:
    """Answers the request."""
    settings, manifest = serving.settings, serving.model.manifest
    request = await exchange.parsed(lambda document: read_responses(document, settings.max_new_tokens))
    serving.require_model(request.body.model, manifest.name)
    require_within(request.question.turns, manifest.geometry.context)
    made = _Made(request, manifest.name)
    work = answer(serving.model, request.question, serving.metrics)
    async with serving.job(exchange.receive, work) as job:
        if request.body.stream:
            await EventStream(_stream(job, made)).send(exchange.send, after=Begun)
            return
        async for event in job.events():
            for _ in made.take(event):
                pass
    await exchange.reply(made.response)


class _Made:
    """A response while it is made. `take` gives the events that tell of it."""

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        self._request = request
        self._splitter: CallSplitter[None] = CallSplitter(request.question.tools.offered)
        self._message: dict[str, Any] | None = None
        self._output: list[dict[str, Any]] = []
        self._number = 0
        self.response = _empty(request, model)

    def take(self, event: AnswerEvent) -> Iterator[bytes]:
        """Takes what has happened; the events that tell it."""
        if isinstance(event, Begun):
            yield self._event("response.created", response=self.response)
            yield self._event("response.in_progress", response=self.response)
        elif isinstance(event, Piece):
            for text, _ in self._splitter.feed(event.text, None):
                yield from self._say(text)
        else:
            yield from self._end(event)

    def fail(self, error: BaseException) -> Iterator[bytes]:
        """The events that tell what went wrong."""
        said = as_api_error(error)
        self.response |= {
            "status": "failed",
            "error": {"code": said.code or "server_error", "message": str(said)},
            "output": self._output,
        }
        yield self._event("response.failed", response=self.response)

    def _end(self, event: Ended) -> Iterator[bytes]:
        result = event.result
        if result.finish_reason == "cancelled":
            raise stopping()
        rest, calls = self._splitter.finish()
        for text, _ in rest:
            yield from self._say(text)
        if not calls and self._message is None:
            yield from self._say("")
        whole = result.finish_reason == "stop"
        yield from self._close_message("completed" if whole else "incomplete")
        for call in calls if self._request.question.tools.parallel else calls[:1]:
            yield from self._call(call)
        reason = None if whole else {"reason": _INCOMPLETE[result.finish_reason]}
        self.response |= {
            "status": "completed" if whole else "incomplete",
            "incomplete_details": reason,
            "output": self._output,
            "usage": _usage(result),
        }
        yield self._event(f"response.{self.response['status']}", response=self.response)

    def _say(self, text: str) -> Iterator[bytes]:
        if self._message is None:
            self._message = {
                "id": f"msg_{uuid.uuid4().hex}",
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
            self._output.append(self._message)
            yield self._event("response.output_item.added", output_index=0, item=self._message)
            self._message["content"] = [
                {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            ]
            yield self._event("response.content_part.added", **self._place, part=self._message["content"][0])
        if text:
            self._message["content"][0]["text"] += text
            yield self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def _close_message(self, status: str) -> Iterator[bytes]:
        if self._message is None:
            return
        (part,) = self._message["content"]
        yield self._event("response.output_text.done", **self._place, text=part["text"], logprobs=[])
        yield self._event("response.content_part.done", **self._place, part=part)
        self._message["status"] = status
        yield self._event("response.output_item.done", output_index=0, item=self._message)

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        index, arguments = len(self._output), json.dumps(dict(call.arguments), ensure_ascii=False)
        item = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "call_id": f"call_{uuid.uuid4().hex[:24]}",
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        self._output.append(item)
        place = {"output_index": index, "item_id": item["id"]}
        yield self._event("response.output_item.added", output_index=index, item=item)
        yield self._event("response.function_call_arguments.delta", **place, delta=arguments)
        yield self._event(
            "response.function_call_arguments.done", **place, name=call.name, arguments=arguments
        )
        item |= {"arguments": arguments, "status": "completed"}
        yield self._event("response.output_item.done", output_index=index, item=item)

    @property
    def _place(self) -> dict[str, Any]:
        assert self._message is not None
        return {"item_id": self._message["id"], "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **values: Any) -> bytes:
        event = data_event({"type": kind, "sequence_number": self._number, **values}, kind)
        self._number += 1
        return event


async def _stream(job: Job[AnswerEvent], made: _Made) -> AsyncIterator[type[Begun] | bytes]:
    """The events of an answer. What goes wrong before `Begun` is raised; later it becomes an event."""
    begun = False
    try:
        async for event in job.events():
            if isinstance(event, Begun):
                begun = True
                yield Begun
            for part in made.take(event):
                yield part
    except Exception as error:
        if not begun:
            raise
        for part in made.fail(error):
            yield part


def _empty(request: ResponsesRequest, model: str) -> dict[str, Any]:
    """The response before anything is said, with what it repeats of the request."""
    body, question = request.body, request.question
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": dict(body.metadata or {}),
        "model": model,
        "output": [],
        "parallel_tool_calls": question.tools.parallel,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": list(body.tools or ()),
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def _usage(result: phirt.Result) -> dict[str, Any]:
    usage = result.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.new_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.new_tokens,
    }
