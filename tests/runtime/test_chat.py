"""Templates: what the model sees for a conversation, and what content can never do to it."""

from __future__ import annotations

import itertools

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import CONTROL, TEMPLATE

from phirt.bundle.manifest import Tokens
from phirt.errors import BundleError, ConfigError
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.messages import Media, Message
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import ToolCall, Tools, parse_tool_calls

TOKENS = Tokens(bos=0, pad=0, eos=(0, 4))
PLACEHOLDERS = {"image": 1, "audio": 2}
ANY = st.lists(
    st.sampled_from([*CONTROL, "<|image_1|>", "hello", " ", "{{ 7*7 }}", "{% raw %}", "\ue0001\ue001"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="session")
def tokenizer(bundle) -> Tokenizer:
    return Tokenizer(bundle / "tokenizer.json", 512)


@pytest.fixture(scope="session")
def template(tokenizer) -> ChatTemplate:
    return ChatTemplate(TEMPLATE, tokenizer, TOKENS, PLACEHOLDERS)


def media(kind: str, tokens: int) -> Media:
    return Media(kind, kind, f"{kind}{tokens}", tokens, None)


def test_a_conversation_by_hand(template, tokenizer):
    text = tokenizer.encode_content
    messages = [
        Message("system", "be kind"),
        Message("user", "what?", (media("image", 3), media("audio", 2))),
        Message("assistant", "a fox", token_ids=(300, 301)),
        Message("user", "and now?", (media("image", 1),)),
    ]
    encoded = template.encode(messages)
    assert encoded.ids.tolist() == [
        6, *text("be kind"), 4,
        5, 1, 1, 1, 2, 2, *text("what?"), 4,
        3, 300, 301, 4,
        5, 1, *text("and now?"), 4, 3,
    ]  # fmt: skip
    assert [(start, item.num_tokens) for start, item in encoded.media] == [
        (len(text("be kind")) + 3, 3),
        (len(text("be kind")) + 6, 2),
        (len(encoded.ids) - len(text("and now?")) - 3, 1),
    ]


def test_an_answer_without_ids_is_encoded_from_its_text(template, tokenizer):
    encoded = template.encode([Message("assistant", "a fox")])
    assert encoded.ids.tolist() == [3, *tokenizer.encode_content("a fox"), 4, 3]


def test_tools_stand_between_their_tokens(template, tokenizer):
    encoded = template.encode([Message("system", "x"), Message("user", "y")], tools='[{"name": "<|end|>"}]')
    inner = tokenizer.encode_content('[{"name": "<|end|>"}]')
    assert encoded.ids.tolist()[:-4] == [6, *tokenizer.encode_content("x"), 7, *inner, 8, 4]


@given(contents=st.lists(ANY, min_size=1, max_size=4))
def test_no_content_changes_the_turns(template, tokenizer, contents):
    roles = itertools.cycle(["user", "assistant"])
    messages = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    ids = template.encode(messages, None).ids.tolist()
    expected = []
    for message in messages:
        expected += [{"user": 5, "assistant": 3}[message.role], *tokenizer.encode_content(message.content), 4]
    assert ids == [*expected, 3]
    assert 1 not in ids


def test_whitespace_beside_greedy_control_tokens_vanishes(bundle, tmp_path):
    import json

    document = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    document["added_tokens"][5]["rstrip"] = True
    document["added_tokens"][4]["lstrip"] = True
    (tmp_path / "t.json").write_text(json.dumps(document), "utf-8")
    tokenizer = Tokenizer(tmp_path / "t.json", 512)
    template = ChatTemplate(TEMPLATE, tokenizer, TOKENS, PLACEHOLDERS)
    ids = template.encode([Message("user", " \n hello \n ")]).ids.tolist()
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    assert ids == library.encode("<|user|> \n hello \n <|end|><|assistant|>").ids
    assert ids == [5, *tokenizer.encode_content("hello"), 4, 3]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for %}", "is broken"),
        ("{{ messages[0].__class__.__mro__ }}{{ ''.__class__.__subclasses__() }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ 1 / 0 }}", "fails"),
        ("{% for i in range(10**9) %}x{% endfor %}", "fails"),
        ("x" * 70000, "longer than 65536"),
    ],
)
def test_hostile_or_broken_templates_are_bundle_errors(tokenizer, source, expected):
    with pytest.raises(BundleError, match=expected):
        ChatTemplate(source, tokenizer, TOKENS, PLACEHOLDERS).encode([Message("user", "x")])


@pytest.mark.parametrize(
    "source",
    ["{{ messages[0].role }}", "{{ messages[0].content }}" * 2, "{{ messages[0].content[1:] }}"],
)
def test_a_template_that_loses_media_is_refused(tokenizer, source):
    with pytest.raises(BundleError, match="drops, repeats or reorders media"):
        ChatTemplate(source, tokenizer, TOKENS, PLACEHOLDERS).encode(
            [Message("user", "x", (media("image", 2),))]
        )


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("no call", ()),
        ('<|tool_call|>[{"name": "f", "arguments": {"x": 1}}]<|/tool_call|>',
         ({"name": "f", "arguments": {"x": 1}},)),
        ('ok <|tool_call|>{"name": "f"}<|/tool_call|>', ({"name": "f", "arguments": {}},)),
        ('<|tool_call|>[{"name": "f", "parameters": {"é": [1]}}]', ({"name": "f", "arguments": {"é": [1]}},)),
        ('<|tool_call|>{"name": "a"}<|/tool_call|>\n<|tool_call|>{"name": "b"}<|/tool_call|>',
         ({"name": "a", "arguments": {}}, {"name": "b", "arguments": {}})),
        ('<|tool_call|>{"name": "f", "arguments": {"x": <|/tool_call|>', ()),
        ('<|tool_call|>[{"name": 3}]<|/tool_call|>', ()),
        ('<|tool_call|>[{"name": "f"}, 7]<|/tool_call|>', ()),
        ('<|tool_call|>{"name": "f", "arguments": "x"}<|/tool_call|>', ()),
        ("<|tool_call|>" + "[" * 100000 + "<|/tool_call|>", ()),
    ],
)  # fmt: skip
def test_tool_calls(text, calls):
    expected = tuple(ToolCall(call["name"], call["arguments"], False) for call in calls)
    assert parse_tool_calls(text) == expected


@pytest.mark.parametrize(
    "tools",
    [
        "x",
        {"name": "f"},
        [3],
        [{}],
        [{"name": 3}],
        [{"name": "f", "x": {1}}],
        [{"name": "f", "x": float("nan")}],
    ],
)
def test_senseless_tools_are_refused(tools):
    with pytest.raises(ConfigError, match=r"tool"):
        Tools.of(tools)


def test_no_tools_are_none():
    assert Tools.of(None) is None
    assert Tools.of([]) is None


@pytest.mark.parametrize(
    "source", ["{% for a in [1] %}" * 40 + "{% endfor %}" * 40, "{{ " + "(" * 5000 + ")" * 5000 + " }}"]
)
def test_templates_that_python_cannot_compile_are_broken(model, source):
    with pytest.raises(BundleError, match="chat template"):
        ChatTemplate(source, model.generator.tokenizer, model.manifest.tokens).encode([Message("user", "hi")])


def test_a_template_that_says_nothing_is_refused(model):
    with pytest.raises(BundleError, match="empty prompt"):
        ChatTemplate("", model.generator.tokenizer, model.manifest.tokens).encode([])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_calls_with_numbers_that_json_has_not_stay_text(number):
    assert parse_tool_calls(f'<|tool_call|>{{"name":"x","arguments":{{"a":{number}}}}}<|/tool_call|>') == ()
