"""The page that goes through the reports line by line is true to the code: every file that it names is there,
and holds the names that it gives; what it calls reached has a test; and it counts its lines as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "apps/docs/pages/training-coverage.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([0-4T]\.\d+) \|(.*)\|$", PAGE, re.MULTILINE)
NAMED = sorted(set(re.findall(r"`([\w./-]+\.(?:py|toml)): ([^`]+)`", PAGE)))
LINES = {"0": 40, "1": 22, "2": 10, "3": 13, "4": 19, "T": 15}


def _holds(text: str, name: str, suffix: str) -> bool:
    word = re.escape(name)
    if suffix == ".toml":  # a stage or step, a scale, or a key
        pattern = rf'^name = "{word}"$|^\[scale\.{word}\]$|^{word} = '
    else:
        pattern = rf"^ *(?:async )?(?:def|class) {word}\b|^ *{word}(?:: [^=]+)? = |^ +{word}: "
    return re.search(pattern, text, re.MULTILINE) is not None


@pytest.mark.parametrize(("path", "names"), NAMED, ids=[f"{path}: {names}" for path, names in NAMED])
def test_what_is_named_is_there(path: str, names: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    missing = [name for name in names.split(", ") if not _holds(text, name, Path(path).suffix)]
    assert missing == []


def test_every_line_is_there_once_and_in_order() -> None:
    numbers = [number for number, _ in ROWS]
    assert numbers == [f"{part}.{line}" for part, count in LINES.items() for line in range(1, count + 1)]


def test_what_is_called_reached_has_code_and_a_test() -> None:
    states: Counter[str] = Counter()
    for number, row in ROWS:
        _, does, shows, state = (cell.strip() for cell in row.split(" | "))
        word = state.strip("*").partition(":")[0].partition(";")[0].partition(",")[0].partition(" by ")[0]
        states[word] += 1
        assert word in ("reached", "half", "not reached"), number
        if word == "reached":
            assert does and "`tests/" in shows, number
        else:  # says what is missing
            assert len(state) > 20, number
    total, reached, half, missed = map(int, re.search(  # type: ignore[union-attr]
        r"Of (\d+) lines (\d+) are reached, (\d+) by half, (\d+) not", PAGE).groups())  # fmt: skip
    assert (total, reached, half, missed) == (
        len(ROWS), states["reached"], states["half"], states["not reached"]
    )  # fmt: skip
