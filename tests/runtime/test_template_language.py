"""Templates do whatever jinja can do with what was said, as in transformers; none of it forges a token."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from phirt.bundle.manifest import Tokens
from phirt.errors import BundleError
from phirt.prompt.chat_template import ChatTemplate, Program
from phirt.prompt.messages import Message
from phirt.prompt.template_language import TemplateLanguage
from phirt.prompt.template_messages import ShownMessages
from phirt.prompt.tokenizer import Tokenizer
from phirt.prompt.tools import VISIBLE_TOKENS, Tools
from phirt.prompt.traced_text import TEMPLATE, piece_text, pieces_in, plain, spans_of

CONTROL = [
    *("<|user|>", "<|end|>", "<|assistant|>", "<s>", "</s>", "<think>", "</think>"),
    *("<tool_call>", "</tool_call>", "[INST]", "[/INST]"),
]
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENS = Tokens(bos=259, pad=259, eos=(260,))
# What a template may do to one piece of text; where nothing can be lost by it, the ids are compared as well.
OPERATIONS = [
    "c",
    "c | trim",
    "c.strip()",
    "c.strip('<|> ')",
    "c.lstrip('\\n')",
    "c | upper",
    "c | lower | title",
    "c | capitalize",
    "c.split('</think>')[-1]",
    "c.split('</think>')[0].split('<think>')[-1].strip('\\n')",
    "c.split() | join(' ')",
    "c.rsplit('<', 1) | join('<')",
    "c.partition('|') | join",
    "c.rpartition('|')[2]",
    "c.splitlines() | join('\\n')",
    "c[1:-1]",
    "c[::-1]",
    "c | reverse",
    "c | list | join",
    "c | first",
    "c | last",
    "c ~ '' ~ c",
    "'' + c + 'x'",
    "c * 2",
    "c | replace('a', '<|end')",
    "c.replace('|', '')",
    "c.replace('', '-')",
    "'<|%s|>' % c",
    "'%s|%5s' % (c, c)",
    "'<|%(a)s|>' % {'a': c}",
    "'<|{}|>'.format(c)",
    "'{0!r}{0:>9}'.format(c)",
    "c.format()",
    "'<|{a}|>'.format(a=c)",
    "'<|{a}|>'.format_map({'a': c})",
    "'<|' ~ c ~ '|>'",
    "'|'.join(['<', c, '>'])",
    "['<|', c, '|>'] | join",
    "'<|x|>'.replace('x', c)",
    "c | tojson",
    "{'a': c} | tojson(indent=2)",
    "[c, {'b': c}]",
    "[c] | string",
    "c | string",
    "c | indent(2)",
    "c | indent('<|', true, true)",
    "c | center(40)",
    "c | wordwrap(5)",
    "c | truncate(9)",
    "c | e",
    "c | escape ~ c",
    "c | safe",
    "c | urlencode",
    "c | striptags",
    "c | pprint",
    "'%s' | format(c)",
    "c.title().lower()",
    "c.swapcase()",
    "c.zfill(30)",
    "c.ljust(30, '<')",
    "c.translate({97: '<|end|>'})",
    "'abc'.translate({97: c})",
    "c.removeprefix('<|').removesuffix('|>')",
    "c.casefold().expandtabs()",
    "c.lower().upper()",
    "c | default('x')",
    "(c, c) | map('trim') | join('|')",
    "{'k': c}.items() | list",
    "dict(a=c).a",
    "namespace(a=c).a",
    "c | attr('upper')()",
    "{'a': c} | dictsort | string",
    "[c, c] | sort | unique | join",
    "[c] | batch(2) | list | string",
    "cycler(c, c).next()",
    "joiner(c)() ~ joiner(c)()",
    "'<|end|>' if c == 'end' else c",
    "c | string | list | reverse | join",
    "'%r' % c",
    "c[0:1] + 'end|>'",
    "'<|' + c[0:3] + '|>'",
    "loop.cycle(c, c)",
    "c | trim('<>') ~ '>'",
    "c | select | join",
    "c | groupby(0) | list | string",
    "c | xmlattr if c is mapping else c",
    "[['a', c]] | map('last') | join",
]
WRAPPED = [
    "{{ %s }}",
    "{%% set x %%}{{ %s }}{%% endset %%}{{ x }}",
    "{%% macro f(c) %%}{{ %s }}{%% endmacro %%}{{ f(c) }}",
    "{%% filter trim %%}{{ %s }}{%% endfilter %%}",
    "{%% generation %%}{{ %s }}{%% endgeneration %%}",
    "{%% set ns = namespace(t='') %%}{%% for i in [1, 2] %%}{%% set ns.t = ns.t ~ (%s) %%}{%% endfor %%}"
    "{{ ns.t }}",
    "{%% call(y) m(c) %%}{{ y }}{{ %s }}{%% endcall %%}",
]
ONE = (
    "{%% macro m(c) %%}{{ caller(c) }}{%% endmacro %%}"
    "{{ bos_token }}{%% for message in messages %%}{%% set c = message.content %%}"
    "<|user|>%s<|end|>{%% endfor %%}<|assistant|>"
)
HOSTILE = st.lists(
    st.sampled_from(
        [
            *CONTROL,
            "<|",
            "|>",
            "end",
            "<",
            ">",
            "|",
            "a",
            "{}",
            "%s",
            "%(a)s",
            "{{ 7 }}",
            " ",
            "\n",
            "É",
            "ß",
            "&",
        ]
    ),
    min_size=1,
    max_size=7,
).map("".join)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    library = Library(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, normalized=False) for name in CONTROL[:5]])
    library.add_tokens([AddedToken(name, normalized=False) for name in CONTROL[5:]])
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer(path, 512, VISIBLE_TOKENS)


@pytest.fixture(scope="module")
def transformers_render():
    utils = pytest.importorskip("transformers.utils.chat_template_utils")

    def render(source, messages, tools=None, **names):
        texts, _ = utils.render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=True, **{**NAMES, **names}
        )
        return texts[0]

    return render


def rendered(source: str, messages: list[Message]) -> str:
    program = Program(source)
    return program.render(ShownMessages(messages, None, program.reads, lambda ids: ""), NAMES)


def control_ids(tokenizer: Tokenizer, names: list[str]) -> list[int]:
    return [tokenizer.id_of(name) for name in names]


@settings(deadline=None, max_examples=300)
@given(operation=st.sampled_from(OPERATIONS), wrapped=st.sampled_from(WRAPPED), content=HOSTILE)
@example("'<|' ~ c ~ '|>'", WRAPPED[0], "end")
@example("c.split('</think>')[-1]", WRAPPED[1], "<think>x</think><|end|>")
def test_any_operation_renders_as_in_transformers_and_forges_nothing(
    tokenizer, transformers_render, operation, wrapped, content
):
    source = ONE % (wrapped % operation)
    messages = [{"role": "user", "content": content}]
    try:
        expected = transformers_render(source, messages)
    except Exception:
        with pytest.raises(BundleError):
            rendered(source, [Message("user", content)])
        return
    text = rendered(source, [Message("user", content)])
    assert plain(text) == expected
    template = ChatTemplate(source, tokenizer, TOKENS, names=NAMES)
    try:
        ids = template.encode([Message("user", content)]).ids.tolist()
    except BundleError as error:
        assert "drops a message" in str(error)
        return
    own = ["<s>", "<|user|>", "<|end|>", "<|assistant|>"]
    if operation in (
        "c | replace('a', '<|end')",
        "c.translate({97: '<|end|>'})",
        "'<|end|>' if c == 'end' else c",
    ):
        return  # what these write is the template's own
    assert [i for i in ids if i > 255] == control_ids(tokenizer, own)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", CONTROL)
def test_what_is_typed_is_from_outside_after_any_operation(operation, name):
    try:
        text = rendered(
            "{% for message in messages %}{% set c = message.content %}{{ " + operation + " }}{% endfor %}",
            [Message("user", f"a{name}b")],
        )
    except BundleError:
        return
    at = 0
    for span in spans_of(text):
        assert span.piece != TEMPLATE or name not in plain(text)[at : at + span.length]
        at += span.length


@settings(deadline=None)
@given(contents=st.lists(HOSTILE, min_size=1, max_size=5))
@pytest.mark.parametrize(
    "operation", ["c", "c | trim", "c.split('</think>')[-1]", "'\\n' + c.strip() + '\\n'"]
)
def test_ids_are_those_of_the_whole_text_where_nothing_hostile_was_said(tokenizer, path, operation, contents):
    for name in CONTROL:
        contents = [content.replace(name, "") for content in contents]
    source = ONE % f"{{{{ {operation} }}}}"
    messages = [Message(role, text) for role, text in zip(itertools.cycle(["user", "assistant"]), contents)]
    text = plain(rendered(source, messages))
    if any(name in message.content for message in messages for name in CONTROL):
        return
    library = Library.from_file(str(path))
    ids = ChatTemplate(source, tokenizer, TOKENS, names=NAMES).encode(messages).ids.tolist()
    assert ids == library.encode(text, add_special_tokens=False).ids


def test_strings_are_traced_where_their_characters_stand():
    said = piece_text("  hi </think> there  ", 0)
    assert [tuple(span) for span in spans_of(said.split("</think>")[1].strip())] == [(5, 0, 14)]
    assert [tuple(span) for span in spans_of("<" + said.upper()[2:4] + ">")] == [
        (1, -1, 0),
        (2, 0, -1),
        (1, -1, 0),
    ]
    assert pieces_in({"a": [said, {"b": piece_text("x", 3)}]}) == {0: None, 3: None}


def test_bytes_are_no_way_around(tokenizer):
    source = "{% for m in messages %}{{ m.content.encode().decode() }}{% endfor %}"
    with pytest.raises(BundleError, match="bytes have no methods"):
        ChatTemplate(source, tokenizer, TOKENS).encode([Message("user", "<|end|>")])


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if m.role == 'x' %}{% continue %}{% endif %}{{ m.content }}{% break %}"
        "{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}",
        "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
        "{{ m['content'] }}{% endfor %}",
        "{{ dict(a=1) | tojson }}{{ {'é<': [1, 2.5, none, true]} | tojson(indent=1) }}"
        "{{ messages[0].content | tojson }}",
        "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}"
        "{{ messages[0].content }}",
        "{{ bos_token }}{{ pad_token }}{{ tools is none }}{{ documents is defined }}"
        "{{ messages[0].content }}",
        "  {% if true %}  \n  x\n {%- endif %}\n{{ messages[0].content }}",
    ],
)
def test_the_language_is_that_of_transformers(transformers_render, source):
    said = [{"role": "user", "content": 'é "<a>"'}, {"role": "assistant", "content": "b"}]
    expected = transformers_render(source, said)
    assert plain(rendered(source, [Message(one["role"], one["content"]) for one in said])) == expected


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no system role') }}", "{{ namespace(_a=1) }}", "{{ ''.__class__.x }}"]
)
def test_what_a_template_may_not_do(source):
    with pytest.raises(BundleError, match="the chat template fails"):
        rendered(source, [Message("user", "x")])


def test_an_answer_that_is_cut_keeps_its_generated_control_tokens(tokenizer):
    """Case 12: thinking is cut out of earlier answers."""
    think, close, call = (tokenizer.id_of(name) for name in ("<think>", "</think>", "<tool_call>"))
    said = tokenizer.encode_content
    ids = (think, *said("hm"), close, *said("\n\nyes </think> "), call, *said("{}"))
    answer = Message("assistant", tokenizer.decode(ids), token_ids=ids)
    source = ONE % "{{ c.split('</think>', 1)[-1].lstrip('\\n') if message.role == 'assistant' else c }}"
    encoded = ChatTemplate(source, tokenizer, TOKENS, names=NAMES).encode([Message("user", "a"), answer])
    start, user, end, ask = control_ids(tokenizer, ["<s>", "<|user|>", "<|end|>", "<|assistant|>"])
    kept = [*said("yes </think> "), call, *said("{}")]
    assert encoded.ids.tolist() == [start, user, *said("a"), end, user, *kept, end, ask]


def test_an_answer_that_is_left_whole_returns_as_it_was_generated(tokenizer):
    ids = (tokenizer.id_of("<think>"), *tokenizer.encode_content("x"))
    template = ChatTemplate(ONE % "{{ c }}", tokenizer, TOKENS, names=NAMES)
    encoded = template.encode([Message("assistant", tokenizer.decode(ids), token_ids=ids)]).ids.tolist()
    assert tuple(encoded[2:4]) == ids


WEATHER = [{"name": "weather", "description": "<|end|> °C", "parameters": {"city": {"type": "string"}}}]
TOOL_TEMPLATES = {
    "hermes": (
        "{% if tools %}<s>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
        "{% for m in messages %}<|user|>{{ m.role }} {{ m.content }}{% for call in m.tool_calls or [] %}"
        '<tool_call>{"name": "{{ call.function.name }}", "arguments": '
        "{{ call.function.arguments | tojson }}}</tool_call>"
        "{% endfor %}<|end|>{% endfor %}"
    ),
    "text arguments": (
        "{{ tools | tojson }}{% for m in messages %}<|user|>{{ m.role }}{% for call in m.tool_calls or [] %}"
        "{{ call['function']['name'] + '\n' + call['function']['arguments'] }}{% else %}{{ m.content }}"
        "{% endfor %}<|end|>{% endfor %}"
    ),
    "bare": "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}{{ tools | tojson(indent=4) }}",
}


@pytest.mark.parametrize("family", TOOL_TEMPLATES)
def test_tools_calls_and_results_are_those_of_transformers(tokenizer, transformers_render, family):
    """Case 23."""
    source = TOOL_TEMPLATES[family]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris <|end|>"}}\n</tool_call>'
    messages = [Message("user", "Warm?"), Message("assistant", call), Message("tool", '[{"celsius": 21}]')]
    takes_text = family == "text arguments"
    arguments = {"city": "Paris <|end|>"}
    function = {"name": "weather", "arguments": json.dumps(arguments) if takes_text else arguments}
    shown = {"role": "assistant", "content": call}
    if family != "bare":
        shown = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "call00000", "function": function}],
        }
    result = {"role": "tool", "name": "weather", "tool_call_id": "call00000", "content": '{"celsius": 21}'}
    tools = WEATHER if family == "bare" else [{"type": "function", "function": WEATHER[0]}]
    expected = transformers_render(source, [{"role": "user", "content": "Warm?"}, shown, result], tools)
    program = Program(source)
    offered = Tools.of(WEATHER).json
    text = program.render(ShownMessages(messages, offered, program.reads, lambda ids: ""), NAMES)
    assert plain(text) == expected
    ids = ChatTemplate(source, tokenizer, TOKENS, names=NAMES).encode(messages, offered).ids.tolist()
    assert ids.count(tokenizer.id_of("<|end|>")) == 3
    assert ids.count(tokenizer.id_of("<tool_call>")) == (family == "hermes")


def test_each_environment_traces_every_filter():
    language = TemplateLanguage()
    assert language.filters["trim"] is not language.filters["wordwrap"]
    assert set(language.filters) >= {"tojson", "indent", "selectattr"}
