"""What was measured before: figures that cost minutes each, kept in a file as soon as they are known.

A search or a sweep that is started again with the same file asks for the same figures and gets the known ones
at once, so it continues where it was cut off and ends with the same result.

Knows keys and numbers. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError


class Measured:
    """Numbers by key, in a file of JSON lines, or in memory alone where `path` is None. `identity` names all
    that the numbers depend on.

    Raises:
        ConfigError: the file holds figures of something else, is damaged, or cannot be read.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path, self._identity = path, identity
        self._known: dict[str, float] = {}
        if path is not None and path.exists():
            self._read(path)

    def value(self, key: object, measure: Callable[[], float]) -> float:
        """The number of a key (any JSON value): a known one, or what `measure` gives, which is kept. What is
        no number counts as infinite.
        """
        name = json.dumps(key)
        if name not in self._known:
            number = float(measure())
            self._known[name] = number if math.isfinite(number) else math.inf
            self._append(key, self._known[name])
        return self._known[name]

    def _append(self, key: object, number: float) -> None:
        if self._path is None:
            return
        line: dict[str, Any] = {"key": key, "value": number if math.isfinite(number) else None}
        head = "" if self._path.exists() else json.dumps({"identity": self._identity}) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{head}{json.dumps(line)}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error}") from error

    def _read(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]  # a line that a crash cut off has no end
            if whole != raw:
                os.truncate(path, len(whole))
            if not whole:
                path.unlink()
                return
            head, *lines = map(json.loads, whole.decode("utf-8").splitlines())
            identity = head["identity"]
            found = {json.dumps(line["key"]): line["value"] for line in lines}
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{path} holds no figures of an earlier run: {error!r}; delete it") from error
        if identity != self._identity:
            raise ConfigError(
                f"{path} holds figures of another run ({identity!r:.80}, now {self._identity!r:.80}); name "
                "another file, or delete it"
            )
        self._known = {key: math.inf if value is None else float(value) for key, value in found.items()}
