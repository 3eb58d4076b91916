"""Preferences as JSON lines: what they hold, what is refused, and that they are written as they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phirt.errors import ConfigError
from phirt.fields import write_dataclass
from phirt_train.data.records import PreferencePair, TrainingMessage, read_records, texts_of

ASKED = {"role": "user", "content": "What is 2 + 3?"}
PAIR: dict[str, Any] = {"prompt": [ASKED], "chosen": "5", "rejected": "6"}


def _read(folder: Path, record: object) -> PreferencePair:
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    ((_, pair),) = read_records(path, PreferencePair)
    return pair


def test_a_pair_is_read_and_written_back(tmp_path: Path) -> None:
    pair = _read(tmp_path, PAIR)
    assert pair == PreferencePair((TrainingMessage("user", "What is 2 + 3?"),), "5", "6")
    assert write_dataclass(pair)["prompt"][0]["content"] == "What is 2 + 3?"
    assert _read(tmp_path, write_dataclass(pair)) == pair


def test_a_pair_has_the_texts_of_prompt_and_answers() -> None:
    assert sorted(texts_of(PAIR)) == ["5", "6", "What is 2 + 3?"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": None}, "'prompt' is None"),
        ({"prompt": [ASKED, {"role": "assistant", "content": "5"}]}, "of role assistant, expected: user"),
        ({"rejected": "5"}, "nothing is preferred"),
        ({"chosen": 5}, "'chosen' is 5"),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        _read(tmp_path, PAIR | change)
    assert "pairs.jsonl line 1" in str(caught.value)


def test_a_missing_key_is_named_as_the_file_has_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'prompt' is missing"):
        _read(tmp_path, {"chosen": "5", "rejected": "6"})
