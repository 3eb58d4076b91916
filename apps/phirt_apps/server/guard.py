"""Who may ask at all: the name by which the server is called, the page that a script comes from, the key.

Knows headers. Knows nothing of what is asked for. A web page that anybody visits can send requests to this
machine, by its address or by a name that was made to point there (DNS rebinding). Browsers tell the page's
origin, and the name: both must be among those that are allowed. The key is asked for last, and compared in
constant time.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .settings import ServerSettings

_OPEN = ("/health",)  # without a key
_PREFLIGHT_SECONDS = 600
_HEADERS = "authorization, content-type, x-stainless-*"


class Guard:
    """ASGI middleware that lets through who may ask, and answers the preflight requests of browsers."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request, or passes it on."""
        if scope["type"] != "http":
            return  # there are no web sockets here, and nothing is done at start and end
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._require_host(headers)
            self._require_origin(origin, headers)
            if origin is not None:  # an allowed one, which may read refusals too
                send = _with_origin(send, origin)
                if scope["method"] == "OPTIONS":
                    await _preflight(headers)(scope, receive, send)
                    return
            if scope["path"] not in _OPEN:
                self._require_key(headers)
        except ApiError as error:
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _require_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        name = _name_of(given[0]) if len(given) == 1 else None
        if name is None:
            raise ApiError(400, "the request names no host, or several; send one Host header")
        if name in self._names or _is_address(name):
            return
        raise ApiError(
            403,
            f"this server is not called {name[:80]!r}; use its address, or start it with --allow-host",
            code="host_not_allowed",
        )

    def _require_origin(self, origin: str | None, headers: Headers) -> None:
        if origin is None and headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return
        if origin is None or origin not in self._origins:
            raise ApiError(
                403,
                f"scripts of {'other pages' if origin is None else repr(origin[:80])} may not ask this "
                "server; start it with --allow-origin for pages that may",
                code="origin_not_allowed",
            )

    def _require_key(self, headers: Headers) -> None:
        if self._key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
            raise ApiError(
                401,
                "the key is missing or wrong; send it as: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def refusal(error: ApiError) -> Response:
    """The response that says why."""
    return JSONResponse(error.document, status_code=error.status, headers=error.headers)


def _name_of(host: str) -> str | None:
    """The name of a Host header without its port, in lower case."""
    if host.startswith("["):
        name, closed, port = host[1:].partition("]")
        port = port.removeprefix(":") if closed and (not port or port[0] == ":") else "-"
    else:
        name, _, port = host.partition(":")
    return name.lower().rstrip(".") if name and (not port or port.isdecimal()) else None


def _is_address(name: str) -> bool:
    """No name server can make an address point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _preflight(headers: Headers) -> Response:
    allowed: Mapping[str, str] = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", _HEADERS)[:1000],
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
    }
    private = headers.get("access-control-request-private-network") == "true"
    more = {"Access-Control-Allow-Private-Network": "true"} if private else {}
    return Response(status_code=204, headers={**allowed, **more})


def _with_origin(send: Send, origin: str) -> Send:
    """Tells the browser that the page, which is an allowed one, may read the answer."""

    async def send_with_origin(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers.append("Vary", "Origin")
        await send(message)

    return send_with_origin
