"""JSON schemas before they become grammars: what is none, what would take the compiler too long, what it must
not see.

Knows the keywords of JSON Schema (draft 2020-12) by name. Knows nothing of grammars or tokens. The compiler
is native code, which cannot be stopped: it runs for minutes where many patterns must hold at once, or for a
large `multipleOf`, and out of stack where references lead on and on. So all that is bounded here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from phirt.errors import SchemaError

JsonSchema = Mapping[str, Any] | bool
"""A JSON schema as `json.loads` gives it."""

_MAX_CHARACTERS = 256_000
_MAX_DEPTH = 100  # objects and lists inside each other
_MAX_PROPERTIES = 2000
_MAX_REFERENCED_DEPTH = 3000  # of all that is referred to, added up
_MAX_PATTERNS_AT_ONCE = 16
_MAX_MULTIPLE = 20_000  # of a `multipleOf`, or what several have in common, without factors of 2 and 5

_DATA = ("const", "enum", "default", "examples", "example")  # keywords whose values are no schemas
_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "schemas")
# Of the standard's section 7.3; others are notes for people or other tools (OpenAPI's int32, byte, password).
_FORMATS = (
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6",
    "uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer",
    "relative-json-pointer", "regex",
)  # fmt: skip
_ADDED = ("pattern", "format", "multipleOf", "properties", "items", "additionalProperties")
_OPTIONS = "x-guidance"  # the compiler's own, which are phirt's to choose


def schema_text(document: JsonSchema) -> str:
    """The schema as JSON text for the compiler. Raises SchemaError for what is none or too large."""
    if not isinstance(document, Mapping | bool):
        raise SchemaError(
            f"schema is a {type(document).__name__}, accepted: a JSON schema as a dict, or a phirt.Grammar"
        )
    try:
        text = json.dumps(dict(document) if isinstance(document, Mapping) else document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(
            f"the schema cannot be written as JSON: {error}; use plain dicts, lists and values"
        ) from error
    if len(text) > _MAX_CHARACTERS:
        raise SchemaError(f"the schema has {len(text)} characters, accepted: at most {_MAX_CHARACTERS}")
    plain = json.loads(text)
    if plain is True:
        return "{}"
    if plain is False:
        raise SchemaError("the schema is false, which nothing fulfils; give one that something does")
    _require_bounds(plain)
    plain.pop(_OPTIONS, None)
    _drop_foreign_formats(plain)
    return json.dumps(plain)


def _require_bounds(document: dict[str, Any]) -> None:
    depth = _depth(document)
    if depth > _MAX_DEPTH:
        raise SchemaError(f"the schema is {depth} objects and lists deep, accepted: at most {_MAX_DEPTH}")
    found = list(_objects(document))
    properties = sum(len(node[key]) for node in found for key in _NAMES if isinstance(node.get(key), dict))
    if properties > _MAX_PROPERTIES:
        raise SchemaError(
            f"the schema names {properties} properties and definitions, accepted: at most {_MAX_PROPERTIES}"
        )
    targets = {node["$ref"] for node in found if isinstance(node.get("$ref"), str)}
    if depth + sum(_depth(_target(document, target)) for target in targets) > _MAX_REFERENCED_DEPTH:
        raise SchemaError(
            f"the {len(targets)} references of the schema lead too deep; write what they refer to in place, "
            "or leave some out"
        )
    texts = (node.get(key) for node in found for key in ("pattern", "format"))
    patterns = {text for text in texts if isinstance(text, str)}
    if len(patterns) > _MAX_PATTERNS_AT_ONCE and any(map(_joins_schemas, found)):
        raise SchemaError(
            f"the schema has {len(patterns)} patterns and formats beside allOf or additions to a $ref, "
            f"accepted: at most {_MAX_PATTERNS_AT_ONCE}"
        )
    multiples = [node["multipleOf"] for node in found if _is_number(node.get("multipleOf"))]
    _require_small_multiples(multiples, together=any(map(_joins_schemas, found)))


def _require_small_multiples(values: list[float], *, together: bool) -> None:
    """`together` says that one number may have to be a multiple of several."""
    common = 1
    for value in values:
        if value <= 0:
            raise SchemaError(f"multipleOf is {value}, accepted: a number above 0")
        digits = int("".join(map(str, Decimal(str(value)).as_tuple().digits)))
        for factor in (2, 5):
            while digits % factor == 0:
                digits //= factor
        common = math.lcm(common, digits) if together else digits
        if common > _MAX_MULTIPLE:
            raise SchemaError(f"multipleOf {value} has too many digits; take a rounder one, or leave it out")


def _joins_schemas(node: dict[str, Any]) -> bool:
    """Whether something must fulfil several schemas at once."""
    refers = any(key in node for key in ("$ref", "anyOf", "oneOf"))
    adds = any(key in node for key in _ADDED)
    return "allOf" in node or (refers and adds)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """Every object in the document, wherever it stands."""
    open_parts = [document]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, dict):
            yield part
            open_parts += part.values()
        elif isinstance(part, list):
            open_parts += part


def _depth(document: Any) -> int:
    level, depth = [document], 0
    while level:
        level = [part for part in level if isinstance(part, dict | list)]
        depth += bool(level)
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return depth


def _target(document: Any, reference: str) -> Any:
    """What a JSON pointer refers to; the whole document where it cannot be told."""
    place = document
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict) and name in place:
            place = place[name]
        else:
            return document
    return place


def _drop_foreign_formats(document: Any) -> None:
    """Takes formats away that the standard does not have, and so does not ask to be kept."""
    open_parts = [(document, False)]
    while open_parts:
        part, keys_are_names = open_parts.pop()
        if isinstance(part, list):
            open_parts += [(inner, False) for inner in part]
        elif isinstance(part, dict):
            if not keys_are_names and part.get("format") not in (None, *_FORMATS):
                del part["format"]
            open_parts += [
                (inner, not keys_are_names and key in _NAMES)
                for key, inner in part.items()
                if keys_are_names or key not in _DATA
            ]
