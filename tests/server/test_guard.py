"""Who may ask: names that lead here, pages that are allowed, the key; preflight requests of browsers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable

import openai
import pytest

from phirt.errors import ConfigError
from phirt_apps.server.settings import ServerSettings

KEY = "a key of twenty-four chars".replace(" ", "-")


def _status(server, method: str = "GET", path: str = "/v1/models", **headers: str) -> int:
    return server.ask(method, path, None, **headers)[0]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("localhost.", 200),
        ("127.0.0.1:80", 200),
        ("192.168.7.9", 200),
        ("[::1]:80", 200),
        ("box.local", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example", 403),
        ("2130706433", 403),
        ("127.1", 403),
        ("", 400),
        ("localhost:x", 400),
        ("[::1", 400),
        ("[::1]x", 400),
    ],
)
def test_hosts(server, host: str, status: int) -> None:
    assert _status(server, Host=host) == status
    assert _status(server, path="/health", Host=host) == status


def test_a_name_that_is_allowed(start: Callable) -> None:
    server = start(allowed_hosts=("Box.local",))
    assert _status(server, Host="box.LOCAL:8000") == 200
    assert _status(server, Host="other.local") == 403


def test_two_hosts_are_none(server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    for name in ("localhost", "localhost"):
        connection.putheader("Host", name)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", ""])
def test_other_pages_may_not_ask(server, origin: str) -> None:
    status, headers, body = server.ask("GET", "/v1/models", None, Origin=origin)
    assert status == 403 and "access-control-allow-origin" not in headers
    assert json.loads(body)["error"]["code"] == "origin_not_allowed"
    assert _status(server, "OPTIONS", "/v1/chat/completions", Origin=origin) == 403


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403), ("none", 200)])
def test_what_a_browser_says_of_where_a_request_comes_from(server, site: str, status: int) -> None:
    assert _status(server, path="/metrics", Sec_Fetch_Site=site) == status


def test_pages_that_are_allowed(start: Callable) -> None:
    server = start(allowed_origins=("https://app.example",))
    status, headers, _ = server.ask("GET", "/v1/models", None, Origin="https://app.example")
    assert (status, headers["access-control-allow-origin"], headers["vary"]) == (
        200, "https://app.example", "Origin",
    )  # fmt: skip
    asked = {
        "Origin": "https://app.example",
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization, content-type, x-stainless-os",
        "Access_Control_Request_Private_Network": "true",
    }
    status, headers, body = server.ask("OPTIONS", "/v1/chat/completions", None, **asked)
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-os"
    assert headers["access-control-allow-private-network"] == "true"
    assert _status(server, Origin="https://app.example.evil.example") == 403
    assert _status(server, Origin="http://app.example") == 403


def test_a_key(start: Callable) -> None:
    server = start(api_key=KEY, allowed_origins=("https://app.example",))
    assert server.client.models.list().data
    wrong_ones = ("Bearer wrong", KEY, "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer  ")
    for headers in ({}, *({"Authorization": one} for one in wrong_ones)):
        status, answered, _ = server.ask("GET", "/v1/models", None, **headers)
        assert (status, answered["www-authenticate"]) == (401, "Bearer")
    assert _status(server, path="/health") == 200
    assert _status(server, path="/metrics") == 401
    assert _status(server, path="/metrics", Authorization=f"bearer {KEY}") == 200
    wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
        wrong.models.list()
    # Preflight requests carry no key; a page that is refused is told so, and may read why.
    assert _status(server, "OPTIONS", "/v1/models", Origin="https://app.example") == 204
    status, answered, _ = server.ask("GET", "/v1/models", None, Origin="https://app.example")
    assert (status, answered["access-control-allow-origin"]) == (401, "https://app.example")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0 can be reached from other machines, which needs a key"),
        ({"host": "::"}, "needs a key"),
        ({"host": "192.168.1.5"}, "needs a key"),
        ({"host": "box.local"}, "needs a key"),
        ({"api_key": "short"}, "at least 16 characters"),
        ({"api_key": "with a blank in it " * 2}, "without blanks"),
        ({"api_key": "ключ" * 8}, "of ASCII"),
        ({"port": 70000}, "port is 70000, accepted: a whole number from 0 to 65535"),
        ({"parallel": 0}, "parallel is 0"),
        ({"queue": -1}, "queue is -1"),
        ({"allowed_hosts": ("a:80",)}, "'a:80' is no name of a host"),
        ({"allowed_origins": ("example.org",)}, "'example.org' is no origin"),
        ({"allowed_origins": ("*",)}, "'*' is no origin"),
        ({"allowed_origins": ("https://a.example/x",)}, "is no origin"),
        ({"stop_seconds": -1.0}, "stop_seconds is -1.0"),
    ],
)
def test_settings_that_contradict_themselves(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerSettings(**settings)
    assert said in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.4.5", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    assert ServerSettings(host=host).api_key is None
    assert KEY not in repr(ServerSettings(host="0.0.0.0", api_key=KEY))
