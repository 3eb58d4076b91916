"""The message with its passages, how many there is room for, and what an answer cites."""

from __future__ import annotations

import pytest

from phirt.errors import ContextError
from phirt_apps.documents.index import Entry
from phirt_apps.documents.passages import Passage
from phirt_apps.documents.prompt import as_objects, grounded, named_in, source_lines

ENTRIES = [
    Entry(1, "guide.pdf", Passage("Wash the filter.", 3, None, None)),
    Entry(2, "notes/pump.md", Passage("The pump is blue.", None, "Pump › Colour", 12)),
    Entry(3, "bad\nname.txt", Passage("word " * 200, None, None, 1)),
]


def _words(text: str) -> int:
    return len(text.split())


def test_the_passages_are_numbered_and_named() -> None:
    found = grounded("Which colour?", ENTRIES[:2], 1000, _words)
    assert found.text.startswith(
        "Passages from my documents:"
        "\n\n[1] guide.pdf, page 3\nWash the filter."
        "\n\n[2] notes/pump.md, “Pump › Colour”, line 12\nThe pump is blue."
        "\n\nAnswer this question"
    )
    assert found.text.endswith("\n\nWhich colour?")
    assert [one.number for one in found.citations] == [1, 2]


def test_no_more_than_there_is_room_for() -> None:
    assert [one.number for one in grounded("Why?", ENTRIES, 100, _words).citations] == [1, 2]
    (only,) = grounded("Why?", ENTRIES[2:], 130, _words).citations
    assert only.text.endswith(" …") and 40 < _words(only.text) < 130
    assert only.place == "bad name.txt, line 1"
    with pytest.raises(ContextError, match="no room left for a passage"):
        grounded("Why?", ENTRIES[2:], 20, _words)
    assert grounded("Why?", [], 20, _words).text == "Why?"


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [("Blue [2].", {2}), ("[1][2] and [7]", {1, 2}), ("see [1, 2]", {1, 2}), ("[12345] [x] 1", set())],
)
def test_what_an_answer_cites(answer: str, numbers: set[int]) -> None:
    citations = grounded("?", ENTRIES[:2], 1000, _words).citations
    assert named_in(answer, citations) == numbers
    assert {row["number"] for row in as_objects(answer, citations) if row["cited"]} == numbers


def test_the_lines_behind_an_answer() -> None:
    citations = grounded("?", ENTRIES[:2], 1000, _words).citations
    assert source_lines("Blue [2].", citations) == "from:\n  [2] notes/pump.md, “Pump › Colour”, line 12"
    assert source_lines("Blue.", citations).split("\n") == [
        "from, though the answer names none of them:",
        "  [1] guide.pdf, page 3",
        "  [2] notes/pump.md, “Pump › Colour”, line 12",
    ]
