"""What a command line says, as the runtime takes it: the message with what is piped in, tools, settings.

Knows strings and small text files. Does not know models. Everything is checked and bounded here, once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import ConfigError

from . import stdin
from .errors import UsageError
from .output import Output
from .text_files import read_text_file

if TYPE_CHECKING:
    import phirt

MAX_PROMPT_BYTES = 4_000_000
MAX_MEDIA_BYTES = 1 << 30  # what a model takes of it, the model knows
STDIN = "-"
MAX_TOOLS_BYTES = 1_000_000
MAX_SCHEMA_BYTES = 1_000_000


def valid_text(text: str) -> str:
    """The text itself. Raises ConfigError when the terminal or the shell passed bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError("the text is not valid UTF-8; set the terminal or the shell to UTF-8") from error
    return text


@dataclass(frozen=True)
class Inputs:
    """What a message is made of; media are files, or the bytes of standard input.

    `text` is None where nothing was said, and somebody at a terminal may say something yet.
    """

    text: str | None
    images: tuple[Path | bytes, ...]
    audio: tuple[Path | bytes, ...]


def gather(
    prompt: str | None, images: Sequence[Path] | None, audio: Sequence[Path] | None, out: Output
) -> Inputs:
    """The parts of a message, with what is on standard input.

    A `-` stands for standard input, in the place of the prompt, of an image or of a recording. Otherwise what
    is piped in is text: the prompt itself, or what follows it behind an empty line.

    Raises UsageError where standard input is wanted twice, ConfigError for text that is none.
    """
    wanted = ["the prompt"] * (prompt == STDIN)
    wanted += ["--image"] * list(map(str, images or ())).count(STDIN)
    wanted += ["--audio"] * list(map(str, audio or ())).count(STDIN)
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(wanted)} cannot all be standard input; it can be read only once")
    if wanted and prompt != STDIN:
        data = piped_file(out)
        return Inputs(valid_text(prompt or ""), _replaced(images, data), _replaced(audio, data))
    return Inputs(_text(prompt, bool(images or audio), out), tuple(images or ()), tuple(audio or ()))


def _text(prompt: str | None, media: bool, out: Output) -> str | None:
    """The prompt, and what is piped in."""
    if stdin.is_terminal() and prompt != STDIN:
        return None if prompt is None else valid_text(prompt)
    alone = prompt == STDIN or (prompt is None and not media)  # nothing else says what to answer
    piped = stdin.read_text(out, MAX_PROMPT_BYTES, required=alone) or ""
    if alone:
        return piped
    return valid_text("\n\n".join(part for part in (prompt or "", piped) if part.strip()))


def piped_file(out: Output) -> bytes:
    """The bytes of a picture or a recording on standard input. Raises UsageError where that is a terminal."""
    if stdin.is_terminal():
        raise UsageError(
            "- is standard input, which is the terminal here; pipe a file into phirt, or name one"
        )
    return stdin.read_bytes(out, MAX_MEDIA_BYTES, required=True) or b""


def _replaced(paths: Sequence[Path] | None, data: bytes) -> tuple[Path | bytes, ...]:
    return tuple(data if str(path) == STDIN else path for path in paths or ())


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

    def has_name(tool: Any) -> bool:
        return isinstance(tool, dict) and isinstance(tool.get("name"), str)

    try:
        tools = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the tools {path} are not JSON: {error}") from error
    if not isinstance(tools, list) or not all(
        isinstance(t, dict) and (has_name(t) or has_name(t.get("function"))) for t in tools
    ):
        raise ConfigError(
            f'the tools {path} must be a list of objects with a "name", such as [{{"name": "search"}}]'
        )
    return tools


def schema_document(path: Path) -> Any:
    """What the file of a JSON schema holds. Raises ConfigError where that is no JSON."""
    text = read_text_file(path, "the schema", MAX_SCHEMA_BYTES)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the schema {path} is not JSON: {error}") from error


def generation_settings(**settings: Any) -> dict[str, Any]:
    """The settings of a request that are given; the model has its own for the others. A value outside its
    range is wrong usage.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    generation_config(**given)
    return given


def generation_config(**settings: Any) -> phirt.GenerationConfig:
    """The settings of a request; a value outside its range is wrong usage."""
    import phirt

    try:
        return phirt.GenerationConfig(**settings)
    except ConfigError as error:
        raise UsageError(str(error)) from error
