"""The text side of a bundle, read from a checkpoint and tried before any weight is: tokenizer, template,
names of special tokens, defaults of its answers.

Knows what the runtime needs of them. Knows nothing of weights.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers

from phirt.bundle.manifest import GenerationDefaults, Tokens
from phirt.errors import BundleError, ConfigError
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.messages import Message
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS
from phirt_export.chat_files import (
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    find_template,
    generation_defaults,
    has_names,
    plain_template,
    pruned_tokenizer,
    special_tokens,
)
from phirt_export.tokenizer_files.convert import find_tokenizer
from phirt_export.tokenizer_files.tekken import find_conversation_template

_SAID = Message("user", "Hello")
_TRIALS = (
    ("system message", (Message("system", "Be brief."), _SAID), None),
    ("second turn", (_SAID, Message("assistant", "Hi."), Message("user", "And now?")), None),
    ("tools (--tools)", (_SAID,), '[{"name": "weather", "description": "now", "parameters": {}}]'),
)


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """What a bundle takes from its checkpoint beside weights.

    `names` is what the template calls special tokens, None where those of the ids have their names; `notices`
    say in a line each what is left out or made up.
    """

    tokenizer: bytes
    template: str
    names: Mapping[str, str] | None
    generation: GenerationDefaults | None
    notices: tuple[str, ...]


def read_text_files(
    folder: Path, vocab_size: int, tokens: Tokens, placeholders: Mapping[str, int]
) -> TextFiles:
    """Everything but the weights.

    Raises:
        ConfigError, BundleError: there is no tokenizer, or it cannot serve; the template is broken, or asks
            for what it cannot get.
    """
    raw = pruned_tokenizer(folder, vocab_size)
    tokenizer = _opened(raw, folder, vocab_size, VISIBLE_TOKENS)
    generation, notices = generation_defaults(folder)
    if not (folder / TOKENIZER_NAME).is_file():
        notices.append(f"the tokenizer is made of {find_tokenizer(folder)}")
    names = special_tokens(folder) if has_names(folder) else None
    template = find_template(folder)
    if template is None and (template := find_conversation_template(folder)) is not None:
        notices.append("there is no chat template: it is the one of tekken.json's version, without tools")
    elif template is None:
        template = plain_template(_first_token(raw))
        notices.append(
            "there is no chat template: what is said is given to the model as plain text; put one beside the "
            f"weights as {TEMPLATE_NAME} for a model that was made for conversations"
        )
    notices += _try(ChatTemplate(template, tokenizer, tokens, placeholders, names), folder)
    return TextFiles(raw, template, names, generation, tuple(notices))


def open_tokenizer(folder: Path, vocab_size: int, visible: Iterable[str] = ()) -> Tokenizer:
    """The checkpoint's tokenizer as its bundle has it."""
    return _opened(pruned_tokenizer(folder, vocab_size), folder, vocab_size, visible)


def _opened(raw: bytes, folder: Path, vocab_size: int, visible: Iterable[str]) -> Tokenizer:
    path = folder / TOKENIZER_NAME
    if path.is_file() and path.read_bytes() == raw:  # messages then name the file that somebody has
        return Tokenizer(path, vocab_size, visible)
    with tempfile.TemporaryDirectory(prefix="phirt-tokenizer-") as made:
        (Path(made) / TOKENIZER_NAME).write_bytes(raw)
        return Tokenizer(Path(made) / TOKENIZER_NAME, vocab_size, visible)


def _first_token(raw: bytes) -> str:
    """What the tokenizer puts before a text by itself."""
    library = tokenizers.Tokenizer.from_buffer(raw)
    with_tokens, without = (library.encode("a", add_special_tokens=flag).ids for flag in (True, False))
    added = len(with_tokens) - len(without)
    begins = added > 0 and with_tokens[added:] == without
    return "".join(library.id_to_token(token) or "" for token in with_tokens[:added]) if begins else ""


def _try(template: ChatTemplate, folder: Path) -> list[str]:
    """Renders what conversations have; what the template has no place for is said now."""
    try:
        template.render([_SAID])
    except BundleError as error:
        raise ConfigError(
            f"{folder}: the chat template cannot render a question: {error}; put another beside the weights "
            f"as {TEMPLATE_NAME}"
        ) from error
    refused = []
    for what, messages, tools in _TRIALS:
        try:
            template.render(messages, tools)
        except BundleError:
            refused.append(what)
    return [f"the chat template takes no {what}; conversations must do without" for what in refused]
