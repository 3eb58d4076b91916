"""Tools in a conversation: the prompt that offers them, calls in answers, results as turns."""

from __future__ import annotations

import pytest
from conversing import SHORT, fresh, scripted

from phirt.errors import ConfigError
from phirt.generate.engine import Engine
from phirt.prompt.tools import ToolCall


def test_system_and_tools_open_the_prompt(model):
    chat = model.chat(system="be kind", tools=[{"name": "f", "parameters": {"x": "int"}}])
    ids = chat.send("hi", config=SHORT).result.prompt_token_ids
    assert [token for token in ids if token < 12] == [6, 7, 8, 4, 5, 4, 3]


def test_tool_calls_are_found_in_the_answer(model, monkeypatch):
    chat = model.chat()
    script = [9, *model.generator.tokenizer.encode_content('[{"name": "f", "arguments": {"x": 1}}]'), 10]
    monkeypatch.setattr(Engine, "generate", lambda self, *args, **kwargs: scripted(script, "stop"))
    result = chat.send("call").result
    assert result.tool_calls == (ToolCall("f", {"x": 1}, offered=False),)
    assert result.text == '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}]<|/tool_call|>'


def calling(model, monkeypatch, calls: str):
    """A conversation whose last answer makes these calls."""
    script = [9, *model.generator.tokenizer.encode_content(calls), 10]
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", lambda self, *args, **kwargs: scripted(script, "stop"))
        chat = model.chat(tools=[{"name": "f"}])
        chat.send("call").text()
    return chat


def test_results_of_tools_are_a_turn_that_is_answered(model, monkeypatch):
    chat = calling(
        model, monkeypatch, '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"x": 1}}]'
    )
    result = chat.send_tool_results([{"celsius": 21}, "<|end|>"], config=SHORT).result
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool_response", "assistant"]
    assert chat.messages[2].content == '[{"celsius": 21}, "<|end|>"]'
    asked = [9, *model.generator.tokenizer.encode_content('[{"name": "f", "arguments": {}}'), 10]
    inner = model.generator.tokenizer.encode_content(chat.messages[2].content)
    ids = list(result.prompt_token_ids)
    assert ids[-len(inner) - 4 :] == [4, 11, *inner, 4, 3]
    assert ids.count(9) == asked.count(9)
    assert list(result.token_ids) == fresh(model, chat)
    chat.rewind()  # the question, the call, the results and the answer are one turn
    assert chat.messages == ()


def test_results_survive_saving(model, monkeypatch, tmp_path):
    chat = calling(model, monkeypatch, '[{"name": "f", "arguments": {}}]')
    chat.send_tool_results([1.5], config=SHORT).text()
    chat.save(tmp_path / "x")
    other = model.load_chat(tmp_path / "x")
    assert other.messages[2].role == "tool_response"
    assert other.send("on", config=SHORT).result.token_ids == chat.send("on", config=SHORT).result.token_ids


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], "0 results for 1 calls"),
        ([1, 2], "2 results for 1 calls"),
        ("text", "results is a str"),
        ({"f": 1}, "results is a dict"),
        ([{1, 2}], "cannot be written as JSON"),
        ([float("nan")], "cannot be written as JSON"),
    ],
)
def test_senseless_results_are_refused_and_change_nothing(model, monkeypatch, results, expected):
    chat = calling(model, monkeypatch, '[{"name": "f", "arguments": {}}]')
    with pytest.raises(ConfigError, match=expected):
        chat.send_tool_results(results)
    assert len(chat.messages) == 2


def test_results_without_a_call_are_refused(chat):
    with pytest.raises(ConfigError, match="calls no tool"):
        chat.send_tool_results([1])
    chat.send("hi", config=SHORT).text()
    with pytest.raises(ConfigError, match="calls no tool"):
        chat.send_tool_results([1])
