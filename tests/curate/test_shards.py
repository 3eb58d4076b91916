"""Files cut into shards: every line in one of them, whatever the sizes, ends and faults."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_train.curate.records import cleaned, text_of
from phirt_train.curate.shards import cut, read


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 40), max_size=12),
    size=st.integers(1, 120),
    last_ends=st.booleans(),
    packed=st.booleans(),
)
def test_each_line_is_in_one_shard(
    tmp_path: Path, lengths: list[int], size: int, last_ends: bool, packed: bool
) -> None:
    raw = "\n".join(json.dumps({"n": n, "text": "é" * length}) for n, length in enumerate(lengths))
    raw += "\n" if last_ends else ""
    path = tmp_path / ("a.jsonl.xz" if packed else "a.jsonl")
    path.write_bytes(lzma.compress(raw.encode()) if packed else raw.encode())
    shards = cut("a", [path], size)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    read_back = [line.record["n"] for shard in shards for line in read(shard)]
    assert read_back == list(range(len(lengths)))
    assert len(shards) == 1 or all(list(read(shard)) for shard in shards)


def test_bad_lines_are_told_from_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n  \nno json\n[1]\n{"text": "\xff"}\n{"text": "b"}\r\n')
    (shard,) = cut("a", [path], 1000)
    lines = list(read(shard))
    assert [line.record.get("text") for line in lines if not line.fault] == ["a", "b"]
    assert [line.fault for line in lines if line.fault] == ["no JSON", "no JSON object", "no JSON"]


def test_a_line_without_an_end_in_sight_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phirt_train.curate.shards.MAX_LINE_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "{"x" * 500}"}}\n{{"text": "b"}}\n', encoding="utf-8")
    (shard,) = cut("a", [path], 1000)
    long, short = read(shard)
    assert long.fault == "longer than 64 bytes" and short.record == {"text": "b"}


@pytest.mark.parametrize("content", [b"no archive", lzma.compress(b'{"text": "a"}\n' * 999)[:-20]])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.jsonl\.xz cannot be read: "):
        for shard in cut("a", [path], 100):
            list(read(shard))


@pytest.mark.parametrize(
    ("record", "template", "expected"),
    [
        ({"text": "a "}, "{text}", "a"),
        ({"q": "1 + 1?", "a": 2}, "Question: {q}\nAnswer: {a}", "Question: 1 + 1?\nAnswer: 2"),
        ({"pages": ["One.", "Two."]}, "{pages}", "One.\nTwo."),
        ({"q": "{a}", "a": "b"}, "{q}", "{a}"),  # what a record says is no template
        ({"text": None}, "{text}", None),
        ({"text": {"en": "a"}}, "{text}", None),
        ({"text": True}, "{text}", None),
        ({}, "{text}", None),
    ],
)
def test_text_of_a_record(record: dict[str, object], template: str, expected: str | None) -> None:
    assert text_of(record, template) == expected


def test_cleaning() -> None:
    assert cleaned("\ufeffe\u0301t\x00e\x1b \r\nb\t\r\rc\ud800\n\n") == "éte\nb\n\nc"
