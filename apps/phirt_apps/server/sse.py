"""Server-sent events: an answer that is read while it is made.

Knows how events are written (the HTML standard's section on them). Knows nothing of what they say.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Send

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # proxies pass each event on as it comes
]


def data_event(document: dict[str, Any], name: str | None = None) -> bytes:
    """One event with a JSON document."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()


class EventStream:
    """Events as they come. The response begins with the item `after`, before which anything may be raised and
    become a refusal.
    """

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events

    async def send(self, send: Send, after: object) -> None:
        """Sends all of them."""
        async for event in self._events:
            if event is after:
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            else:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                await asyncio.sleep(0)  # where many are ready, others' turn comes, and a hang-up is noticed
        await send({"type": "http.response.body", "body": b""})
