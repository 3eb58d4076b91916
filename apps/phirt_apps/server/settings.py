"""What may be chosen about a server, checked once.

Knows names, ranges and addresses. Knows nothing of models or of requests.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from urllib.parse import urlsplit

from phirt.errors import ConfigError

MEGABYTE = 1_000_000
_LEAST_KEY = 16  # characters of a key that is worth the name
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How a server behaves. Raises ConfigError where a value is out of range, or would open the server to
    others without a key.

    Attributes:
        host, port: where it listens; 0 is any free port.
        api_key: what clients must bring; None asks for none, on this machine alone.
        parallel: requests that are computed at once.
        queue: requests that may wait beside those; more are refused with 429.
        max_new_tokens: of the longest answer, whatever a request asks for.
        max_body_bytes: of the largest request.
        body_seconds: within which a request must have come as a whole.
        allowed_hosts: names by which clients may call it, beside addresses and `localhost`.
        allowed_origins: of web pages whose scripts may ask.
        stop_seconds: that answers have to come to their end when the server is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = dataclasses.field(default=None, repr=False)
    parallel: int = 4
    queue: int = 32
    max_new_tokens: int = 4096
    max_body_bytes: int = 32 * MEGABYTE
    body_seconds: float = 60.0
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    stop_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535),
            ("parallel", 1, 256),
            ("queue", 0, 10_000),
            ("max_new_tokens", 1, 1 << 24),
            ("max_body_bytes", 1000, 1 << 33),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}, accepted: a whole number from {low} to {high}")
        for name in ("body_seconds", "stop_seconds"):
            if not 0 <= getattr(self, name) <= 86400:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, accepted: 0 to 86400")
        for host in self.allowed_hosts:
            if not _NAME.fullmatch(host):
                raise ConfigError(
                    f"{host!r:.80} is no name of a host; give one as in box.local, without a port"
                )
        for origin in self.allowed_origins:
            _require_origin(origin)
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached from other machines, which needs a key: put one into a file and "
                "name it with --api-key-file, or into the environment variable PHIRT_API_KEY"
            )
        if self.api_key is not None and (len(self.api_key) < _LEAST_KEY or not _is_token(self.api_key)):
            raise ConfigError(
                f"the key needs at least {_LEAST_KEY} characters of ASCII without blanks; make one with: "
                "openssl rand -hex 32"
            )


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_token(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key


def _require_origin(origin: str) -> None:
    parts = urlsplit(origin)
    if (
        parts.scheme not in ("http", "https")
        or not parts.netloc
        or f"{parts.scheme}://{parts.netloc}" != origin
    ):
        raise ConfigError(
            f"{origin!r:.80} is no origin of a web page; give one as in https://example.org or "
            "http://localhost:3000"
        )
