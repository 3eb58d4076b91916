"""Ids of the host for JavaScript beside those of the `tokenizers` library: every code point, and hard text;
the same that the library for apps is compared on.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from web_host import NANO, Host, native_tests

from phirt.prompt.content_encoder import ContentEncoder
from phirt.prompt.tokenizer import StreamDecoder
from phirt.prompt.tokenizer import Tokenizer as PhirtTokenizer

native = native_tests("test_native_tokenizer")


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    texts: list[str] = native.texts()
    return texts


def _reference(path: Path) -> ContentEncoder:
    document = json.loads(path.read_text("utf-8"))
    return ContentEncoder(document, {token["content"] for token in document["added_tokens"]})


def _compare(host: Host, path: Path, corpus: list[str], vocab: int = 4096) -> None:
    encoder = _reference(path)
    (found,) = host.parts([{"tokenizer": str(path), "vocab": vocab, "texts": corpus}])
    different = [text for text, ids in zip(corpus, found, strict=True) if ids != encoder.encode(text)]
    assert different == []


def test_nano_on_every_code_point(host: Host, corpus: list[str]) -> None:
    _compare(host, NANO / "tokenizer.json", corpus)


@pytest.mark.parametrize("name", native.PRE_TOKENIZERS)
def test_every_way_to_cut_text(host: Host, corpus: list[str], tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokenizer.json"
    document = native.document_of(native.PRE_TOKENIZERS[name])
    path.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    _compare(host, path, corpus[::8])


def test_words_that_are_tokens_as_a_whole(host: Host, corpus: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    document = native.document_of(native.PRE_TOKENIZERS["llama3"])
    document["model"]["ignore_merges"] = True
    del document["model"]["merges"][40:]
    path.write_text(json.dumps(document), "utf-8")
    _compare(host, path, corpus[::8])


def test_merges_as_older_files_write_them(host: Host, corpus: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    document = native.document_of(native.PRE_TOKENIZERS["gpt2"])
    document["model"]["merges"] = ["#version: 0.2", *map(" ".join, document["model"]["merges"])]
    path.write_text(json.dumps(document), "utf-8")
    _compare(host, path, corpus[::8])


def test_halves_of_characters(host: Host) -> None:
    """What a page may be given: a text cut in the middle of a character."""
    (found,) = host.parts(
        [{"tokenizer": str(NANO / "tokenizer.json"), "vocab": 4096, "texts": ["a\ud83d", "\udc4d b"]}]
    )
    encoder = _reference(NANO / "tokenizer.json")
    assert found == [encoder.encode("a\ufffd"), encoder.encode("\ufffd b")]


def test_answers_stream_as_phirt_streams_them(host: Host) -> None:
    """Ids in any order: half characters, broken ones, control tokens."""
    path = NANO / "tokenizer.json"
    tokenizer = PhirtTokenizer(path, 4096, ("<|tool_call|>", "<|/tool_call|>"))
    draw = random.Random(3)
    lines = [[draw.randrange(4096) for _ in range(40)] for _ in range(50)]
    lines += [[draw.randrange(12, 268) for _ in range(60)] for _ in range(200)]  # bytes alone
    (found,) = host.parts([{"tokenizer": str(path), "vocab": 4096, "ids": lines}])
    for line, pieces in zip(lines, found, strict=True):
        decoder = StreamDecoder(tokenizer)
        wanted = "".join(decoder.feed(one) for one in line)
        # Half of a surrogate is given up a byte earlier here, which nobody sees but at the end.
        given = "".join(pieces)
        assert given.startswith(wanted) and given[len(wanted) :].strip("\ufffd") == ""


@pytest.mark.parametrize(
    ("change", "message"), [*native.UNREADABLE, ({"model": {"type": "BPE", "merges": []}}, "vocab")]
)
def test_what_it_cannot_read_is_refused(
    host: Host, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(native.document_of(native.PRE_TOKENIZERS["gpt2"]) | change), "utf-8")
    (found,) = host.parts([{"tokenizer": str(path), "vocab": 4096, "texts": ["a"]}])
    assert found["error"] == "PackageError"
    assert message in found["message"] and "\n" not in found["message"]


def test_patterns_that_it_does_not_know_are_refused(host: Host, tmp_path: Path) -> None:
    patterns = [*native.UNKNOWN_PATTERNS, "a{2}?"]
    document = native.document_of(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    jobs = []
    for number, pattern in enumerate(patterns):
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        document["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                step,
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(document), "utf-8")
        jobs.append({"tokenizer": str(path), "vocab": 4096, "texts": ["a"]})
    for pattern, found in zip(patterns, host.parts(jobs), strict=True):
        assert found["error"] == "PackageError", pattern
        assert found["message"].startswith("tokenizer.json: the pattern"), pattern
