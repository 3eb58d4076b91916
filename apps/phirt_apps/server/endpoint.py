"""One address of the server: a request is taken in, read, answered or refused, and counted.

Knows HTTP by way of ASGI. Knows nothing of what the addresses do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .bodies import ClientGoneError, Form, parse_form, parse_object, read_body
from .errors import ApiError, as_api_error
from .guard import refusal
from .serving import Serving

T = TypeVar("T")
logger = logging.getLogger("phirt.serve")


class Exchange:
    """A request and the way back to who sent it."""

    def __init__(self, serving: Serving, scope: Scope, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.headers = Headers(scope=scope)
        self.path_parameters: dict[str, str] = scope.get("path_params", {})
        self.status: int | None = None  # once a response has begun
        self._serving = serving
        self._scope = scope
        self._send = send

    async def parsed(self, read: Callable[[dict[str, Any]], T]) -> T:
        """What the JSON body says, read in a thread: it may be large. Raises ApiError, ClientGoneError."""
        raw, kind = await self._body(), self.headers.get("content-type", "")
        return await asyncio.to_thread(lambda: read(parse_object(raw, kind)))

    async def form(self) -> Form:
        """The form that the body is. Raises ApiError, ClientGoneError."""
        raw = await self._body()
        return await asyncio.to_thread(parse_form, raw, self.headers.get("content-type", ""))

    async def reply(self, document: dict[str, Any]) -> None:
        """Sends a JSON document, which is written in a thread."""
        body = await asyncio.to_thread(lambda: json.dumps(document, ensure_ascii=False).encode())
        await self.respond(Response(body, media_type="application/json"))

    async def respond(self, response: Response) -> None:
        """Sends a response."""
        await response(self._scope, self.receive, self.send)

    async def send(self, message: Message) -> None:
        """Sends an ASGI message, and notes that a response has begun."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def _body(self) -> bytes:
        settings = self._serving.settings
        return await read_body(self.receive, self.headers, settings.max_body_bytes, settings.body_seconds)


Answerer = Callable[[Serving, Exchange], Awaitable[None]]


class Endpoint:
    """An ASGI application for one address. `queued` are requests that cost work: they need a place."""

    def __init__(self, serving: Serving, answer: Answerer, path: str, *, queued: bool = True) -> None:
        self._serving = serving
        self._answer = answer
        self._path = path
        self._queued = queued

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        begin = time.monotonic()
        exchange = Exchange(self._serving, scope, receive, send)
        status = "gone"
        try:
            await self._answered(exchange)
            status = str(exchange.status)
        except ClientGoneError:
            pass
        except Exception as error:
            failure = as_api_error(error)
            status = str(failure.status)
            if exchange.status is None:
                await exchange.respond(refusal(failure))
            else:  # the response has begun: that it breaks off is all that can tell
                logger.error("an answer broke off: %s", type(error).__name__)
        finally:
            metrics = self._serving.metrics
            metrics.requests.labels(self._path, status).inc()
            metrics.seconds.labels(self._path).observe(time.monotonic() - begin)

    async def _answered(self, exchange: Exchange) -> None:
        if self._serving.is_stopping:
            raise ApiError(503, "the server is stopping", code="stopping")
        if not self._queued:
            await self._answer(self._serving, exchange)
            return
        with self._serving.slots.place():
            await self._answer(self._serving, exchange)
