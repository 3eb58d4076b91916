"""What speaks no HTTP is refused as everything else is, and so that the refusal arrives.

Knows uvicorn's protocol over h11. Knows nothing of requests that are whole.
"""

from __future__ import annotations

import contextlib
import json

from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import BadRequestError

_LINGER_SECONDS = 1.0


class Protocol(H11Protocol):
    """A connection. After a refusal what still comes is thrown away for a while: closing at once, with bytes
    that nobody has read, would make the system take the refusal back.
    """

    _lingers = False

    def data_received(self, data: bytes) -> None:
        """Takes bytes from the wire."""
        if not self._lingers:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuses what has come."""
        if self._lingers:
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # in the midst of an answer there is no place for another
            return
        self._lingers = True
        document = BadRequestError("this is no HTTP request, or its head is too large").document
        body = json.dumps(document).encode()
        head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        with contextlib.suppress(OSError):  # who asked has hung up
            self.transport.write_eof()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)
