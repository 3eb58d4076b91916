"""The published prompt format of Phi-4-mini and Phi-4-multimodal, byte for byte, with its published ids.

The vocabulary here is bytes without merges, so that ids show every character; the control tokens have the
published names, ids and flags.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from phirt.bundle.manifest import Tokens
from phirt.errors import BundleError
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.messages import Media, Message
from phirt.prompt.tokenizer import StreamDecoder, Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS, ToolCall, Tools, parse_tool_calls

PUBLISHED = {
    "<|endoftext|>": 199999, "<|endoftext10|>": 200010, "<|endoftext11|>": 200011,
    "<|endofprompt|>": 200018, "<|assistant|>": 200019, "<|end|>": 200020, "<|user|>": 200021,
    "<|system|>": 200022, "<|tool|>": 200023, "<|/tool|>": 200024, "<|tool_call|>": 200025,
    "<|/tool_call|>": 200026, "<|tool_response|>": 200027, "<|tag|>": 200028,
}  # fmt: skip
TOKENS = Tokens(bos=199999, pad=199999, eos=(200020, 199999))
PLACEHOLDERS = {"image": 200010, "audio": 200011}
TEMPLATE = (Path(__file__).parents[1] / "bundles/nano/chat_template.jinja").read_text("utf-8")
WEATHER = [{"name": "get_weather", "description": "°C", "parameters": {"city": {"type": "str"}}}]


def document() -> dict:
    library = Library(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    document = json.loads(library.to_str())
    document["model"]["vocab"].update(PUBLISHED)  # the library numbers other names by itself
    document["added_tokens"] = [
        {
            "id": index,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": 200019 <= index <= 200028,
            "normalized": False,
            "special": not 200023 <= index <= 200027,
        }
        for name, index in PUBLISHED.items()
    ]
    return document


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("phi4") / "tokenizer.json"
    path.write_text(json.dumps(document()), "utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(path) -> Tokenizer:
    return Tokenizer(path, 200064, VISIBLE_TOKENS)


@pytest.fixture(scope="module")
def template(tokenizer) -> ChatTemplate:
    return ChatTemplate(TEMPLATE, tokenizer, TOKENS, PLACEHOLDERS)


def image(tokens: int) -> Media:
    return Media("image", "image", f"image{tokens}", tokens, None)


def clip(tokens: int) -> Media:
    return Media("audio", "audio", f"audio{tokens}", tokens, None)


def text_of(tokenizer: Tokenizer, ids) -> str:
    """All of it, control tokens by their names."""
    named = {index: name.encode() for name, index in PUBLISHED.items()}
    return b"".join(named.get(int(i)) or tokenizer.token_bytes(int(i)) for i in ids).decode()


CALL = '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|/tool_call|>'


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([Message("user", "What is this?")], None, "<|user|>What is this?<|end|><|assistant|>"),
        (
            [
                Message("system", "You are a helpful assistant."),
                Message("user", "How to explain Internet for a medieval knight?"),
            ],
            None,
            "<|system|>You are a helpful assistant.<|end|>"
            "<|user|>How to explain Internet for a medieval knight?<|end|><|assistant|>",
        ),
        (
            [Message("user", "one"), Message("assistant", "two"), Message("user", "three")],
            None,
            "<|user|>one<|end|><|assistant|>two<|end|><|user|>three<|end|><|assistant|>",
        ),
        (
            [
                Message("user", "Compare.", (image(3), image(2), clip(2), clip(1))),
                Message("assistant", "Done."),
                Message("user", "And this?", (image(1),)),
            ],
            None,
            "<|user|><|endoftext10|><|endoftext10|><|endoftext10|><|endoftext10|><|endoftext10|>"
            "<|endoftext11|><|endoftext11|><|endoftext11|>Compare.<|end|><|assistant|>Done.<|end|>"
            "<|user|><|endoftext10|>And this?<|end|><|assistant|>",
        ),
        (
            [Message("system", "You have tools."), Message("user", "Is it warm in Paris?")],
            Tools.of(WEATHER).json,
            '<|system|>You have tools.<|tool|>[{"name": "get_weather", "description": "°C", '
            '"parameters": {"city": {"type": "str"}}}]<|/tool|><|end|>'
            "<|user|>Is it warm in Paris?<|end|><|assistant|>",
        ),
        ([Message("user", "", (clip(2),))], None,
         "<|user|><|endoftext11|><|endoftext11|><|end|><|assistant|>"),
    ],
)  # fmt: skip
def test_the_prompt_is_the_published_format(template, tokenizer, messages, tools, expected):
    encoded = template.encode(messages, tools)
    assert text_of(tokenizer, encoded.ids) == expected
    assert sum(int(i) >= 199999 for i in encoded.ids) == expected.count("<|")
    assert tokenizer.split_control("<|user|><|end|>") == [200021, 200020]


def test_a_tools_results_come_back_as_a_turn_of_their_own(template, tokenizer):
    call_ids = [200025, *tokenizer.encode_content(CALL[13:-14]), 200026]
    assert tokenizer.decode(call_ids) == CALL
    assert parse_tool_calls(CALL) == (ToolCall("get_weather", {"city": "Paris"}, False),)
    assert template.tool_role == "tool_response"
    encoded = template.encode(
        [
            Message("user", "Is it warm in Paris?"),
            Message("assistant", CALL, token_ids=tuple(call_ids)),
            Message("tool_response", '[{"celsius": 21}]'),
        ]
    )
    assert text_of(tokenizer, encoded.ids) == (
        "<|user|>Is it warm in Paris?<|end|>"
        f"<|assistant|>{CALL}<|end|>"
        '<|tool_response|>[{"celsius": 21}]<|end|><|assistant|>'
    )


@pytest.mark.parametrize(
    ("content", "media", "expected"),
    [
        ("\nhello", (), "<|user|>hello<|end|>"),
        (" \t\r\n\u3000hello \n", (), "<|user|>hello \n<|end|>"),
        ("\x1chello", (), "<|user|>\x1chello<|end|>"),  # no whitespace to Unicode, though Python strips it
        (" \n ", (), "<|user|><|end|>"),
        ("\nhello", (image(1),), "<|user|><|endoftext10|>\nhello<|end|>"),
    ],
)
def test_whitespace_after_a_role_vanishes_and_nowhere_else(template, tokenizer, content, media, expected):
    ids = template.encode([Message("user", content, media)]).ids
    assert text_of(tokenizer, ids) == f"{expected}<|assistant|>"


def test_other_templates_newlines_vanish_with_the_rule(tokenizer):
    source = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n"
    ids = ChatTemplate(source, tokenizer, TOKENS).encode([Message("user", "hello")]).ids
    assert text_of(tokenizer, ids) == "<|user|>hello<|end|><|assistant|>"


@settings(deadline=None)
@given(
    contents=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=4)
)
def test_ids_equal_the_librarys_over_the_whole_text(template, path, contents):
    library = tokenizers.Tokenizer.from_file(str(path))
    messages = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents)]
    whole = "".join(f"<|{m.role}|>{m.content}<|end|>" for m in messages) + "<|assistant|>"
    assert template.encode(messages).ids.tolist() == library.encode(whole, add_special_tokens=False).ids


@pytest.mark.parametrize("name", [*PUBLISHED, "<|image_1|>", "<|audio_1|>", "<|image|>", "<|audio|>"])
@pytest.mark.parametrize("place", ["user", "system", "assistant", "tool_response", "tools"])
def test_nothing_typed_becomes_a_control_token(template, tokenizer, name, place):
    content = f"a{name}b"
    tools = json.dumps([{"name": content}]) if place == "tools" else None
    messages = [Message("system", "s"), Message("user" if place == "tools" else place, content)]
    encoded = template.encode(messages, tools)
    harmless = template.encode(
        [messages[0], Message(messages[1].role, "ab")], None if tools is None else '[{"name": "ab"}]'
    )
    assert sorted(i for i in encoded.ids if i > 256) == sorted(i for i in harmless.ids if i > 256)
    assert name in text_of(tokenizer, encoded.ids)


def test_a_control_token_cannot_be_put_together_from_template_and_content(tokenizer):
    template = ChatTemplate("{% for m in messages %}<|{{ m.content }}{% endfor %}", tokenizer, TOKENS)
    assert 200020 not in template.encode([Message("user", "end|>")]).ids


def test_bos_and_eos_have_their_names_in_templates(tokenizer):
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ids = ChatTemplate(source, tokenizer, TOKENS).encode([Message("user", "a")]).ids.tolist()
    assert ids == [199999, *tokenizer.encode_content("a"), 199999]


def test_a_template_that_loses_what_was_said_is_refused(tokenizer):
    source = (
        "{% for m in messages %}{% if m.role != 'system' %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(BundleError, match="drops a message"):
        ChatTemplate(source, tokenizer, TOKENS).encode([Message("system", "x"), Message("user", "y")])


@pytest.fixture(scope="module")
def fallback_path(tmp_path_factory) -> Path:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["▁", "h", "i", "o", "n", "▁h", "▁hi", "é"]
    library = Library(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            [("▁", "h"), ("▁h", "i")],
            byte_fallback=True, unk_token="<unk>", fuse_unk=True,
        )
    )  # fmt: skip
    library.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(
        [tokenizers.AddedToken(name, rstrip=True, normalized=False) for name in ("<|user|>", "<|end|>")]
    )
    path = tmp_path_factory.mktemp("phi3") / "tokenizer.json"
    library.save(str(path))
    return path


class TestByteFallback:
    """Vocabularies of the Llama 2 kind, which Phi-3-mini has: "▁" for a space, bytes as tokens."""

    @settings(deadline=None)
    @given(text=st.text(st.sampled_from("hi é\n好👋"), max_size=12))
    def test_ids_and_text_equal_the_librarys(self, fallback_path, text):
        library, tokenizer = tokenizers.Tokenizer.from_file(str(fallback_path)), Tokenizer(fallback_path, 400)
        ids = tokenizer.encode_content(text)
        assert ids == library.encode(text, add_special_tokens=False).ids
        decoder = StreamDecoder(tokenizer)
        assert "".join(map(decoder.feed, ids)) == library.decode(ids) == text

    def test_a_prompt_of_this_kind(self, fallback_path):
        tokenizer = Tokenizer(fallback_path, 400)
        tokens = Tokens(bos=1, pad=0, eos=(2,))
        source = "{{ bos_token }}{% for m in messages %}<|user|>\n{{ m.content }}<|end|>\n{% endfor %}"
        ids = ChatTemplate(source, tokenizer, tokens).encode([Message("user", "hi")]).ids.tolist()
        user, end = tokenizer.id_of("<|user|>"), tokenizer.id_of("<|end|>")
        whole = tokenizers.Tokenizer.from_file(str(fallback_path)).encode("<|user|>\nhi<|end|>\n").ids
        assert ids[-len(whole) :] == whole == [user, tokenizer.id_of("▁hi"), end]
