"""The README's Python runs as it is written, from where its reader stands, and prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.M | re.S)]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_picture_and_a_tool_that_is_really_called() -> None:
    code = blocks()[0]
    answer, call, last = run(code).splitlines()
    assert answer == "shoes (stop, 2 tokens)"
    assert f"# {answer}" in code and f"# {call}" in code
    assert call == "GetWeather {'city': 'Paris', 'timeRange': 'tomorrow'} True"
    assert last


def test_schema() -> None:
    assert run(blocks()[1]) == "{'garment': 'shoes'}\n"


def test_asyncio() -> None:
    assert "Paris" in run(blocks()[2])
    assert len(blocks()) == 3
