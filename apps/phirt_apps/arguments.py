"""What a command line says, as the runtime takes it: the prompt or piped text, the tool list, the settings.

Knows strings, stdin and small text files. Does not know models. Everything is checked and bounded here, once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import ConfigError

from .errors import UsageError

if TYPE_CHECKING:
    import phirt

MAX_PROMPT_BYTES = 4_000_000
MAX_TOOLS_BYTES = 1_000_000


def valid_text(text: str) -> str:
    """The text itself. Raises ConfigError when the terminal or the shell passed bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError("the text is not valid UTF-8; set the terminal or the shell to UTF-8") from error
    return text


def piped_text() -> str | None:
    """All of stdin without its last newline when it is not a terminal, else None.

    Raises ConfigError for more than MAX_PROMPT_BYTES or for bytes that are not UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return None
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise ConfigError(
            f"the text on standard input is too long; at most {MAX_PROMPT_BYTES:,} bytes are read"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the text on standard input is not UTF-8 (byte {error.start}); convert it first"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


def tool_list(path: Path | None) -> list[dict[str, Any]] | None:
    """The tools of a JSON file: a list of objects, each with a `name`. Raises ConfigError otherwise."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOOLS_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the tools {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if len(data) > MAX_TOOLS_BYTES:
        raise ConfigError(f"the tools {path} are too long; at most {MAX_TOOLS_BYTES:,} bytes are read")
    try:
        tools = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the tools {path} are not JSON: {error}") from error
    if not isinstance(tools, list) or not all(
        isinstance(t, dict) and isinstance(t.get("name"), str) for t in tools
    ):
        raise ConfigError(
            f'the tools {path} must be a list of objects with a "name", such as [{{"name": "search"}}]'
        )
    return tools


def generation_config(**settings: Any) -> phirt.GenerationConfig:
    """The settings of a request; a value outside its range is wrong usage."""
    import phirt

    try:
        return phirt.GenerationConfig(**settings)
    except ConfigError as error:
        raise UsageError(str(error)) from error
