"""Answers under a schema: nothing that it forbids is said, by whatever way; what cannot be kept is refused in
a line.
"""

from __future__ import annotations

import json
import re
import sys

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers

import phirt
from phirt.generate.constraint import Constraints
from phirt.generate.json_schema import schema_text
from phirt.generate.speculation import RUN_SIZES, DraftPolicy
from phirt.prompt.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "grün", "日本"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 2, "maxItems": 3},
    },
    "required": ["colour", "count", "tags"],
    "additionalProperties": False,
}
SAMPLED = [{}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.0, "seed": 4, "top_p": 0.9, "min_p": 0.01}]


@pytest.fixture
def eager(monkeypatch):
    """Drafts are as long as possible, whatever they cost."""
    monkeypatch.setattr(
        DraftPolicy,
        "run_size",
        lambda self, match, longest: max(s for s in RUN_SIZES if s <= max(1, longest)),
    )


@pytest.mark.parametrize("settings", SAMPLED)
def test_an_answer_is_valid_and_ends_where_the_document_ends(model, settings):
    result = model.chat().send("What?", schema=SCHEMA, **settings).result
    jsonschema.validate(result.json(), SCHEMA)
    assert result.finish_reason == "stop" and result.text[-1] == "}"
    assert model.generator.tokenizer.decode(result.token_ids) == result.text


@pytest.mark.parametrize("settings", SAMPLED)
def test_drafts_that_the_schema_forbids_are_never_said(model, eager, settings):
    """The prompt repeats itself, so that much is drafted; the answer is the one without speculation."""
    prompt = '{"colour": "blue", "colour": "blue", "count": 100, "count": 100, ' * 3
    plain = model.chat().send(prompt, schema=SCHEMA, speculation=False, **settings).result
    drafted = model.chat().send(prompt, schema=SCHEMA, **settings).result
    assert drafted.usage.drafted_tokens > 0
    assert drafted.text == plain.text
    jsonschema.validate(drafted.json(), SCHEMA)


def test_pieces_are_the_text(model):
    reply = model.chat().send("What?", schema=SCHEMA)
    assert "".join(reply) == reply.result.text


def test_other_processors_and_samplers_cannot_bring_back_what_is_forbidden(model):
    def wild(logits, ids):
        return np.random.default_rng(len(ids)).standard_normal(len(logits)).astype(np.float32)

    result = model.chat().send("What?", schema=SCHEMA, logits_processors=[wild]).result
    jsonschema.validate(result.json(), SCHEMA)
    reply = model.chat().send("What?", schema=SCHEMA, sampler=lambda logits: int(np.argmin(logits)))
    with pytest.raises(phirt.ConfigError, match=r"the sampler returned 0, accepted: .* is not -inf"):
        reply.text()


def test_a_limit_of_just_enough_tokens_is_enough_and_one_less_is_a_cut(model):
    whole = model.chat().send("What?", schema=SCHEMA).result
    needed = whole.usage.new_tokens
    same = model.chat().send("What?", schema=SCHEMA, max_new_tokens=needed).result
    assert (same.text, same.finish_reason) == (whole.text, "stop")
    cut = model.chat().send("What?", schema=SCHEMA, max_new_tokens=needed - 1).result
    assert cut.finish_reason == "length" and whole.text.startswith(cut.text)
    with pytest.raises(phirt.SchemaError, match="cut at max_new_tokens, so it is no whole JSON; allow more"):
        cut.json()


def test_a_number_may_go_on_and_is_cut_at_the_limit(model):
    result = model.chat().send("What?", schema={"type": "integer"}, max_new_tokens=3).result
    assert (result.finish_reason, result.usage.new_tokens) == ("length", 3)


def test_the_conversation_goes_on_after_it(model):
    chat = model.chat()
    first = chat.send("What?", schema=SCHEMA).text()
    second = chat.send("And?", schema=phirt.Grammar.regex("(yes|no)")).result
    assert chat.messages[1].content == first
    assert second.text in ("yes", "no") and second.usage.cached_tokens > 0


async def _collect(reply):
    return "".join([piece async for piece in reply])


def test_in_asyncio_and_without_history(model):
    import asyncio

    chat = model.chat()
    assert json.loads(asyncio.run(_collect(chat.asend("What?", schema=SCHEMA))))
    stream = model.generator.stream([phirt.Message("user", "What?")], schema={"const": [1, "ß"]})
    assert stream.result.json() == [1, "ß"]


def test_cancelled_says_so(model):
    reply = model.chat().send("What?", schema=SCHEMA)
    next(reply)
    reply.cancel()
    with pytest.raises(phirt.SchemaError, match=r"^the answer was cancelled, so it is no whole JSON"):
        reply.result.json()


@pytest.mark.parametrize(
    ("grammar", "matches"),
    [
        (phirt.Grammar.regex(r"[0-9]{4}-[0-9]{2}"), r"[0-9]{4}-[0-9]{2}"),
        (phirt.Grammar.regex("a/b\\/c\nd"), "a/b/c\nd"),
        (phirt.Grammar.regex(r"\\/[\]/]"), r"\\/[\]/]"),
        (phirt.Grammar.regex(""), ""),
        (phirt.Grammar('start: "one" | "two" "!"'), "one|two!"),
        (phirt.Grammar("start: @n", (("n", '{"enum": [7]}'),)), "7"),
        (phirt.Grammar.json_schema(True), None),
    ],
)
def test_regular_expressions_and_rules(model, grammar, matches):
    result = model.chat().send("What?", schema=grammar, max_new_tokens=40).result
    assert matches is None or re.fullmatch(matches, result.text), result.text


def test_a_rule_may_name_control_tokens(model):
    tokenizer = model.generator.tokenizer
    begin, end = tokenizer.id_of("<|tool_call|>"), tokenizer.id_of("<|/tool_call|>")
    grammar = phirt.Grammar(
        f"start: <[{begin}]> @c <[{end}]>", (("c", '{"const": [{"name": "f", "arguments": {}}]}'),)
    )
    result = model.chat(tools=[{"name": "f"}]).send("What?", schema=grammar).result
    assert (result.token_ids[0], result.token_ids[-1]) == (begin, end)
    assert [call.name for call in result.tool_calls] == ["f"]


REFUSED = {
    "not": ({"not": {"type": "string"}}, 'it uses "not", which cannot be checked token by token'),
    "if": ({"if": {}, "then": {}}, 'it uses "if", "then", which'),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, 'it uses "uniqueItems", which'),
    "overlapping oneOf": (
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        "it has a oneOf of which several may fit at once",
    ),
    "format": ({"type": "string", "format": "iri"}, "the format iri is not known"),
    "look-ahead": ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
    "broken pattern": ({"type": "string", "pattern": "(("}, "a pattern is none: (( error: unclosed group"),
    "type": ({"type": "strin"}, "Invalid type: strin"),
    "remote": ({"$ref": "https://example.org/x.json"}, "does not fetch"),
    "dangling": ({"$ref": "#/$defs/nope"}, "'/$defs/nope' does not exist"),
    "false": (False, "the schema is false, which nothing fulfils"),
    "impossible": ({"type": "integer", "minimum": 5, "maximum": 2}, "Unsatisfiable schema"),
    "text": ('{"type": "string"}', "schema is a str, accepted: a JSON schema as a dict, or a phirt.Grammar"),
    "list": ([{}], "schema is a list, accepted"),
    "no JSON": ({"const": {1, 2}}, "the schema cannot be written as JSON"),
    "NaN": ({"const": float("nan")}, "the schema cannot be written as JSON"),
    "long": ({"const": "x" * 300_000}, "characters, accepted: at most 256000"),
    "rules": (phirt.Grammar("start: nobody"), 'unknown name: "nobody"'),
    "regex": (phirt.Grammar.regex("a{"), "invalid regex"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_kept_is_said_in_one_line_and_costs_no_turn(model, case):
    schema, said = REFUSED[case]
    chat = model.chat()
    with pytest.raises(phirt.SchemaError) as caught:
        chat.send("What?", schema=schema)
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert chat.messages == ()


def _chain(length: int) -> dict:
    link = {"anyOf": [{"items": {"anyOf": [{"$ref": "#/$defs/{}"}, {"type": "string"}]}}, {"type": "null"}]}
    text = json.dumps(link)
    links = {f"a{at}": json.loads(text.replace("{}", f"a{at + 1}")) for at in range(length)}
    return {"$defs": {**links, f"a{length}": {}}, "$ref": "#/$defs/a0"}


HOSTILE = {
    "references on and on": (_chain(900), "references of the schema lead too deep"),
    "many properties": (
        {"properties": {f"p{at}": {} for at in range(2001)}},
        "properties and definitions, accepted: at most 2000",
    ),
    "deep": (json.loads('{"items":' * 200 + "{}" + "}" * 200), "201 objects and lists deep"),
    "a large multiple": ({"type": "integer", "multipleOf": 999983}, "multipleOf 999983 has too many digits"),
    "multiples together": (
        {"allOf": [{"type": "integer", "multipleOf": p} for p in (7, 11, 13, 17, 19)]},
        "has too many digits",
    ),
    "a multiple of nothing": (
        {"type": "integer", "multipleOf": 0},
        "multipleOf is 0, accepted: a number above",
    ),
    "patterns at once": (
        {"allOf": [{"type": "string", "pattern": f"^.*a{at}.*$"} for at in range(30)]},
        "30 patterns and formats beside allOf",
    ),
    "patterns beside references": (
        {
            "$defs": {f"a{at}": {"$ref": f"#/$defs/a{at + 1}", "pattern": f".*a{at}.*"} for at in range(20)}
            | {"a20": {"type": "string"}},
            "$ref": "#/$defs/a0",
        },
        "20 patterns and formats beside allOf",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_would_stop_or_break_the_compiler_is_refused_before(model, case):
    schema, said = HOSTILE[case]
    with pytest.raises(phirt.SchemaError, match=re.escape(said)):
        model.chat().send("What?", schema=schema)


def test_multiples_of_different_numbers_are_no_common_one(model):
    schema = {"type": "object", "properties": {f"p{n}": {"multipleOf": n} for n in (7, 97, 999, 1013)}}
    assert model.chat().send("What?", schema=schema, max_new_tokens=1).result.usage.new_tokens == 1


def test_references_that_lead_deep_compile(model):
    assert model.chat().send("What?", schema=_chain(200), max_new_tokens=1).result.usage.new_tokens == 1


def test_a_circular_document_is_refused(model):
    circle: dict = {"type": "array"}
    circle["items"] = circle
    with pytest.raises(phirt.SchemaError, match="Circular reference"):
        model.chat().send("What?", schema=circle)


def test_stop_strings_and_a_schema_contradict(model):
    with pytest.raises(phirt.ConfigError, match="leave one of them out"):
        model.chat().send("What?", schema=SCHEMA, stop=["}"])


def test_without_the_package_one_line_says_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with phirt.load(bundle, threads=1) as fresh, pytest.raises(phirt.ConfigError, match="pip install llguid"):
        fresh.chat().send("What?", schema=SCHEMA)


def test_the_table_is_built_once_and_schemas_are_compiled_once(bundle, monkeypatch):
    import llguidance

    import phirt.generate.constraint as module

    built, compiled = [], []
    original = module._compile
    table = llguidance.LLTokenizer
    monkeypatch.setattr(llguidance, "LLTokenizer", lambda *a, **o: built.append(1) or table(*a, **o))
    monkeypatch.setattr(module, "_compile", lambda *a: compiled.append(1) or original(*a))
    with phirt.load(bundle, threads=1) as fresh:
        assert not built
        answers = [fresh.chat().send("What?", schema=dict(SCHEMA)).text() for _ in range(3)]
        fresh.chat().send("What?", schema=True, max_new_tokens=1).text()
    assert (len(built), len(compiled)) == (1, 2) and len(set(answers)) == 1


def test_result_json_of_an_answer_that_is_none(model):
    result = model.chat().send("What?", max_new_tokens=5).result
    with pytest.raises(phirt.SchemaError, match=r"no whole JSON|give the request a schema"):
        result.json()


def test_numbers_that_python_cannot_hold_are_an_error(model):
    result = model.chat().send("What?", schema={"const": 5}).result
    import dataclasses

    with pytest.raises(phirt.SchemaError, match="the number 1e999 is too large"):
        dataclasses.replace(result, text='{"a": 1e999}').json()


def test_formats_that_the_standard_does_not_have_are_notes():
    schema = {
        "properties": {"format": {"type": "integer", "format": "int32"}, "day": {"format": "date"}},
        "default": {"format": "int32"},
        "anyOf": [{"format": "byte"}],
        "$defs": {"const": {"format": "password"}},
        "x-guidance": {"lenient": True},
    }
    assert json.loads(schema_text(schema)) == {
        "properties": {"format": {"type": "integer"}, "day": {"format": "date"}},
        "default": {"format": "int32"},
        "anyOf": [{}],
        "$defs": {"const": {}},
    }


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES += ["▁", "▁{", "{", '▁"', '"', "}", "▁a", "a", '":', "1", "▁1", "}▁"]


@pytest.fixture
def spaced(tmp_path) -> Tokenizer:
    """A tokenizer that writes a space before the first word, which its decoder takes away."""
    library = LibraryTokenizer(models.Unigram([(piece, -1.0) for piece in PIECES], 0, True))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(["<s>", "</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json", len(PIECES))


def _allowed(constraint, size: int) -> set[str]:
    logits = constraint(np.zeros(size, np.float32), ())
    return {PIECES[token] for token in np.flatnonzero(np.isfinite(logits))}


def test_a_space_that_is_taken_away_may_stand_first(spaced):
    assert spaced.leading_space
    constraints = Constraints(spaced, len(PIECES), (2,))
    constraint = constraints.of(
        phirt.Grammar.json_schema({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    )
    assert _allowed(constraint, len(PIECES)) == {"{", "▁{"}
    ids = [PIECES.index(piece) for piece in ("▁{", '"', "a", '":', "▁1", "}")]
    for place, token in enumerate(ids):
        assert PIECES[token] in _allowed(constraint, len(PIECES)), place
        constraint.take(token)
    assert constraint.is_complete and spaced.decode(ids) == '{"a": 1}'


def test_a_forced_text_is_said_in_tokens_that_stand_for_it_exactly(spaced):
    """This tokenizer writes a space before every text that it encodes, which must not be forced."""
    constraint = Constraints(spaced, len(PIECES), (2,)).of(phirt.Grammar('start: "{" "aaa}"'))
    said = []
    while not constraint.is_complete:
        (token, *_) = np.flatnonzero(np.isfinite(constraint(np.zeros(len(PIECES), np.float32), ())))
        constraint.take(int(token))
        said.append(int(token))
    assert b"".join(map(spaced.token_bytes, said)).lstrip() == b"{aaa}"
