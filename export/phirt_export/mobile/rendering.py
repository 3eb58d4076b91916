"""A chat template as fixed pieces, for hosts that have no template language.

Knows what a conversation is: a system message or none, then questions and answers in turn. The pieces that
stand before, between and behind what is said are found in what the template itself makes of such
conversations, and the whole is compared with the template on many others, media included. A template that
cannot be said like this is refused: no host ever shows a model something that it would not see from phirt.
Knows nothing of files or graphs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from phirt.bundle.manifest import Modality
from phirt.errors import BundleError, ConfigError
from phirt.prompt.chat_template import ChatTemplate, Part
from phirt.prompt.messages import Media, Message

Piece = str | int  # text, or the id of a control token
_Turn = Literal["system", "user", "assistant"]

# What is said in the conversations that pieces are found in: none of it can stand in a template.
_SAID: Mapping[_Turn, str] = {"system": "Ж0", "user": "Ж1", "assistant": "Ж2"}
_ROUNDS = 5
_AROUND = "\n  {} \t\n"
_ODD = (
    "",
    " ",
    "a",
    "  two  words \n",
    "<|end|>",
    "<think>so</think>so",
    "{{ x }}",
    "'s",
    "é\u0301",
    "\u3000x\u2028",
)


@dataclasses.dataclass(frozen=True)
class SystemPieces:
    """What stands around a system message, up to where the first question begins."""

    before: tuple[Piece, ...]
    behind: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Variant:
    """The pieces of conversations with media, of those without, or (`media` None) of all.

    Attributes:
        first: before the first question, where there is no system message.
        system: around one; None where the model takes none.
        reply: between a question and its answer.
        next: between an answer and the next question.
        empty: between two questions, of which the first got an answer without a word.
        answer: behind the last question.
    """

    media: bool | None
    first: tuple[Piece, ...]
    system: SystemPieces | None
    reply: tuple[Piece, ...]
    next: tuple[Piece, ...]
    empty: tuple[Piece, ...]
    answer: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Rendering:
    """The template: one variant for all conversations, or one with media and one without. `trims` says, by
    role, whether white space around what was said is left out.
    """

    variants: tuple[Variant, ...]
    trims: Mapping[_Turn, bool]

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """The conversation as a host lays it out. Raises ConfigError for a system message where none is
        taken.
        """
        has_media = any(message.media for message in messages)
        variant = next(one for one in self.variants if one.media in (None, has_media))
        if messages[0].role == "system" and variant.system is None:
            raise ConfigError("the model takes no system message")
        parts: list[Part] = []
        system = variant.system if messages[0].role == "system" else None
        _write(parts, variant.first if system is None else system.before)
        for index, message in enumerate(messages):
            said = self._said(message)
            if message.role == "assistant" and not said:
                _write(parts, variant.empty)
                continue
            parts += [*message.media, said]
            if index + 1 == len(messages):
                _write(parts, variant.answer)
            elif message.role == "system":
                assert system is not None
                _write(parts, system.behind)
            elif message.role == "assistant":
                _write(parts, variant.next)
            elif messages[index + 1].role == "user" or self._said(messages[index + 1]):
                _write(parts, variant.reply)
        return parts

    def _said(self, message: Message) -> Part:
        text = message.content
        if self.trims[_role(message)]:  # of what stands behind media only its end
            text = text.rstrip() if message.media else text.strip()
        whole = text == message.content
        return message.token_ids if whole and message.token_ids is not None else text


def fixed_rendering(template: ChatTemplate, placeholders: Mapping[str, tuple[Modality, int]]) -> Rendering:
    """The pieces of a bundle's template; `placeholders` are its encoders, by name: modality and token.

    Raises:
        ConfigError: the template makes something that fixed pieces cannot say.
    """
    items = [Media(name, modality, name, 2, None) for name, (modality, _) in placeholders.items()]
    plain = _variant(template, ())
    trims = {role: _trims(template, plain, role) for role in _SAID}
    variants: tuple[Variant, ...] = (dataclasses.replace(plain, media=None),)
    if items:
        with_media = _variant(template, items[:1])
        if dataclasses.replace(with_media, media=False) != plain:
            variants = (plain, with_media)
    rendering = Rendering(variants, trims)
    for messages in _conversations(items, plain.system is not None):
        _compare(template, rendering, messages)
    return rendering


def _variant(template: ChatTemplate, media: Sequence[Media]) -> Variant:
    """The pieces that this template has around conversations whose first question has these media."""

    def between(*roles: _Turn) -> list[tuple[Piece, ...]]:
        first = roles.index("user")
        messages = [
            Message(role, _SAID[role], tuple(media) if index == first else ())
            for index, role in enumerate(roles)
        ]
        return _segments(template, messages, [message.content for message in messages])

    first, reply, following, again, last, answer = between("user", "assistant", "user", "assistant", "user")
    if (again, last) != (reply, following):
        raise _refused("it writes the second answer in another way than the first")
    try:
        before, behind, _ = between("system", "user")
        system = SystemPieces(before, behind)
    except (
        BundleError,
        ConfigError,
    ):  # the template has no place for one, or one that is not before the question
        system = None
    empty = _between(
        template, [Message("user", "Ж1", tuple(media)), Message("assistant", ""), Message("user", "Ж3")]
    )
    return Variant(bool(media), first, system, reply, following, empty, answer)


def _segments(
    template: ChatTemplate, messages: Sequence[Message], said_in_order: Sequence[str]
) -> list[tuple[Piece, ...]]:
    """What the template writes before, between and behind what is said, in order."""
    segments: list[list[Piece]] = [[]]
    wanted = iter([*said_in_order, None])
    said = next(wanted)
    for part in template.render(messages):
        if isinstance(part, Media):
            continue
        if isinstance(part, str) and said is not None and str(part) == said:
            segments.append([])
            said = next(wanted)
        elif isinstance(part, str):
            if part:
                segments[-1].append(str(part))
        else:
            segments[-1] += part
    if said is not None:
        raise _refused("what is said does not stand in it in its order, as it was said")
    return [_joined(pieces) for pieces in segments]


def _between(template: ChatTemplate, messages: Sequence[Message]) -> tuple[Piece, ...]:
    """What stands between the first and the last of three messages, of which the second says nothing."""
    question, nothing, last = messages
    _, between, _ = _segments(template, [question, nothing, last], [question.content, last.content])
    return between


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The pieces with neighbouring text in one."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and isinstance(piece, str) and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return tuple(joined)


def _trims(template: ChatTemplate, plain: Variant, role: _Turn) -> bool:
    """Whether white space around what `role` says is left out."""
    if role == "system" and plain.system is None:
        return False
    roles: tuple[_Turn, ...] = ("system", "user") if role == "system" else ("user", "assistant", "user")
    messages = [Message(one, _SAID[one]) for one in roles]
    at = roles.index(role)
    messages[at] = Message(role, _AROUND.format(_SAID[role]))
    shown = "".join(part for part in template.render(messages) if isinstance(part, str))
    for trims in (False, True):
        trial = Rendering(
            (dataclasses.replace(plain, media=None),), {one: one == role and trims for one in _SAID}
        )
        if "".join(part for part in trial.parts(messages) if isinstance(part, str)) == shown:
            return trims
    raise _refused(f"it changes what the {role} says")


def _conversations(media: Sequence[Media], takes_system: bool) -> list[list[Message]]:
    """Many conversations of every shape: with and without a system message, one to four questions, media in
    any of them, and text that templates are known to look at.
    """
    conversations: list[list[Message]] = []
    odd = itertools.cycle(_ODD)
    groups: list[tuple[Media, ...]] = [(), *((item,) for item in media)]
    if len(media) > 1:
        groups.append(tuple(media))
    if media:
        groups.append((media[0], media[0]))
    systems = (False, True) if takes_system else (False,)
    # Again and again, so that each of the texts stands in each place.
    shapes = itertools.product(range(_ROUNDS), systems, range(1, 5), groups, range(4))
    for _, has_system, questions, group, place in shapes:
        if place and (not group or place >= questions):
            continue
        messages = [Message("system", next(odd) or "s")] if has_system else []
        for index in range(questions):
            if index:
                text = next(odd)
                messages.append(Message("assistant", text, token_ids=(5, 6, 5) if text else None))
            messages.append(Message("user", next(odd), group if index == place else ()))
        conversations.append(messages)
    return conversations


def _compare(template: ChatTemplate, rendering: Rendering, messages: Sequence[Message]) -> None:
    try:
        wanted = template.joined(template.render(messages))
    except BundleError as error:
        raise _refused(f"it fails for a conversation of {len(messages)} turns: {error}") from error
    if template.joined(rendering.parts(messages)) != wanted:
        raise _refused(f"it makes something else of a conversation of {len(messages)} turns")


def _refused(reason: str) -> ConfigError:
    return ConfigError(
        f"the chat template cannot be written as fixed pieces ({reason}), which is what apps take; export "
        "for cpu and use phirt's server, or give the checkpoint a simpler chat_template.jinja"
    )


def _write(parts: list[Part], pieces: Sequence[Piece]) -> None:
    parts += [piece if isinstance(piece, str) else (piece,) for piece in pieces]


def _role(message: Message) -> _Turn:
    assert message.role in ("system", "user", "assistant")
    return message.role


def as_document(rendering: Rendering) -> dict[str, Any]:
    """What host.json says of it."""
    variants = []
    for variant in rendering.variants:
        document = dataclasses.asdict(variant)
        variants.append({key: value for key, value in document.items() if value is not None})
    return {"variants": variants, "trims": dict(rendering.trims)}
