"""What a checkpoint says about text: its tokenizer, its chat template wherever it keeps one, the names of its
special tokens, and how it wants its answers chosen.

Knows the files that published checkpoints use. Knows nothing of what a template means, nor of how tokenizers
of other kinds become a tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phirt.bundle.manifest import GenerationDefaults
from phirt.errors import ConfigError
from phirt.fields import Fields, parse_json, read_dataclass
from phirt_export.containers import read_json
from phirt_export.tokenizer_files.convert import converted, find_tokenizer, ids_by_name

TOKENIZER_NAME = "tokenizer.json"
TEMPLATE_NAME = "chat_template.jinja"
GENERATION_NAME = "generation_config.json"
_TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
_SPECIAL_TOKENS_NAME = "special_tokens_map.json"
_PROCESSOR_TEMPLATE_NAME = "chat_template.json"
_MAX_TEMPLATE_BYTES = 1 << 18
_MAX_TOKENIZER_BYTES = 256 << 20
_DEFAULT, _TOOL_USE = "default", "tool_use"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Of the classes that leave them out of their files.
_CLASS_TOKENS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}


def require_tokenizer(folder: Path) -> Path:
    """The checkpoint's tokenizer.json itself, for who changes it. Raises ConfigError where there is none."""
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise ConfigError(f"{folder} holds no {TOKENIZER_NAME}, which this needs; put it beside the weights")
    return path


def tokenizer_bytes(folder: Path) -> bytes:
    """The checkpoint's tokenizer.json; one that is made of what it has in its place.

    Raises:
        ConfigError: there is no tokenizer, or none that can be read.
    """
    path = folder / TOKENIZER_NAME
    try:
        return path.read_bytes() if path.is_file() else converted(folder, special_tokens(folder))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}; fetch it again") from error


def has_names(folder: Path) -> bool:
    """Whether the checkpoint has files that name its special tokens."""
    return any((folder / name).is_file() for name in (_TOKENIZER_CONFIG_NAME, _SPECIAL_TOKENS_NAME))


def special_tokens(folder: Path) -> dict[str, str]:
    """The names of special tokens that templates know, as transformers has them: of tokenizer_config.json,
    else of special_tokens_map.json, else of the tokenizer's class.
    """
    config, older = _document(folder, _TOKENIZER_CONFIG_NAME), _document(folder, _SPECIAL_TOKENS_NAME)
    kind = config.raw("tokenizer_class")
    names = dict(_CLASS_TOKENS.get(kind.removesuffix("Fast"), {}) if isinstance(kind, str) else {})
    for fields in (older, config):
        for key in _SPECIAL:
            if key in fields:
                names.pop(key, None)
                value = fields.raw(key)
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str) and text:
                    names[key] = text
    return names


def token_id(folder: Path, name: str | None) -> int | None:
    """The id of a token of the checkpoint's tokenizer; None where it has no such token."""
    if name is None or not ((folder / TOKENIZER_NAME).is_file() or find_tokenizer(folder)):
        return None
    document = _tokenizer_document(folder, tokenizer_bytes(folder))
    added, model = document.raw("added_tokens"), document.raw("model")
    found = {entry.get("content"): entry.get("id") for entry in added or [] if isinstance(entry, dict)}
    if isinstance(model, dict):
        found = ids_by_name(model) | found
    index = found.get(name)
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def pruned_tokenizer(folder: Path, vocab_size: int) -> bytes:
    """The checkpoint's tokenizer.json without the tokens past the vocabulary, which the model has no rows
    for, such as a <pad> that was added and never trained.
    """
    raw = tokenizer_bytes(folder)
    document = _tokenizer_document(folder, raw)
    added = document.raw("added_tokens")
    if not isinstance(added, list):
        return raw
    kept = [entry for entry in added if not _is_past(entry, vocab_size)]
    if len(kept) == len(added):
        return raw
    pruned = dict(document.items()) | {"added_tokens": kept}
    return json.dumps(pruned, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _tokenizer_document(folder: Path, raw: bytes) -> Fields:
    where, remedy = str(folder / TOKENIZER_NAME), _fetch(TOKENIZER_NAME)
    if len(raw) > _MAX_TOKENIZER_BYTES:
        raise ConfigError(f"{where} is larger than {_MAX_TOKENIZER_BYTES} bytes; {remedy}")
    return Fields(parse_json(raw, where, ConfigError, remedy), where, ConfigError, remedy)


def _is_past(entry: Any, vocab_size: int) -> bool:
    index = entry.get("id") if isinstance(entry, dict) else None
    return isinstance(index, int) and index >= vocab_size


def generation_defaults(folder: Path) -> tuple[GenerationDefaults | None, list[str]]:
    """How the checkpoint wants its answers chosen, and what of that is left out, one line each."""
    fields = _document(folder, GENERATION_NAME)
    keys = ["repetition_penalty"]
    notices = []
    sampled = [key for key in ("temperature", "top_p", "top_k", "min_p") if fields.has(key)]
    if fields.raw("do_sample") is False:
        if sampled:
            notices.append(f"{GENERATION_NAME} says do_sample false: its {', '.join(sampled)} are left out")
    else:
        keys += sampled
    given = {key: fields.raw(key) for key in keys if fields.has(key)}
    if fields.raw("do_sample") is True:
        given.setdefault("temperature", 1.0)
    if not given:
        return None, notices
    found = Fields(given, fields.where, ConfigError, _fetch(GENERATION_NAME))
    return read_dataclass(GenerationDefaults, found), notices


def read_template(folder: Path) -> str:
    """The checkpoint's chat template: chat_template.jinja, else what tokenizer_config.json has, else
    chat_template.json. Of several named ones, the one named "default", and with tools the one named
    "tool_use".

    Raises:
        ConfigError: there is none, or it is no text of reasonable size.
    """
    template = find_template(folder)
    if template is None:
        raise ConfigError(
            f"{folder} holds no {TEMPLATE_NAME} and no 'chat_template' in {_TOKENIZER_CONFIG_NAME}, and this "
            f"needs a chat template; put it beside the weights as {TEMPLATE_NAME}"
        )
    return template


def find_template(folder: Path) -> str | None:
    """The checkpoint's chat template, or None where it has none. Raises ConfigError as `read_template`."""
    template = _template_file(folder)
    for name in (_TOKENIZER_CONFIG_NAME, _PROCESSOR_TEMPLATE_NAME):
        if template is None:
            template = _chosen(_document(folder, name).raw("chat_template"))
    if template is not None and len(template.encode("utf-8", "surrogatepass")) > _MAX_TEMPLATE_BYTES:
        raise ConfigError(f"the chat template in {folder} is larger than {_MAX_TEMPLATE_BYTES} bytes")
    return template


def plain_template(first: str) -> str:
    """The template of a model that knows no turns: what was said, behind the token that begins a text."""
    begin = "{{ " + json.dumps(first, ensure_ascii=False) + " }}" if first else ""
    said = "{{ message.content }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    return begin + "{% for message in messages %}" + said + "{% endfor %}"


def _document(folder: Path, name: str) -> Fields:
    """A JSON file of the folder; an empty one where it is not there."""
    if not (folder / name).is_file():
        return Fields({}, str(folder / name), ConfigError, _fetch(name))
    return read_json(folder / name, _fetch(name))


def _fetch(name: str) -> str:
    return f"fetch the checkpoint's own {name}"


def _template_file(folder: Path) -> str | None:
    path = folder / TEMPLATE_NAME
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEMPLATE_BYTES + 1).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; fetch it again") from error


def _chosen(value: Any) -> str | None:
    """A template, or one made of a list of {name, template}: the default one, else the first that is for no
    tools or documents; with tools the one that is for them.
    """
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    named: dict[str, str] = {}
    for entry in value:
        name, text = (entry.get(key) if isinstance(entry, dict) else None for key in ("name", "template"))
        if isinstance(name, str) and isinstance(text, str):
            named[name] = text
    tools = named.get(_TOOL_USE)
    others = [text for name, text in named.items() if name not in (_TOOL_USE, "rag")]
    plain = named.get(_DEFAULT) or next(iter(others), None)
    if plain is None or tools is None or plain == tools:
        return plain or tools
    # A tag takes the line break behind it, and spaces alone in a line before it; neither is the tag's here.
    first, second = (text.removesuffix("\n") + "{{ '' }}" for text in (tools, plain))
    return "{% if tools %}\n" + first + "{% else %}\n" + second + "{% endif %}"
