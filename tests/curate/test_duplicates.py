"""Exact, paragraph and near duplicates; the catch rate of MinHash against its formula."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phirt_train.curate.duplicates import (
    Clusters,
    equal_pairs,
    exact_key,
    in_part,
    paragraph_keys,
    paragraphs,
    repeated_places,
    without_paragraphs,
)
from phirt_train.curate.minhash import MinHashConfig, bucket_keys, likeness, runs, signature
from phirt_train.curate.words import normalized, placed_words, run_hashes, word_hashes, words

LONG = "This paragraph has more words than a heading, so it counts"


def test_what_is_the_same_text() -> None:
    assert normalized("Don’t  STOP,\nＮow_2") == "don t stop now 2"
    np.testing.assert_array_equal(exact_key("A b, c!"), exact_key("a  B c"))
    assert not np.array_equal(exact_key("a b c"), exact_key("a c b"))


@given(st.text(max_size=60))
def test_words_and_their_places(text: str) -> None:
    found, places = placed_words(text)
    assert found == words(text) and len(found) == len(places)
    assert all(places[n, 1] <= places[n + 1, 0] for n in range(len(places) - 1))


def test_characters_of_unspaced_scripts_are_words() -> None:
    assert words("狗abc不在") == ["狗", "abc", "不", "在"]


def test_runs_of_words_depend_on_order_and_length() -> None:
    a, b = (word_hashes(text.split()) for text in ("a b c d", "a c b d"))
    assert len(set(run_hashes(a, 3).tolist()) | set(run_hashes(b, 3).tolist())) == 4
    assert run_hashes(a, 5).size == 0 and run_hashes(a, 4).size == 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_pairs_join_equal_keys_and_no_others(values: list[int]) -> None:
    keys = np.array(values, dtype=np.uint64)
    clusters = Clusters(len(values))
    for part in range(3):
        chosen = in_part(keys, part, 3)
        clusters.join(equal_pairs(keys[chosen], np.flatnonzero(chosen)))
    expected = [value in values[:number] for number, value in enumerate(values)]
    assert clusters.duplicates().tolist() == expected


def test_clusters_join_through_others_and_keep_the_first() -> None:
    clusters = Clusters(6)
    clusters.join(np.array([[4, 5], [2, 4], [5, 1]]))
    assert clusters.duplicates().tolist() == [False, False, True, False, True, True]


def test_paragraphs_that_have_occurred_are_cut_out() -> None:
    texts = [f"Title\n{LONG} one.\n\n{LONG} two.", f"Title\n{LONG} two.\n{LONG} three.\n{LONG} three."]
    keys = np.concatenate([paragraph_keys(text) for text in texts])
    places = np.array([(d, p) for d, text in enumerate(texts) for p in range(len(paragraphs(text)))])
    found = repeated_places(keys, places)
    assert sorted(map(tuple, found.tolist())) == [(1, 1), (1, 3)]  # headings may repeat
    assert without_paragraphs(texts[1], [1, 3]) == f"Title\n{LONG} three."


def test_catch_rates_are_the_formulas() -> None:
    config = MinHashConfig()
    assert (config.buckets, config.minima, config.run) == (14, 8, 5)
    assert config.threshold == pytest.approx(0.7190, abs=1e-4)
    assert config.catch_rate(0.8) == pytest.approx(0.9236, abs=1e-4)


@pytest.mark.parametrize("likeness_wanted", [0.4, 0.6, 0.7, 0.8, 0.95])
def test_pairs_are_caught_as_often_as_the_formula_says(likeness_wanted: float) -> None:
    """Within four standard deviations of the binomial distribution, over pairs of known likeness."""
    config, pairs, size = MinHashConfig(), 300, 200
    random_ = np.random.default_rng(int(100 * likeness_wanted))
    shared = round(2 * size * likeness_wanted / (1 + likeness_wanted))
    exact = shared / (2 * size - shared)
    caught = equal = 0
    for _ in range(pairs):
        drawn = random_.integers(0, 1 << 63, size=2 * size - shared, dtype=np.uint64)
        left, right = signature(drawn[:size], config), signature(drawn[-size:], config)
        same = (left == right).reshape(config.buckets, config.minima)
        caught += bool(same.all(axis=1).any())
        equal += int(same.sum())
    rate = config.catch_rate(exact)
    assert abs(caught / pairs - rate) <= 4 * (rate * (1 - rate) / pairs) ** 0.5 + 1e-9
    assert equal / (pairs * 112) == pytest.approx(exact, abs=0.02)  # each minimum by itself, too


def test_near_duplicates_of_texts_meet() -> None:
    chosen = random.Random(5)
    text = " ".join(chosen.choice("abcdefghijklmnop") + str(chosen.randrange(400)) for _ in range(600))
    near = text.replace(" ", ", ").upper() + " and a few words more at the end of it"
    other = " ".join(reversed(text.split()))
    config = MinHashConfig()
    assert likeness(text, near, 5) > 0.95 and likeness(text, other, 5) < 0.05
    assert np.any(bucket_keys(text, config) == bucket_keys(near, config))
    assert not np.any(bucket_keys(text, config) == bucket_keys(other, config))


def test_short_texts_are_compared_as_a_whole() -> None:
    config = MinHashConfig()
    assert len(runs("one two three", 5)) == 1 and len(runs("", 5)) == 0
    assert np.any(bucket_keys("one two three", config) == bucket_keys("One, two, three!", config))
    assert not np.any(bucket_keys("one two three", config) == bucket_keys("one two four", config))
