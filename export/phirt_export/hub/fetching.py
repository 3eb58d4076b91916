"""From an id to a checkpoint's folder: what is missing is fetched into the hub's cache, the rest is there.

Knows the order of work, and what whoever waits is told. Requests are `connection`'s matter, files `cache`'s.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Protocol

from phirt_export.containers import INDEX_NAME, read_json
from phirt_export.hub import selection
from phirt_export.hub.cache import Cache, RemoteFile
from phirt_export.hub.connection import Connection, Patience, endpoint, library
from phirt_export.hub.errors import HubError
from phirt_export.hub.names import HubId

_MAX_INDEX_BYTES = 16 << 20
_PATIENT = Patience()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fetched: bytes of how many files, how many of those are here already, and where they go."""

    endpoint: str
    files: int
    total: int
    there: int
    folder: Path


@dataclasses.dataclass(frozen=True)
class Step:
    """How far it is: the file that arrives, the how many-th, and bytes of all of them."""

    file: str
    number: int
    files: int
    done: int
    total: int
    there: int


class Observer(Protocol):
    """Who is told what goes on."""

    def asks(self, of: HubId, endpoint: str) -> None:
        """The first connection is opened next."""

    def fetches(self, plan: Plan) -> None:
        """It is known what is missing."""

    def arrives(self, step: Step) -> None:
        """More has arrived."""

    def waits(self, why: str, seconds: float) -> None:
        """The hub or the network needs a pause."""


def require_library(of: HubId) -> None:
    """Raises HubError where the hub's library is too old to fetch with, as the extra `optimum` needs it."""
    installed = [importlib.util.find_spec(name) is not None for name in ("huggingface_hub", "httpx2")]
    if installed == [True, False]:
        raise HubError(
            f"{of} is no folder, and ids are not fetched where the extra optimum is installed, whose "
            "huggingface_hub is older: 'phirt export' fetches it where the extra export is; then say "
            "--offline here, or give the folder"
        )


def is_offline() -> bool:
    """Whether this process was told by HF_HUB_OFFLINE to open no connection."""
    library()
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def kept(of: HubId) -> Path:
    """The checkpoint of an id, or the one file that it means, as it is kept on this machine; opens no
    connection.

    Raises:
        HubError: it is not kept, or not whole.
    """
    cache = _cache(of)
    found = cache.kept()
    if found is None:
        raise HubError(
            f"{of} is no folder, and no whole copy of revision {of.revision!r} is kept in {cache.folder}; "
            "leave --offline out once, and it is fetched"
        )
    return found


def fetch(of: HubId, observer: Observer, token: str | None = None, patience: Patience = _PATIENT) -> Path:
    """The checkpoint of an id, or the one file that it means, in the hub's cache; only what is missing there
    is fetched, and checked. Interrupted, what has arrived stays, and the next call goes on from there.

    Raises:
        HubError: the hub cannot be reached, shows no such repository or nothing that can be exported; what
            arrives is damaged; or the disk is full.
    """
    cache = _cache(of)
    observer.asks(of, endpoint())
    connection = Connection(of, token, patience, observer.waits, kept=cache.kept() is not None)
    commit, files = connection.listing()
    cache.snapshot(commit)
    wanted = _wanted(of, cache, connection, commit, files)
    total, missing = sum(file.size for file in wanted), sum(cache.missing(file) for file in wanted)
    observer.fetches(Plan(connection.endpoint, len(wanted), total, total - missing, cache.folder))
    cache.require_space(missing)
    done, there = 0, total - missing
    for number, file in enumerate(wanted, 1):
        step = Step(file.name, number, len(wanted), done, total, there)
        _bring(file, cache, connection, commit, observer, step)
        cache.link(file, commit)
        done += file.size
        observer.arrives(dataclasses.replace(step, done=done))
    cache.remember(commit)
    folder = cache.snapshot(commit)
    return folder if of.file is None else folder / of.file


def _wanted(
    of: HubId, cache: Cache, connection: Connection, commit: str, files: dict[str, RemoteFile]
) -> list[RemoteFile]:
    """The files of an export; small ones first, so that a mistake shows before the weights come."""
    if of.file is not None:
        return [files[name] for name in selection.gguf_files(files, of)]
    shards: list[str] = []
    if selection.needs_index(files):
        index = files[INDEX_NAME]
        if index.size > _MAX_INDEX_BYTES:
            raise HubError(f"{INDEX_NAME} of {of.repo} is larger than {_MAX_INDEX_BYTES} bytes")
        _bring(index, cache, connection, commit)
        placed = read_json(cache.link(index, commit), "the publisher has to mend it").raw("weight_map")
        shards = sorted({str(shard) for shard in placed.values()}) if isinstance(placed, dict) else []
    names = [*selection.documents(files), *selection.weights(files, shards, of)]
    return [files[name] for name in names]


def _bring(
    file: RemoteFile,
    cache: Cache,
    connection: Connection,
    commit: str,
    observer: Observer | None = None,
    before: Step | None = None,
) -> None:
    """Fetches a file that is not there yet."""
    if cache.has(file):
        return

    def arrived(size: int) -> None:
        if observer is not None and before is not None:
            observer.arrives(dataclasses.replace(before, done=before.done + size))

    with cache.arriving(file) as arrival:
        arrived(arrival.size)
        connection.fill(arrival, commit, arrived)


def _cache(of: HubId) -> Cache:
    library()
    from huggingface_hub import constants

    return Cache(Path(constants.HF_HUB_CACHE), of)
