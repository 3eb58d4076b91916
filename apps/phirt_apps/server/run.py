"""The process of a server: its socket, its event loop, and how it comes to its end.

Knows uvicorn and sockets. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn

from phirt.errors import PhirtError

from .app import make_app
from .protocol import Protocol
from .serving import Serving
from .settings import ServerSettings

logger = logging.getLogger("phirt.serve")

_BACKLOG = 128
_MOST_CONNECTIONS = 512  # open at once, or files would run out
_KEEP_ALIVE_SECONDS = 30
_MOST_HEADER_BYTES = 64_000


def bind(settings: ServerSettings) -> socket.socket:
    """The socket to listen on. Raises PhirtError where another program has it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PhirtError(
            f"cannot listen at {settings.host} port {settings.port}: {reason}; choose another --port"
        ) from error
    return listening


def address_of(listening: socket.socket) -> str:
    """What clients call the server."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if listening.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Process(uvicorn.Server):
    """uvicorn with its end in our hands: signals are the command's."""

    def __init__(self, serving: Serving, access: Callable[[str], None] | None = None) -> None:
        self._serving = serving
        super().__init__(
            uvicorn.Config(
                make_app(serving),
                http=Protocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=access is not None,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
            )
        )
        # What uvicorn says of damaged requests, their senders are told; its own faults are said in a line.
        _write_to("uvicorn.error", logger.error, logging.ERROR)
        _write_to("uvicorn.access", access or logger.debug, logging.INFO)
        _write_to("python_multipart", logger.debug, logging.WARNING)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes no signals over."""
        yield

    def stop(self) -> None:
        """Ends the server; may be called by a signal handler, and from any thread."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more requests; gives answers some seconds to come to their end, then ends them."""
        ending = asyncio.get_running_loop().call_later(
            self._serving.settings.stop_seconds, self._serving.stop
        )
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            self._serving.stop()


def serve(process: Process, listening: socket.socket) -> None:
    """Serves until the process is told to stop."""
    asyncio.run(process.serve(sockets=[listening]))


class _Lines(logging.Handler):
    """Hands over each message, without its traceback."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one."""
        self._write(record.getMessage())


def _write_to(name: str, write: Callable[[str], None], level: int) -> None:
    foreign = logging.getLogger(name)
    foreign.setLevel(level)
    foreign.propagate = False
    foreign.handlers = [_Lines(write)]
