"""Passkeys hidden in text, found by rules that copy what they have seen, by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_quant.examiner import TextForm
from phirt_quant.needles import DEPTHS, Retrieval, make_needles, seek_all

SIZE = 128  # ids are ASCII characters; 1 begins every text
TEXTS = ["The sea is calm today. No ship is out. Why should one be? It rains.", "A gull sits on the pier."]
FORM = TextForm(
    encode=lambda text: [ord(c) for c in text],
    decode=lambda ids: "".join(map(chr, ids)),
    begin=(1,),
    bos=1,
    context=1000,
)
KEY = len("12345") + 1  # tokens of an answer


class Copying:
    """Says with probability 1/2 what followed the last twelve characters when they were there before, within
    the last `sight` of them; everything else is alike.
    """

    def __init__(self, sight: int) -> None:
        self.sight = sight

    def score(self, ids: Sequence[int], first: int) -> Iterator[np.ndarray]:
        for place in range(first, len(ids)):
            seen = list(ids[max(0, place - self.sight) : place])
            logits = np.zeros(SIZE, np.float32)
            for start in range(len(seen) - 13, -1, -1):
                if seen[start : start + 12] == seen[-12:]:
                    logits[seen[start + 12]] = math.log(SIZE - 1)
                    break
            yield logits

    def answer(self, ids: Sequence[int], draft: Sequence[int] = ()) -> Iterator[int]:
        raise AssertionError("needles are scored")


def text_of(needle) -> str:
    return FORM.decode(needle.context_ids[1:])


@settings(max_examples=30)
@given(length=st.integers(150, 900), seed=st.integers(0, 99))
def test_needles_have_exactly_the_length_and_lie_between_sentences(length, seed):
    needles = make_needles(FORM, TEXTS, [length], count=2, seed=seed)
    assert len(needles) == 2 * len(DEPTHS)
    for needle in needles:
        assert needle.context_ids[0] == 1
        assert len(needle.context_ids) + len(needle.answer_ids) == length
        text, key = text_of(needle), FORM.decode(needle.answer_ids)
        hidden = f" The passkey is{key}. Remember it:{key} is the passkey."
        assert text.count(hidden) == 1 and text.endswith(" What is the passkey? The passkey is")
        before = text[: text.index(hidden)]
        assert not before or before.endswith((".", "?")) or needle.depth == 1.0
        room = length - 1 - len(hidden) - len(" What is the passkey? The passkey is") - KEY
        assert abs(len(before) - needle.depth * room) <= len(TEXTS[1]) or needle.depth == 1.0


def test_needles_follow_from_the_seed_and_differ_by_depth_alone():
    needles = make_needles(FORM, TEXTS, [300, 400], count=3, seed=4)
    assert needles == make_needles(FORM, TEXTS, [300, 400], count=3, seed=4)
    assert needles != make_needles(FORM, TEXTS, [300, 400], count=3, seed=5)
    keys = {FORM.decode(needle.answer_ids) for needle in needles}
    assert len(keys) == 6 and len(needles) == 2 * 5 * 3


def test_a_copying_model_finds_what_it_sees():
    needles = make_needles(FORM, TEXTS, [400, 800], depths=(0.0, 1.0), count=2)
    all_of_it, half = seek_all([Copying(1000), Copying(300)], needles, FORM.context)
    # Seen: each token has probability 1/2. Not seen: all 128 are equally likely.
    found = pytest.approx(2.0, rel=1e-5)
    assert all_of_it == [Retrieval(n, depth, 2, 1.0, found) for n in (400, 800) for depth in (0.0, 1.0)]
    missed = pytest.approx(128.0, rel=1e-5)
    assert [(cell.found, cell.perplexity) for cell in half] == [(0.0, missed), (1.0, found)] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lengths": [90]}, r"a needle in 90 tokens was asked for; accepted: \d+ to the 1000"),
        ({"lengths": [1001]}, "to the 1000 that the model takes"),
        ({"depths": (1.5,)}, "depth 1.5 is out of range"),
        ({"texts": [" \n "]}, "has no words to hide"),
    ],
)
def test_needles_that_cannot_be_hidden_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        make_needles(**{"form": FORM, "texts": TEXTS, "lengths": [300], **changes})
