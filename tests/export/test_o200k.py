"""The tokenizer built from the o200k ranks: ids are those of tiktoken, special tokens the published ones."""

from __future__ import annotations

import itertools
import json
import lzma
import random
import unicodedata

import pytest
from checkpoints.tokenizer import FULL_RANKS, parts_of, read_ranks, special_id, tokenizer_json
from tokenizers import Tokenizer

# Blocks whose letters the shared texts lack or have few of.
SCRIPTS = {
    "greek": (0x0370, 0x03FF), "cyrillic": (0x0400, 0x04FF), "armenian": (0x0530, 0x058F),
    "hebrew": (0x0590, 0x05FF), "arabic": (0x0600, 0x06FF), "devanagari": (0x0900, 0x097F),
    "bengali": (0x0980, 0x09FF), "tamil": (0x0B80, 0x0BFF), "telugu": (0x0C00, 0x0C7F),
    "thai": (0x0E00, 0x0E7F), "tibetan": (0x0F00, 0x0FFF),
    "georgian": (0x10A0, 0x10FF), "hangul jamo": (0x1100, 0x11FF),
    "ethiopic": (0x1200, 0x137F), "khmer": (0x1780, 0x17FF), "punctuation": (0x2000, 0x206F),
    "mathematics": (0x2200, 0x22FF), "boxes": (0x2500, 0x257F), "kana": (0x3040, 0x30FF),
    "han": (0x4E00, 0x9FFF), "hangul": (0xAC00, 0xD7A3), "emoji": (0x1F300, 0x1F6FF),
    "latin": (0x00A0, 0x024F), "ascii": (0x0020, 0x007E),
}  # fmt: skip
LINES = 10_000


@pytest.fixture(scope="module")
def all_ranks(ranks):
    """Every token of o200k with its rank."""
    return read_ranks(ranks)


@pytest.fixture(scope="module")
def built(all_ranks) -> Tokenizer:
    """The tokenizer under test."""
    return Tokenizer.from_str(tokenizer_json(all_ranks))


def lines(shared_data) -> list[str]:
    """5,000 lines of real text, and 5,000 of words of one script or several, with spaces and digits."""
    found: list[str] = []
    for name in ("wikipedia.train", "stories_en_fr.train", "gsm8k.train"):
        with lzma.open(shared_data / "text" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
            texts = (
                str(value) for line in itertools.islice(file, 4000) for value in json.loads(line).values()
            )
            found += itertools.islice((part for text in texts for part in text.splitlines() if part), 1667)
    chosen = random.Random(0)
    blocks = [
        [chr(c) for c in range(low, high + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
        for low, high in SCRIPTS.values()
    ]
    joints = [
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        " \n ",
        "'s ",
        "'LL ",
        "/",
        "",
        ", ",
        "123",
        " 4567 ",
        "\u3000",
    ]
    while len(found) < LINES:
        scripts = chosen.choices(blocks, k=chosen.choice((1, 1, 1, 2, 3)))
        words = ("".join(chosen.choices(chosen.choice(scripts), k=chosen.randint(1, 9))) for _ in range(8))
        found.append("".join(word + chosen.choice(joints) for word in words))
    return found[:LINES]


def test_ids_are_those_of_tiktoken_on_10000_lines_in_many_scripts(built, all_ranks, shared_data, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is the reference of these ranks")
    from tiktoken_ext import openai_public

    # Its own pattern and encoder, on the ranks that lie here: nothing is fetched.
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **kwargs: all_ranks)
    reference = tiktoken.Encoding(**openai_public.o200k_base())
    texts = lines(shared_data)
    assert len(texts) == LINES
    ours = [encoding.ids for encoding in built.encode_batch(texts, add_special_tokens=False)]
    theirs = [reference.encode_ordinary(text) for text in texts]
    assert [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b] == []
    assert all(
        built.decode(ids, skip_special_tokens=False) == text for ids, text in zip(ours, texts, strict=True)
    )


def test_special_tokens_have_their_published_ids_and_swallow_what_follows(built):
    assert {
        "<|endoftext|>": 199999, "<|endoftext10|>": 200010, "<|endoftext11|>": 200011,
        "<|assistant|>": 200019, "<|end|>": 200020,
        "<|user|>": 200021, "<|system|>": 200022, "<|tool_call|>": 200025,
    }.items() <= built.get_vocab(with_added_tokens=True).items()  # fmt: skip
    assert special_id("<|tag|>", FULL_RANKS) == 200028
    plain = built.encode("hello").ids
    assert built.encode("<|user|>\n hello").ids == [200021, *plain]
    assert built.encode("<|endoftext|> hello").ids == [199999, *built.encode(" hello").ids]


def test_merges_are_the_pairs_that_encoding_itself_ends_with():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5, b"cab": 6}
    assert parts_of(b"abc", ranks, 5) == [b"a", b"bc"]
    assert parts_of(b"cab", ranks, 6) == [b"c", b"ab"]
    assert json.loads(tokenizer_json(ranks))["model"]["merges"] == [
        ["b", "c"], ["a", "b"], ["a", "bc"], ["c", "ab"],
    ]  # fmt: skip
