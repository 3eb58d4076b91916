"""Word errors by hand, and the laws of a distance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt_quant.word_errors import word_errors

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("wanted", "heard", "errors"),
    [
        ("", "", 0),
        ("one two", "", 2),
        ("", "one", 1),
        ("the cat sat", "the cat sat", 0),
        ("the cat sat", "a cat sat down", 2),
        ("a b c d", "b c d a", 2),
    ],
)
def test_by_hand(wanted: str, heard: str, errors: int) -> None:
    assert word_errors(wanted, heard) == errors


@given(WORDS, WORDS, WORDS)
def test_it_is_a_distance(a: str, b: str, c: str) -> None:
    assert word_errors(a, b) == word_errors(b, a)
    assert (word_errors(a, b) == 0) == (a == b)
    assert word_errors(a, c) <= word_errors(a, b) + word_errors(b, c)
