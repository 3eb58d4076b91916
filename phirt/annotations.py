"""What a field's annotation accepts: types, bounds and text, and how an error calls them.

Knows annotations and single values. Knows nothing of documents, places or errors; `fields` walks through
those.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import reprlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
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


Check = Callable[[Any], bool]
FreeText = Annotated[str, AnyCharacters()]


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One of the types that an annotation accepts.

    Attributes:
        base: the annotation without Annotated.
        bounds: what Annotated adds to it.
        kind: what it is made of: tuple, Mapping, Literal, or `base` itself.
        inner: what is accepted in each place of a tuple, or for names and values of a Mapping.
        repeated: whether it is a tuple of any length, whose items are all as the first of `inner`.
        length: how many items are accepted; a million where nothing is said.
        is_object: whether it is a dataclass.
        types: Python types of its values in a document; empty for any.
        checks: what a single value of such a type must fulfil.
    """

    base: Any
    bounds: tuple[Any, ...]
    kind: Any
    inner: tuple[Members, ...]
    repeated: bool
    length: Length
    is_object: bool
    types: tuple[type, ...]
    checks: tuple[Check, ...]

    def has_type(self, value: object) -> bool:
        """Whether a value has the JSON type that is asked for."""
        return not self.types or type(value) in self.types

    def accepts(self, value: Any) -> bool:
        """Whether a single value has the type and is within the bounds."""
        return self.has_type(value) and all(check(value) for check in self.checks)


Members = tuple[Member, ...]


@functools.lru_cache(maxsize=1024)
def members(hint: Any) -> Members:
    """The members of a union, or the one of another annotation."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for one in get_args(hint) for member in members(one))
    base, bounds = (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    kind, inner = get_origin(base) or base, get_args(base)
    parts = [part for part in inner if part is not Ellipsis] if kind in (tuple, Mapping) else []
    return (
        Member(
            base,
            bounds,
            kind,
            inner=tuple(map(members, parts)),
            repeated=kind is tuple and Ellipsis in inner,
            length=next((bound for bound in bounds if isinstance(bound, Length)), Length(0, MAX_ITEMS)),
            is_object=dataclasses.is_dataclass(base),
            types=_types(base, kind, inner),
            checks=tuple(_checks(kind, inner, bounds)),
        ),
    )


def _types(base: Any, kind: Any, inner: tuple[Any, ...]) -> tuple[type, ...]:
    if kind is Literal:
        return tuple(dict.fromkeys(type(value) for value in inner))
    if dataclasses.is_dataclass(base):
        return (dict, base) if isinstance(base, type) else ()
    known = {Any: (), float: (float, int), tuple: (list, tuple), Mapping: (dict,)}
    assert kind in (bool, int, str, type(None), *known), f"{base} cannot be read"
    return known.get(kind, (kind,))


def _checks(kind: Any, inner: tuple[Any, ...], bounds: tuple[Any, ...]) -> Iterator[Check]:
    if kind is Literal:
        yield inner.__contains__
    if kind is Any and AnyCharacters() not in bounds:
        yield lambda value: not has_surrogate(value)
    if kind is str and AnyCharacters() not in bounds:
        yield lambda value: _SURROGATE.search(value) is None
    if kind is float:  # an infinite or an endless number is none
        bounds = bounds or (Range(-sys.float_info.max, sys.float_info.max),)
    for bound in bounds:
        if isinstance(bound, Range):
            yield functools.partial(_within, bound.low, bound.high)
        if isinstance(bound, Matching):
            yield functools.partial(_matches, re.compile(bound.pattern))


def _within(low: float, high: float, value: float) -> bool:
    return low <= value <= high


def _matches(pattern: re.Pattern[str], value: str) -> bool:
    return pattern.fullmatch(value) is not None


def describe(accepted: Members) -> str:
    """What an annotation accepts, in words."""
    return " or ".join(map(_describe, accepted))


def _describe(member: Member) -> str:
    base, bounds = member.base, member.bounds
    limits = [bound for bound in bounds if isinstance(bound, Range)]
    if base is int:
        return "a whole number" + "".join(f" from {bound.low} to {bound.high}" for bound in limits)
    if base is float:
        return "a number" + "".join(f" from {bound.low:g} to {bound.high:g}" for bound in limits)
    if base is str:
        meanings = [bound.meaning for bound in bounds if isinstance(bound, Matching)]
        return meanings[0] if meanings else "a string" if bounds else "a string without lone surrogates"
    if member.kind is Literal:
        return f"one of {', '.join(map(str, get_args(base)))}"
    if member.kind is tuple:
        return _describe_tuple(member)
    if member.kind is Mapping:
        return f"an object of {_plural(describe(member.inner[1]))}"
    return {bool: "true or false", type(None): "null", Any: "a value"}.get(base, "an object")


def _describe_tuple(member: Member) -> str:
    if not member.repeated:
        return f"a list of {' and '.join(map(describe, member.inner))}"
    length = member.length
    counts = "" if length == Length(0, MAX_ITEMS) else f", {length.low} to {length.high} of them"
    return f"a list of {_plural(describe(member.inner[0]))}{counts}"


def _plural(words: str) -> str:
    """ "a whole number from 1 to 3" as "whole numbers from 1 to 3", well enough for an error message."""
    noun = re.match(r"an? (whole number|number|string|object|list|value|name)\b", words)
    return f"{noun[1]}s{words[noun.end() :]}" if noun else words


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


class _Shown(reprlib.Repr):
    """Short, and never deep: a document may nest and repeat as it likes."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 256 else f"a number of {x.bit_length()} bits"


_SHOWN = _Shown()
_SHOWN.maxstring = _SHOWN.maxother = 80
_SHOWN.maxlevel = 3
_MAX_SHOWN = 120


def shown(value: object) -> str:
    """A value as an error shows it."""
    text = _SHOWN.repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
