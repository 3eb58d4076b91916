"""Markdown in pieces: the same text as at once, nothing of a model's interpreted, nothing long held open."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from phirt_apps.desktop.markdown import MOST_CODE, MOST_OPEN, AnswerMarkdown, whole

PARSER = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
BLOCKS = [
    "# Heading\n\n", "Some **bold** and `code`.\n\n", "- a\n- b\n  - c\n\n", "1. one\n2. two\n\n",
    "> quoted\n\n",
    "```python\nx = 1\n\ny = 2\n```\n\n", "| a | b |\n|---|---|\n| 1 | 2 |\n\n", "---\n\n", "Setext\n===\n\n",
    "    indented\n\n", "lazy\ncontinuation\n", "sep\u2028arated lines\n\n",
]  # fmt: skip


def streamed(text: str, step: int) -> str:
    """All that settles while the text comes in steps."""
    answer, pieces = AnswerMarkdown(), []
    for start in range(0, len(text), step):
        answer.add(text[start : start + step])
        pieces += answer.settled()
    return "".join(pieces + answer.end())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(BLOCKS), max_size=8), st.integers(1, 30))
def test_short_blocks_are_as_the_whole_text_at_once(blocks: list[str], step: int) -> None:
    text = "".join(blocks)
    assert streamed(text, step) == PARSER.render(text).replace("\n</code></pre>", "</code></pre>")


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"),
        ("![x](file:///etc/passwd)", "<p>![x](file:///etc/passwd)</p>\n"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>\n"),
    ],
)
def test_what_a_model_writes_is_text(text: str, html: str) -> None:
    assert whole(text) == [html]


@pytest.mark.parametrize(
    "text",
    [
        "word " * 2000,
        "x" * 5000,
        "- an item of things\n" * 500,
        "1. an item\n" * 800,
        "| a | b |\n|---|---|\n" + "| one | two |\n" * 600,
        "```python\n" + "x = 1\n" * 1200,
        "> quoted\n" * 900,
        "- a\n\n  ```\n" + "  code\n" * 900,
    ],
)
def test_a_block_without_end_is_cut_and_loses_nothing(text: str) -> None:
    answer, pieces = AnswerMarkdown(), []
    for start in range(0, len(text), 40):
        answer.add(text[start : start + 40])
        pieces += answer.settled()
        assert len(answer._source) <= MOST_OPEN + 40 + 80  # one header or fence more
    pieces += answer.end()
    assert len(pieces) > 1

    def words(rendered: str) -> list[str]:
        said = html.unescape(re.sub(r"<[^>]*>", " ", rendered))
        return [word for word in said.split() if word not in ("a", "b", "```")]

    expected, got = words(PARSER.render(text)), words("".join(pieces))
    assert "".join(got) == "".join(expected)


def code_in(html_text: str) -> str:
    """What stands in all blocks of code, one after the other."""
    return "\n".join(re.findall(r"<pre><code[^>]*>(.*?)</code></pre>", html_text, re.S))


@pytest.mark.parametrize(
    ("before", "indent", "behind"),
    [
        pytest.param("```python\n", "", "```\n\n", id="at the top"),
        pytest.param("1. one\n\n   ```python\n", "   ", "   ```\n\n2. two\n\n", id="in an item"),
        pytest.param("- one\n- two\n\n  ~~~\n", "  ", "  ~~~\n- three\n\n", id="in the second item"),
        pytest.param("- ```\n", "  ", "  ```\n\n", id="in the line of its mark"),
        pytest.param("10. - ```\n", "      ", "      ```\n\n", id="in an item of an item"),
        pytest.param("> ```\n", "> ", "> ```\n\n", id="quoted"),
    ],
)
@pytest.mark.parametrize(
    ("count", "step"), [(150, 6), (150, 700), (150, 10**6), (1100, 13), (1100, 700), (1100, 10**6)]
)
def test_long_code_stays_code_and_what_follows_does_not(
    before: str, indent: str, behind: str, step: int, count: int
) -> None:
    """Also where it is longer than a piece may be, and its lines look like items."""
    code = [f"- x = {number}\n" if number % 7 else "\n" for number in range(count)]
    text = before + "".join(indent + line for line in code) + behind + "after **bold**\n"
    shown = streamed(text, step)
    assert code_in(shown) == html.escape("".join(code).removesuffix("\n"))
    assert shown.rpartition("</pre>")[2].endswith("<p>after <strong>bold</strong></p>\n")


def test_a_line_of_code_without_end_is_cut_in_the_end() -> None:
    text = "```\n" + "x" * 30_000 + "\n```\n\nafter **bold**\n"
    answer, most, pieces = AnswerMarkdown(), 0, []
    for start in range(0, len(text), 50):
        answer.add(text[start : start + 50])
        pieces += answer.settled()
        most = max(most, len(answer.open))
    shown = "".join(pieces + answer.end())
    assert most < MOST_CODE + MOST_OPEN
    assert code_in(shown).replace("\n", "") == "x" * 30_000
    assert shown.endswith("<p>after <strong>bold</strong></p>\n")
