"""A bounded queue, hang-ups, and the end of a server: slots come back, and who waits is told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import openai
import pytest

from phirt_apps.server.errors import ApiError
from phirt_apps.server.slots import Slots

LONG = {
    "model": "nano",
    "messages": [{"role": "user", "content": "Count."}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "array", "items": {"enum": [7]}, "minItems": 900}},
    },
    "stream": True,
}  # as many tokens as the context has
SHORT = {"model": "nano", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 2}


def _raw(document: dict) -> bytes:
    body = json.dumps(document).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def _asking(server, document: dict) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(_raw(document))
        yield connection


def _begun(connection: socket.socket) -> None:
    """Reads until some text has come."""
    seen = b""
    while seen.count(b'"content"') < 4:
        seen += connection.recv(4096)


def test_a_client_that_is_killed_frees_its_slot_within_a_step(start: Callable) -> None:
    server = start(parallel=1, queue=1)
    with _asking(server, LONG) as connection:
        _begun(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # as killed
    answer = server.client.chat.completions.create(**SHORT)  # waits for the slot, and gets it
    assert answer.choices[0].message.content
    assert server.figure("phirt_cancelled_total") == 1
    assert server.figure("phirt_new_tokens_total") < 1500  # of the 2000 that the answer would have had
    server.wait_until_free()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_before_its_answer(start: Callable, stream: bool) -> None:
    server = start(parallel=1)
    with _asking(server, {**LONG, "stream": stream}):
        server.wait(lambda: server.serving.slots.working == 1)
    server.wait(lambda: server.serving.slots.working == 0)
    assert server.figure("phirt_cancelled_total") == 1


def test_who_finds_the_queue_full_is_told_when_to_come_again(start: Callable) -> None:
    server = start(parallel=1, queue=1)
    with _asking(server, LONG) as first:
        _begun(first)
        with _asking(server, SHORT) as second:
            server.wait(lambda: server.serving.slots.waiting == 1)
            with pytest.raises(openai.RateLimitError, match="ask again in") as refused:
                server.client.chat.completions.create(**SHORT)
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
            assert refused.value.code == "queue_full"
            assert server.client.models.list().data  # what costs nothing is answered all the same
            assert server.ask("GET", "/health")[0] == 200
            first.close()
            assert b"200 OK" in second.recv(4096)
    server.wait(lambda: server.serving.slots.admitted == 0)


def test_who_hangs_up_while_waiting_leaves_the_queue(start: Callable) -> None:
    server = start(parallel=1, queue=1)
    with _asking(server, LONG) as first:
        _begun(first)
        with _asking(server, SHORT):
            server.wait(lambda: server.serving.slots.waiting == 1)
        server.wait(lambda: server.serving.slots.waiting == 0)
        assert server.serving.slots.working == 1
    assert server.client.chat.completions.create(**SHORT).choices
    assert server.figure("phirt_requests_waiting") == 0


def test_who_hangs_up_in_the_midst_of_a_request(start: Callable) -> None:
    server = start(parallel=1, queue=0)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(_raw(SHORT)[:-5])
        server.wait(lambda: server.serving.slots.admitted == 1)
    server.wait(lambda: server.serving.slots.admitted == 0)


def test_a_request_that_does_not_come_is_not_waited_for(start: Callable) -> None:
    server = start(body_seconds=0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(_raw(SHORT)[:-5])
        assert b"408 Request Timeout" in connection.recv(4096)
    server.wait(lambda: server.serving.slots.admitted == 0)


def test_a_server_that_stops_ends_open_answers_and_says_so(start: Callable) -> None:
    server = start(parallel=1, queue=4, stop_seconds=0.0)
    told: list[Exception] = []

    def wait_in_the_queue() -> None:
        try:
            server.client.chat.completions.create(**SHORT)
        except openai.APIError as error:
            told.append(error)

    with _asking(server, LONG) as connection:
        _begun(connection)
        waiting = threading.Thread(target=wait_in_the_queue)
        waiting.start()
        server.wait(lambda: server.serving.slots.waiting == 1)
        server.stop()
        rest = b""
        while piece := connection.recv(4096):
            rest += piece
    waiting.join(30)
    assert b'"code": "stopping"' in rest and b"[DONE]" not in rest
    assert [getattr(error, "code", None) for error in told] == ["stopping"]


def test_a_server_that_stops_lets_short_answers_end(start: Callable) -> None:
    server = start(parallel=1, stop_seconds=30.0)
    with _asking(server, {**SHORT, "max_tokens": 300, "stream": True}) as connection:
        server.wait(lambda: server.serving.slots.admitted == 1)
        server.stop()
        said = b""
        while piece := connection.recv(4096):
            said += piece
    assert b"[DONE]" in said and b"error" not in said


def test_slots_by_themselves() -> None:
    slots = Slots(2, 1)
    with slots.place(), slots.place(), slots.place():
        with pytest.raises(ApiError) as refused, slots.place():
            pass
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "2"})
    assert slots.admitted == 0
