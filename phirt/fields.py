"""Typed access to JSON that somebody else wrote: every value is checked where it is read, every error names
its place.

Knows JSON types and bounds. Knows nothing of what the values mean; the caller chooses the error type and the
remedy.
"""

from __future__ import annotations

import json
from typing import Any

from phirt.errors import PhirtError

MAX_DIMENSION = 1 << 24  # generous for any length, width or vocabulary; keeps products far from overflow
_MAX_ARRAY = 1 << 20


def parse_json(raw: bytes, where: str, error: type[PhirtError], remedy: str) -> object:
    """Decodes strict JSON (no NaN, no Infinity). Raises `error` naming `where`."""
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as cause:
        raise error(f"{where} is not valid JSON: {cause}; {remedy}") from cause


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


class Fields:
    """One JSON object. Every reader method raises the chosen error if the value is missing or not as
    expected.
    """

    def __init__(self, value: object, where: str, error: type[PhirtError], remedy: str) -> None:
        self.where = where
        self._error = error
        self._remedy = remedy
        if not isinstance(value, dict):
            raise self.refusal(f"must be a JSON object, got {type(value).__name__}")
        self._value: dict[str, Any] = value

    def refusal(self, cause: str) -> PhirtError:
        """The error to raise for `cause`, with this object's place and the remedy."""
        return self._error(f"{self.where}: {cause}; {self._remedy}")

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self._value.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it is, or None."""
        return self._value.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        if default is not None and key not in self._value:
            return default
        value = self._get(key, "a string")
        if not isinstance(value, str):
            raise self._bad(key, value, "a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None where it is null or absent."""
        return self.text(key) if self.has(key) else None

    def integer(self, key: str, low: int, high: int = MAX_DIMENSION) -> int:
        """A whole number from `low` to `high`."""
        expected = f"a whole number from {low} to {high}"
        value = self._get(key, expected)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._bad(key, value, expected)
        return value

    def optional_integer(self, key: str, low: int, high: int = MAX_DIMENSION) -> int | None:
        """A whole number, or None where it is null or absent."""
        return self.integer(key, low, high) if self.has(key) else None

    def number(self, key: str, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        expected = f"a number from {low:g} to {high:g}"
        value = self._get(key, expected)
        if not _is_number(value) or not low <= value <= high:
            raise self._bad(key, value, expected)
        return float(value)

    def integers(
        self, key: str, low: int, high: int = MAX_DIMENSION, limit: int = _MAX_ARRAY
    ) -> tuple[int, ...]:
        """A list of at most `limit` whole numbers from `low` to `high`."""
        expected = f"a list of whole numbers from {low} to {high}"
        value = self._list(key, expected, limit)
        if not all(
            isinstance(item, int) and not isinstance(item, bool) and low <= item <= high for item in value
        ):
            raise self._bad(key, value, expected)
        return tuple(value)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        """A list of numbers from `low` to `high`."""
        expected = f"a list of numbers from {low:g} to {high:g}"
        value = self._list(key, expected, _MAX_ARRAY)
        if not all(_is_number(item) and low <= item <= high for item in value):
            raise self._bad(key, value, expected)
        return tuple(float(item) for item in value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._list(key, "a list of strings", _MAX_ARRAY)
        if not all(isinstance(item, str) for item in value):
            raise self._bad(key, value, "a list of strings")
        return tuple(value)

    def dimensions(self, key: str) -> tuple[int | str, ...]:
        """A tensor shape: non-negative whole numbers and names."""
        expected = "a list of sizes and names"
        value = self._list(key, expected, 16)
        for item in value:
            if (
                isinstance(item, bool)
                or not isinstance(item, int | str)
                or (isinstance(item, int) and item < 0)
            ):
                raise self._bad(key, value, expected)
        return tuple(value)

    def child(self, key: str) -> Fields:
        """An object."""
        return self._inner(self._get(key, "an object"), f"{self.where}: {key}")

    def children(self, key: str, limit: int = _MAX_ARRAY) -> tuple[Fields, ...]:
        """A list of objects."""
        value = self._list(key, "a list of objects", limit)
        return tuple(self._inner(item, f"{self.where}: {key}[{index}]") for index, item in enumerate(value))

    def mapping(self, key: str) -> dict[str, Fields]:
        """An object whose values are objects."""
        inner = self.child(key)
        return {name: self._inner(entry, f"{inner.where}[{name!r}]") for name, entry in inner._value.items()}

    def _inner(self, value: object, where: str) -> Fields:
        return Fields(value, where, self._error, self._remedy)

    def _list(self, key: str, expected: str, limit: int) -> list[Any]:
        value = self._get(key, expected)
        if not isinstance(value, list) or len(value) > limit:
            raise self._bad(key, value, f"{expected}, at most {limit}")
        return value

    def _get(self, key: str, expected: str) -> Any:
        if key not in self._value:
            raise self.refusal(f"{key!r} is missing, expected {expected}")
        return self._value[key]

    def _bad(self, key: str, value: object, expected: str) -> PhirtError:
        shown = repr(value)
        return self.refusal(
            f"{key!r} is {shown if len(shown) <= 80 else shown[:77] + '...'}, expected {expected}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
