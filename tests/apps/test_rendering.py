"""An answer on a terminal: where words break, how Markdown looks, and that nothing depends on its pieces.

The screen is that of pyte, an independent terminal.
"""

from __future__ import annotations

import io
import re

import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phirt_apps.rendering.display import RawDisplay, answer_display, columns
from phirt_apps.rendering.inline import PLAIN, Theme, must_wait
from phirt_apps.rendering.markdown import MarkdownDisplay
from phirt_apps.rendering.wrapping import WordWrapper, cell_width, text_width

_NOTE = re.compile(r"(\r\x1b\[K)?\x1b\[2ma table of \d+ rows …\x1b\[0m|\r\x1b\[K")
_STYLES = re.compile(r"\x1b\[[0-9;]*m")


def render(*pieces: str, width: int = 40, theme: Theme = PLAIN) -> str:
    """Everything that is written for these pieces, the passing note of a table left out."""
    written: list[str] = []
    display = MarkdownDisplay(written.append, lambda: width, theme)
    for piece in pieces:
        display.write(piece)
    display.finish()
    return _NOTE.sub("", "".join(written))


def plain(*pieces: str, width: int = 40) -> str:
    """The same without styles."""
    return _STYLES.sub("", render(*pieces, width=width))


def screen(text: str, width: int = 40, height: int = 60) -> list[str]:
    """The lines of a terminal of this size after the text, without blank lines at the end."""
    terminal = pyte.Screen(width, height)
    pyte.Stream(terminal).feed(text.replace("\n", "\r\n"))
    lines = [line.rstrip() for line in terminal.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def test_words_are_broken_between_words() -> None:
    assert plain("the quick brown fox jumps over", width=11) == "the quick\nbrown fox\njumps over\n"
    assert plain("12345 67890", width=11) == "12345 67890\n"  # a line that is full to its last column
    assert plain("12345 678901", width=11) == "12345\n678901\n"


def test_a_word_longer_than_the_line_stays_whole_for_whoever_copies_it() -> None:
    address = "https://example.org/a/very/long/path"
    assert plain(f"see {address} there", width=20) == f"see\n{address}\nthere\n"
    assert screen(plain(f"see {address} there", width=20), 20) == ["see", address[:20], address[20:], "there"]
    assert plain(f"see {address} x yy", width=20) == f"see\n{address} x\nyy\n"


def test_wide_characters_take_two_columns() -> None:
    assert plain("漢字が続く", width=6) == "漢字が\n続く\n"
    assert plain("終わり。次", width=6) == "終わ\nり。次\n"  # no full stop begins a line
    assert plain("(「漢", width=2) == "(「漢\n"  # and no bracket ends one
    assert text_width("e\u0301") == 1 and text_width("한") == 2 and text_width("❤\ufe0f") == 2
    assert cell_width("👨\u200d👩\u200d👧") == 6  # as a terminal shows them that cannot join them


def test_spaces_that_forbid_or_allow_a_break() -> None:
    assert plain("aaa bb\u00a0cc", width=8) == "aaa\nbb\u00a0cc\n"
    assert plain("aaaa\u200bbbbb", width=6) == "aaaa\nbbbb\n"


def test_a_window_that_changes_its_width_while_the_answer_runs() -> None:
    written, widths = [], [20]
    display = MarkdownDisplay(written.append, lambda: widths[0], PLAIN)
    display.write("one two three four five six ")
    widths[0] = 10
    display.write("seven eight nine ten ")
    widths[0] = 30
    display.write("eleven twelve thirteen fourteen")
    display.finish()
    assert "".join(written).split("\n") == [
        "one two three four",
        "five six",
        "seven",
        "eight nine",
        "ten eleven twelve thirteen",
        "fourteen",
        "",
    ]


def test_an_answer_appears_word_by_word() -> None:
    written: list[str] = []
    display = MarkdownDisplay(written.append, lambda: 40, PLAIN)
    for piece, seen in [
        ("Hel", ""),
        ("lo ", "Hello"),
        ("**bo", ""),
        ("ld** wo", " \x1b[1mbold\x1b[0m"),
        ("rld.", ""),
    ]:
        written.clear()
        display.write(piece)
        assert "".join(written) == seen
    display.finish()
    assert "".join(written) == " world.\n"


def test_chinese_appears_character_by_character() -> None:
    written: list[str] = []
    display = MarkdownDisplay(written.append, lambda: 40, PLAIN)
    for character in "你好世界很大":
        display.write(character)
    assert "".join(written) == "你好世界很"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("# Title #\n\ntext", "Title\n\ntext\n"),
        ("a\nb\n", "a\nb\n"),  # a poem keeps its lines
        ("* one\n- two\n  + three\n10. ten", "• one\n• two\n  • three\n10. ten\n"),
        ("- item that is long\n", "• item that\n  is long\n"),
        ("1) item that is long\n", "1) item that\n   is long\n"),
        ("> quoted text is long", "│ quoted\n│ text is\n│ long\n"),
        ("> > deep\n> - item", "│ │ deep\n│ • item\n"),
        ("a\n\n\n\n---\n\n", "a\n\n\n\n────────────\n"),
        ("\n\na\n\n", "a\n"),
        ("2 * 3 * 4 and a_b_c", "2 * 3 * 4\nand a_b_c\n"),
        ("*a* **b** `c*d*` ~~e~~", "a b c*d* e\n"),
        ("[t](http://x)", "t (http://x)\n"),
        ("<http://x.org>", "http://x.org\n"),
        ("![a](x)", "a (x)\n"),
        (r"\*not\* &lt;", "*not* <\n"),
        ("**open", "**open\n"),
        ("a<br>b", "a\nb\n"),
        ("| one cell\nnext", "| one cell\nnext\n"),
        ("-", "-\n"),
        ("#hash 1.5 -x", "#hash 1.5 -x\n"),
        ("    x = a*b*c\n", "    x = a*b*c\n"),
        ("- a\n\n    b *c*\n", "• a\n\n    b c\n"),
    ],
)
def test_blocks_and_inline_markup(source: str, shown: str) -> None:
    shown = shown.replace("-\n", "• \n") if source == "-" else shown
    assert plain(source, width=12) == shown
    assert plain(*source, width=12) == shown


def test_code_is_shown_as_it_would_be_copied() -> None:
    source = "```python\ndef f(x):\n\treturn  x * x  # twice twice twice twice\n\n```\nafter"
    assert plain(source, width=20) == source + "\n"
    assert "\x1b[35mdef\x1b[0m" in render(source, theme=Theme())
    nested = "1. do\n   ```\n   a\n     b\n   ```\n- ```sh\n  ls\n  ```\n"
    assert plain(nested) == "1. do\n```\na\n  b\n```\n• ```sh\nls\n```\n"
    assert plain("> ```\n> a * b * c\n> ```\n> *x*") == "│ ```\n│ a * b * c\n│ ```\n│ x\n"
    assert plain("~~~\n```\n~~~\n*x*") == "~~~\n```\n~~~\nx\n"
    assert plain("```\nnever closed *a*") == "```\nnever closed *a*\n"
    assert plain("```not a block``` *x*") == "not a block x\n"


def test_tables() -> None:
    source = "text\n| a | b |\n|---|--:|\n| `x\\|y` | 1 |\n| long words here | 22 |\n| alone |\nafter"
    assert plain(source, width=16).split("\n") == [
        "text",
        "a           │  b",
        "────────────┼───",
        "x|y         │  1",
        "long words  │ 22",
        "here        │",
        "alone       │",
        "after",
        "",
    ]


def test_a_table_is_announced_while_its_rows_come() -> None:
    written: list[str] = []
    display = MarkdownDisplay(written.append, lambda: 40, PLAIN)
    display.write("| a | b |\n|---|---|\n| 1 | 2 |\n")
    assert screen("".join(written)) == ["a table of 1 rows …"]
    display.finish()
    assert screen("".join(written)) == ["a │ b", "──┼──", "1 │ 2"]


def test_a_notice_may_come_between() -> None:
    written: list[str] = []
    display = MarkdownDisplay(written.append, lambda: 40, PLAIN)
    display.break_line()
    display.write("half a line ")
    display.break_line()
    written.append("notice\n")
    display.break_line()
    display.write("and the rest")
    display.finish()
    assert "".join(written) == "half a line\nnotice\nand the rest\n"


def test_control_characters_of_the_model_do_nothing() -> None:
    assert plain("a\x1b[2Jb\r\x9bc\x07\n```\n\x1b]0;x\x07\n```\n") == "a[2Jbc\n```\n]0;x\n```\n"


def test_emphasis_is_waited_for_but_not_for_ever() -> None:
    assert must_wait("see **the ") and must_wait("a `code ") and must_wait("[text](http ")
    assert (
        not must_wait("2 * 3 ")
        and not must_wait("a_b ")
        and not must_wait("[0] ")
        and not must_wait("**a** ")
    )
    assert not must_wait("**" + "word " * 80)


_MARKS = ["#", "-", "1.", "|", "> ", "**", "_", "`", "[", "](", "~~", "\\", "& &amp; <br>", "\n", " ", "\t"]
_BLOCKS = [
    "| a | b |\n|---|---|\n",
    "```\n",
    "---\n",
    "**bold**",
    "*it*",
    "`x y`",
    "word",
    "averyverylongword",
]
_WIDE = ["漢字", "。", "👨\u200d👩\u200d👧", "e\u0301", "🇩🇪"]
_WORDS = st.sampled_from([*_MARKS, *_BLOCKS, *_WIDE])
_TEXTS = st.lists(_WORDS, max_size=30).map("".join) | st.text(max_size=80)


@settings(max_examples=300, deadline=None)
@given(_TEXTS, st.integers(1, 50), st.data())
@example("- ```\nx\n```\n| a\n|-|", 3, None)
def test_pieces_make_no_difference_and_words_are_not_broken(
    text: str, width: int, data: st.DataObject | None
) -> None:
    whole = plain(text, width=width)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8))) if data else range(len(text))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert whole == plain(*pieces, width=width)
    assert "\r" not in whole and "\x1b" not in whole


_LETTERS = st.characters(categories=["Lu", "Ll", "Nd", "Lo", "Po"], exclude_characters="\\`*_[]<>#&!|~-+.")
_PROSE = st.lists(st.text(_LETTERS, min_size=1, max_size=9), min_size=1)


@settings(max_examples=300, deadline=None)
@given(_PROSE, st.integers(2, 30))
def test_no_line_is_wider_than_the_terminal(words: list[str], width: int) -> None:
    text = "x " + " ".join(word for word in words if text_width(word) <= width)
    shown = plain(text, width=width)
    assert all(text_width(line) <= width for line in shown.split("\n"))
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)
    assert shown.count("\n") <= len(text) + 1
    whole = set(text.split(" "))
    for word in (word for line in shown.split("\n") for word in line.split(" ") if word):
        # Scripts that are written without spaces are broken anywhere.
        assert word in whole or any(text_width(c) == 2 for c in "".join(w for w in whole if word in w))


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab c \u00a0e\u0301.-"), max_size=60), st.integers(1, 12))
def test_the_column_is_where_a_terminal_has_its_cursor(text: str, width: int) -> None:
    """Even when a single word goes over the edge."""
    written: list[str] = []
    words = WordWrapper(written.append, lambda: width)
    words.begin()
    words.add(text)
    words.add(" x")
    words.add(" ")
    terminal = pyte.Screen(width, 200)
    pyte.Stream(terminal).feed("".join(written).replace("\n", "\r\n"))
    if width > 1:
        assert words.column == terminal.cursor.x


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """As a terminal says."""
        return True


def test_what_shows_an_answer_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for stream, term, shown in [
        (io.StringIO(), "xterm", "# a *b* `c`\x07\n"),
        (Terminal(), "dumb", "# a *b* `c`\n"),
        (Terminal(), "xterm", "\x1b[1;4ma\x1b[0m \x1b[1;4;3mb\x1b[0m \x1b[1;4;36mc\x1b[0m\n"),
    ]:
        monkeypatch.setenv("TERM", term)
        display = answer_display(stream, stream.write)
        display.write("# a *b* `c`\x07")
        display.finish()
        assert stream.getvalue() == shown
    monkeypatch.setenv("NO_COLOR", "1")
    display = answer_display(stream := Terminal(), stream.write)
    display.write("`c`")
    display.finish()
    assert stream.getvalue() == "\x1b[1mc\x1b[0m\n"


def test_raw_text_ends_with_one_newline() -> None:
    for pieces in (["a"], ["a\n"], ["a", "", "\n"]):
        stream = io.StringIO()
        display = RawDisplay(stream.write)
        for piece in pieces:
            display.write(piece)
        display.finish()
        assert stream.getvalue() == "a\n"


def test_the_width_where_the_terminal_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, width in [("132", 132), ("0", 80), ("-1", 80), ("x", 80), ("", 80), ("²", 80)]:
        monkeypatch.setenv("COLUMNS", said)
        assert columns(io.StringIO()) == width
