"""The one validator of what somebody else wrote: manifests, saved conversations, checkpoints' configurations,
recipes.

A frozen dataclass is the description: its annotations say what is accepted, `read_dataclass` reads and
checks, `write_dataclass` writes what `read_dataclass` reads back. Relations between fields belong in
`__post_init__`, which raises ValueError (or a PhirtError); the reader adds the place and the remedy. Single
values are read with the methods of `Fields`. Every value is checked where it is read, and every error names
its place.

Knows documents, places and errors. Knows nothing of what the values mean; the caller chooses the error type
and the remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from phirt.annotations import (
    MAX_ITEMS,
    AnyCharacters,
    FreeText,
    Length,
    Matching,
    Member,
    Members,
    Range,
    describe,
    members,
    shown,
)
from phirt.errors import PhirtError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)
else:
    D = TypeVar("D")

__all__ = [
    "Fields",
    "FreeText",
    "Length",
    "Matching",
    "Range",
    "parse_json",
    "read_dataclass",
    "write_dataclass",
]

MAX_DIMENSION = 1 << 24  # generous for any length, width or vocabulary; keeps products far from overflow


def parse_json(raw: bytes, where: str, error: type[PhirtError], remedy: str) -> object:
    """Decodes strict JSON (no NaN), without its byte order mark. Raises `error` naming `where`."""
    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as cause:
        raise error(f"{where} is not valid JSON: {cause}; {remedy}") from cause


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def read_dataclass(cls: type[D], fields: Fields, **given: object) -> D:
    """An instance of the dataclass `cls` from an object, every field checked against its annotation.

    Accepted annotations: bool, int, float, str, Literal, `X | None`, `X | Y` of different JSON types,
    `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`, other dataclasses, Any; with Range, Length and Matching
    in Annotated. A field that is absent takes its default, or None where that is accepted. The key of a field
    in the document is its name, or what its metadata give as "key". Keys that the
    dataclass does not have are ignored, or refused where the document is `closed`. What `__post_init__`
    raises (ValueError, PhirtError) is raised with the object's place.

    Args:
        given: values of fields that do not come from the document.
    """
    known = _known(cls, frozenset(given))
    fields.require_known(key for key, _, _ in known.values())
    values = dict(given)
    for name, (key, accepted, has_default) in known.items():
        if key in fields:
            values[name] = fields.read_member(key, accepted)
        elif not has_default:
            if not any(member.base is type(None) for member in accepted):
                raise fields.refusal(f"{key!r} is missing, expected {describe(accepted)}")
            values[name] = None
    try:
        return cls(**values)
    except (PhirtError, ValueError) as error:
        raise fields.refusal(str(error)) from error


def write_dataclass(value: DataclassInstance, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON object that `read_dataclass` reads back as `value`; without the fields in `leave_out`."""
    skipped = set(leave_out)
    return {
        _key(field): _plain(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.name not in skipped
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return write_dataclass(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


class Fields:
    """One object of a document. Every reader method raises the chosen error if the value is missing or not as
    expected.

    Args:
        where: the object's place, as an error names it.
        error, remedy: the error to raise, and the end of its message: what the user can do.
        closed: whether `read_dataclass` refuses keys that it does not know, here and in what lies inside.
    """

    def __init__(
        self, value: object, where: str, error: type[PhirtError], remedy: str, *, closed: bool = False
    ) -> None:
        self.where = where
        self._error = error
        self._remedy = remedy
        self._closed = closed
        if not isinstance(value, dict):
            raise self.refusal(f"must be a JSON object, got {type(value).__name__}")
        self._value: dict[str, Any] = value

    def refusal(self, cause: str) -> PhirtError:
        """The error to raise for `cause`, with this object's place and the remedy."""
        return self._error(f"{self.where}: {cause}; {self._remedy}")

    def require_known(self, names: Iterable[str]) -> None:
        """Refuses other keys than `names`, where the document is closed."""
        accepted = list(names)
        unknown = [key for key in self._value if key not in accepted] if self._closed else []
        if unknown:
            raise self.refusal(
                f"{', '.join(map(shown, unknown))} is not known here, accepted: {', '.join(accepted)}"
            )

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self._value.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it is, or None."""
        return self._value.get(key)

    def shown(self, key: str) -> str:
        """The value as an error shows it."""
        return shown(self._value.get(key))

    def items(self) -> Iterable[tuple[str, Any]]:
        """All keys, with their values as they are."""
        return self._value.items()

    def read(self, key: str, hint: Any) -> Any:
        """The value as `hint` says, an annotation as in `read_dataclass`."""
        return self.read_member(key, members(hint))

    def read_member(self, key: str, accepted: Members) -> Any:
        """The value as one of the members of an annotation."""
        if key not in self._value:
            raise self.refusal(f"{key!r} is missing, expected {describe(accepted)}")
        return self._convert(key, self._value[key], accepted)

    def text(self, key: str, default: str | None = None) -> str:
        """A string without lone surrogates."""
        if default is not None and key not in self._value:
            return default
        return str(self.read(key, str))

    def optional_text(self, key: str) -> str | None:
        """A string without lone surrogates, or None where it is null or absent."""
        return self.text(key) if self.has(key) else None

    def free_text(self, key: str) -> str:
        """A string of any characters, lone surrogates too: what a user has typed."""
        return str(self.read(key, FreeText))

    def optional_free_text(self, key: str) -> str | None:
        """A string of any characters, or None where it is null or absent."""
        return self.free_text(key) if self.has(key) else None

    def integer(self, key: str, low: int, high: int = MAX_DIMENSION) -> int:
        """A whole number from `low` to `high`."""
        return int(self.read(key, Annotated[int, Range(low, high)]))

    def optional_integer(self, key: str, low: int, high: int = MAX_DIMENSION) -> int | None:
        """A whole number, or None where it is null or absent."""
        return self.integer(key, low, high) if self.has(key) else None

    def number(self, key: str, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        return float(self.read(key, Annotated[float, Range(low, high)]))

    def integers(
        self, key: str, low: int, high: int = MAX_DIMENSION, limit: int = MAX_ITEMS
    ) -> tuple[int, ...]:
        """A list of at most `limit` whole numbers from `low` to `high`."""
        return self._items(key, Annotated[int, Range(low, high)], limit)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        """A list of numbers from `low` to `high`."""
        return self._items(key, Annotated[float, Range(low, high)], MAX_ITEMS)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings without lone surrogates."""
        return self._items(key, str, MAX_ITEMS)

    def child(self, key: str) -> Fields:
        """An object."""
        if key not in self._value:
            raise self.refusal(f"{key!r} is missing, expected an object")
        return self._inner(self._value[key], key)

    def children(self, key: str, limit: int = MAX_ITEMS) -> tuple[Fields, ...]:
        """A list of objects."""
        # What is inside an object is checked where it is read: some of it may be what a user has typed.
        values = self._items(key, Annotated[Any, AnyCharacters()], limit)
        return tuple(self._inner(value, f"{key}[{index}]") for index, value in enumerate(values))

    def mapping(self, key: str) -> dict[str, Fields]:
        """An object whose values are objects."""
        inner = self.child(key)
        return {name: self._inner(value, f"{key}[{name!r}]") for name, value in inner._value.items()}

    def _items(self, key: str, item: Any, limit: int) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self.read(key, Annotated[tuple[item, ...], Length(0, limit)])
        return found

    def _inner(self, value: object, key: str) -> Fields:
        return Fields(value, f"{self.where}: {key}", self._error, self._remedy, closed=self._closed)

    def _convert(self, key: str, value: Any, accepted: Members, at: str = "") -> Any:
        """`value`, which stands at the place `at` inside of `key`, as one of `accepted`."""
        for member in accepted:
            if not member.has_type(value):
                continue
            if member.is_object:
                known = isinstance(value, member.base)  # an instance already
                return value if known else read_dataclass(member.base, self._inner(value, key + at))
            if member.kind is tuple:
                return self._tuple(key, value, member, accepted, at)
            if member.kind is Mapping:
                return self._mapping(key, value, member, accepted, at)
            if not member.accepts(value):
                break
            return float(value) if member.kind is float else value
        raise self._unexpected(key, value, accepted, at)

    def _unexpected(self, key: str, value: object, accepted: Members, at: str) -> PhirtError:
        return self.refusal(f"{key!r}{at} is {shown(value)}, expected {describe(accepted)}")

    def _tuple(self, key: str, value: Any, member: Member, accepted: Members, at: str) -> tuple[Any, ...]:
        inner = member.inner
        if member.repeated:
            if not member.length.low <= len(value) <= member.length.high:
                raise self._unexpected(key, value, accepted, at)
            (items,) = inner
            if len(items) == 1 and items[0].kind in (int, str) and all(map(items[0].accepts, value)):
                return tuple(value)  # the same as below, but fast for a hundred thousand token ids
            inner = (items,) * len(value)
        if len(inner) != len(value):
            raise self._unexpected(key, value, accepted, at)
        return tuple(
            self._convert(key, one, parts, f"{at}[{index}]")
            for index, (one, parts) in enumerate(zip(value, inner, strict=True))
        )

    def _mapping(self, key: str, value: Any, member: Member, accepted: Members, at: str) -> dict[str, Any]:
        if not member.length.low <= len(value) <= member.length.high:
            raise self._unexpected(key, value, accepted, at)
        names, items = member.inner
        for name in value:
            if not names[0].accepts(name):
                raise self.refusal(f"{key!r}{at} has the key {shown(name)}, expected {describe(names)}")
        return {name: self._convert(key, one, items, f"{at}[{name!r}]") for name, one in value.items()}


@functools.cache
def _known(cls: type[Any], given: frozenset[str]) -> Mapping[str, tuple[str, Members, bool]]:
    """The key of each field of a dataclass that is not `given`, what it accepts, whether it has a default."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        field.name: (
            _key(field),
            members(hints[field.name]),
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING,
        )
        for field in dataclasses.fields(cls)
        if field.init and field.name not in given
    }


def _key(field: dataclasses.Field[Any]) -> str:
    """What a field is called in the document."""
    key: str = field.metadata.get("key", field.name)
    return key
