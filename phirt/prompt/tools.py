"""Tools as the model sees them: offered as JSON, called in answers, their results given back.

Knows JSON and the marks around a call. Knows nothing of templates, tokens or of what a tool does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from phirt.errors import ConfigError

CALL_OPEN, CALL_CLOSE = "<|tool_call|>", "<|/tool_call|>"
_OTHER_MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
# They belong in an answer's text whether or not the tokenizer calls them special.
VISIBLE_TOKENS = (CALL_OPEN, CALL_CLOSE, *_OTHER_MARKS)

# Phi-4 and Granite; Qwen and Hermes; Mistral; Llama 3.1.
_CALL_MARKS = tuple(
    re.compile(f"{begin}(.*?)(?:{end}|$)", re.DOTALL)
    for begin, end in (
        (re.escape(CALL_OPEN), re.escape(CALL_CLOSE)),
        ("<tool_call>", "</tool_call>"),
        (r"\[TOOL_CALLS\]", "$"),
        (r"<\|python_tag\|>", "$"),
    )
)


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call in an answer: the tool's name and its arguments as JSON values.

    `offered` says whether the request offered a tool of this name; a model may make names up.
    """

    name: str
    arguments: Mapping[str, Any]
    offered: bool = True


@dataclasses.dataclass(frozen=True)
class Tools:
    """Tools that a request offers: the JSON list that the template puts between the tool tokens, and their
    names.
    """

    json: str
    names: frozenset[str]

    @classmethod
    def of(cls, tools: Tools | Iterable[Mapping[str, Any]] | None) -> Tools | None:
        """Dicts with at least a "name", or with one in their "function", from a list or an iterator; None
        where there are none.

        Raises ConfigError for anything else, and for what cannot be written as JSON.
        """
        if tools is None or isinstance(tools, Tools):
            return tools
        if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
            raise ConfigError(
                f"tools is a {type(tools).__name__}, accepted: a list of dicts, each with at least a 'name'"
            )
        listed = list(tools)  # once: an iterator has nothing left the second time
        for tool in listed:
            if not isinstance(tool, Mapping):
                raise ConfigError(
                    f"a tool is a {type(tool).__name__}, accepted: a dict with at least a 'name'"
                )
            if _name_of(tool) is None:
                raise ConfigError("every tool needs a 'name' that is a string")
        if not listed:
            return None
        try:
            text = json.dumps([dict(tool) for tool in listed], ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"tools cannot be written as JSON: {error}; use plain dicts, lists and values"
            ) from error
        return cls(text, frozenset(filter(None, map(_name_of, listed))))

    @classmethod
    def from_json(cls, text: str) -> Tools:
        """Tools whose JSON was kept; no names where it is no list of objects with names."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        entries = document if isinstance(document, list) else []
        return cls(text, frozenset(filter(None, map(_name_of, entries))))


def _name_of(tool: object) -> str | None:
    """The name of a tool, which those of a kind keep one level further down."""
    if not isinstance(tool, Mapping):
        return None
    inner = tool.get("function")
    name = (inner if isinstance(inner, Mapping) else tool).get("name")
    return name if isinstance(name, str) else None


def results_to_json(results: Iterable[Any], count: int) -> str:
    """The JSON list of what `count` calls returned. Raises ConfigError for another number, or for no JSON."""
    if isinstance(results, str | bytes | Mapping) or not isinstance(results, Iterable):
        raise ConfigError(f"results is a {type(results).__name__}, accepted: a list, one value for each call")
    listed = list(results)
    if not count:
        raise ConfigError("the last answer calls no tool, so there is nothing to give results for; send text")
    if len(listed) != count:
        raise ConfigError(f"{len(listed)} results for {count} calls; give one for each call, in their order")
    try:
        return json.dumps(listed, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"the results cannot be written as JSON: {error}; use plain dicts, lists and values"
        ) from error


def parse_tool_calls(text: str, tools: Tools | None = None) -> tuple[ToolCall, ...]:
    """The calls in an answer to a request that offered `tools`; what is malformed stays text and gives
    none.
    """
    return find_tool_calls(text, tools)[1]


def find_tool_calls(text: str, tools: Tools | None = None) -> tuple[int, tuple[ToolCall, ...]]:
    """Where the first call of an answer begins, and all of its calls. An answer that is nothing but a call,
    without marks, is one where a tool of its name was offered.
    """
    names = frozenset[str]() if tools is None else tools.names
    calls: list[ToolCall] = []
    begin = len(text)
    for mark in _CALL_MARKS:
        for block in mark.finditer(text):
            if found := _calls_in(block[1], names):
                begin = min(begin, block.start())
                calls.extend(found)
    if not calls and (found := _calls_in(text, names)) and all(call.offered for call in found):
        return 0, found
    return begin, tuple(calls)


def _calls_in(block: str, names: frozenset[str]) -> tuple[ToolCall, ...]:
    try:
        document = json.loads(block, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        return ()
    found = [_as_call(item, names) for item in (document if isinstance(document, list) else [document])]
    calls = tuple(call for call in found if call is not None)
    return calls if len(calls) == len(found) else ()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _as_call(item: object, names: frozenset[str]) -> ToolCall | None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return None
    arguments = item.get("arguments", item.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return ToolCall(item["name"], arguments, item["name"] in names)
