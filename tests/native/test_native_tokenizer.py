"""Ids of the library for apps beside those of the `tokenizers` library: every code point, and hard text."""

from __future__ import annotations

import json
import random
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from native_host import NANO, ROOT, run
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from phirt.prompt.content_encoder import ContentEncoder
from phirt.prompt.tokenizer import StreamDecoder
from phirt.prompt.tokenizer import Tokenizer as PhirtTokenizer

# How published tokenizers cut text, as their tokenizer.json files say: Llama 3, Qwen 2, Phi-4 and GPT-4o
# (o200k), StarCoder and SmolLM (digits alone), DeepSeek (three steps). And what else the engine knows.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "llama3": rf"{_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "qwen2": rf"{_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_WORDS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORDS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    "possessive": r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]|\s+(?!\S)|\s",
    "classes": r"[a-z&&[^aeiou]]+|[^\P{L}a-z]+?|\d{2,3}?|[\]\-x\[_-]|(?>ab|a)c|.",
}


def split(pattern: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior)


def level(use_regex: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


PRE_TOKENIZERS = {
    **{name: pre_tokenizers.Sequence([split(pattern), level()]) for name, pattern in PATTERNS.items()},
    "gpt2": level(use_regex=True),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level(use_regex=True)]),
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), level()]),
    "removed": pre_tokenizers.Sequence([split(r"\s", "removed"), level()]),
    "deepseek": pre_tokenizers.Sequence(
        [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(PATTERNS["llama3"]), level()]
    ),
}

# What a tokenizer.json may not hold, and what is said of it.
UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": {"type": "NFC"}}, "normalizer"),
    ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
    ({"pre_tokenizer": None}, "pre_tokenizer"),
    ({"decoder": {"type": "WordPiece"}}, "WordPiece"),
    ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
    ({"added_tokens": [{"id": -1, "content": "x"}]}, "-1"),
    ({"added_tokens": [{"id": 1, "content": ""}]}, "content"),
]
UNKNOWN_PATTERNS = [
    "(", "a)", "[a", "a{2", "*a", "a**", "(?<=a)b", r"\bx", r"\w+", "(?<n>a)", "(a*)*", r"\p{Greek}",
    "[[:alpha:]]", r"a\1", "(?i:é)", "x{1,9999}", "(" * 40 + "a" + ")" * 40, r"[z-a]", "\\",
]  # fmt: skip


def texts() -> list[str]:
    """Every code point beside others, every category mixed, real text, and what makes patterns go back."""
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
    found = ["".join(points[at : at + 997]) for at in range(0, len(points), 997)]
    draw = random.Random(12)
    by_category: dict[str, list[str]] = {}
    for point in points:
        by_category.setdefault(unicodedata.category(point), []).append(point)
    categories = list(by_category)
    found += [
        "".join(draw.choice(by_category[draw.choice(categories)]) for _ in range(draw.randint(1, 50)))
        for _ in range(1500)
    ]
    letters = list("  \n\r\t'sdmtrevlSLDVEſK019abXYZ.,!/?-_()[]\u00a0\u3000\u2028中文éß👍🏽")
    found += ["".join(draw.choice(letters) for _ in range(draw.randint(0, 30))) for _ in range(3000)]
    found += [
        unit * count
        for unit in (" ", "a", "\n", " \n", "!", "1", "'s", "é", "中")
        for count in (1, 3, 20_000)
    ]
    found += [(ROOT / "README.md").read_text("utf-8"), Path(__file__).read_text("utf-8")]
    return [*found, "<|end|><|user|>", "I'LL we'Re 'ſ x"]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return texts()


def document_of(pre_tokenizer: Any, **options: Any) -> dict[str, Any]:
    """A tokenizer.json with a small vocabulary of its own."""
    tokenizer = Tokenizer(BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [(ROOT / "README.md").read_text("utf-8"), "中文 naïve café 👍🏽 ß 12345 " * 40]
    tokenizer.train_from_iterator(lines, trainer)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


def ids_of(programs: Path, path: Path, corpus: list[str]) -> list[list[int]]:
    data = b"".join(f"{len(text.encode())}\n".encode() + text.encode() for text in corpus)
    lines = run(programs / "phirt_parts", "tokenizer", path, 1 << 22, data=data).decode().splitlines()
    return [list(map(int, line.split())) for line in lines]


def reference(path: Path) -> ContentEncoder:
    document = json.loads(path.read_text("utf-8"))
    return ContentEncoder(document, {token["content"] for token in document["added_tokens"]})


def test_nano_on_every_code_point(programs: Path, corpus: list[str]) -> None:
    path = NANO / "tokenizer.json"
    encoder = reference(path)
    assert ids_of(programs, path, corpus) == [encoder.encode(text) for text in corpus]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_way_to_cut_text(programs: Path, corpus: list[str], tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokenizer.json"
    document = document_of(PRE_TOKENIZERS[name])
    path.write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    encoder = reference(path)
    assert ids_of(programs, path, corpus) == [encoder.encode(text) for text in corpus]


def test_words_that_are_tokens_as_a_whole(programs: Path, corpus: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    document = document_of(PRE_TOKENIZERS["llama3"])
    document["model"]["ignore_merges"] = True
    del document["model"]["merges"][40:]
    path.write_text(json.dumps(document), "utf-8")
    encoder = reference(path)
    assert ids_of(programs, path, corpus) == [encoder.encode(text) for text in corpus]


def test_merges_as_older_files_write_them(programs: Path, corpus: list[str], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    document = document_of(PRE_TOKENIZERS["gpt2"])
    document["model"]["merges"] = ["#version: 0.2", *map(" ".join, document["model"]["merges"])]
    path.write_text(json.dumps(document), "utf-8")
    encoder = reference(path)
    assert ids_of(programs, path, corpus) == [encoder.encode(text) for text in corpus]


def test_answers_stream_as_phirt_streams_them(programs: Path) -> None:
    """Ids in any order: half characters, broken ones, control tokens."""
    path = NANO / "tokenizer.json"
    tokenizer = PhirtTokenizer(path, 4096, ("<|tool_call|>", "<|/tool_call|>"))
    draw = random.Random(3)
    lines = [[draw.randrange(4096) for _ in range(40)] for _ in range(50)]
    lines += [[draw.randrange(12, 268) for _ in range(60)] for _ in range(200)]  # bytes alone
    data = "\n".join(" ".join(map(str, line)) for line in lines) + "\n"
    found = run(programs / "phirt_parts", "decode", path, 4096, data=data.encode()).decode().split("\n")
    for line, pieces in zip(lines, found, strict=False):
        decoder = StreamDecoder(tokenizer)
        assert [bytes.fromhex(piece).decode() for piece in pieces.split(" ")[:-1]] == [
            decoder.feed(one) for one in line
        ]


@pytest.mark.parametrize(("change", "message"), UNREADABLE)
def test_what_it_cannot_read_is_refused(
    programs: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document_of(PRE_TOKENIZERS["gpt2"]) | change), "utf-8")
    done = subprocess.run(
        [programs / "phirt_parts", "tokenizer", path, "4096"], input=b"", capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert message in done.stderr.decode() and done.stderr.decode().count("\n") == 1


@pytest.mark.parametrize("pattern", UNKNOWN_PATTERNS)
def test_patterns_that_it_does_not_know_are_refused(programs: Path, tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "tokenizer.json"
    document = document_of(PRE_TOKENIZERS["gpt2"])
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, byte_level]}
    path.write_text(json.dumps(document), "utf-8")
    done = subprocess.run(
        [programs / "phirt_parts", "tokenizer", path, "4096"], input=b"", capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.decode().startswith("tokenizer.json") and done.stderr.decode().count("\n") == 1


def test_a_pattern_that_goes_back_without_end_is_given_up(programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    document = document_of(PRE_TOKENIZERS["gpt2"])
    step = {"type": "Split", "pattern": {"Regex": "(a|a)+(b|b)+c"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, byte_level]}
    path.write_text(json.dumps(document), "utf-8")
    done = subprocess.run(
        [programs / "phirt_parts", "tokenizer", path, "4096"],
        input=b"60\n" + b"a" * 60,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "takes too long" in done.stderr.decode()
