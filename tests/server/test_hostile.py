"""Malformed, oversized and hostile requests end in 4xx with one message each, and hurt nobody else."""

from __future__ import annotations

import concurrent.futures
import itertools
import re
from collections.abc import Callable

import hostile
import pytest


def test_hundreds_of_them_are_refused_and_the_server_goes_on(start: Callable, caplog) -> None:
    server = start(parallel=2, max_body_bytes=hostile.MOST_BYTES, body_seconds=0.5)
    made = list(itertools.islice(hostile.requests(1), 420))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda one: hostile.send(server.port, one), made)
        for one, (status, body) in zip(made, answers, strict=True):
            assert hostile.complaint(status, body) is None, (one.kind, one.raw[:300], status, body)
    server.wait_until_free()
    assert (
        server.client.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": "Who are you?"}]
        )
        .choices[0]
        .message.content
    )
    assert not [r.exc_text or r.getMessage() for r in caplog.records if r.name.startswith("phirt")]


def test_the_kinds_are_many_and_different() -> None:
    made = list(itertools.islice(hostile.requests(1), 10 * len(hostile.KINDS)))
    assert len(hostile.KINDS) > 20 and len({one.raw for one in made}) > 7 * len(hostile.KINDS)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"messages": [', "the request is not JSON"),
        (b"[]", "the request is a JSON list, accepted: an object"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stop": [""]}', "stop is"),
        (b'{"messages": [{"role": "user", "content": {"a": 1}}]}', "content is neither a string nor a list"),
    ],
)
def test_messages_say_what_is_wrong(server, body: bytes, said: str) -> None:
    status, _, answer = server.ask("POST", hostile.CHAT, body, Content_Type="application/json")
    assert status == 400 and said in answer.decode()


def test_an_address_is_never_opened(server, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The server's own process opens no file and no connection for who asks."""
    import sys

    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    opened: list[tuple] = []
    watching = True

    def watch(event: str, args: tuple) -> None:
        if watching and event in ("open", "socket.connect", "socket.getaddrinfo"):
            opened.append((event, *args))

    sys.addaudithook(watch)  # cannot be taken away, so it is told to look no more
    for url in (f"file://{secret}", str(secret), "http://127.0.0.1:9/a.png", f"//localhost{secret}"):
        part = {"type": "image_url", "image_url": {"url": url}}
        status, answer = server.post(hostile.CHAT, {"messages": [{"role": "user", "content": [part]}]})
        assert status == 400 and answer["error"]["code"] == "remote_media_refused"
        assert "which this server never opens" in answer["error"]["message"]
    watching = False
    foreign = [
        one
        for one in opened
        if str(secret) in str(one) or (one[0] == "socket.connect" and one[2][1] != server.port)
    ]
    assert foreign == []


def test_a_refusal_of_a_large_request_arrives(server) -> None:
    """The whole request is on its way before the answer is read, as clients do it."""
    status, _, body = server.ask("POST", hostile.CHAT, b"x" * 9_000_000, Content_Type="application/json")
    assert status == 413 and re.search(rb"has more than 2,000,000 bytes", body)
    status, _, _ = server.ask("POST", "/nowhere", b"x" * 9_000_000, Content_Type="application/json")
    assert status == 404
