"""Requests read within limits of size and time, and what they hold: one JSON object, or a form with a file.

Knows bytes, JSON and multipart forms (RFC 7578). Knows nothing of what the values mean. Nothing is written to
a disk.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, BadRequestError

_DRAIN_SECONDS = 2.0
_DRAIN_FACTOR = 8  # of the largest request that is read
_MAX_FIELDS = 100
_MAX_FIELD_BYTES = 100_000


class ClientGoneError(Exception):
    """Whoever asked has hung up, so there is nobody to answer."""


class Drain:
    """ASGI middleware for who is refused before the whole request has come: the rest of it is taken from the
    wire first, up to a bound, or closing the connection would tear the refusal down with it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = _DRAIN_FACTOR * max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, and its refusal back."""
        more = scope["type"] == "http"

        async def watched() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drained(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400 and more:
                await self._take_the_rest(watched, lambda: more)
            await send(message)

        await self._app(scope, watched, drained)

    async def _take_the_rest(self, receive: Receive, is_more: Any) -> None:
        taken, deadline = 0, time.monotonic() + _DRAIN_SECONDS
        while is_more() and taken <= self._max_bytes and time.monotonic() < deadline:
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                return
            taken += len(message.get("body", b""))


async def read_body(receive: Receive, headers: Any, max_bytes: int, seconds: float) -> bytes:
    """The whole body. Raises ApiError for one that is too large or too slow, ClientGoneError."""
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ApiError(415, f"requests compressed by {encoding[:40]!r} are not read; send them as they are")
    length = headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(max_bytes)
    body, deadline = bytearray(), time.monotonic() + seconds
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise ApiError(
                408, f"the request did not come within {seconds:g} seconds; send it again"
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the request has more than {max_bytes:,} bytes; send less, or start the server with --max-body",
        code="request_too_large",
    )


def parse_object(raw: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object that a body is. Raises ApiError for anything else."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the content type is {kind[:80]!r}, accepted: application/json")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the request is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise BadRequestError(f"the request is a JSON {_json_type(value)}, accepted: an object")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _json_type(value: Any) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


@dataclass
class Form:
    """Fields of a form in their order, and its files by the names of their fields."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)


def parse_form(raw: bytes, content_type: str) -> Form:
    """A multipart form. Raises ApiError for anything else."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError(
            415, f"the content type is {content_type[:80]!r}, accepted: multipart/form-data with its boundary"
        )
    reader = _FormReader()
    callbacks: Any = {
        "on_part_begin": reader.on_part_begin,
        "on_part_data": reader.on_part_data,
        "on_part_end": reader.on_part_end,
        "on_header_field": reader.on_header_field,
        "on_header_value": reader.on_header_value,
        "on_header_end": reader.on_header_end,
    }
    try:
        parser = MultipartParser(options[b"boundary"], callbacks)
        parser.write(raw)
        parser.finalize()
    except FormParserError as error:
        raise BadRequestError(f"the form is damaged: {str(error)[:200]}") from error
    if not reader.ended:
        raise BadRequestError("the form is damaged: it ends in the middle of a part")
    return reader.form


class _FormReader:
    """Takes what the parser finds, part by part."""

    def __init__(self) -> None:
        self.form = Form()
        self.ended = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._data = bytearray()

    def on_part_begin(self) -> None:
        self.ended = False
        self._headers, self._data = {}, bytearray()
        if len(self.form.fields) + len(self.form.files) >= _MAX_FIELDS:
            raise BadRequestError(f"the form has more than {_MAX_FIELDS} parts")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def on_part_end(self) -> None:
        self.ended = True
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise BadRequestError("a part of the form has no name")
        if b"filename" in options:
            filename = options[b"filename"].decode("utf-8", "replace")
            self.form.files[name] = (filename, bytes(self._data))
        elif len(self._data) > _MAX_FIELD_BYTES:
            raise BadRequestError(
                f"the field {name[:40]!r} has more than {_MAX_FIELD_BYTES} bytes", param=name
            )
        else:
            try:
                self.form.fields.append((name, self._data.decode("utf-8")))
            except UnicodeDecodeError as error:
                raise BadRequestError(f"the field {name[:40]!r} is not UTF-8", param=name) from error
