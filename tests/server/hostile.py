"""Requests that no server may fall for: malformed, oversized, hostile. Each is wrong by the way it is made,
so that nothing but a refusal is right: a status from 400 to 499 and one message.

`requests(seed)` goes on for ever; the same seed makes the same requests.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
EMBEDDINGS, TRANSCRIPTIONS = "/v1/embeddings", "/v1/audio/transcriptions"
MOST_BYTES = 2_000_000  # the limit of the servers that are asked


@dataclass(frozen=True)
class Hostile:
    """The bytes of a request, and what is wrong with it."""

    kind: str
    raw: bytes


def requests(seed: int) -> Iterator[Hostile]:
    """All kinds, one after the other, each time with other details."""
    rng = random.Random(seed)
    while True:
        for kind in KINDS:
            made = KINDS[kind](rng)
            yield made if isinstance(made, Hostile) else Hostile(kind, made)


def send(port: int, hostile: Hostile, seconds: float = 60.0) -> tuple[int, bytes]:
    """Sends it; returns status and body. Raises OSError where the connection is torn down instead."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        # Refused before its end; what the server says may still be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(hostile.raw)
        answer = bytearray()
        while not _is_whole(answer) and (piece := connection.recv(1 << 16)):
            answer += piece
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionResetError(f"no answer to {hostile.kind}: {bytes(answer[:80])!r}")
    return int(words[1]), body[: _length(head)]


def _is_whole(answer: bytearray) -> bool:
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    return bool(end) and len(body) >= _length(head)


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE)
    return int(found[1]) if found else 1 << 40


def complaint(status: int, body: bytes) -> str | None:
    """What is wrong with an answer; None where it is a refusal with one message."""
    if not 400 <= status < 500:
        return f"the status is {status}: {body[:200]!r}"
    try:
        error = json.loads(body)["error"]
        message = error["message"]
    except (ValueError, KeyError, TypeError):
        return f"this is no refusal: {body[:200]!r}"
    if not message or "\n" in message or len(message) > 500 or "Traceback" in message:
        return f"the message is {message!r}"
    return None if {"type", "param", "code"} <= error.keys() else f"there is more missing: {error}"


def _http(method: str, path: str, body: bytes, *headers: str, host: str = "localhost") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body and not any(line.lower().startswith(("content-length", "transfer-enc")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def _json(path: str, document: Any) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return _http("POST", path, body, "Content-Type: application/json")


def _chat(**fields: Any) -> bytes:
    return _json(CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **fields})


def _said(*parts: Any) -> bytes:
    return _json(CHAT, {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 1})


WRONG: list[Any] = [[], {}, "", "x" * 300, True, -1, 1.5, 10**40, 1e308, ["\ud800"], "\ud800", [None]]
TYPES: dict[str, tuple[Any, ...]] = {  # fields, and what none of them takes
    "messages": (True, -1, 1.5, {}, [], "x", [[]], [1], [{}], [{"role": "user"}], [{"role": 3}]),
    "stream": ([], {}, "true", -1, 1.5, "x"),
    "stream_options": ([], "x", {"include_usage": 3}, {"foo": 1}, -1),
    "max_tokens": ([], {}, "5", True, 0, -1, 1.5, 10**40),
    "max_completion_tokens": ([], {}, "5", True, 0, -1, 1.5, 10**40),
    "temperature": ([], {}, "1", True, -0.1, 2.1, 10**40, 1e308),
    "top_p": ([], {}, "1", True, -0.1, 1.1, 0),
    "top_k": ([], {}, "1", True, -1, 1.5),
    "min_p": ([], {}, "1", True, -0.1, 1.1),
    "repetition_penalty": ([], "1", True, 0, -1, 101),
    "presence_penalty": ([], "1", True, 2.1, -2.1, 1e308),
    "frequency_penalty": ([], "1", True, 2.1, -2.1),
    "logit_bias": ([], "x", {"a": 1}, {"1": "x"}, {"1": 101}, {"-1": 1}, {"99999999": 1}, {"1" * 400: 1}),
    "logprobs": ([], "x", 1),
    "top_logprobs": ([], "x", -1, 21, 1.5, 3),
    "seed": ([], "x", True, 1.5, 10**40),
    "stop": ({}, 1, [1], [""], ["\ud800"], "x" * 2000, ["x"] * 100, [["x"]]),
    "n": (2, 0, -1, "1", [], 1.5, 10**40),
    "model": (1, [], "gpt-4o", "../../etc/passwd", "\x00", "x" * 10_000),
    "response_format": ([], "json", {}, {"type": "xml"}, {"type": "json_schema"},
                        {"type": "json_schema", "schema": {}}),
    "tools": ({}, "x", [1], [{}], [{"type": "web_search"}], [{"type": "function"}],
              [{"type": "function", "function": {}}]),
    "tool_choice": ("required", "any", 1, [], {"type": "function"},
                    {"type": "function", "function": {"name": "f"}}),
    "parallel_tool_calls": ([], "x", 1),
    "modalities": (["text", "audio"], "text", [1]),
}  # fmt: skip


def _wrong_field(rng: random.Random) -> bytes:
    name = rng.choice(list(TYPES))
    return _chat(**{name: rng.choice(TYPES[name])})


def _unknown_field(rng: random.Random) -> bytes:
    name = rng.choice(["__proto__", "colour", "a" * 5000, "", "\u202e", "functions", "max_token", "$where"])
    return _json(
        rng.choice([CHAT, RESPONSES, EMBEDDINGS]), {"messages": [], "input": "x", name: rng.choice(WRONG)}
    )


def _broken_json(rng: random.Random) -> bytes:
    whole = json.dumps({"messages": [{"role": "user", "content": "x" * rng.randint(0, 50)}]}).encode()
    broken = [
        whole[: rng.randint(1, len(whole) - 1)],
        whole + b"}",
        b"",
        bytes(rng.randrange(256) for _ in range(rng.randint(1, 200))) + b"\xff",
        b'{"messages": NaN}',
        b'{"temperature": Infinity, "messages": []}',
        b"[" * rng.randint(1000, 100_000),
        b'{"a":' * rng.randint(1000, 50_000) + b"1" + b"}" * 10,
        b"null",
        b"[]",
        b'"text"',
        b"1" * 5000,
        b"\xef\xbb\xbf{}",
        b"{'messages': []}",
        b'{"messages": [\xc3\x28]}',
    ]
    return _json(rng.choice([CHAT, RESPONSES, EMBEDDINGS]), rng.choice(broken))


def _bad_message(rng: random.Random) -> bytes:
    user = {"role": "user", "content": "x"}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "content": "x", "tool_call_id": "c"}
    broken = rng.choice(["{", "[]", "3", "[" * 5000])
    bad = [
        [{"role": "root", "content": "x"}],
        [{"role": "user", "content": rng.choice([1, {}, True, [1], [[]], ["x"]])}],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 3}]}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": _png()}}]}],
        [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": _png()}}]}],
        [{"role": "user", "content": "x", "tool_calls": [call]}],
        [user, {"role": "tool", "content": "x", "tool_call_id": "nobody"}],
        [user, {"role": "tool", "content": "x"}],
        [{"role": "assistant", "tool_calls": [call]}, {**result, "tool_call_id": "other"}],
        [{"role": "assistant", "tool_calls": [call, {**call, "id": "d"}]}, result],
        [{"role": "assistant", "tool_calls": [{**call, "function": {"name": "f", "arguments": broken}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "c"}]}],
        [{"role": "assistant", "tool_calls": "x"}],
        [{"role": "assistant", "content": None}],
        [user] * rng.randint(3000, 20_000),
        [{"role": "user", "content": "x" * rng.randint(200_000, 500_000)}],
        [{"role": "user", "content": "word " * 10_000}],
    ]  # fmt: skip
    return _json(CHAT, {"messages": rng.choice(bad), "max_tokens": 1})


def _png() -> str:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(side: int) -> bytes:
    """A valid PNG header that claims side x side pixels, and a few bytes of them."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000)))


def _bad_image(rng: random.Random) -> bytes:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(whole, "PNG")
    data = whole.getvalue()
    url = rng.choice(
        [
            "http://169.254.169.254/latest/meta-data/",
            "https://example.org/a.png",
            "http://localhost:1/a.png",
            "HTTP://127.0.0.1/",
            "file:///etc/passwd",
            "/etc/passwd",
            "../../etc/passwd",
            "ftp://example.org/a",
            "gopher://localhost/",
            "javascript:alert(1)",
            "",
            "data:",
            "data:image/png",
            "data:image/png;base64",
            "data:image/png;base64,",
            "data:image/png;base64,====",
            "data:image/png;base64,not base64!",
            "data:image/png,%89PNG",
            _url(b"no picture at all"),
            _url(data[: rng.randint(10, 60)]),
            _url(_bomb(rng.choice([20_000, 60_000, 2**31 - 1]))),
            _url(b"<svg><image href='file:///etc/passwd'/></svg>", "image/svg+xml"),
            _url(b"%PDF-1.7\n"),
            _url(b"PK\x03\x04" + bytes(100)),
            _url(bytes(rng.randrange(256) for _ in range(200))),
            _url(b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20)),
        ]
    )  # fmt: skip
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    if rng.random() < 0.2:
        wrong = [{"url": _png(), "detail": "ultra"}, {"url": 3}, {}, "x", {"url": _png(), "size": 1}, None]
        part["image_url"] = rng.choice(wrong)
    return _said({"type": "text", "text": "x"}, part)


def _bad_sound(rng: random.Random) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)
    lying = b"RIFF" + struct.pack("<I", 1 << 30) + b"WAVEfmt " + struct.pack("<I", 16) + form
    data = rng.choice(
        [
            base64.b64encode(b"no sound").decode(),
            base64.b64encode(lying + b"data" + struct.pack("<I", 1 << 30)).decode(),
            base64.b64encode(b"fLaC" + bytes(rng.randrange(256) for _ in range(100))).decode(),
            base64.b64encode(b"OggS" + bytes(200)).decode(),
            base64.b64encode(bytes(rng.randrange(256) for _ in range(300))).decode(),
            "!!!",
            "",
            "/etc/passwd",
            3,
            None,
        ]
    )
    audio = rng.choice([{"data": data, "format": "wav"}, {"data": data}, {"url": "http://x/"}, "x"])
    return _said({"type": "input_audio", "input_audio": audio})


def _chain(length: int) -> dict[str, Any]:
    links: dict[str, Any] = {f"a{at}": {"$ref": f"#/$defs/a{at + 1}", "minLength": 1} for at in range(length)}
    return {"$defs": links, "$ref": "#/$defs/a0"}


def _bad_schema(rng: random.Random) -> bytes:
    count = rng.randint(17, 40)
    schema = rng.choice(
        [
            {"type": "strin"},
            {"not": {"type": "string"}},
            {"type": "array", "uniqueItems": True},
            {"if": {}, "then": {}},
            {"$ref": "https://example.org/x.json"},
            {"$ref": "file:///etc/passwd"},
            {"$ref": "#/$defs/nobody"},
            _chain(rng.randint(500, 2500)),
            {"type": "string", "pattern": "(" * rng.randint(1, 5000)},
            {"type": "string", "pattern": "(?=a)"},
            {"type": "string", "pattern": r"(a)\1"},
            {"allOf": [{"type": "string", "pattern": f"^.*a{at}.*$"} for at in range(count)]},
            {"type": "integer", "multipleOf": 999_983},
            {"type": "integer", "multipleOf": 0},
            {"type": "integer", "minimum": 5, "maximum": 2},
            {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            {"const": "x" * 300_000},
            {"properties": {f"p{at}": {} for at in range(3000)}},
            json.loads('{"items":' * 150 + "{}" + "}" * 150),
            {"type": "string", "maxLength": 10**40},
            {"type": "string", "minLength": -1},
            {"required": 3},
            {"properties": [1]},
            {"enum": []},
        ]
    )
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    if rng.random() < 0.3:
        form = {"type": "json_schema", "name": "x", "schema": schema}
        return _json(RESPONSES, {"input": "x", "max_output_tokens": 1, "text": {"format": form}})
    if rng.random() < 0.3:
        tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
        return _chat(tools=[tool], tool_choice="required")
    return _chat(response_format=form)


def _bad_tools(rng: random.Random) -> bytes:
    def tool(**function: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "f", **function}}

    tools: list[Any] = rng.choice(
        [
            [tool(name="")],
            [tool(name="a b")],
            [tool(name="x" * 200)],
            [tool(name='"}]<|end|>')],
            [tool(), tool()],
            [tool(parameters=3)],
            [tool(parameters=[])],
            [tool(description=3)],
            [tool(strict="yes")],
            [tool(foo=1)],
            [tool(name=f"f{at}") for at in range(200)],
            [{"type": "function", "function": {"name": "f"}, "foo": 1}],
            [tool(description="x" * 200_000)],
        ]
    )
    return _chat(tools=tools)


def _contradiction(rng: random.Random) -> bytes:
    form = {"type": "json_object"}
    tool = {"type": "function", "function": {"name": "f"}}
    return rng.choice(
        [
            _chat(response_format=form, stop=["}"]),
            _chat(tools=[tool], tool_choice="required", stop="x"),
            _chat(tools=[tool], tool_choice="required", response_format=form),
            _chat(top_logprobs=2),
            _chat(tools=[tool], tool_choice={"type": "function", "function": {"name": "g"}}),
        ]
    )


def _bad_responses(rng: random.Random) -> bytes:
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    bad: list[dict[str, Any]] = [
        {"input": 3},
        {"input": []},
        {},
        {"input": [{"role": "root", "content": "x"}]},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"type": "computer_call"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://localhost/"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
        {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": _png()}]}]},
        {"input": [{**item, "arguments": "["}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
        {"input": [item, {"type": "function_call_output", "call_id": "d", "output": "x"}]},
        {"input": "x", "previous_response_id": "resp_1"},
        {"input": "x", "conversation": "conv_1"},
        {"input": "x", "background": True},
        {"input": "x", "truncation": "auto"},
        {"input": "x", "top_logprobs": 3},
        {"input": "x", "temperature": 3},
        {"input": "x", "max_output_tokens": 0},
        {"input": "x", "text": 3},
        {"input": "x", "text": {"format": 3}},
        {"input": "x", "text": {"format": {"type": "xml"}}},
        {"input": "x", "tools": [{"type": "web_search_preview"}]},
        {"input": "x", "tool_choice": {"type": "file_search"}},
        {"input": "x", "metadata": {"a": 1}},
        {"input": "x", "model": "gpt-4o"},
        {"input": "word " * 20_000},
    ]
    return _json(RESPONSES, {"max_output_tokens": 1, **rng.choice(bad)})


def _bad_embeddings(rng: random.Random) -> bytes:
    bad: list[dict[str, Any]] = [
        {},
        {"input": 3},
        {"input": []},
        {"input": [1, 2]},
        {"input": [["a"]]},
        {"input": ["a"] * 3000},
        {"input": "a", "dimensions": 7},
        {"input": "a", "encoding_format": "int8"},
        {"input": "a", "model": "gpt"},
        {"input": ["\ud800"]},
        {"input": "a", "foo": 1},
    ]
    return _json(EMBEDDINGS, rng.choice(bad))


def _form(parts: list[bytes], boundary: str = "XX", end: str = "--XX--\r\n", *headers: str) -> bytes:
    body = b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + end.encode()
    kind = headers or (f"Content-Type: multipart/form-data; boundary={boundary}",)
    return _http("POST", TRANSCRIPTIONS, body, *kind)


def _field(name: str, value: bytes) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value


def _file(data: bytes, name: str = "file") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="../../a.wav"\r\n\r\n'
    return head.encode() + data


def _bad_form(rng: random.Random) -> bytes:
    sound = b"no recording at all " * 10
    flac = b"fLaC" + bytes(rng.randrange(256) for _ in range(100))
    return rng.choice(
        [
            _form([_field("model", b"nano")]),
            _form([_file(b"")]),
            _form([_file(sound)]),
            _form([_file(flac)]),
            _form([_file(sound), _file(sound, "other")]),
            _form([_file(sound), _field("response_format", b"xml")]),
            _form([_file(sound), _field("temperature", b"hot")]),
            _form([_file(sound), _field("temperature", b"nan")]),
            _form([_file(sound), _field("stream", b"maybe")]),
            _form([_file(sound), _field("foo", b"1")]),
            _form([_file(sound), _field("model", b"a"), _field("model", b"b")]),
            _form([_file(sound), _field("model", b"\xff\xfe")]),
            _form([_file(sound), _field("prompt", b"x" * 200_000)]),
            _form([_file(sound), _field("timestamp_granularities[]", b"word")]),
            _form([_field(f"f{at}", b"x") for at in range(300)]),
            _form([_file(sound)], boundary="YY"),
            _form([_file(sound)], end=""),
            _form([b"\r\nno headers"]),
            _form([b"Content-Disposition: form-data\r\n\r\nx"]),
            _form([b"X" * 70_000 + b": y\r\n\r\nx"]),
            _form([], end="garbage"),
            _form([_file(sound)], "XX", "--XX--\r\n", "Content-Type: multipart/form-data"),
            _form([_file(sound)], "XX", "--XX--\r\n", "Content-Type: application/json"),
            _form([_file(sound)], "XX", "--XX--\r\n", "Content-Type: text/plain; boundary=XX"),
            _http("POST", TRANSCRIPTIONS, b"", "Content-Type: multipart/form-data; boundary=XX"),
        ]
    )


def _oversized(rng: random.Random) -> bytes:
    more = MOST_BYTES + rng.randint(1, MOST_BYTES // 4)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * more}]}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in _parts(body, 50_000)) + b"0\r\n\r\n"
    kind = "Content-Type: application/json"
    return rng.choice(
        [
            _json(CHAT, body),
            _http("POST", CHAT, chunks, kind, "Transfer-Encoding: chunked"),
            _form([_file(bytes(more))]),
        ]
    )


def _parts(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def _announced(rng: random.Random) -> Hostile:
    """More is announced than comes."""
    length = rng.choice(["9" * 15, "9" * 30, str(MOST_BYTES + 1)])
    raw = _http("POST", CHAT, b"{", "Content-Type: application/json", f"Content-Length: {length}")
    return Hostile("announced", raw)


def _bad_type(rng: random.Random) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
    kind = rng.choice(["text/plain", "application/x-www-form-urlencoded", "", "application/xml", "x" * 3000])
    more = rng.choice([(), ("Content-Encoding: gzip",), ("Content-Encoding: br, gzip",)])
    kinds = (f"Content-Type: {kind}",) if kind or not more else ("Content-Type: application/json",)
    return _http("POST", rng.choice([CHAT, RESPONSES, EMBEDDINGS]), body, *kinds, *more)


def _bad_address(rng: random.Random) -> bytes:
    path = rng.choice(
        ["/", "/v1", "/v1/", "/v1/completions", "/v1/files", "/v1/chat/completions/", "//v1/models", "/docs",
         "/v1/models/" + "x" * 3000, "/v1/models/..%2f..%2fetc", "/%00", "/v1/engines", "/favicon.ico",
         "/openapi.json", "/v1/models/%ff%fe", "/.env", "/metrics/x", "/health/", "/../etc/passwd"]
    )  # fmt: skip
    return _http(rng.choice(["GET", "POST", "PUT", "DELETE"]), path, b"")


def _bad_method(rng: random.Random) -> bytes:
    method = rng.choice(["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "BREW"])
    if method == "CONNECT":
        return _http(method, "localhost:80", b"")
    return _http(method, rng.choice([CHAT, RESPONSES, EMBEDDINGS, "/v1/models", "/health"]), b"")


def _bad_host(rng: random.Random) -> bytes:
    host = rng.choice(
        ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "nano", "", "a:b:c", "[::1",
         "localhost:x", "x" * 5000, "localhost, evil.example", "evil@localhost"]
    )  # fmt: skip
    path = rng.choice([CHAT, "/v1/models", "/health", "/metrics"])
    return _http("POST" if path == CHAT else "GET", path, b"", host=host)


def _bad_origin(rng: random.Random) -> bytes:
    origin = rng.choice(
        ["https://evil.example", "null", "http://localhost:3000", "file://", "", "*", "x" * 3000]
    )
    header = rng.choice([f"Origin: {origin}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"])
    method = rng.choice(["GET", "POST", "OPTIONS"])
    path = CHAT if method != "GET" else rng.choice(["/v1/models", "/metrics", "/health"])
    return _http(method, path, b"", header, "Access-Control-Request-Method: POST")


def _no_http(rng: random.Random) -> Hostile:
    raw = rng.choice(
        [
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nHost localhost\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n X: y\r\n\r\n",  # a host of two lines
            b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\xff\xfe\xfd\r\n\r\n",
        ]
    )  # fmt: skip
    return Hostile("no HTTP", raw)


def _bad_chunks(rng: random.Random) -> Hostile:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = rng.choice(
        [b"zz\r\n{}\r\n", b"-1\r\n{}\r\n", b"ffffffffffffffffffff\r\n{}\r\n", b"2\r\n{}xx\r\n0\r\n\r\n"]
    )
    raw = f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode() + body
    return Hostile("bad chunks", raw)


KINDS: dict[str, Callable[[random.Random], bytes | Hostile]] = {
    "wrong field": _wrong_field,
    "unknown field": _unknown_field,
    "broken JSON": _broken_json,
    "bad message": _bad_message,
    "bad image": _bad_image,
    "bad sound": _bad_sound,
    "bad schema": _bad_schema,
    "bad tools": _bad_tools,
    "contradiction": _contradiction,
    "bad responses": _bad_responses,
    "bad embeddings": _bad_embeddings,
    "bad form": _bad_form,
    "oversized": _oversized,
    "announced": _announced,
    "bad type": _bad_type,
    "bad address": _bad_address,
    "bad method": _bad_method,
    "bad host": _bad_host,
    "bad origin": _bad_origin,
    "no HTTP": _no_http,
    "bad chunks": _bad_chunks,
}
