"""Tools as the model sees them: offered as JSON, called in answers, their results given back.

Knows JSON and the marks around a call. Knows nothing of templates, tokens or of what a tool does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from phirt.errors import ConfigError

CALL_OPEN, CALL_CLOSE = "<|tool_call|>", "<|/tool_call|>"
# They belong in an answer's text whether or not the tokenizer calls them special.
VISIBLE_TOKENS = (CALL_OPEN, CALL_CLOSE)

_CALL_BLOCK = re.compile(f"{re.escape(CALL_OPEN)}(.*?)(?:{re.escape(CALL_CLOSE)}|$)", re.DOTALL)


def tools_to_json(tools: Sequence[Mapping[str, Any]] | None) -> str | None:
    """The JSON that the template puts between the tool tokens. Raises ConfigError for what is no list of
    objects.
    """
    if not tools:
        return None
    if isinstance(tools, str | bytes | Mapping) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ConfigError("tools must be a list of dicts, each with at least a 'name'")
    if not all(isinstance(tool.get("name"), str) for tool in tools):
        raise ConfigError("every tool needs a 'name' that is a string")
    try:
        return json.dumps([dict(tool) for tool in tools], ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"tools cannot be written as JSON: {error}; use plain dicts, lists and values"
        ) from error


def results_to_json(results: Sequence[Any], count: int) -> str:
    """The JSON list of what `count` calls returned. Raises ConfigError for another number, or for no JSON."""
    if isinstance(results, str | bytes | Mapping) or not isinstance(results, Sequence):
        raise ConfigError(f"results is a {type(results).__name__}, accepted: a list, one value for each call")
    if not count:
        raise ConfigError("the last answer calls no tool, so there is nothing to give results for; send text")
    if len(results) != count:
        raise ConfigError(f"{len(results)} results for {count} calls; give one for each call, in their order")
    try:
        return json.dumps(list(results), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"the results cannot be written as JSON: {error}; use plain dicts, lists and values"
        ) from error


def parse_tool_calls(text: str) -> tuple[dict[str, Any], ...]:
    """The calls in an answer as {"name": str, "arguments": dict}; what is malformed stays text and gives
    none.
    """
    calls: list[dict[str, Any]] = []
    for block in _CALL_BLOCK.findall(text):
        try:
            document = json.loads(block, parse_constant=_refuse_constant, parse_float=_finite)
        except (ValueError, RecursionError):
            continue
        found = [_as_call(item) for item in (document if isinstance(document, list) else [document])]
        if all(call is not None for call in found):
            calls.extend(call for call in found if call is not None)
    return tuple(calls)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _as_call(item: object) -> dict[str, Any] | None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        return None
    arguments = item.get("arguments", item.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return {"name": item["name"], "arguments": arguments}
