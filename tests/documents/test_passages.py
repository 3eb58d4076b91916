"""Passages: nothing is lost, none is too long, each knows its line."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phirt_apps.documents.passages import MOST, cut
from phirt_apps.documents.reading import Section

TEXT = st.lists(st.sampled_from(["word", "Ends. ", "\n", "\n\n", " ", "x" * 400, "字。", "\t"]), max_size=30)


def _squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXT.map("".join))
def test_nothing_is_lost_and_none_is_too_long(text: str) -> None:
    passages = list(cut([Section(text, line=1)]))
    assert _squeezed("".join(passage.text for passage in passages)) == _squeezed(text)
    assert all(0 < len(passage.text) <= MOST + 2 for passage in passages)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXT.map("".join))
def test_each_begins_on_its_line(text: str) -> None:
    lines = text.split("\n")
    for passage in cut([Section(text, line=1)]):
        assert passage.line is not None
        first = passage.text.split("\n")[0].strip()
        assert first in lines[passage.line - 1]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    sentences = [f"This is sentence number {number:03d} of a long paragraph." for number in range(60)]
    passages = list(cut([Section(" ".join(sentences), page=7)]))
    assert len(passages) > 2
    assert all(passage.text.startswith("This is") and passage.text.endswith(".") for passage in passages)
    assert {(passage.page, passage.line) for passage in passages} == {(7, None)}


def test_what_has_no_words_is_cut_anywhere() -> None:
    assert [len(passage.text) for passage in cut([Section("x" * 2_500)])] == [1000, 1000, 500]
