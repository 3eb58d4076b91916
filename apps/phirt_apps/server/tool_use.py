"""Tools of a request: offered, forced, and told apart from text while an answer comes.

Knows functions as OpenAI describes them. Knows nothing of how a model writes calls beyond the marks that
begin one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from phirt.errors import SchemaError
from phirt.generate.grammar import Grammar
from phirt.prompt.tools import VISIBLE_TOKENS, Tools, find_tool_calls

from .errors import BadRequestError

if TYPE_CHECKING:
    from phirt.generator import Generator
    from phirt.prompt.tools import ToolCall

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_MOST_TOOLS = 128
_MOST_CALLS = 8  # of a forced answer
T = TypeVar("T")


@dataclass(frozen=True)
class Function:
    """One function that is offered."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def document(self) -> dict[str, Any]:
        """What the model is shown of it."""
        parts = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {name: value for name, value in parts.items() if value is not None}


@dataclass(frozen=True)
class ToolUse:
    """What a request says of tools. `choice` is "auto", "none", "required", or the name of one as `only`."""

    functions: tuple[Function, ...] = ()
    choice: Literal["auto", "none", "required"] = "auto"
    only: str | None = None
    parallel: bool = True

    def __post_init__(self) -> None:
        names = [function.name for function in self.functions]
        if len(names) > _MOST_TOOLS:
            raise BadRequestError(
                f"{len(names)} tools are offered, accepted: at most {_MOST_TOOLS}", param="tools"
            )
        for name in names:
            if not _NAME.fullmatch(name):
                raise BadRequestError(
                    f"a tool is called {name[:80]!r}, accepted: letters, digits and _.:-", param="tools"
                )
            if names.count(name) > 1:
                raise BadRequestError(f"two tools are called {name!r}", param="tools")
        if self.only is not None and self.only not in names:
            raise BadRequestError(
                f"tool_choice names {self.only[:80]!r}, which is not offered", param="tool_choice"
            )
        if self.choice == "required" and not names:
            raise BadRequestError(
                "tool_choice asks for a call, and no tools are offered", param="tool_choice"
            )

    @property
    def offered(self) -> Tools | None:
        """The tools that the model is shown."""
        return None if self.choice == "none" else Tools.of([one.document for one in self.functions])

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.only is not None or self.choice == "required"

    def grammar(self, generator: Generator) -> Grammar:
        """The form of an answer that is forced to be a call. Raises SchemaError for strict functions whose
        parameters cannot be kept; those of others are then any object.
        """
        schemas = {}
        for function in self.functions:
            if self.only in (None, function.name):
                schemas[function.name] = _kept(generator, function)
        most = _MOST_CALLS if self.parallel and self.only is None else 1
        return generator.call_format.grammar(schemas, most)


def _kept(generator: Generator, function: Function) -> Mapping[str, Any] | None:
    if function.parameters is None:
        return None
    try:
        generator.constraints.of(Grammar.json_schema(function.parameters))
    except SchemaError:
        if function.strict:
            raise
        return None
    return function.parameters


@dataclass
class CallSplitter(Generic[T]):
    """Holds back what may become a call while an answer comes piece by piece.

    `feed` returns the pieces that are text for certain, `finish` the rest of them with the calls. A piece is
    text with whatever belongs to it.
    """

    tools: Tools | None
    _text: str = ""
    _held: list[tuple[str, T]] = field(default_factory=list)
    _holding: bool = False

    def feed(self, text: str, more: T) -> list[tuple[str, T]]:
        """Takes a piece."""
        if self.tools is None:
            return [(text, more)]
        self._text += text
        self._held.append((text, more))
        if not self._holding and not _may_become_call(self._text):
            return self._release()
        self._holding = self._holding or _is_call(self._text)
        return []

    def finish(self) -> tuple[list[tuple[str, T]], tuple[ToolCall, ...]]:
        """The pieces that were text after all, and the calls. A name that was not offered makes no call."""
        if self.tools is None:
            return [], ()
        begin, calls = find_tool_calls(self._text, self.tools)
        if not calls or not all(call.offered for call in calls):
            return self._release(), ()
        said = len(self._text) - sum(len(text) for text, _ in self._held)
        before = self._text[said:begin].rstrip()
        return ([(before, self._held[0][1])] if before else []), calls

    def _release(self) -> list[tuple[str, T]]:
        held, self._held = self._held, []
        return held


def _is_call(text: str) -> bool:
    return any(mark in text for mark in VISIBLE_TOKENS) or text.lstrip()[:1] in ("{", "[")


def _may_become_call(text: str) -> bool:
    """Whether a mark stands in the text, or what its end could still become one."""
    if not text.strip() or _is_call(text):
        return True
    return any(text.endswith(mark[:length]) for mark in VISIBLE_TOKENS for length in range(1, len(mark)))


def read_choice(value: Any, functions: Sequence[Function], parallel: bool, name_at: Sequence[str]) -> ToolUse:
    """What `tool_choice` says; `name_at` is where the object of a named function has its name."""
    if value is None:
        return ToolUse(tuple(functions), "auto", None, parallel)
    if value in ("auto", "none", "required"):
        return ToolUse(tuple(functions), value, None, parallel)
    name = value
    if isinstance(value, dict) and value.get("type") == "function":
        for key in name_at:
            name = name.get(key) if isinstance(name, dict) else None
        if isinstance(name, str):
            return ToolUse(tuple(functions), "required", name, parallel)
    raise BadRequestError(
        'tool_choice is none of "auto", "none", "required" and the object of one function',
        param="tool_choice",
    )
