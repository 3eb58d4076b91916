"""One validator for everything that somebody else wrote: what it accepts, what it says, what it writes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt.errors import BundleError, ConfigError, PhirtError
from phirt.fields import (
    Fields,
    FreeText,
    Length,
    Matching,
    Range,
    parse_json,
    read_dataclass,
    write_dataclass,
)


@dataclasses.dataclass(frozen=True)
class Part:
    name: Annotated[str, Matching("[a-z]{1,8}", "1 to 8 small letters")]
    sizes: Annotated[tuple[Annotated[int, Range(1, 9)], ...], Length(1, 3)]


@dataclasses.dataclass(frozen=True)
class Whole:
    count: Annotated[int, Range(0, 10)]
    rate: Annotated[float, Range(0.0, 1.0)]
    on: bool
    kind: Literal["one", "two"]
    parts: Mapping[str, Part]
    pair: tuple[int, str]
    shape: tuple[int | str, ...]
    note: FreeText | None
    part: Part | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "two" and self.count < 2:
            raise ValueError(f"count {self.count} is too small for two")


VALID: dict[str, Any] = {
    "count": 3,
    "rate": 1,
    "on": True,
    "kind": "two",
    "parts": {"a": {"name": "x", "sizes": [1, 2]}},
    "pair": [7, "seven"],
    "shape": [1, "tokens"],
    "note": "\ud800 typed",
    "more": {"any": [None, {"thing": 1}]},
}


def read(document: object, *, closed: bool = False) -> Whole:
    return read_dataclass(Whole, Fields(document, "doc", ConfigError, "do better", closed=closed))


def test_reads_every_kind_of_annotation():
    whole = read(VALID)
    assert (whole.rate, type(whole.rate), whole.note, whole.part) == (1.0, float, "\ud800 typed", None)
    assert whole.parts == {"a": Part("x", (1, 2))}
    assert (whole.pair, whole.shape) == ((7, "seven"), (1, "tokens"))
    assert read(VALID | {"part": Part("y", (1,))}).part == Part("y", (1,))  # already built


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 11}, "doc: 'count' is 11, expected a whole number from 0 to 10; do better"),
        ({"count": 10**400}, "doc: 'count' is a number of 1329 bits, expected a whole"),
        ({"count": True}, "doc: 'count' is True, expected a whole number from 0 to 10"),
        ({"count": 3.0}, "doc: 'count' is 3.0, expected a whole number"),
        ({"rate": math.nan}, "doc: 'rate' is nan, expected a number from 0 to 1"),
        ({"rate": None}, "doc: 'rate' is None, expected a number from 0 to 1"),
        ({"on": 1}, "doc: 'on' is 1, expected true or false"),
        ({"kind": "three"}, "doc: 'kind' is 'three', expected one of one, two"),
        ({"kind": "two", "count": 1}, "doc: count 1 is too small for two; do better"),
        ({"parts": []}, "doc: 'parts' is [], expected an object of objects"),
        ({"parts": {"\ud800": VALID["parts"]["a"]}}, "doc: 'parts' has the key '\\ud800', expected a string"),
        ({"parts": {"a": {"name": "x", "sizes": []}}}, "doc: parts['a']: 'sizes' is [], expected a list of"),
        ({"parts": {"a": {"name": "X", "sizes": [1]}}}, "parts['a']: 'name' is 'X', expected 1 to 8 small"),
        ({"parts": {"a": {"name": "\ud800", "sizes": [1]}}}, "'name' is '\\ud800', expected 1 to 8 small"),
        ({"parts": {"a": {"name": "x", "sizes": [1, 0]}}}, "'sizes'[1] is 0, expected a whole number from 1"),
        ({"parts": {"a": 5}}, "doc: 'parts'['a'] is 5, expected an object"),
        ({"pair": [7]}, "doc: 'pair' is [7], expected a list of a whole number and a string"),
        ({"pair": [7, "\ud800"]}, "doc: 'pair'[1] is '\\ud800', expected a string without lone surrogates"),
        ({"shape": [1, None]}, "doc: 'shape'[1] is None, expected a whole number or a string"),
        ({"part": 5}, "doc: 'part' is 5, expected an object or null"),
        ({"more": {"\udfff": 1}}, "doc: 'more' has the key '\\udfff'"),
    ],
)  # fmt: skip
def test_refuses_with_place_value_and_what_is_accepted(changes, message):
    with pytest.raises(ConfigError) as refused:
        read(VALID | changes)
    assert message in str(refused.value)


def test_absent_fields_take_their_default_or_none_and_are_missed_otherwise():
    assert read({key: value for key, value in VALID.items() if key not in ("note", "more")}).more == {}
    with pytest.raises(ConfigError, match=r"doc: 'pair' is missing, expected a list of a whole number and a"):
        read({key: value for key, value in VALID.items() if key != "pair"})


def test_unknown_keys_are_notes_or_refused_where_the_document_is_closed():
    noted = VALID | {"parts": {"a": {"name": "x", "sizes": [1], "size": 2}}}
    assert read(noted).parts["a"].sizes == (1,)
    with pytest.raises(ConfigError, match=r"doc: parts\['a'\]: 'size' is not known here, accepted: name, si"):
        read(noted, closed=True)


def test_what_the_caller_gives_does_not_come_from_the_document():
    fields = Fields({"name": 5, "sizes": [1]}, "doc", ConfigError, "")
    assert read_dataclass(Part, fields, name="given").name == "given"


names = st.text("abcdefgh", min_size=1, max_size=8)
part = st.builds(Part, names, st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple))
wholes = st.builds(
    Whole,
    count=st.integers(2, 10),
    rate=st.floats(0, 1),
    on=st.booleans(),
    kind=st.sampled_from(["one", "two"]),
    parts=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), part),
    pair=st.tuples(st.integers(), st.text(st.characters(exclude_categories=["Cs"]))),
    shape=st.lists(st.integers() | names).map(tuple),
    note=st.none() | st.text(st.characters()),
    part=st.none() | part,
    more=st.dictionaries(names, st.none() | st.booleans() | names),
)


@given(whole=wholes)
def test_what_is_written_is_read_back(whole):
    text = json.dumps(write_dataclass(whole))
    assert read(parse_json(text.encode(), "doc", ConfigError, ""), closed=True) == whole


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)


@given(key=st.sampled_from(sorted(VALID)), value=anything)
def test_whatever_stands_there_is_read_or_refused_with_a_line_that_prints(key, value):
    try:
        read(VALID | {key: value})
    except PhirtError as error:
        line = str(error)
        line.encode()
        assert type(error) is ConfigError and "\n" not in line and len(line) < 300


@pytest.mark.parametrize("raw", [b"{", b"\xff", b'{"a": NaN}', b"[" * 99_999, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_is_refused(raw):
    with pytest.raises(BundleError, match="x is not valid JSON"):
        parse_json(raw, "x", BundleError, "")
