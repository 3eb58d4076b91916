"""Messages to token ids through the bundle's chat template.

Knows roles, templates and media placeholders. Knows nothing of encoders, the decoder or sampling.

The template sees what transformers would show it. What comes from outside is traced through it character by
character (`traced_text`); control tokens are recognised in what the template itself wrote and nowhere else,
and the text between two of them is encoded in one piece, as if the whole prompt were. So typed control
tokens and typed `<|image_1|>` markers stay plain text, and an answer that the template leaves whole returns
to the next prompt as the ids that were generated, which keeps the cache valid.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2.meta
import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import Tokens
from phirt.errors import BundleError
from phirt.prompt.messages import Media, Message, Role
from phirt.prompt.template_language import TemplateLanguage, read_names
from phirt.prompt.template_messages import Content, Reads, ShownMessages
from phirt.prompt.tokenizer import WHITESPACE, Tokenizer
from phirt.prompt.traced_text import CHANGED, TEMPLATE, pieces_in, plain, spans_of

_MAX_TEMPLATE_CHARACTERS = 1 << 16


Part = str | Media | tuple[int, ...]  # text to encode, one of the media, ids


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A prompt: ids int64 [T] with placeholders in place, and where each of the media starts."""

    ids: npt.NDArray[np.int64]
    media: tuple[tuple[int, Media], ...]


class ChatTemplate:
    """A bundle's jinja template, compiled once in a sandbox. Raises BundleError where it is broken.

    `placeholders` has the token that stands for a row of features, by the encoder's name; `names` what the
    template calls special tokens, by default `bos_token` and `eos_token` as `tokens` has them.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        tokens: Tokens,
        placeholders: Mapping[str, int] = types.MappingProxyType({}),
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._program = Program(source)
        self._tokenizer = tokenizer
        self._placeholders = placeholders
        self._names = _names_of_ids(tokenizer, tokens) if names is None else dict(names)

    @property
    def tool_role(self) -> Role:
        """The role of a turn with tools' results: "tool_response" where the tokenizer has
        `<|tool_response|>`, as Phi-4's has, else "tool", which other families' templates know.
        """
        return "tool" if self._tokenizer.id_of("<|tool_response|>") is None else "tool_response"

    @property
    def takes_tools(self) -> bool:
        """Whether the template has a place for tools."""
        return "tools" in self._program.names

    def encode(self, messages: Sequence[Message], tools: str | None = None) -> Encoded:
        """Ids of the conversation up to where the assistant answers."""
        ids: list[int] = []
        media = []
        for part in self.joined(self.render(messages, tools)):
            if isinstance(part, Media):
                media.append((len(ids), part))
                ids.extend([self._placeholders[part.encoder]] * part.num_tokens)
            elif isinstance(part, str):
                ids.extend(self._tokenizer.encode_content(part, begins=not ids))
            else:
                ids.extend(part)
        if not ids:
            raise BundleError("the chat template makes an empty prompt; export the bundle again")
        return Encoded(np.array(ids, dtype=np.int64), tuple(media))

    def render(self, messages: Sequence[Message], tools: str | None = None) -> list[Part]:
        """The conversation as text, control tokens and media in a row. Raises BundleError where the template
        loses something of it.
        """
        shown = ShownMessages(messages, tools, self._program.reads, self._tokenizer.decode)
        text = self._program.render(shown, self._names)
        parts = self._parts(text, shown)
        wanted = [item for message in messages for item in message.media]
        if [part for part in parts if isinstance(part, Media)] != wanted:
            raise BundleError("the chat template drops, repeats or reorders media; export the bundle again")
        if not shown.required <= pieces_in(text).keys():
            raise BundleError(
                "the chat template drops a message, or the tools; leave out what it has no place for (a "
                "system message, tools), or export the bundle with another template"
            )
        return parts

    def _parts(self, text: str, shown: ShownMessages) -> list[Part]:
        """The rendered text cut where its origin changes, the template's own at its control tokens."""
        parts: list[Part] = []
        characters, at = plain(text), 0
        for span in spans_of(text):
            piece = characters[at : at + span.length]
            at += span.length
            if span.piece == TEMPLATE:
                parts += [
                    (one,) if isinstance(one, int) else one for one in self._tokenizer.split_control(piece)
                ]
                continue
            source = shown.pieces[span.piece]
            if isinstance(source, Media):
                parts += [source] if span.length else []
            elif source.token_ids is None or span.start == CHANGED:
                parts.append(piece)
            elif (span.start, span.length) == (0, len(source.text)):
                parts.append(source.token_ids)
            else:
                parts += self._part_of_answer(source, span.start, piece)
        return parts

    def _part_of_answer(self, answer: Content, start: int, text: str) -> list[Part]:
        """What a template has left of an answer: the control tokens in it are those that were generated."""
        parts: list[Part] = []
        at = 0
        for first, last, token in self._tokenizer.control_places(answer.token_ids or ()):
            name = answer.text[first:last]
            if start <= first and last - start <= len(text) and text[first - start : last - start] == name:
                parts += [text[at : first - start], (token,)]
                at = last - start
        return [*parts, text[at:]]

    def joined(self, parts: Sequence[Part]) -> list[Part]:
        """The parts of `render` with everything between two control tokens as one text: what is encoded.

        Some control tokens swallow the whitespace beside them, whoever wrote it.
        """
        joined: list[Part] = []
        for part in parts:
            last = joined[-1] if joined else ""
            if isinstance(part, str):
                if isinstance(last, tuple) and self._tokenizer.trims_after(last[-1]):
                    part = part.lstrip(WHITESPACE)
                if isinstance(last, str) and joined:
                    joined[-1] = last + part
                elif part:
                    joined.append(str(part))
            elif isinstance(part, Media) or part:
                trims = isinstance(part, tuple) and self._tokenizer.trims_before(part[0])
                if trims and isinstance(last, str) and joined:
                    joined[-1] = last.rstrip(WHITESPACE)
                joined.append(part)
        return joined


class Program:
    """A compiled template: what it reads, and what it makes of messages. Raises BundleError where it is
    broken.
    """

    def __init__(self, source: str) -> None:
        if len(source) > _MAX_TEMPLATE_CHARACTERS:
            raise BundleError(
                f"the chat template is longer than {_MAX_TEMPLATE_CHARACTERS} characters; export the bundle "
                "again"
            )
        language = _language()
        try:
            self._template = language.from_string(source)
            self.names = read_names(source, language)
            variables = jinja2.meta.find_undeclared_variables(language.parse(source))
        except Exception as error:  # also what Python says about the code that it becomes
            raise BundleError(f"the chat template is broken: {error}; export the bundle again") from error
        self.reads = Reads(
            tools="tools" in variables,
            tool_calls="tool_calls" in self.names,
            functions="function" in self.names,
        )

    def render(self, shown: ShownMessages, names: Mapping[str, str], generation_prompt: bool = True) -> str:
        """What transformers would make of the conversation, traced."""
        try:
            try:
                return self._rendered(shown.messages(), shown.tools, names, generation_prompt)
            except TypeError:  # templates of some families take the arguments of a call as text
                return self._rendered(
                    shown.messages(text_arguments=True), shown.tools, names, generation_prompt
                )
        except Exception as error:  # whatever expressions in a template can raise
            raise BundleError(f"the chat template fails: {error}; export the bundle again") from error

    def _rendered(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, names: Mapping[str, str], prompt: bool
    ) -> str:
        variables = {**names, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        return self._template.render(messages=messages, **variables)


@functools.cache
def _language() -> TemplateLanguage:
    return TemplateLanguage()


def _names_of_ids(tokenizer: Tokenizer, tokens: Tokens) -> dict[str, str]:
    return {
        "bos_token": tokenizer.name_of(tokens.bos),
        # Of several ids that end an answer, the one that ends a text; Phi-4 begins texts with it as well.
        "eos_token": tokenizer.name_of(tokens.bos if tokens.bos in tokens.eos else tokens.eos[0]),
    }
