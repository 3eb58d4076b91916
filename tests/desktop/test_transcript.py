"""The transcript alone: what waits, and in which order it comes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from phirt_apps.desktop.transcript import _PIECE, Transcript, _pieces
from phirt_apps.desktop.worker import Turn


def insert_all(transcript: Transcript) -> str:
    """All that is shown once nothing waits."""
    while transcript._settled:
        transcript._insert_some()
    return str(transcript.toPlainText())


def test_a_question_waits_behind_a_conversation_that_is_still_being_shown(application: Any) -> None:
    """Sending does not insert hundreds of turns at once; what is withdrawn has never been."""
    transcript = Transcript()
    transcript.restart([Turn("user", "word " * 3000, ())] * 40)
    transcript.add_question("Hello", ("shapes.png",))
    assert transcript.toPlainText() == "" and len(transcript._settled) > 40
    transcript.withdraw()
    shown = insert_all(transcript)
    assert shown.count("You") == 40 and "Hello" not in shown
    transcript.add_question("Hello", ())
    assert insert_all(transcript).rstrip().endswith("Hello\nphirt")
    transcript.withdraw()
    assert insert_all(transcript).rstrip() == shown.rstrip()


@given(st.text(alphabet="ab \n", max_size=3 * _PIECE))
def test_a_long_text_is_cut_between_words(text: str) -> None:
    pieces = list(_pieces(text))
    assert all(len(piece) <= _PIECE for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_a_word_is_cut_where_nothing_else_can_be() -> None:
    assert list(_pieces("x" * (_PIECE + 1))) == ["x" * _PIECE, "x"]
    first, second = _pieces("a" * 1500 + "\n" + "b" * 1000)
    assert (first, second) == ("a" * 1500, "b" * 1000)
    first, second = _pieces("a" * 1500 + " " + "b" * 1000)
    assert (first, second) == ("a" * 1500 + " ", "b" * 1000)
