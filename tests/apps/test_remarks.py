"""What is said beside an answer: called tools that nobody offered."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from phirt.prompt.tools import Tools, parse_tool_calls
from phirt_apps.cli import app
from phirt_apps.remarks import unoffered_calls


@pytest.mark.parametrize(
    ("offered", "called", "said"),
    [
        (["find", "book"], ["fly"], "the answer calls fly, which was not offered (offered: book, find)"),
        (["find"], ["fly", "find", "fly"], "the answer calls fly, which was not offered (offered: find)"),
        ([], ["fly", "go"], "the answer calls fly, go, which was not offered (no tools were offered)"),
        (["find"], ["find"], None),
        (["find"], [], None),
        (["a\x1b[2J"], ["b\nc"], "the answer calls b c, which was not offered (offered: a[2J)"),
    ],
)
def test_calls_of_what_was_not_offered(offered: list[str], called: list[str], said: str | None) -> None:
    tools = Tools.of([{"name": name} for name in offered])
    calls = "".join(
        f"<|tool_call|>[{json.dumps({'name': name, 'arguments': {}})}]<|/tool_call|>" for name in called
    )
    result: Any = SimpleNamespace(tool_calls=parse_tool_calls(calls, tools))
    chat: Any = SimpleNamespace(tools=tools)
    assert unoffered_calls(result, chat) == said


def test_a_made_up_call(nano: Path, tmp_path: Path) -> None:
    asked = [
        "chat",
        "-m",
        str(nano),
        "--system",
        "Turn the request into a tool call.",
        "What is the weather in Paris?",
        "--json",
    ]
    made_up = CliRunner().invoke(app, asked, input="")
    assert made_up.exit_code == 0
    assert made_up.stderr == "the answer calls GetWeather, which was not offered (no tools were offered)\n"
    assert [call["offered"] for call in json.loads(made_up.stdout)["tool_calls"]] == [False]
    tools = tmp_path / "tools.json"
    tools.write_text("\ufeff" + '[{"name": "GetWeather", "parameters": {"city": "str"}}]', encoding="utf-8")
    offered = CliRunner().invoke(app, [*asked, "--tools", str(tools)], input="")
    assert (offered.exit_code, offered.stderr) == (0, "")
    assert [call["offered"] for call in json.loads(offered.stdout)["tool_calls"]] == [True]
