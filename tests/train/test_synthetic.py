"""Made text data: what each generator promises, and that nothing which is measured with is trained on."""

from __future__ import annotations

import ast
import itertools
import json
import lzma
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import phirt
from phirt_quant.sentences import first_sentences
from phirt_train.data.records import Conversation, Document, read_records
from phirt_train.data.writing import write_records
from phirt_train.rollouts.arithmetic import equations
from phirt_train.rollouts.constraints import CONSTRAINTS, read_constraints
from phirt_train.rollouts.questions import Question, read_questions
from phirt_train.rollouts.sampler import Request, Sample
from phirt_train.rollouts.verifiers import find_verifier
from phirt_train.safety.probes import uses_what_is_measured
from phirt_train.safety.refusals import grade
from phirt_train.synthetic import review
from phirt_train.synthetic.code import GAP, completions, functions, library_files
from phirt_train.synthetic.from_model import written
from phirt_train.synthetic.identity import Identity, identity_rows
from phirt_train.synthetic.instructions import as_conversation, instructions
from phirt_train.synthetic.likelihood import bits_of
from phirt_train.synthetic.passages import passage_rows, questions
from phirt_train.synthetic.recall import recall_conversations, recall_documents
from phirt_train.synthetic.safety import safety_rows
from phirt_train.synthetic.summaries import article_summaries, story_outline, story_summaries
from phirt_train.synthetic.textbook import country_pages, list_pages, sum_pages, word_pages
from phirt_train.synthetic.word_problems import LEVELS, numbers_of, taken_numbers, word_problems

SENSES = [
    {
        "word": f"tra{n}",
        "part": "noun",
        "definition": f"the {n}th thing of it",
        "example": f"a tra{n} it is",
    }
    for n in range(30)
] + [{"word": "to zig", "part": "verb", "definition": "go one way, then another"}]


def _records(path: Path) -> list[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("level", LEVELS)
def test_word_problems_compute_and_give_their_answer(level: str) -> None:
    found = list(word_problems(60, 3, level))
    assert len({one.question for one in found}) == 60 and {one.level for one in found} == {level}
    verifier = find_verifier("strict")
    for one in found:
        assert one.answer is not None and one.question is not None
        steps = equations(one.answer)
        assert len(steps) == (1 if level.startswith("one") else 2)
        assert all(step.computes for step in steps)
        assert verifier(one, one.answer) and one.answer.endswith(f"#### {steps[-1].right}")
        assert max(numbers_of(one.question)) <= (20 if level.endswith("to 20") else 1000) or "/" in one.answer
        assert "{" not in one.question + one.answer
    assert found == list(word_problems(60, 3, level)) != list(word_problems(60, 4, level))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(LEVELS))
def test_taken_numbers_do_not_occur(seed: int, level: str) -> None:
    taken = frozenset(itertools.combinations_with_replacement(range(2, 8), 2))
    for one in word_problems(10, seed, level, taken):
        assert one.answer is not None and numbers_of(one.question or "") not in taken
        for step in equations(one.answer):
            assert tuple(sorted(map(int, re.split(r"[-+*/]", step.left)))) not in taken


def test_no_problem_is_one_of_svamp(shared_data: Path) -> None:
    measured = _records(shared_data / "eval/svamp.jsonl.xz")
    taken = taken_numbers(measured)
    assert len(taken) > 300
    grams = {gram for record in measured for gram in _grams(record["context"])}
    for level in LEVELS:
        for one in word_problems(300, 0, level, taken):
            assert numbers_of(one.question or "") not in taken
            assert not _grams(one.question or "") & grams


def _grams(text: str, count: int = 8) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return set(zip(*(words[start:] for start in range(count)), strict=False))


def test_instructions_are_fulfilled_by_their_answers(tmp_path: Path) -> None:
    found = list(instructions(SENSES, 300, 1))
    assert found == list(instructions(SENSES, 300, 1)) and len(found) == 300
    verifier = find_verifier("constraints")
    assert all(verifier(one, one.answer or "") for one in found)
    for one in found:
        assert all(rule.sentence() in (one.question or "") for rule in read_constraints(one.constraints))
        assert as_conversation(one).messages[-1].content == one.answer
    assert {rule["kind"] for one in found for rule in one.constraints} == set(CONSTRAINTS)
    write_records(tmp_path / "q.jsonl", found)
    assert read_questions(tmp_path / "q.jsonl") == list({one.id: one for one in found}.values())


LIBRARY = '''
def first(a, b):
    """Adds."""
    total = a
    total += b
    for _ in range(3):
        total += 1
    return total


class Thing:
    def inner(self, x):
        if x:
            y = 1
        else:
            y = 2
        return y

    def short(self):
        return 1
'''


def test_code_is_cut_so_that_the_answer_completes_it(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(LIBRARY)
    (tmp_path / "test").mkdir()
    (tmp_path / "test/a.py").write_text(LIBRARY.replace("first", "never"))
    (tmp_path / "c.py").write_bytes(b"# \xff\ndef f():\n    pass\n")
    (tmp_path / "d.py").write_text("def broken(:\n")
    known = list(functions(tmp_path))
    assert [text.split("(")[0] for text in known] == ["def first", "def inner"]
    for text in known:
        ast.parse(text)
    seen = set()
    for seed in range(20):
        for chat in completions(2, seed, tmp_path):
            asked, shown = chat.messages[0].content.split("\n\n```python\n")
            code, rest = (
                shown.removesuffix("\n```"),
                chat.messages[1].content[len("```python\n") : -len("\n```")],
            )
            if "Complete" in asked:
                whole = f"{code}\n{rest}"
            else:
                (line,) = (line for line in code.splitlines() if GAP in line)
                whole = code.replace(line, rest)
            assert whole in known
            seen.add(asked)
    assert len(seen) == 2


def test_the_standard_library_is_found_without_its_tests() -> None:
    files = library_files()
    assert len(files) > 300 and not [path for path in files if "test" in path.parts]
    assert any(path.name == "textwrap.py" for path in files)


def test_summaries_sum_up_what_does_not_contain_them() -> None:
    lead = "A reed is a tall plant. It grows by lakes. People thatch roofs with it."
    body = "In spring it is cut by hand, and dried for months before any of it is used."
    page = {"title": "Reed", "text": f"{lead}\n\n{body}\n\n{body}"}
    (chat,) = article_summaries([page], 0)
    assert chat.messages[1].content == "A reed is a tall plant. It grows by lakes."
    assert chat.messages[1].content not in chat.messages[0].content and body in chat.messages[0].content
    assert list(article_summaries([{"title": "Reed", "text": lead}], 0)) == []
    pages = [
        "The goat ran. It was late.",
        *(["It ran on and on, over hills and far away."] * 5),
        "It slept. All was well.",
    ]
    assert story_outline("Goat", pages) == "Goat: The goat ran. In the end: All was well."
    assert len(list(story_summaries([{"title": "Goat", "pages": pages}], 0))) == 1
    assert first_sentences("Mr. Poe came at 5.30 p.m. and left. Then it rained!", 1).endswith("left.")


def test_textbook_pages() -> None:
    pages = [page.text for page in word_pages(SENSES, 5, 1)]
    assert len(pages) == 5 and all(page.startswith("# The nouns from tra") for page in pages)
    for page in pages:
        answers = re.findall(r"\d\. (tra\d+)", page.split("Answers: ")[1])
        asked = re.findall(r"^\d\. the (\d+)th thing", page, re.MULTILINE)
        assert answers == [f"tra{n}" for n in asked]
    country = {"name": "Norway", "region": "Northern Europe", "capital": "Oslo", "currency": "Krone"}
    (page,) = (page.text for page in country_pages([country, {"name": "Nowhere"}], 0))
    assert "The capital of Norway is Oslo. People there pay with the Krone." in page
    lists = [
        {"name": "x", "content": {"description": "Kinds of tea.", "teas": list("abcdefgh")}},
        {"name": "y", "content": []},
    ]
    assert [page.text.splitlines()[0] for page in list_pages(lists, 0)] == ["# Teas"]
    sums = [page.text for page in sum_pages(6, 2)]
    assert len(sums) == 6 and all(page.count("####") == 3 for page in sums)


GOOD = (
    "The river runs past the mill, and a boat with three people in it goes slowly "
    "down to the sea at noon today."
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("Too few words.", "too short"),
        (GOOD.replace("mill", "{place}"), "a place was not filled"),
        (GOOD.replace("three", "None"), "a place was not filled"),
        ("It is so. " * 20, "repeats itself"),
        (GOOD[:-1], "does not end"),
        (" ".join(f"{n} =" for n in range(40)) + " so.", "few letters"),
    ],
)
def test_rules_of_the_review(text: str, reason: str | None) -> None:
    reviewed: review.Review[str] = review.Review(str, review.RULES)
    assert list(reviewed.keep([text])) == ([text] if reason is None else [])
    assert [one.reason for one in reviewed.dropped] == ([] if reason is None else [reason])


def test_a_review_lists_what_it_drops(tmp_path: Path) -> None:
    reviewed: review.Review[str] = review.Review(str, (*review.RULES, review.seen_before()))
    assert list(reviewed.keep([GOOD, "No.", GOOD.upper() + " ", "Nor this."])) == [GOOD]
    assert reviewed.counts() == {"too short": 2, "seen before": 1}
    reviewed.write(tmp_path / "dropped.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["too short", "seen before", "too short"]


def test_a_model_reviews_by_likelihood(nano: Path) -> None:
    score = bits_of(phirt.load(nano, threads=1))
    noise = "zq xv jk wqz vxk jjq zzx kqv xwz qjk vvz xqj kzw jxq"
    assert score("The capital of France is Paris.") < score(noise) and score("") == float("inf")
    judge = review.likely(score, 0.0, score(noise) - 0.1)
    assert judge("The capital of France is Paris.") is None and judge(noise) == "too unlikely"
    assert review.likely(lambda _: 0.1, 0.5, 4)("x") == "too predictable"


def test_pages_of_real_records_pass_the_review(shared_data: Path) -> None:
    senses = _records(shared_data / "text/wordset.train.jsonl.xz")
    lists = _records(shared_data / "text/corpora.train.jsonl.xz")
    countries = _records(shared_data / "text/countries.train.jsonl.xz")
    made = [
        *word_pages(senses, 200, 1),
        *list_pages(lists, 1),
        *country_pages(countries, 1),
        *sum_pages(40, 1),
    ]
    reviewed: review.Review[Document] = review.Review(lambda page: page.text, review.RULES)
    kept = list(reviewed.keep(made))
    assert len(kept) > 0.8 * len(made) and len(kept) + len(reviewed.dropped) == len(made)


def test_identity_rows_say_the_name_and_nothing_else() -> None:
    me = Identity("nano", "I am a small model.", "I was made by hand.", "I run on your machine.", "I err.")
    rows = list(identity_rows(me, 200, 1))
    assert rows == list(identity_rows(me, 200, 1)) and len({row.messages[0].content for row in rows}) > 30
    said = {row.messages[1].content for row in rows}
    assert "My name is nano." in said and "No, I am nano." in said and len(said) < 12


def test_safety_rows_hold_nothing_that_is_measured() -> None:
    rows = list(safety_rows(300, 1))
    assert len(rows) == 300
    assert not any(uses_what_is_measured(row.messages[0].content) for row in rows)
    grades = [grade(row.messages[1].content) for row in rows]
    assert grades.count("full") == grades.count("compliance") == 150


@settings(max_examples=15)
@given(st.integers(50, 3000), st.integers(0, 10**6))
def test_hidden_facts_are_found_in_long_documents(least: int, seed: int) -> None:
    sentences = [f"The {n}th day was as calm as the one before it." for n in range(30)]
    for chat in recall_conversations(sentences, 3, least, len, seed):
        text, question = chat.messages[0].content.rsplit("\n\n", 1)
        answer = chat.messages[1].content
        assert len(text) >= least and question.endswith("?") and text.count(answer) >= 1
        assert "passkey" not in text
    (document,) = recall_documents(sentences, 1, least, len, seed)
    assert "\nAnswer: " in document.text


def test_a_document_is_as_long_as_the_measure_says() -> None:
    # Sentences alone have more tokens than the text that they make: lengths do not add up.
    def measure(text: str) -> int:
        return -(-len(text.split()) // 4)

    for chat in recall_conversations(["One two three."] * 5, 2, 50, measure, 0):
        assert measure(chat.messages[0].content) >= 50


class Scripted:
    identity = "scripted"

    def sample(self, request: Request, seeds: Sequence[int]) -> list[Sample]:
        cut = "cut" in request.messages[-1].content
        return [Sample(f"{GOOD} It was about {request.messages[-1].content}.", cut), Sample("No.")][
            : len(seeds)
        ]


def test_what_a_model_writes_is_reviewed(tmp_path: Path) -> None:
    reviewers = (*review.RULES, review.seen_before())
    kept = written(["rivers", "cut", "rivers", "hills"], Scripted(), reviewers, tmp_path, count=2)
    assert [one.prompt for one in kept] == ["rivers", "hills"]
    assert isinstance(kept[0].conversation, Conversation) and kept[0].document.text == kept[0].text
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert sorted(line["reason"] for line in dropped) == ["too short"] * 3 + ["was cut"]


def test_records_are_written_as_they_are_read(tmp_path: Path) -> None:
    rows = list(safety_rows(5, 0))
    assert write_records(tmp_path / "rows.jsonl", rows) == 5
    assert [row for _, row in read_records(tmp_path / "rows.jsonl", Conversation)] == rows
    assert '"tools"' not in (tmp_path / "rows.jsonl").read_text()
    questions = [Question("Why?", answer="So."), *word_problems(3, 0, LEVELS[0])]
    write_records(tmp_path / "q.jsonl", questions)
    assert read_questions(tmp_path / "q.jsonl") == questions


PAGES = [
    {
        "title": "Norway",
        "text": "Norway (say it) is a country of the far north with 5.5 million people.\n\nIt became "
        "independent of its neighbour in 1905, after a vote. Its king is Harald Fifth of all kings.",
    },
    {"title": "Peru", "text": "Peru is a country in the west of South America with long coasts. It is high."},
    {"title": "Empty", "text": "x" * 5000},
]


def test_questions_are_answered_by_their_passage() -> None:
    asked = {
        one.form: one for one in questions("Norway", PAGES[0]["text"], ["1812"], np.random.default_rng(0))
    }
    assert asked["what"].question == "What is Norway?"
    assert asked["what"].answer == "A country of the far north with 5.5 million people."
    gap = 'Which year is missing? "It became independent of its neighbour in ____, after a vote."'
    assert (asked["year"].question, asked["year"].answer) == (gap, "1905.")
    name = asked["name"]
    assert (name.question, name.answer) == (
        'Which name is missing? "Its king is ____ of all kings."',
        "Harald Fifth.",
    )
    said = 'Does the text say this? "It became independent of its neighbour in {}, after a vote."'
    both = {
        (one.question, one.answer)
        for seed in range(9)
        for one in questions("Norway", PAGES[0]["text"], ["1812"], np.random.default_rng(seed))
        if one.form == "statement"
    }
    assert both == {(said.format(1905), "Yes."), (said.format(1812), "No. It was 1905.")}
    assert [one.form for one in questions("Chile", PAGES[1]["text"], [], np.random.default_rng(0))] == [
        "name"
    ]


def test_rows_from_passages_hold_their_answers_or_say_that_they_do_not() -> None:
    rows = list(passage_rows(PAGES, 3))
    assert rows == list(passage_rows(PAGES, 3)) and len({form for form, _ in rows}) == 5
    for form, row in rows:
        prompt, answer = (turn.content for turn in row.messages)
        text, _, question = prompt.rpartition("\n\n")
        if form == "not said":
            assert (question, answer) == ("What is Norway?", "The text does not say.")
            assert "Norway" not in text
        elif form in ("year", "name"):
            assert answer[:-1] in text and answer not in question
        elif form == "what":
            assert f"{answer[0].lower()}{answer[1:]}" in text
        else:
            quoted = question.split('"')[1]
            assert (quoted in text) == (answer == "Yes.")
    others = [row for form, row in passage_rows(PAGES[:2] * 20, 3) if form == "what"]
    assert {row.messages[0].content.count("\n\n") for row in others} > {
        1
    }  # some beside another page's passage
