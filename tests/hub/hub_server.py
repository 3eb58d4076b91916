"""A hub on this machine: the part of the Hugging Face Hub's protocol that fetching uses, with faults.

Written from its public API: `api/models/REPO/revision/REV?blobs=true` lists files with sizes and digests,
`REPO/resolve/REV/FILE` redirects large files to a storage host of another origin, which knows `Range`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for: method, path, and the headers of interest."""

    method: str
    path: str
    range: str | None
    token: str | None
    agent: str


@dataclasses.dataclass
class Fault:
    """What goes wrong with requests whose path ends so, the next `times` times.

    `status` is answered with `headers`; or the body is `cut` after so many bytes, its first byte `flipped`,
    or it stops there until `gate` opens, or the range is `ignored`.
    """

    ending: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: int | None = None
    flipped: bool = False
    ignores_range: bool = False
    stop: tuple[int, threading.Event, threading.Event] | None = None


class Hub:
    """Serves folders as repositories; `seen` is what was asked for."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.tokens: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.seen: list[Request] = []
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), self._handler(kind)) for kind in ("hub", "store")
        ]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        """The address of the hub."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage(self) -> str:
        """The address of the host with the large files: another origin."""
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def publish(self, repo: str, folder: Path, **more: bytes) -> None:
        """Makes the folder's files a repository."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repos[repo] = files | more

    def close(self) -> None:
        """Ends both servers."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fetched(self, ending: str) -> list[Request]:
        """The requests for the content of files so named."""
        return [r for r in self.seen if r.method == "GET" and r.path.endswith(ending)]

    def fault(self, path: str) -> Fault | None:
        """The fault of this request, which is then used up."""
        for fault in self.faults:
            if fault.times and path.endswith(fault.ending):
                fault.times -= 1
                return fault
        return None

    def _handler(self, kind: str) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                """Silent."""

            def do_HEAD(self) -> None:
                self._answer(head=True)

            def do_GET(self) -> None:
                self._answer(head=False)

            def _answer(self, head: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
                hub.seen.append(
                    Request(self.command, path, self.headers["Range"], token, str(self.headers["User-Agent"]))
                )
                fault = hub.fault(path)
                if fault is not None and fault.status is not None:
                    self._send(fault.status, fault.headers, b"{}")
                elif kind == "store":
                    self._file(path.removeprefix("/"), {}, head, fault)
                else:
                    self._hub(path, token, head, fault)

            def _hub(self, path: str, token: str | None, head: bool, fault: Fault | None) -> None:
                listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
                resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
                found = listing or resolve
                repo = found[1] if found else ""
                if token is not None and token not in (*hub.tokens.values(), "good"):
                    message = "Invalid credentials in Authorization header"
                    self._send(401, {"X-Error-Message": message}, b"{}")
                elif repo not in hub.repos:
                    status = 401 if token is None else 404
                    self._send(status, {"X-Error-Code": "RepoNotFound"}, b"{}")
                elif repo in hub.tokens and token != hub.tokens[repo]:
                    self._send(
                        401 if token is None else 403,
                        {
                            "X-Error-Code": "GatedRepo",
                            "X-Error-Message": f"Access to model {repo} is restricted",
                        },
                        b"{}",
                    )
                elif (found[2] or "main") not in ("main", "v1", COMMIT):  # type: ignore[index]
                    self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
                elif listing:
                    self._send(
                        200, {"Content-Type": "application/json"}, json.dumps(_listing(hub, repo)).encode()
                    )
                elif resolve and resolve[3] in hub.repos[repo]:
                    self._resolve(repo, resolve[3], head, fault)
                else:
                    self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"{}")

            def _resolve(self, repo: str, name: str, head: bool, fault: Fault | None) -> None:
                content = hub.repos[repo][name]
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_digest(content)}"'}
                if not name.endswith((".safetensors", ".gguf", ".bin")):
                    self._file(f"{repo}/{name}", headers, head, fault)
                    return
                digest = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                self._send(302, headers | {"Location": f"{hub.storage}/{repo}/{name}"}, b"")

            def _file(self, place: str, headers: dict[str, str], head: bool, fault: Fault | None) -> None:
                owner, name, file = place.split("/", 2)
                content, status = hub.repos[f"{owner}/{name}"][file], 200
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
                size = len(content)
                if asked and not (fault and fault.ignores_range):
                    start = int(asked[1])
                    if start >= size:
                        self._send(416, {"Content-Range": f"bytes */{size}"}, b"")
                        return
                    content, status = content[start:], 206
                    headers = headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
                self._send(status, headers, content, head, fault)

            def _send(
                self,
                status: int,
                headers: dict[str, str],
                body: bytes,
                head: bool = False,
                fault: Fault | None = None,
            ) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if head:
                    return
                if fault is not None and fault.flipped:
                    body = bytes([body[0] ^ 1]) + body[1:]
                if fault is not None and fault.stop is not None:
                    count, reached, gate = fault.stop
                    self.wfile.write(body[:count])
                    self.wfile.flush()
                    reached.set()
                    gate.wait(30)
                    self.close_connection = True
                    return
                self.wfile.write(body if fault is None or fault.cut is None else body[: fault.cut])
                self.close_connection |= fault is not None and fault.cut is not None

        return Handler


def git_digest(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _listing(hub: Hub, repo: str) -> dict[str, object]:
    siblings = []
    for name, content in hub.repos[repo].items():
        entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
        if name.endswith((".safetensors", ".gguf", ".bin")):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        siblings.append(entry)
    return {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "siblings": siblings}


Publish = Callable[[str, Path], None]
