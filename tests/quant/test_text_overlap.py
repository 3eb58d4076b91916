"""ROUGE-L and BLEU by hand and by their definitions; BLEU also as sacrebleu has it."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt_quant.metrics import Answer, estimate
from phirt_quant.text_overlap import BleuCounts, bleu, bleu_counts, bleu_tokens, rouge_l

WORDS = st.lists(st.sampled_from("abcde"), max_size=7)
SENTENCES = st.text(st.sampled_from("ab12 .,-'&;!?()é«_\n\t"), max_size=30)


@pytest.mark.parametrize(
    ("wanted", "said", "value"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # Lin 2004: 3 of 4 and of 4
        ("police killed the gunman", "the gunman kill police", 2 / 4),  # "the gunman" is the longest
        ("The cat sat.", "the cat, the CAT!", 2 * 2 / (3 + 4)),
        ("one two three", "one two three four five six", 2 * 3 / 9),
        ("don't go", "don t go", 1.0),
        ("a_b", "a b", 1.0),
        ("été", "Été", 1.0),
        ("a b", "c d", 0.0),
        ("", "a", 0.0),
        ("a", "...", 0.0),
    ],
)
def test_rouge_l_by_hand(wanted: str, said: str, value: float) -> None:
    assert rouge_l(wanted, said) == pytest.approx(value)


@given(a=WORDS, b=WORDS)
def test_rouge_l_is_of_the_longest_of_all_common_subsequences(a: list[str], b: list[str]) -> None:
    def parts(words: list[str]) -> set[tuple[str, ...]]:
        return {one for size in range(len(words) + 1) for one in itertools.combinations(words, size)}

    longest = max(map(len, parts(a) & parts(b)))
    wanted = 0.0
    if longest:
        precision, recall = longest / len(b), longest / len(a)
        wanted = 2 * precision * recall / (precision + recall)
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(wanted)


def test_bleu_by_hand() -> None:
    # said has 7 tokens: 5 of them are wanted, of its 6 pairs 3, of its 5 threes 1, of its 4 fours none.
    counts = bleu_counts("the cat sat on the mat .", "the cat sat by the mat today")
    assert counts == BleuCounts((5, 3, 1, 0), (7, 6, 5, 4), 7, 7)
    assert bleu(counts) == pytest.approx((5 / 7 * 3 / 6 * 1 / 5 * (1 / 2) / 4) ** (1 / 4))
    # Three tokens of four: exp(1 - 4/3), and there is no run of four.
    assert bleu(bleu_counts("a b c d", "a b c")) == 0.0
    short = bleu_counts("a b c d e", "a b c d")
    assert bleu(short) == pytest.approx(math.exp(1 - 5 / 4))


def test_tokens_are_cut_as_mteval_cuts_them() -> None:
    assert bleu_tokens("It's 1,234.5 (or 3-4) &quot;well&quot;, e.g. that...") == [
        "It's", "1,234.5", "(", "or", "3", "-", "4", ")", '"', "well", '"', ",", "e", ".", "g", ".", "that",
        ".", ".", ".",
    ]  # fmt: skip


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=4))
@settings(deadline=None)
def test_bleu_is_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    wanted, said = [one for one, _ in pairs], [one for _, one in pairs]
    expected = sacrebleu.corpus_bleu(said, [wanted]).score / 100
    answers = [Answer(b, False, wanted=a) for a, b in pairs]
    assert estimate("bleu", answers).value == pytest.approx(expected, abs=1e-9)


def test_errors_are_how_much_each_text_moves_the_measure() -> None:
    """One more copy of a text, in the limit of many, moves the whole by its influence less the mean's."""
    said = ["the cat sat on a mat .", "it rains all today", "a dog barks at the cat on the mat"]
    wanted = ["the cat sat on the mat .", "it rains all day today", "the dog barks at the cat by the mat now"]
    answers = [Answer(b, False, wanted=a) for a, b in zip(wanted, said, strict=True)]
    for metric in ("bleu", "rouge_l"):
        found = estimate(metric, answers)
        many = 2000
        for index in range(3):
            more = estimate(metric, answers * many + [answers[index]]).value
            moved = (more - found.value) * (3 * many + 1)
            assert moved == pytest.approx(found.influence[index] - found.influence.mean(), rel=1e-2, abs=1e-4)
    nothing = [dataclasses.replace(one, text="") for one in answers]
    assert estimate("bleu", nothing).value == 0.0 and not np.any(estimate("bleu", nothing).influence)
