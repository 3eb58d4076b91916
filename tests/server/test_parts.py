"""Parts of the server by themselves: calls told from text, subtitles, forms, media, calls as a model writes
them.
"""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phirt
from phirt.generate.call_format import CallFormat
from phirt.prompt.tools import Tools, find_tool_calls
from phirt_apps.server.bodies import parse_form, parse_object
from phirt_apps.server.errors import ApiError, BadRequestError, as_api_error
from phirt_apps.server.media import from_base64, image_part
from phirt_apps.server.subtitles import srt, vtt
from phirt_apps.server.tool_use import CallSplitter, Function, ToolUse

OFFERED = Tools.of([{"name": "f"}])
CALL = '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>'


def _split(text: str, cuts: list[int], tools: Tools | None = OFFERED) -> tuple[str, str, list[str]]:
    """What is said before the end, and what at the end; the names of calls."""
    splitter: CallSplitter[None] = CallSplitter(tools)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    early = [
        piece
        for begin, end in itertools.pairwise(places)
        for piece, _ in splitter.feed(text[begin:end], None)
    ]
    late, calls = splitter.finish()
    return "".join(early), "".join(piece for piece, _ in late), [call.name for call in calls]


@given(st.lists(st.integers(0, 120), max_size=12))
def test_a_call_is_never_said_as_text(cuts: list[int]) -> None:
    for before in ("", "Let me see. ", "a < b "):
        early, late, names = _split(before + CALL, cuts)
        assert names == ["f"] and (early + late).strip() == before.strip()


@given(st.text("<|tol_ca>[]{}\"'ab \n", max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_what_is_no_call_is_said_whole(text: str, cuts: list[int]) -> None:
    early, late, names = _split(text, cuts)
    if not find_tool_calls(text, OFFERED)[1]:
        assert (early + late, names) == (text, [])
    assert _split(text, cuts, None) == (text, "", [])


def test_text_is_not_held_back_longer_than_it_must() -> None:
    splitter: CallSplitter[int] = CallSplitter(OFFERED)
    assert splitter.feed("Hel", 1) == [("Hel", 1)]
    assert splitter.feed("lo <", 2) == []
    assert splitter.feed("3", 3) == [("lo <", 2), ("3", 3)]
    assert splitter.feed("<tool", 4) == [] and splitter.finish() == ([("<tool", 4)], ())


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "g", "arguments": {}}',
        '<|tool_call|>[{"name": "g", "arguments": {}}]<|/tool_call|>',
        "{",
        "[1]",
    ],
)
def test_a_call_of_what_was_not_offered_is_text(text: str) -> None:
    early, late, names = _split(text, [3, 5])
    assert (early + late, names) == (text, [])


def _segments() -> list[phirt.Segment]:
    return [
        phirt.Segment(0.0, 1.25, " One  two\n", "stop"),
        phirt.Segment(59.9996, 3723.004, "a --> b", "stop"),
    ]


def test_subtitles() -> None:
    assert srt(_segments()) == (
        "1\n00:00:00,000 --> 00:00:01,250\nOne two\n\n2\n00:01:00,000 --> 01:02:03,004\na → b\n\n"
    )
    assert vtt(_segments()) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nOne two\n\n00:01:00.000 --> 01:02:03.004\na → b\n\n"
    )
    assert (srt([]), vtt([])) == ("", "WEBVTT\n\n")


def test_forms() -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nn\xc3\xa4no\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\\".wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n\x00--b\r\n\xff\r\n--b--\r\n"
    )
    form = parse_form(body, "multipart/form-data; boundary=b")
    assert form.fields == [("model", "näno")]
    assert form.files["file"][1] == b"\x00--b\r\n\xff"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "ends in the middle"),
        (b"--b\r\n", "ends in the middle"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx', "ends in the middle"),
        (b"--b\r\nX: y\r\n\r\nx\r\n--b--\r\n", "a part of the form has no name"),
        (b"--c\r\n\r\n--c--", "the form is damaged"),
    ],
)
def test_damaged_forms(body: bytes, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        parse_form(body, "multipart/form-data; boundary=b")


@pytest.mark.parametrize("kind", ["text/plain", "", "application/jsonx", "multipart/form-data"])
def test_json_must_be_called_so(kind: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_object(b"{}", kind)
    assert refused.value.status == 415
    assert parse_object(b'{"a": 1}', "Application/JSON; charset=utf-8") == {"a": 1}


@given(st.binary(min_size=1, max_size=50))
def test_base64_with_and_without_padding(data: bytes) -> None:
    import base64

    text = base64.b64encode(data).decode()
    assert from_base64(text, "x") == from_base64(text.rstrip("="), "x") == data
    assert image_part(f"data:image/png;charset=x;BASE64,{text}", "low", "x").data == data


@pytest.mark.parametrize("text", ["", "a", "ab$d", "ab\ncd", "ä"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(BadRequestError):
        from_base64(text, "x")


def test_refusals_are_one_line_and_bounded() -> None:
    error = BadRequestError("a\n  b" + "x" * 1000, param="p")
    assert (
        error.document["error"]["message"].startswith("a bx")
        and len(error.document["error"]["message"]) == 500
    )
    assert error.document["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": "p", "code": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (phirt.ContextError("x"), 400, "context_length_exceeded"),
        (phirt.MediaError("x"), 400, "invalid_media"),
        (phirt.SchemaError("x"), 400, "invalid_schema"),
        (phirt.BundleError("x"), 400, None),
        (phirt.OutOfMemoryError("x"), 503, "out_of_memory"),
        (MemoryError(), 503, "out_of_memory"),
        (phirt.ClosedError("x"), 503, "stopping"),
        (phirt.RequestCancelledError("x"), 503, "stopping"),
        (KeyError("secret"), 500, None),
    ],
)
def test_which_errors_are_whose_fault(error: Exception, status: int, code: str | None, caplog) -> None:
    refused = as_api_error(error)
    assert (refused.status, refused.code) == (status, code) and "secret" not in str(refused)
    assert bool(caplog.records) == (status == 500)


class Marked:
    """A tokenizer with some marks, one id for each character."""

    def __init__(self, *marks: str) -> None:
        self.marks = {name: 1000 + at for at, name in enumerate(marks)}
        self.control_tokens = dict.fromkeys(self.marks.values())

    def id_of(self, name: str) -> int | None:
        return self.marks.get(name)

    def encode_content(self, text: str) -> list[int]:
        return [ord(character) for character in text]


FORMATS = {
    "Phi-4": (("<|tool_call|>", "<|/tool_call|>"), "<1000>{list}<1001>"),
    "Qwen": (("<tool_call>", "</tool_call>"), "<1000>\n{one}\n<1001>"),
    "Mistral": (("[TOOL_CALLS]",), "<1000>{list}"),
    "Llama": (("<|python_tag|>",), '<1000>{"name": "f", "parameters": {"a": 1}}'),
    "bare": ((), "{list}"),
}


@pytest.mark.parametrize("family", FORMATS)
def test_calls_as_models_write_them(family: str) -> None:
    marks, expected = FORMATS[family]
    tokenizer = Marked(*marks)
    before = "Hm. " if marks else ""  # a bare call is one where nothing else is said
    ids = CallFormat.of(tokenizer).ids(tokenizer, before, [("f", {"a": 1})])
    written = "".join(chr(token) if token < 1000 else f"<{token}>" for token in ids)
    one = '{"name": "f", "arguments": {"a": 1}}'
    assert written == before + expected.replace("{list}", f"[{one}]").replace("{one}", one)
    text = re.sub(r"<(1\d\d\d)>", lambda found: marks[int(found[1]) - 1000], written)
    (call,) = find_tool_calls(text, OFFERED)[1]
    assert (call.name, dict(call.arguments)) == ("f", {"a": 1})


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("most", [1, 3])
def test_forced_calls_are_calls_in_every_format(model: phirt.Model, family: str, most: int) -> None:
    """With the marks as plain text, which nano's tokenizer has no tokens for."""
    marks, _ = FORMATS[family]
    grammar = CallFormat.of(Marked(*marks)).grammar(
        {
            "f": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]} | CLOSED,
            "g": CLOSED,
        },
        most,
    )
    rules = re.sub(r"<\[(1\d\d\d)\]>", lambda found: json.dumps(marks[int(found[1]) - 1000]), grammar.rules)
    schema = phirt.Grammar(rules, grammar.schemas)
    for seed in range(4):
        answer = model.chat().send("x", schema=schema, temperature=1.5, seed=seed, max_new_tokens=300).result
        calls = find_tool_calls(answer.text, Tools.of([{"name": "f"}, {"name": "g"}]))[1]
        assert answer.finish_reason == "stop" and 1 <= len(calls) <= most, answer.text
        assert all(call.offered for call in calls)
        assert all(set(call.arguments) == ({"a"} if call.name == "f" else set()) for call in calls)


CLOSED = {"additionalProperties": False, "type": "object"}


def test_tools_that_a_request_may_not_offer() -> None:
    for functions, said in (
        ([Function("a b")], "a tool is called 'a b'"),
        ([Function("a"), Function("a")], "two tools are called 'a'"),
        ([Function(f"f{at}") for at in range(129)], "129 tools are offered"),
    ):
        with pytest.raises(BadRequestError, match=said):
            ToolUse(tuple(functions))
    with pytest.raises(BadRequestError, match="which is not offered"):
        ToolUse((Function("a"),), "required", "b")
    assert ToolUse((Function("a"),), "none").offered is None
