"""The server of the page: files of its folders alone, for names of this machine alone, whatever is asked."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_host import Host

_LARGE = 64 << 20


@pytest.fixture(scope="module")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Its port and its process, serving a folder by a relative name."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "manifest.json").write_text("{}", "utf-8")
    with (folder / "decoder.data").open("wb") as file:
        file.truncate(_LARGE)
    node = shutil.which("node")
    assert node is not None
    command = [node, str(host.folder / "build" / "node" / "serve.js"), ".", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rsplit(":", 1)[1]), process.pid
            assert process.poll() is None  # whatever was asked
        finally:
            process.terminate()


def _status(port: int, path: str, name: str | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={} if name is None else {"Host": name})
        response = connection.getresponse()
        response.read()
        assert response.getheader("Cross-Origin-Resource-Policy") == "same-origin"
        return response.status
    finally:
        connection.close()


def test_the_page_and_a_package_by_a_relative_name(server: tuple[int, int]) -> None:
    assert [_status(server[0], path) for path in ("/", "/page.css", "/model/manifest.json")] == [200] * 3


@pytest.mark.parametrize(
    "path", ["/%", "/%ff", "/model/%00", "/model/", "/model/../x", "/model/%2e%2e/x", "/tsconfig.json"]
)
def test_what_is_not_there(server: tuple[int, int], path: str) -> None:
    """Paths that are no text, and ways out of a folder, among them."""
    assert _status(server[0], path) == 404
    assert _status(server[0], "/") == 200  # and it goes on


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("[::1]:80", 200),
        ("example.com", 403),
        ("localhost.example.com", 403),
        ("127.0.0.1.example.com:80", 403),
        ("", 403),
    ],
)
def test_names_of_others_are_refused(server: tuple[int, int], name: str, status: int) -> None:
    """A page elsewhere whose name was made to lead here cannot read a model."""
    assert _status(server[0], "/model/manifest.json", name) == status


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in Linux's /proc")
def test_files_are_closed_when_a_download_is_left(server: tuple[int, int]) -> None:
    port, process = server
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/model/decoder.data")
        assert len(connection.getresponse().read(1024)) == 1024
        connection.close()
    deadline = time.monotonic() + 20
    while _open_files(process, "decoder.data"):
        assert time.monotonic() < deadline, "the file is still open"
        time.sleep(0.02)


def _open_files(process: int, name: str) -> int:
    found = 0
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            found += link.readlink().name == name
        except FileNotFoundError:
            continue  # closed meanwhile
    return found
