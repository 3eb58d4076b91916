"""Verifiers, equations and constraints: cases worked out by hand, and properties over many inputs."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_train.rollouts.arithmetic import Equation, equations, evaluate
from phirt_train.rollouts.constraints import CONSTRAINTS, read_constraints, write_constraint
from phirt_train.rollouts.questions import Question
from phirt_train.rollouts.verifiers import VERIFIERS, find_verifier, number_of

GSM = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 in all.\n#### 72"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (GSM, 72),
        ("#### 1,234", 1234),
        ("#### $1,234.50", Fraction("1234.5")),
        ("#### -7", -7),
        ("The answer is 5. It is not 6.", 5),
        ("#### 5\nCheck: 6", 5),
        ("The answer is 2 + 3 = 5.", 5),
        ("The answer is 3 * 7 = 21.", 21),
        ("The answer is 3/4.", Fraction(3, 4)),
        ("The answer is 3/0.", 0),
        ("the answer is -0.5.", Fraction("-0.5")),
        ("First the answer is 3; no, the answer is 4", 4),
        ("#### none, but 3", 3),
        ("I have 3 apples and 4 pears: 7.", 7),
        ("10-12", 12),
        ("no number", None),
        ("answer is", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: Fraction | None) -> None:
    assert number_of(text) == number


@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc .,\n", max_size=20))
def test_any_whole_number_behind_a_mark_is_found(number: int, words: str) -> None:
    for form in (
        f"{words}\n#### {number}",
        f"{words} 17 {words}\n#### {number:,}",
        f"The answer is {number}.",
    ):
        assert number_of(form) == number


@pytest.mark.parametrize(
    ("name", "text", "right"),
    [
        ("number", "so 48 + 24 = 72. The answer is 72.00", True),
        ("number", "72 of 100", False),
        # as lm-evaluation-harness: strict wants the mark, takes the first, compares what is written
        ("strict", "#### 72", True),
        ("strict", "#### 72.", True),
        ("strict", "####72", False),
        ("strict", "72", False),
        ("strict", "#### 72.0", False),
        ("strict", "#### 71\n#### 72", False),
        ("flexible", "it is 7 x 10 + 2, $72.", True),
        ("flexible", "72, or 71?", False),
        ("flexible", "so 5 ... 7", False),
        ("exact", f"  {GSM}\n", True),
        ("exact", "72", False),
    ],
)
def test_verifiers_of_gsm8k(name: str, text: str, right: bool) -> None:
    assert find_verifier(name)(Question("How many?", answer=GSM), text) is right


def test_flexible_takes_single_digits_and_what_follows_a_sign() -> None:
    assert find_verifier("flexible")(Question("?", answer="#### 7"), "so 5 and 7")
    assert find_verifier("flexible")(Question("?", answer="#### -7"), "it is -7")


CALLS = ({"name": "play", "arguments": {"song": "Blue", "loud": True}},)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('<|tool_call|>[{"name": "play", "arguments": {"loud": true, "song": "Blue"}}]<|/tool_call|>', True),
        ('<|tool_call|>{"name": "play", "arguments": {"loud": true, "song": "Blue"}}', True),
        ('<|tool_call|>[{"name": "play", "arguments": {"loud": 1, "song": "Blue"}}]<|/tool_call|>', False),
        ('<|tool_call|>[{"name": "play", "arguments": {"song": "Blue"}}]<|/tool_call|>', False),
        ('<|tool_call|>[{"name": "stop", "arguments": {}}]<|/tool_call|>', False),
        ("I play it.", False),
    ],
)
def test_calls_of_tools(text: str, right: bool) -> None:
    from phirt_train.data.records import ToolCall

    calls = tuple(ToolCall(call["name"], call["arguments"]) for call in CALLS)  # type: ignore[arg-type]
    assert find_verifier("tools")(Question("Play Blue loudly", calls=calls), text) is right


@pytest.mark.parametrize(
    ("constraint", "holding", "failing"),
    [
        ({"kind": "word_count", "at_least": 2, "at_most": 3}, ["a b", "a b c"], ["a", "a b c d", ""]),
        ({"kind": "sentence_count", "at_least": 2, "at_most": 2}, ["A. B!", "A. B"], ["A.", "A. B. C.", ""]),
        (
            {"kind": "bullet_count", "at_least": 2, "at_most": 2},
            ["- a\n- b", "x\n* a\n* b"],
            ["- a", "-a\n- b"],
        ),
        ({"kind": "starts_with", "text": "In short,"}, ["In short, no."], ["No. In short, no.", ""]),
        ({"kind": "ends_with", "text": "Done."}, ["It is so. Done.\n"], ["Done. It is so."]),
        ({"kind": "contains", "text": "river", "times": 2}, ["River and river."], ["river", "rivers river"]),
        ({"kind": "avoids", "text": "the"}, ["A thesis."], ["It is THE one.", ""]),
        ({"kind": "no_commas"}, ["a b"], ["a, b", ""]),
        ({"kind": "upper_case"}, ["OH NO 7!"], ["Oh", "7"]),
        ({"kind": "lower_case"}, ["oh no 7!"], ["Oh", "7"]),
        ({"kind": "json", "keys": ["a", "b"]}, ['{"b": 1, "a": []}'], ['{"a": 1}', "[1]", "a: 1", '{"a":1,']),
        ({"kind": "quoted"}, ['"Yes."'], ["Yes.", '"', '""', '"Yes']),
    ],
)
def test_constraints(constraint: dict[str, Any], holding: list[str], failing: list[str]) -> None:
    question = Question("?", constraints=(constraint,))
    verifier = find_verifier("constraints")
    assert [text for text in holding if not verifier(question, text)] == []
    assert [text for text in failing if verifier(question, text)] == []
    (read,) = read_constraints((constraint,))
    assert read.sentence().endswith(".")
    assert read_constraints((write_constraint(read),)) == (read,)


def test_every_constraint_and_verifier_has_a_case_here() -> None:
    source = __import__("pathlib").Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in CONSTRAINTS if f'"kind": "{kind}"' not in source] == []
    assert [name for name in VERIFIERS if f'"{name}"' not in source] == []


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"kind": "rhymes"}, "of kind 'rhymes'; accepted: word_count"),
        ({}, "of kind None"),
        ({"kind": "word_count", "at_least": 5, "at_most": 2}, "at_least is 5 and at_most 2"),
        ({"kind": "no_commas", "n": 1}, "'n' is not known here"),
    ],
)
def test_what_is_no_constraint_is_refused(record: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_constraints((record,))


def test_what_a_verifier_lacks_is_named() -> None:
    for name, words in (
        ("number", "no 'answer'"),
        ("tools", "no 'calls'"),
        ("constraints", "no 'constraints'"),
    ):
        with pytest.raises(ConfigError, match=words):
            find_verifier(name)(Question("How many?"), "7")
    with pytest.raises(ConfigError, match="holds no number"):
        find_verifier("number")(Question("How many?", answer="some"), "7")
    with pytest.raises(ConfigError, match="there is no verifier 'vibes'; choose from number"):
        find_verifier("vibes")


def test_equations_of_an_annotated_answer_count_once() -> None:
    assert equations(GSM) == (Equation("48/2", "24"), Equation("48+24", "72"))
    assert all(one.computes for one in equations(GSM))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Then 5 × (3 - 1) = $10 in all", [("5*(3-1)", "10")]),
        ("1,000 + 234 = 1,234.", [("1000+234", "1234")]),
        ("2+3=4+1=5", [("4+1", "5")]),
        ("students x 2/3 = 40", []),
        ("1 1/2 = 3", []),
        ("cost(5+3)=8", []),
        ("x = 5 and 7 boxes", []),
        ("2 + 2 = four", []),
        ("<<2+2=5>>", [("2+2", "5")]),
    ],
)
def test_equations_in_prose(text: str, found: list[tuple[str, str]]) -> None:
    assert [(one.left, one.right) for one in equations(text)] == found


@pytest.mark.parametrize(
    ("left", "right", "computes"),
    [
        ("2+2", "4", True),
        ("2+2", "5", False),
        ("10/4", "2.5", True),
        ("10/4", "2", False),  # a whole number is not rounded
        ("2/3", "0.67", True),
        ("2/3", "0.66", True),  # cut
        ("2/3", "0.68", False),
        ("50%*40", "20", True),
        ("100%-40%", "60", True),
        ("25-5", "20%", True),
        ("1/0", "1", False),
        ("2+", "2", False),
    ],
)
def test_whether_an_equation_computes(left: str, right: str, computes: bool) -> None:
    assert Equation(left, right).computes is computes


_FORMULA = st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({''.join(parts)})"),
    max_leaves=8,
)


@given(_FORMULA)
def test_evaluation_agrees_with_python(formula: str) -> None:
    expected = eval(formula, {"__builtins__": {}}, {})  # noqa: S307 - an independent parser of our own digits
    assert evaluate(formula) == expected


@given(st.text(alphabet="0123456789 +-*/()=.,%$x<>\n", max_size=200))
def test_no_text_makes_equations_fail_or_hang(text: str) -> None:
    for one in equations(text):
        assert one.computes in (True, False)


def test_a_long_chain_is_read_at_once() -> None:
    # A pattern that could place spaces in several ways took exponential time on sums of a dozen terms.
    chain = " + ".join(["1 2"] * 60) + " = many; " + " - ".join(["7"] * 200)
    assert equations(chain) == ()
