"""Requests to a hub: what a repository holds, and the bytes of a file from where they stopped.

Knows HTTP by the hub's own library, when to try again, and how long to wait before. Knows nothing of what the
files mean, nor of where they are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import phirt
from phirt_export.hub.cache import Arrival, RemoteFile
from phirt_export.hub.errors import HubError
from phirt_export.hub.names import HubId
from phirt_export.hub.refusals import refused, unreachable

if TYPE_CHECKING:
    import httpx2

_T = TypeVar("_T")
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another try may better
_LONGEST_WAIT = 300.0  # seconds; the window in which the hub counts requests
_RESET = re.compile(r"(?:^|;)\s*t=(\d{1,6})\s*(?:;|,|$)")


@dataclasses.dataclass(frozen=True)
class Patience:
    """How often a request is tried again while nothing comes, and how long to wait: `first` seconds, then
    twice as long each time, unless the hub says otherwise. `timeout` is for one answer or piece of it.
    """

    tries: int = 5
    first: float = 1.0
    timeout: float = 20.0


def library() -> Any:
    """The hub's library, asked to send nothing about this machine that nobody has asked for."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    import huggingface_hub.utils
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True  # somebody may have imported it before
    return huggingface_hub


def endpoint() -> str:
    """The address of the hub; HF_ENDPOINT names another one."""
    library()
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


class Connection:
    """Requests about one repository. `waits` is told why, and for how many seconds, before each wait."""

    def __init__(
        self,
        of: HubId,
        token: str | None,
        patience: Patience,
        waits: Callable[[str, float], None],
        *,
        kept: bool,
    ) -> None:
        hub = library()
        self.endpoint = endpoint()
        self._of, self._patience, self._waits, self._kept = of, patience, waits, kept
        self._token = token or hub.get_token()
        self._headers = hub.utils.build_hf_headers(
            token=self._token or False, library_name="phirt", library_version=phirt.__version__
        )
        self._reached = False
        self._failures = 0

    def listing(self) -> tuple[str, dict[str, RemoteFile]]:
        """The commit that the id means now, and its files by name. Raises HubError."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self._token or False, library_name="phirt")
        info = self._repeated(
            lambda: api.model_info(
                self._of.repo,
                revision=self._of.revision,
                files_metadata=True,
                timeout=self._patience.timeout,
            )
        )
        files = {}
        for entry in info.siblings or ():
            digest = entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
            if digest is not None and entry.size is not None:
                files[entry.rfilename] = RemoteFile(entry.rfilename, entry.size, digest)
        return str(info.sha), files

    def fill(self, arrival: Arrival, commit: str, arrived: Callable[[int], None]) -> None:
        """Fetches what is missing of a file; `arrived` is told how much of it is there. Raises HubError."""
        damaged = False
        while not arrival.is_right():
            if arrival.size == arrival.file.size:
                if damaged:
                    arrival.restart()
                    raise HubError(
                        f"{arrival.file.name} of {self._of.repo} arrives damaged: its checksum is not the "
                        "published one; try again later, or over another network"
                    )
                damaged = True  # the beginning may be from another time, or from a failing disk
                arrival.restart()
            self._repeated(lambda: self._append(arrival, commit, arrived))

    def _append(self, arrival: Arrival, commit: str, arrived: Callable[[int], None]) -> None:
        import httpx2

        with self._stream(arrival, commit) as response:
            if arrival.size and response.status_code == 200:  # a server that sends files whole only
                arrival.restart()
            for chunk in response.iter_bytes():  # as it comes: what waits for more would be lost
                if arrival.size + len(chunk) > arrival.file.size:
                    arrival.restart()
                    raise HubError(
                        f"{arrival.file.name} of {self._of.repo} is longer than the published "
                        f"{arrival.file.size} bytes; try again later, or over another network"
                    )
                arrival.add(chunk)
                self._failures = 0
                arrived(arrival.size)
        if arrival.size < arrival.file.size:
            raise httpx2.RemoteProtocolError("the answer ended early")

    @contextlib.contextmanager
    def _stream(self, arrival: Arrival, commit: str) -> Iterator[httpx2.Response]:
        hub = library()
        url = f"{self.endpoint}/{self._of.repo}/resolve/{commit}/{arrival.file.name}"  # none needs quoting
        headers = {**self._headers, "Accept-Encoding": "identity"}  # lengths are those of the file
        if arrival.size:
            headers["Range"] = f"bytes={arrival.size}-"
        timeout = self._patience.timeout
        with hub.utils.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
            hub.utils.hf_raise_for_status(response)
            yield response

    def _repeated(self, work: Callable[[], _T]) -> _T:
        """What the work returns, tried again where that may help. Raises HubError."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        while True:
            try:
                value = work()
            except HfHubHTTPError as error:
                response = error.response
                self._reached = True
                if response.status_code not in _PASSING or self._failures >= self._patience.tries:
                    raise refused(
                        response, self._of, self.endpoint, with_token=self._token is not None
                    ) from error
                self._wait(f"the hub answers {response.status_code}", _wait_asked_for(response))
            except (httpx2.TransportError, httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
                again = isinstance(error, httpx2.TransportError) and self._reached
                if not again or self._failures >= self._patience.tries:
                    raise unreachable(error, self.endpoint, self._kept) from error
                self._wait("the connection broke", None)
            else:
                self._reached, self._failures = True, 0
                return value

    def _wait(self, why: str, asked: float | None) -> None:
        seconds = self._patience.first * 2**self._failures if asked is None else asked
        self._failures += 1
        self._waits(why, seconds)
        time.sleep(seconds)


def _wait_asked_for(response: httpx2.Response) -> float | None:
    """Seconds after which the hub wants to be asked again; None where it says nothing."""
    text = response.headers.get("Retry-After", "")
    reset = _RESET.search(response.headers.get("RateLimit", "")) if response.status_code == 429 else None
    seconds = text if text.isdecimal() else reset[1] if reset else None
    return None if seconds is None else min(float(seconds), _LONGEST_WAIT)
