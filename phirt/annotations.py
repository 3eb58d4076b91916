"""What a field's annotation accepts: types, bounds and text, and how an error calls them.

Knows annotations and single values. Knows nothing of documents, places or errors; `fields` walks through
those.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

MAX_ITEMS = 1 << 20
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included: `Annotated[int, Range(1, 64)]`."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Length:
    """How many items a list or an object has: `Annotated[tuple[int, ...], Length(1, 8)]`."""

    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class Matching:
    """Text that a regular expression matches as a whole, and what that is called in an error."""

    pattern: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class AnyCharacters:
    """Text that may hold lone surrogates, which no file name and no token may: what a user has typed."""


FreeText = Annotated[str, AnyCharacters()]


def describe(hint: Any) -> str:
    """What an annotation accepts, in words."""
    return " or ".join(_describe(member) for member in members(hint))


def _describe(hint: Any) -> str:
    base, bounds = parts(hint)
    limits = [f" from {b.low:g} to {b.high:g}" for b in bounds if isinstance(b, Range)]
    if base is int:
        limits = [f" from {b.low} to {b.high}" for b in bounds if isinstance(b, Range)]
        return "a whole number" + "".join(limits)
    if base is float:
        return "a number" + "".join(limits)
    if base is str:
        meanings = [bound.meaning for bound in bounds if isinstance(bound, Matching)]
        return meanings[0] if meanings else "a string" if bounds else "a string without lone surrogates"
    if get_origin(base) is Literal:
        return f"one of {', '.join(map(str, get_args(base)))}"
    if get_origin(base) is tuple:
        return _describe_tuple(get_args(base), bounds)
    if get_origin(base) is Mapping:
        return f"an object of {_plural(describe(get_args(base)[1]))}"
    return {bool: "true or false", type(None): "null", Any: "a value"}.get(base, "an object")


def _describe_tuple(inner: tuple[Any, ...], bounds: tuple[Any, ...]) -> str:
    if inner[1:] != (Ellipsis,):
        return f"a list of {' and '.join(map(describe, inner))}"
    length = length_of(bounds)
    counts = "" if length == Length(0, MAX_ITEMS) else f", {length.low} to {length.high} of them"
    return f"a list of {_plural(describe(inner[0]))}{counts}"


def _plural(words: str) -> str:
    """ "a whole number from 1 to 3" as "whole numbers from 1 to 3", well enough for an error message."""
    noun = re.match(r"an? (whole number|number|string|object|list|value|name)\b", words)
    return f"{noun[1]}s{words[noun.end() :]}" if noun else words


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The annotation without Annotated, and what that adds to it."""
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def length_of(bounds: tuple[Any, ...]) -> Length:
    """How many items are accepted; a million where nothing is said."""
    return next((bound for bound in bounds if isinstance(bound, Length)), Length(0, MAX_ITEMS))


def is_json_type(value: object, base: Any) -> bool:
    """Whether a value has the JSON type that an annotation asks for."""
    if base is Any:
        return True
    if base is type(None) or base is bool or base is str:
        return type(value) is base
    if base in (int, float):
        return isinstance(value, int if base is int else int | float) and not isinstance(value, bool)
    if get_origin(base) is Literal:
        return any(type(value) is type(one) for one in get_args(base))
    if get_origin(base) is tuple:
        return isinstance(value, list | tuple)
    assert get_origin(base) is Mapping or dataclasses.is_dataclass(base), f"{base} cannot be read"
    return isinstance(value, dict) or type(value) is base


def fits(value: Any, base: Any, bounds: tuple[Any, ...]) -> bool:
    """Whether a value of the right JSON type is within its bounds."""
    if get_origin(base) is Literal:
        return value in get_args(base)
    if base is float:  # an infinite or an endless number is none
        bounds = bounds or (Range(-sys.float_info.max, sys.float_info.max),)
    if base is Any:
        return not has_surrogate(value)
    if base is str and AnyCharacters() not in bounds and _SURROGATE.search(value):
        return False
    return all(_CHECKS[type(bound)](value, bound) for bound in bounds)


def has_surrogate(value: Any) -> bool:
    """Whether a name or a string anywhere in a document has a lone surrogate."""
    open_parts = [value]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, str) and _SURROGATE.search(part):
            return True
        if isinstance(part, Mapping):
            open_parts += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            open_parts += part
    return False


_CHECKS: Mapping[type, Callable[[Any, Any], bool]] = {
    Range: lambda value, bound: bound.low <= value <= bound.high,
    Matching: lambda value, bound: re.fullmatch(bound.pattern, value) is not None,
    AnyCharacters: lambda value, bound: True,
}


class _Shown(reprlib.Repr):
    """Short, and never deep: a document may nest and repeat as it likes."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 256 else f"a number of {x.bit_length()} bits"


_SHOWN = _Shown()
_SHOWN.maxstring = _SHOWN.maxother = 80
_SHOWN.maxlevel = 3


def shown(value: object) -> str:
    """A value as an error shows it."""
    return _SHOWN.repr(value)
