"""`phirt chat --schema`: JSON on stdout or one line on stderr, and an exit status that tells which."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SCHEMA = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 3}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_the_answer_is_json(invoke, schema: Path) -> None:
    result = invoke("chat", "--schema", schema, "Which?")
    assert (result.exit_code, result.stderr) == (0, "")
    value = json.loads(result.stdout)
    assert len(value) == 3 and set(value) <= {"a", "b"}


def test_with_json_the_value_stands_beside_the_text(invoke, schema: Path) -> None:
    document = json.loads(invoke("chat", "--schema", schema, "--json", "Which?").stdout)
    assert document["value"] == json.loads(document["text"]) and document["finish_reason"] == "stop"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_cut_answer_fails_and_says_why(invoke, schema: Path, flags: list[str]) -> None:
    result = invoke("chat", "--schema", schema, *flags, "--max-new-tokens", 3, "Which?")
    assert result.exit_code == 1
    said = "error: the answer is no whole JSON: cut at 3 new tokens; --max-new-tokens N allows more\n"
    assert result.stderr == said
    if flags:
        document = json.loads(result.stdout)
        assert (document["value"], document["finish_reason"]) == (None, "length")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON: "),
        ("[1]", "schema is a list, accepted: a JSON schema"),
        ('{"not": {}}', 'it uses "not", which cannot be checked'),
        ("[" * 100_000, "is not JSON: "),
        (None, "cannot read the schema"),
        ("\0" * 50, "is binary"),
    ],
)
def test_a_bad_schema_is_one_line(invoke, tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content)
    result = invoke("chat", "--schema", path, "Which?")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and said in result.stderr


def test_stop_contradicts_it(invoke, schema: Path) -> None:
    result = invoke("chat", "--schema", schema, "--stop", "x", "Which?")
    assert result.exit_code == 1 and "leave one of them out" in result.stderr


def test_without_the_extra_one_line_names_it(invoke, schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    result = invoke("chat", "--schema", schema, "Which?")
    assert (
        result.exit_code == 1 and "pip install llguidance" in result.stderr and result.stderr.count("\n") == 1
    )


def test_in_a_session_every_answer_is_kept_to_it(terminal, bundle: Path, schema: Path) -> None:
    screen = terminal("chat", "-m", bundle, "--schema", schema)
    screen.wait("leaves")
    for _ in range(2):
        screen.type("Which?\r")
        screen.wait(r'\["[ab]", ?"[ab]", ?"[ab]"\]')
    screen.type("\x04")
    assert screen.finish() == 0
