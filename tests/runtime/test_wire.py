"""The walk over protocol buffers' fields: what is written is read, and what is none of them is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_graphs import varint

from phirt.bundle.wire import Wire, field, integer_of, signed, span_of

NUMBERS = st.integers(1, (1 << 29) - 1)
INTEGERS = st.integers(0, (1 << 64) - 1)
FIELDS = st.one_of(
    st.tuples(NUMBERS, st.just(0), INTEGERS),
    st.tuples(NUMBERS, st.just(1), st.binary(min_size=8, max_size=8)),
    st.tuples(NUMBERS, st.just(2), st.binary(max_size=300)),
    st.tuples(NUMBERS, st.just(5), st.binary(min_size=4, max_size=4)),
)


def written(number: int, kind: int, value: int | bytes) -> bytes:
    key = varint(number << 3 | kind)
    if isinstance(value, int):
        return key + varint(value)
    return key + (varint(len(value)) if kind == 2 else b"") + value


@given(st.lists(FIELDS, max_size=20))
def test_fields_that_are_written_are_read(fields):
    wire = Wire(b"".join(written(*one) for one in fields), len(fields))
    found = list(wire.fields(wire.whole()))
    assert [number for number, _ in found] == [number for number, _, _ in fields]
    for (_, value), (_, kind, expected) in zip(found, fields, strict=True):
        assert (wire.bytes_of(value) if kind == 2 else value) == expected


@given(st.lists(FIELDS, max_size=20))
def test_fields_that_are_read_are_written_again(fields):
    data = b"".join(written(*one) for one in fields)
    wire = Wire(data, len(fields))
    assert b"".join(wire.again(*one) for one in wire.fields(wire.whole())) == data


@given(
    NUMBERS, st.one_of(st.integers(-(1 << 63), (1 << 64) - 1), st.binary(max_size=300), st.floats(width=32))
)
def test_a_field_is_written_by_its_type(number, value):
    wire = Wire(field(number, value), 1)
    [(found, content)] = wire.fields(wire.whole())
    assert found == number
    if isinstance(value, int):
        assert content == value & (1 << 64) - 1
    elif isinstance(value, float):
        assert content == struct.pack("<f", value)
    else:
        assert wire.bytes_of(content) == value


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_refused_or_read(data):
    wire = Wire(data, 1000)
    try:
        spans = [value for _, value in wire.fields(wire.whole()) if isinstance(value, tuple)]
    except ValueError:
        return
    assert all(0 <= begin <= end <= len(data) for begin, end in spans)


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=12))
def test_signed_integers_in_one_field(numbers):
    packed = b"".join(varint(number & (1 << 64) - 1) for number in numbers)
    wire = Wire(written(1, 2, packed), 1 + len(numbers))
    [(_, value)] = wire.fields(wire.whole())
    assert wire.varints(value) == numbers


def test_more_fields_than_are_allowed_are_refused():
    wire = Wire(written(1, 0, 7) * 4, 3)
    with pytest.raises(ValueError, match="more than 3 fields"):
        list(wire.fields(wire.whole()))


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(written(1, 2, b"four")[:-1], id="a string past the end"),
        pytest.param(written(1, 1, bytes(8))[:-1], id="a number past the end"),
        pytest.param(b"\x08" + b"\xff" * 12, id="an integer of eleven bytes"),
        pytest.param(b"\x08\xff", id="an integer without its end"),
        pytest.param(b"\x08" + varint(1 << 64), id="an integer of 65 bits"),
        pytest.param(varint(1 << 32 | 4 << 3 | 2) + b"\x04Scan", id="a number of more than 32 bits"),
        pytest.param(b"\x02\x00", id="field 0"),
        pytest.param(b"\x0b", id="a group"),
    ],
)
def test_damaged_fields_are_refused(damaged):
    wire = Wire(damaged, 10)
    with pytest.raises(ValueError):
        list(wire.fields(wire.whole()))


@pytest.mark.parametrize("key", [0, 2])
def test_a_message_inside_ends_where_it_is_said_to(key):
    """Not with what stands behind it."""
    wire = Wire(bytes([1 << 3 | 2, 1, 1 << 3 | key, 7]), 10)
    inside = span_of(next(wire.fields(wire.whole()))[1])
    with pytest.raises(ValueError, match="an integer has no end"):
        list(wire.fields(inside))


def test_a_field_is_not_taken_for_one_of_another_kind():
    four, name = struct.pack("<4s", b"Relu"), (0, 4)
    for value in (7, four):
        with pytest.raises(ValueError, match="where a message or a string belongs"):
            span_of(value)
    for other in (name, four):
        with pytest.raises(ValueError, match="where an integer belongs"):
            integer_of(other)
    assert (integer_of(7), signed((1 << 64) - 2), span_of(name)) == (7, -2, name)
