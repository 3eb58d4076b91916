"""A server in a thread of the tests' own process, on the small trained model; clients for it."""

from __future__ import annotations

import http.client
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest

import phirt
from phirt_apps.server.run import Process, address_of, bind, serve
from phirt_apps.server.serving import Serving
from phirt_apps.server.settings import ServerSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "apps" / "examples"


def _make_importable(name: str, path: Path) -> ModuleType:
    """Tests are collected without packages, so modules they share are made importable by name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_make_importable("hostile", Path(__file__).with_name("hostile.py"))
tiny_embedder = _make_importable("tiny_embedder", Path(__file__).parents[1] / "runtime" / "tiny_embedder.py")


class Server:
    """A server that runs in a thread until it is stopped."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self._listening = bind(serving.settings)
        self.url = address_of(self._listening)
        self.port = self._listening.getsockname()[1]
        self.process = Process(serving)
        self._thread = threading.Thread(target=serve, args=(self.process, self._listening))
        self._thread.start()
        self.wait(lambda: self.process.started)

    @property
    def client(self) -> openai.OpenAI:
        """A client of OpenAI's that does not try again."""
        key = self.serving.settings.api_key or "none"
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Sends a request; header names have _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            lowered = {name.lower(): value for name, value in response.getheaders()}
            return response.status, lowered, response.read()
        finally:
            connection.close()

    def post(self, path: str, document: Any, **headers: str) -> tuple[int, Any]:
        """Sends a JSON document; returns the status and the JSON that comes back."""
        body = json.dumps(document).encode()
        status, _, answer = self.ask("POST", path, body, Content_Type="application/json", **headers)
        return status, json.loads(answer)

    def figure(self, name: str) -> float:
        """A figure of /metrics, added up over its labels."""
        found = 0.0
        for line in self.serving.metrics.text().decode().splitlines():
            head, _, value = line.rpartition(" ")
            found += float(value) if head.partition("{")[0] == name else 0.0
        return found

    def wait(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Waits until something is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come about"
            time.sleep(0.005)

    def wait_until_free(self) -> None:
        """Waits until no place is held: a client has the last bytes before its place is given back."""
        self.wait(lambda: (self.serving.slots.admitted, self.serving.slots.working) == (0, 0))

    def stop(self) -> None:
        """Ends it; the models stay open."""
        self.process.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._listening.close()


@pytest.fixture(scope="session")
def model(nano: Path) -> Iterator[phirt.Model]:
    with phirt.load(nano, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[phirt.Embedder]:
    """A model whose vectors can be added up by hand."""
    folder = tmp_path_factory.mktemp("embedder") / "sums"
    tiny_embedder.write_embedder(folder)
    with phirt.Embedder(folder, threads=1) as opened:
        yield opened


@pytest.fixture
def start(model: phirt.Model) -> Iterator[Callable[..., Server]]:
    """Starts servers with settings of their own; they end with the test."""
    started: list[Server] = []

    def start_server(embedder: phirt.Embedder | None = None, **settings: Any) -> Server:
        serving = Serving(ServerSettings(port=0, **settings), model, embedder)
        started.append(Server(serving))
        return started[-1]

    yield start_server
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(model: phirt.Model, embedder: phirt.Embedder) -> Iterator[Server]:
    """One server for all tests that leave it as it is."""
    settings = ServerSettings(port=0, parallel=2, max_body_bytes=2_000_000, body_seconds=10.0)
    running = Server(Serving(settings, model, embedder))
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client
