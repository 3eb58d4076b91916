"""All addresses of the server, and what stands in front of them.

Knows which module answers where. Knows nothing of how.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .bodies import Drain
from .chat_completions import chat_completions
from .embeddings import embeddings
from .endpoint import Answerer, Endpoint
from .errors import ApiError
from .guard import Guard, refusal
from .models import health, metrics, model, models
from .responses import responses
from .serving import Serving
from .transcriptions import transcriptions

_QUEUED: dict[str, Answerer] = {
    "/v1/chat/completions": chat_completions,
    "/v1/responses": responses,
    "/v1/audio/transcriptions": transcriptions,
    "/v1/embeddings": embeddings,
}
_AT_ONCE: dict[str, Answerer] = {
    "/v1/models": models,
    "/v1/models/{name:path}": model,
    "/health": health,
    "/metrics": metrics,
}


def make_app(serving: Serving) -> ASGIApp:
    """The application: who may not ask is refused first, and takes the rest of the request back."""
    routes = [
        Route(path, Endpoint(serving, answer, path), methods=["POST"]) for path, answer in _QUEUED.items()
    ]
    routes += [
        Route(path, Endpoint(serving, answer, path, queued=False), methods=["GET"])
        for path, answer in _AT_ONCE.items()
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_here})
    app.router.redirect_slashes = False
    return Drain(Guard(app, serving.settings), serving.settings.max_body_bytes)


async def _not_here(request: Request, error: Exception) -> Response:
    """An address that there is not, or one that is asked in another way."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    if error.status_code == 405:
        said = f"{path} does not take {request.method[:20]}"
    else:
        known = ", ".join(path for path in (*_QUEUED, *_AT_ONCE) if "{" not in path)
        said = f"there is nothing at {path}; known are {known}"
    return refusal(ApiError(error.status_code, said, headers=error.headers))
