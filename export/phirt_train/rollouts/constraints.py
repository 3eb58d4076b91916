"""Constraints on an answer that a program can check, in the manner of IFEval (arXiv 2311.07911).

Each is a frozen dataclass with the check and the sentence that asks for it. In JSON its `kind` names it:
{"kind": "word_count", "at_least": 5, "at_most": 20}.

Knows text. Knows nothing of models or questions; a new constraint is a class and its name in CONSTRAINTS.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from phirt.errors import ConfigError
from phirt.fields import Fields, Length, Matching, Range, read_dataclass, write_dataclass

_Count = Annotated[int, Range(0, 1 << 20)]
_Some = Annotated[str, Matching("(?s).{1,4096}", "text that is not empty")]
_BULLET = re.compile(r"^\s*[*-]\s+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


class Constraint(Protocol):
    """What an answer must fulfil."""

    def holds(self, text: str) -> bool:
        """Whether an answer fulfils it."""

    def sentence(self) -> str:
        """What asks for it."""


@dataclasses.dataclass(frozen=True)
class _Counted:
    """From `at_least` to `at_most` of something."""

    at_least: _Count = 0
    at_most: _Count = 1 << 20

    def __post_init__(self) -> None:
        if self.at_least > self.at_most:
            raise ValueError(f"at_least is {self.at_least} and at_most {self.at_most}")

    def _takes(self, count: int) -> bool:
        return self.at_least <= count <= self.at_most

    def _asked(self, things: str) -> str:
        if self.at_least == self.at_most:
            return f"exactly {self.at_least} {things}"
        if self.at_least == 0:
            return f"at most {self.at_most} {things}"
        if self.at_most == 1 << 20:
            return f"at least {self.at_least} {things}"
        return f"{self.at_least} to {self.at_most} {things}"


@dataclasses.dataclass(frozen=True)
class WordCount(_Counted):
    """So many words."""

    def holds(self, text: str) -> bool:
        return self._takes(len(text.split()))

    def sentence(self) -> str:
        return f"Answer in {self._asked('words')}."


@dataclasses.dataclass(frozen=True)
class SentenceCount(_Counted):
    """So many sentences, each of which ends with . ! or ?"""

    def holds(self, text: str) -> bool:
        ends = list(_SENTENCE_END.finditer(text.strip()))
        unfinished = bool(text.strip()) and (not ends or ends[-1].end() != len(text.strip()))
        return self._takes(len(ends) + unfinished)

    def sentence(self) -> str:
        return f"Write {self._asked('sentences')}."


@dataclasses.dataclass(frozen=True)
class BulletCount(_Counted):
    """So many lines that begin with - or *."""

    def holds(self, text: str) -> bool:
        return self._takes(len(_BULLET.findall(text)))

    def sentence(self) -> str:
        return f"Use {self._asked('bullet points')}, each beginning with -."


@dataclasses.dataclass(frozen=True)
class StartsWith:
    """Begins with a text."""

    text: _Some

    def holds(self, text: str) -> bool:
        return text.lstrip().startswith(self.text)

    def sentence(self) -> str:
        return f'Begin your answer with "{self.text}".'


@dataclasses.dataclass(frozen=True)
class EndsWith:
    """Ends with a text."""

    text: _Some

    def holds(self, text: str) -> bool:
        return text.rstrip().endswith(self.text)

    def sentence(self) -> str:
        return f'End your answer with "{self.text}".'


@dataclasses.dataclass(frozen=True)
class Contains:
    """Has a word or phrase, in any case, so many times at least."""

    text: _Some
    times: Annotated[int, Range(1, 1000)] = 1

    def holds(self, text: str) -> bool:
        return len(_word(self.text).findall(text)) >= self.times

    def sentence(self) -> str:
        often = "" if self.times == 1 else f" at least {self.times} times"
        return f'Use the word "{self.text}"{often}.'


@dataclasses.dataclass(frozen=True)
class Avoids:
    """Does not have a word or phrase, in any case."""

    text: _Some

    def holds(self, text: str) -> bool:
        return bool(text.strip()) and _word(self.text).search(text) is None

    def sentence(self) -> str:
        return f'Do not use the word "{self.text}".'


@dataclasses.dataclass(frozen=True)
class NoCommas:
    """Has no comma."""

    def holds(self, text: str) -> bool:
        return bool(text.strip()) and "," not in text

    def sentence(self) -> str:
        return "Do not use any commas."


@dataclasses.dataclass(frozen=True)
class UpperCase:
    """Has letters, and only capital ones."""

    def holds(self, text: str) -> bool:
        return text.isupper()

    def sentence(self) -> str:
        return "Write everything in capital letters."


@dataclasses.dataclass(frozen=True)
class LowerCase:
    """Has letters, and no capital one."""

    def holds(self, text: str) -> bool:
        return text.islower()

    def sentence(self) -> str:
        return "Write everything in lower case."


@dataclasses.dataclass(frozen=True)
class Json:
    """Is one JSON object and nothing else, with these keys and no others where any are named."""

    keys: Annotated[tuple[_Some, ...], Length(0, 64)] = ()

    def holds(self, text: str) -> bool:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and (not self.keys or set(value) == set(self.keys))

    def sentence(self) -> str:
        named = ", ".join(f'"{key}"' for key in self.keys)
        keys = f" with the key{'s' if len(self.keys) > 1 else ''} {named}" if self.keys else ""
        return f"Answer with one JSON object{keys} and nothing else."


@dataclasses.dataclass(frozen=True)
class Quoted:
    """Stands in double quotation marks."""

    def holds(self, text: str) -> bool:
        plain = text.strip()
        return len(plain) > 2 and plain.startswith('"') and plain.endswith('"')

    def sentence(self) -> str:
        return "Put your whole answer in double quotation marks."


CONSTRAINTS: Mapping[str, type[Any]] = {
    "word_count": WordCount,
    "sentence_count": SentenceCount,
    "bullet_count": BulletCount,
    "starts_with": StartsWith,
    "ends_with": EndsWith,
    "contains": Contains,
    "avoids": Avoids,
    "no_commas": NoCommas,
    "upper_case": UpperCase,
    "lower_case": LowerCase,
    "json": Json,
    "quoted": Quoted,
}


def read_constraints(records: Sequence[Mapping[str, Any]]) -> tuple[Constraint, ...]:
    """The constraints of a question.

    Raises:
        ConfigError: one has no known kind, or values that it does not take.
    """
    return tuple(_read(record, index) for index, record in enumerate(records))


def write_constraint(constraint: Constraint) -> dict[str, Any]:
    """What `read_constraints` reads."""
    (kind,) = (name for name, cls in CONSTRAINTS.items() if type(constraint) is cls)
    return {"kind": kind, **write_dataclass(typing.cast(Any, constraint))}


def _read(record: Mapping[str, Any], index: int) -> Constraint:
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in CONSTRAINTS:
        accepted = ", ".join(CONSTRAINTS)
        raise ConfigError(f"constraint {index} is of kind {kind!r:.80}; accepted: {accepted}")
    rest = {key: value for key, value in record.items() if key != "kind"}
    fields = Fields(rest, f"constraint {index} ({kind})", ConfigError, "correct the question", closed=True)
    constraint: Constraint = read_dataclass(CONSTRAINTS[kind], fields)
    return constraint


def _word(text: str) -> re.Pattern[str]:
    """The text as a whole word or phrase, in any case."""
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)
