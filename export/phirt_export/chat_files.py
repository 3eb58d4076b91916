"""What a checkpoint says about text: its tokenizer.json, and its chat template wherever it keeps one.

Knows the files that published checkpoints use. Knows nothing of what a template means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phirt.errors import ConfigError
from phirt_export.containers import read_json

TOKENIZER_NAME = "tokenizer.json"
TEMPLATE_NAME = "chat_template.jinja"
_TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
_PROCESSOR_TEMPLATE_NAME = "chat_template.json"
_MAX_TEMPLATE_BYTES = 1 << 18
_DEFAULT = "default"


def require_tokenizer(folder: Path) -> Path:
    """The checkpoint's tokenizer.json.

    Raises:
        ConfigError: there is none.
    """
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no {TOKENIZER_NAME}, which a bundle needs; put it beside the weights"
        )
    return path


def read_template(folder: Path) -> str:
    """The checkpoint's chat template: chat_template.jinja, else what tokenizer_config.json has, else
    chat_template.json. Of several named ones, the one named "default".

    Raises:
        ConfigError: there is none, or it is no text of reasonable size.
    """
    template = _template_file(folder)
    for name in (_TOKENIZER_CONFIG_NAME, _PROCESSOR_TEMPLATE_NAME):
        if template is None and (folder / name).is_file():
            config = read_json(folder / name, f"fetch the checkpoint's own {name}")
            template = _default_of(config.raw("chat_template"))
    if template is None:
        raise ConfigError(
            f"{folder} holds no {TEMPLATE_NAME} and no 'chat_template' in {_TOKENIZER_CONFIG_NAME}, and a "
            f"bundle needs a chat template; put it beside the weights as {TEMPLATE_NAME}"
        )
    if len(template.encode("utf-8", "surrogatepass")) > _MAX_TEMPLATE_BYTES:
        raise ConfigError(f"the chat template in {folder} is larger than {_MAX_TEMPLATE_BYTES} bytes")
    return template


def _template_file(folder: Path) -> str | None:
    path = folder / TEMPLATE_NAME
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEMPLATE_BYTES + 1).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; fetch it again") from error


def _default_of(value: Any) -> str | None:
    """A template, or the default one of a list of {name, template}."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get(_DEFAULT)
    return value if isinstance(value, str) else None
