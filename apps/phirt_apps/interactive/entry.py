"""What a person has typed: a message, a command, or a command that was mistyped.

Knows the commands' names and how people write. Does not know what commands do.

A message may begin with a slash: `/etc/hosts is what?` and `/ is the root` are messages. `//word` sends
`/word`, and text between triple quotes is sent as it stands.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

QUOTES = '"""'
_WORD = re.compile(r"/([a-z]+|\?)", re.IGNORECASE)
_TEXT_HAS = re.compile(r"[.,;:!?]|\s\S+\s+\S+\s+\S")  # punctuation, or three words behind the first
_ALIKE = 0.6  # of difflib: /hlep is 0.75 like /help, /picture 0.43 like /quit


@dataclass(frozen=True)
class Message:
    """Text for the model. Files named in it are attached unless it is `literal`."""

    text: str
    literal: bool = False


@dataclass(frozen=True)
class Order:
    """A command by its own name, and what stands behind it."""

    name: str
    argument: str


@dataclass(frozen=True)
class Mistake:
    """What looks like a command and is none; `reason` says what to do."""

    reason: str


def read_entry(
    typed: str, names: Mapping[str, str], exists: Callable[[str], bool] = os.path.lexists
) -> Message | Order | Mistake:
    """What was typed. `names` maps every spelling of a command to its own name."""
    text = typed.strip()
    if is_quoted(text):
        return Message(text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n"), literal=True)
    if text in names and not text.startswith("/"):  # `?`
        return Order(names[text], "")
    if not typed.startswith("/"):
        return Message(text)
    if text.startswith("//"):
        return Message(text[1:])
    first, *rest = text.split(maxsplit=1)
    argument = rest[0] if rest else ""
    if first.lower() in names:
        return Order(names[first.lower()], argument)
    if not _WORD.fullmatch(first) and text != "/":
        return Message(text)  # a path, or a slash in the middle of a thought
    if text != "/" and exists(first):
        return Message(text)
    near = _nearest(first.lower(), list(names))
    if near is None and text != "/" and _TEXT_HAS.search(f" {argument}"):
        return Message(text)
    commands = " ".join(dict.fromkeys(names.values()))
    advice = f"did you mean {near}?" if near else f"the commands are {commands};"
    return Mistake(f"unknown command {first}; {advice} /{first} would send it as a message")


def is_open(typed: str) -> bool:
    """Whether triple quotes have been opened and not closed: what is typed goes on."""
    text = typed.strip()
    return text.startswith(QUOTES) and not is_quoted(text)


def is_quoted(text: str) -> bool:
    """Whether the text stands between triple quotes."""
    return len(text) >= 2 * len(QUOTES) and text.startswith(QUOTES) and text.endswith(QUOTES)


def _nearest(word: str, names: Sequence[str]) -> str | None:
    """The command that was meant: one that begins so, or that is spelled almost so."""
    if len(word) > 2:
        begun = [name for name in names if name.startswith(word)]
        if len(begun) == 1:
            return begun[0]
    near = difflib.get_close_matches(word, names, n=1, cutoff=_ALIKE)
    return near[0] if near else None
