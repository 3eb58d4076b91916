"""What a person sees when a conversation outgrows the model's original context, and when tools are called."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import phirt
from phirt_apps.answer import Request, stream_answer
from phirt_apps.cli import app
from phirt_apps.interactive.session import Session, Setup
from phirt_apps.output import Output
from phirt_apps.rendering.display import NoDisplay

NOTICE = "the conversation has grown past 64 tokens, the model's original context: it is read once more"


@pytest.fixture(scope="module")
def model(long_bundle: Path) -> phirt.Model:
    """The bundle with two rotary regimes, loaded once."""
    return phirt.load(long_bundle, threads=1)


def test_the_notice_comes_once_and_stays_off_stdout(long_bundle: Path) -> None:
    arguments = ["chat", "-m", str(long_bundle), "the quick", "--max-new-tokens", "90"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    grown, cut = result.stderr.splitlines()
    assert grown == f"{NOTICE} in the model's way for long texts (65 tokens)"
    assert cut.startswith("cut at 90 new tokens")
    assert "grown" not in result.stdout
    value = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert value["text"] + "\n" == result.stdout
    assert len(value["prompt_ids"]) < 64 < len(value["prompt_ids"]) + len(value["ids"])


def test_going_back_is_told_too(model: phirt.Model) -> None:
    stderr = io.StringIO()
    out = Output(io.StringIO(), stderr)
    chat = model.chat()
    settings = {"max_new_tokens": 3}
    stream_answer(chat, Request("7 " * 40, settings), out, NoDisplay())
    assert stderr.getvalue() == ""  # a first prompt is read once, however long it is
    chat.rewind()
    stream_answer(chat, Request("fox", settings), out, NoDisplay())
    assert "the conversation is back within 64 tokens" in stderr.getvalue()


def test_a_terminal_shows_a_bar_and_the_answer_goes_on(long_bundle: Path, terminal) -> None:
    plain = CliRunner().invoke(app, ["chat", "-m", str(long_bundle), "the quick", "--max-new-tokens", "90"])
    screen = terminal("chat", "-m", long_bundle, "the quick", "--max-new-tokens", "90", NO_COLOR="1")
    screen.wait(NOTICE, seconds=120.0)
    assert screen.finish(seconds=60.0) == 0
    assert "reading" in screen.seen and "100 %" in screen.seen
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.seen)
    first, _, rest = seen.partition("the conversation has grown")
    answer = plain.stdout.strip()
    assert first.rstrip()[-8:] in answer  # what was written before stays as it was
    assert answer[-20:] in rest


def test_results_of_tools_in_a_session(model: phirt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from phirt.generate.engine import Engine

    call = model.generator.tokenizer.encode_content('[{"name": "look_up", "arguments": {}}]')
    open_call, close_call = map(model.generator.tokenizer.id_of, ("<|tool_call|>", "<|/tool_call|>"))
    generate = Engine.generate

    def scripted(self, *arguments, **options):
        if not self.length:  # the first answer calls, the next one is the model's own
            self.prefill_prompt(arguments[0])
            yield from (open_call, *call, close_call)
            return "stop"
        return (yield from generate(self, *arguments, **options))

    monkeypatch.setattr(Engine, "generate", scripted)
    lines = iter(["what is it", "/result", "/result {", '/result {"found": 3}', "/result 1"])

    class Script:
        def read(self, prompt: str) -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        def poll(self) -> None: ...

        def hold(self) -> None: ...

    stdout, stderr = io.StringIO(), io.StringIO()
    setup = Setup({"max_new_tokens": 4})
    session = Session(model, model.chat(tools=[{"name": "look_up"}]), setup, Output(stdout, stderr))
    session.run(Script())
    assert "calls look_up: /result gives what came back" in stderr.getvalue()
    errors = [line for line in stderr.getvalue().splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert "/result needs a JSON value" in errors[0]
    assert "accepted: JSON" in errors[1]
    assert "JSON list" in errors[2]
    assert len(stdout.getvalue().splitlines()) == 2


@pytest.mark.parametrize("command", ["chat", "tokens"])
def test_image_detail_is_an_option(long_bundle: Path, examples: Path, command: str) -> None:
    extra = ["--max-new-tokens", "2"] if command == "chat" else []
    common = [command, "-m", str(long_bundle), "what", "--image", str(examples / "shapes.png"), *extra]
    for detail in ("low", "auto", "high"):
        assert CliRunner().invoke(app, [*common, "--image-detail", detail]).exit_code == 0
    refused = CliRunner().invoke(app, [*common, "--image-detail", "best"])
    assert refused.exit_code == 2
    assert "low" in refused.stderr and "high" in refused.stderr
