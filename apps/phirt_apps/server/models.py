"""GET /v1/models, /health and /metrics: what is here, and how it does.

Knows the shapes of those answers. Runs nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

import phirt

from .endpoint import Exchange
from .errors import ApiError
from .metrics import CONTENT_TYPE
from .serving import Serving


async def models(serving: Serving, exchange: Exchange) -> None:
    """The models of this server."""
    listed = [_described(serving, name) for name in serving.model_names]
    await exchange.reply({"object": "list", "data": listed})


async def model(serving: Serving, exchange: Exchange) -> None:
    """One of them."""
    name = exchange.path_parameters["name"]
    if name not in serving.model_names:
        known = ", ".join(serving.model_names)
        raise ApiError(
            404, f"there is no model {name[:80]!r} here; known are {known}", code="model_not_found"
        )
    await exchange.reply(_described(serving, name))


async def health(serving: Serving, exchange: Exchange) -> None:
    """That the server answers."""
    await exchange.reply({"status": "ok", "version": phirt.__version__})


async def metrics(serving: Serving, exchange: Exchange) -> None:
    """The figures, for Prometheus."""
    text = await asyncio.to_thread(serving.metrics.text)
    await exchange.respond(Response(text, headers={"Content-Type": CONTENT_TYPE}))


def _described(serving: Serving, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": serving.created, "owned_by": "phirt"}
