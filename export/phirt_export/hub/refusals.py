"""What can go wrong between this machine and a hub, each in one line with its remedy.

Knows the hub's answers (status, `X-Error-Code`) and the library's exceptions. Opens nothing.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from phirt_export.hub.errors import HubError

if TYPE_CHECKING:
    import httpx2

    from phirt_export.hub.names import HubId

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHOWN = 160


def refused(response: httpx2.Response, of: HubId, endpoint: str, *, with_token: bool) -> HubError:
    """The error for an answer that is none, once trying again has not helped."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    said = response.headers.get("X-Error-Message", "")
    page = f"{endpoint}/{of.repo}"
    if code == "RevisionNotFound":
        return HubError(f"{of.repo} has no revision {of.revision!r}; {page} lists its branches and tags")
    if code == "EntryNotFound":
        return HubError(f"{of.repo} lacks a file that its own index names; see {page}, or try --revision")
    if status == 401 and with_token and (code == "" or "credentials" in said.lower()):
        return HubError(
            f"{endpoint} does not accept the token ({status}); give a valid one with --token or HF_TOKEN, "
            "from the hub's page of settings"
        )
    if code == "GatedRepo" or (status in (401, 403) and "gated" in said.lower()):
        return HubError(
            f"{of.repo} is gated ({status}): accept its terms at {page}, then give a token of that account "
            "with --token or HF_TOKEN"
        )
    if status == 403:
        return HubError(
            f"the token may not read {of.repo} ({status}); give one that may, with --token or HF_TOKEN"
        )
    if status in (401, 404):
        private = "" if with_token else ", and if it is private give a token with --token or HF_TOKEN"
        return HubError(
            f"there is no folder {str(of)!r} here, and {endpoint} shows no repository {of.repo} ({status}); "
            f"check the name{private}"
        )
    if status == 429:
        return HubError(
            f"{endpoint} asks to come back later ({status}); try again in some minutes, with a token"
        )
    why = f": {said[:_SHOWN]}" if said else ""
    return HubError(f"{endpoint} cannot answer now ({status}){why}; try again later")


def unreachable(error: Exception, endpoint: str, kept: bool) -> HubError:
    """The error for a network that is not there."""
    why = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
    instead = "; --offline uses the copy that is kept here" if kept else ""
    return HubError(f"{endpoint} cannot be reached ({why}); check the network and its proxy{instead}")


def unwritable(error: OSError, folder: Path) -> HubError:
    """The error for a cache that takes no more."""
    if error.errno in _FULL:
        return full(folder, "")
    return HubError(
        f"{folder} cannot be written: {error.strerror or error}; HF_HOME names another folder for what is "
        "fetched"
    )


def full(folder: Path, needed: str) -> HubError:
    """The error for a full disk; what has arrived stays."""
    missing = f", {needed} are needed" if needed else ""
    return HubError(
        f"the disk of {folder} is full{missing}; free space and give the same command again, which goes on "
        "from here, or name another folder with HF_HOME"
    )
