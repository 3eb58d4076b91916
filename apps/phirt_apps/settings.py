"""A user's own defaults: one TOML file, and environment variables that stand over it.

Knows the file, its keys and its place. Does not know options: what a command line says goes before all of
this, and the library that reads it asks `Defaults`.

    key = value               any field of Settings but the last
    [models]                  names of bundles
    phi4 = "/home/me/phi4"
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from phirt.errors import ConfigError, PhirtError
from phirt.fields import Fields, Matching, Range, read_dataclass

from .home import expand_home
from .text_files import read_text_file

EMBEDDED = "mini"  # the model that comes with phirt; `phirt.model` takes longer to import
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_MAX_BYTES = 1_000_000
_LOCK_SECONDS = 10.0
_REMEDY = "correct it, or remove the line"
_BIG = 1 << 40

_log = logging.getLogger("phirt.settings")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the file may say. Each field but `models` is the default of the option of its name, and can be set
    by the environment variable PHIRT_ with its name in capitals.
    """

    model: str | None = None
    provider: str | None = None
    threads: Annotated[int, Range(1, 1024)] | None = None
    system: str | None = None
    max_new_tokens: Annotated[int, Range(1, _BIG)] | None = None
    temperature: Annotated[float, Range(0, 1000)] | None = None
    top_p: Annotated[float, Range(0, 1)] | None = None
    top_k: Annotated[int, Range(0, _BIG)] | None = None
    min_p: Annotated[float, Range(0, 1)] | None = None
    repetition_penalty: Annotated[float, Range(0.01, 100)] | None = None
    seed: Annotated[int, Range(0, _BIG)] | None = None
    image_detail: Literal["low", "auto", "high"] | None = None
    plain: bool | None = None
    history: bool | None = None
    embedder: str | None = None
    models: Mapping[str, Annotated[str, Matching(".+", "a folder")]] = dataclasses.field(default_factory=dict)


KEYS = tuple(field.name for field in dataclasses.fields(Settings) if field.name != "models")
# Options whose name is another one.
_OPTIONS = {"bundle": "model"}


def variable(key: str) -> str:
    """The environment variable of a key."""
    return f"PHIRT_{key.upper()}"


def settings_path() -> Path | None:
    """Where the file lies, or would: PHIRT_CONFIG, or the place for it in the user's folder. None where this
    user has no folder (no HOME, and no entry among the system's users).
    """
    given = os.environ.get("PHIRT_CONFIG")
    if given:
        return expand_home(given)
    import platformdirs

    try:
        path = platformdirs.user_config_path("phirt", appauthor=False) / "config.toml"
    except (OSError, RuntimeError):
        return None
    return path if path.is_absolute() else None


def load_settings() -> Settings:
    """What the file says; nothing where there is none. Raises ConfigError, in one line with its number."""
    path = settings_path()
    try:
        if path is None or not path.exists():
            return Settings()
        path.open("rb").close()
    except PermissionError as error:
        if os.environ.get("PHIRT_CONFIG"):
            raise ConfigError(f"cannot read the settings in {path}: {error.strerror}") from error
        _log.warning("the settings in %s are not used: %s", path, error.strerror)  # as under a borrowed HOME
        return Settings()
    return _parse(read_text_file(path, "the settings in", _MAX_BYTES), path)


def _parse(text: str, path: Path) -> Settings:
    import tomllib

    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}; {_REMEDY}") from error
    return read_dataclass(Settings, Fields(document, str(path), ConfigError, _REMEDY, closed=True))


def change_settings(change: Callable[[Any], None]) -> Path:
    """Lets `change` alter the document, and writes it as one whole; comments stay. Returns the file.

    Raises ConfigError where the result would not be accepted, or cannot be written.
    """
    import filelock
    import tomlkit

    from phirt.runtime.atomic_file import write_text

    path = settings_path()
    if path is None:
        raise ConfigError("this user has no folder for settings; name a file in PHIRT_CONFIG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is no file, so settings cannot be kept there")
        with filelock.FileLock(path.with_name(f"{path.name}.lock"), timeout=_LOCK_SECONDS):
            text = read_text_file(path, "the settings in", _MAX_BYTES) if path.exists() else ""
            _parse(text, path)  # a broken file is said to be one in the usual words
            document = tomlkit.parse(text)
            change(document)
            written = tomlkit.dumps(document)
            _parse(written, path)
            write_text(path, written)
    except (OSError, filelock.Timeout) as error:
        reason = getattr(error, "strerror", None) or "another process holds it"
        raise ConfigError(f"the settings in {path} cannot be written: {reason}") from error
    return path


def parsed(key: str, text: str) -> Any:
    """A value as a command line gives it, in the type that the key asks for. What is none stays text, and is
    refused where the document is read.
    """
    hint = str(get_type_hints(Settings)[key])
    if "bool" in hint and text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        if kind.__name__ in hint:
            try:
                return kind(text)
            except ValueError:
                continue
    return text


class Defaults(dict[str, Any]):
    """The defaults of a command's options, as the library that reads the command line asks for them.

    The file is read at the first question, and what is wrong with it is kept in `error`, so that `--help`
    works all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: PhirtError | None = None
        self._settings: Settings | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """The user's default of an option; None where there is none."""
        key = _OPTIONS.get(name, name)
        if key not in KEYS:
            return default
        if self._settings is None:
            try:
                self._settings = load_settings()
            except PhirtError as error:
                self.error, self._settings = error, Settings()
        return getattr(self._settings, key)
