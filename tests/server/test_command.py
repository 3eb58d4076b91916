"""`phirt serve` as a process: its line, its end by signals, its refusals. It writes nothing else, and no
files.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phirt_apps.cli import app

PHIRT = [sys.executable, "-c", "from phirt_apps.__main__ import main; main()"]
SECRET = "a sentence that is written nowhere"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


class Running:
    """A server process, and what it has said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr is not None
        self.line = process.stderr.readline()
        found = re.search(r"http://\S+/v1", self.line)
        assert found, self.line
        self.url = found[0]

    def get(self, path: str, document: Any = None, **headers: str) -> bytes:
        """Asks for an address below /v1."""
        data = None if document is None else json.dumps(document).encode()
        sent = {"Content-Type": "application/json", **headers}
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, sent), timeout=60).read()

    def end(self, number: int) -> tuple[int, str, str]:
        """Sends a signal; returns status, stdout and what was written to stderr behind the first line."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def run(nano: Path, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **environment: str) -> Running:
        process = subprocess.Popen(
            [*PHIRT, "serve", "-m", str(nano), "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path), **environment},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return Running(process)

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal_and_keeps_nothing(
    run: Callable[..., Running], tmp_path: Path, number: int, status: int
) -> None:
    server = run()
    assert server.line == f"serving nano at {server.url} (Ctrl-C stops)\n"
    assert server.url.startswith("http://127.0.0.1:")
    question = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 3}
    assert json.loads(server.get("/chat/completions", question))["choices"]
    with pytest.raises(urllib.error.HTTPError):
        server.get("/chat/completions", {"messages": SECRET})
    assert server.end(number) == (status, "", "")
    assert list(tmp_path.rglob("*")) == []


def test_the_access_log_has_addresses_and_no_words(run: Callable[..., Running]) -> None:
    server = run("--access-log")
    server.get("/chat/completions", {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 1})
    _, _, err = server.end(signal.SIGINT)
    assert '"POST /v1/chat/completions HTTP/1.1" 200' in err and SECRET not in err and err.count("\n") == 1


def test_a_key_from_a_file_and_from_the_environment(run: Callable[..., Running], tmp_path: Path) -> None:
    key = "0123456789abcdef"
    (tmp_path / "key.txt").write_text(f"{key}\n")
    for server in (run("--api-key-file", "key.txt"), run(PHIRT_API_KEY=key)):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.get("/models")
        assert server.get("/models", Authorization=f"Bearer {key}")
        assert key not in server.line


def test_ctrl_c_in_the_midst_of_an_answer(run: Callable[..., Running]) -> None:
    server = run("--stop-seconds", "0")
    schema = {"type": "array", "items": {"enum": [7]}, "minItems": 900}
    question = {
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    data = json.dumps(question).encode()
    sent = urllib.request.Request(
        server.url + "/chat/completions", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=60) as answer:
        answer.readline()
        assert server.end(signal.SIGINT)[::2] == (130, "")
        assert b'"code": "stopping"' in answer.read()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--host", "0.0.0.0"], 2, "can be reached from other machines, which needs a key"),
        (["--allow-origin", "*"], 2, "'*' is no origin"),
        (["--port", "99999"], 2, "less than or equal to 65535"),
        (["--api-key-file", "nowhere"], 1, "cannot read the key nowhere"),
        (["--host", "256.1.1.1", "--api-key-file", __file__], 2, "the key needs"),
        (["--embedder", "nowhere"], 1, "nowhere is not a folder, nor the name of a model"),
        (["-m", "nowhere"], 1, "nowhere is not a folder, nor the name of a model"),
    ],
)
def test_what_it_refuses_to_begin_with(nano: Path, arguments: list[str], status: int, said: str) -> None:
    given = arguments if "-m" in arguments else ["-m", str(nano), *arguments]
    result = CliRunner().invoke(app, ["serve", *given])
    assert result.exit_code == status and said in result.stderr and result.stderr.count("\n") == 1


def test_a_port_that_is_taken(nano: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "-m", str(nano), "--port", str(port)])
    assert result.exit_code == 1
    assert f"cannot listen at 127.0.0.1 port {port}: Address already in use; choose another" in result.stderr


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("phirt_apps.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.types", None)
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "'phirt serve' needs starlette" in result.stderr and "pip install" in result.stderr
