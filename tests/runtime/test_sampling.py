"""Settings, logits processors and samplers against hand-computed cases and full-sort versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from phirt.errors import BundleError, ConfigError
from phirt.generate import sampling
from phirt.generate.sampling import GenerationConfig, TokenSampler

INF = float("inf")
LOGITS = hnp.arrays(np.float32, st.integers(1, 1200), elements=st.floats(-30, 30, width=32))


def kept(logits: np.ndarray) -> set[int]:
    return set(np.flatnonzero(logits > -np.inf).tolist())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, accepted: a whole number of at least 1"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"temperature": -0.1}, "temperature is -0.1, accepted: a number from 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0, accepted: a number above 0 to 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"stop": ("",)}, "stop is"),
        ({"stop": (3,)}, "stop is"),
        ({"stop": ("x",) * 65}, "stop has 65 strings"),
    ],
)
def test_settings_are_validated(settings, expected):
    with pytest.raises(ConfigError) as refused:
        GenerationConfig(**settings)
    assert expected in str(refused.value)


def test_stop_takes_one_string_or_a_list():
    assert GenerationConfig(stop="end").stop == ("end",)
    assert GenerationConfig(stop=["a", "b"]).stop == ("a", "b")


def test_repetition_penalty_by_hand():
    process = sampling.RepetitionPenalty(2.0, 5)
    logits = np.array([1.0, -1.0, 4.0, 3.0, 0.0], dtype=np.float32)
    assert process(logits.copy(), [1, 2]).tolist() == [1.0, -2.0, 2.0, 3.0, 0.0]
    assert process(logits.copy(), [1, 2, 3]).tolist() == [1.0, -2.0, 2.0, 1.5, 0.0]


def test_temperature_keeps_ratios_of_logits():
    result = sampling.temperature(0.5)(np.array([1.0, 2.0, 4.0], dtype=np.float32), [])
    assert result.tolist() == [-6.0, -4.0, 0.0]


def test_a_tiny_temperature_is_greedy_without_nan():
    config = GenerationConfig(temperature=1e-30, seed=1)
    choose = TokenSampler(config, 3, [])
    assert [choose(np.array([80.0, 90.0, 70.0], dtype=np.float32)) for _ in range(20)] == [1] * 20


@given(logits=LOGITS, count=st.integers(1, 1300))
def test_top_k_keeps_the_best(logits, count):
    result = sampling.top_k(count)(logits.copy(), [])
    best = kept(result)
    assert len(best) == min(count, len(logits))
    dropped = [value for index, value in enumerate(logits) if index not in best]
    assert not dropped or min(logits[sorted(best)]) >= max(dropped)


@given(logits=LOGITS, mass=st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(logits, mass):
    best = sorted(kept(sampling.top_p(mass)(logits.copy(), [])))
    weights = np.exp(logits.astype(np.float64) - logits.max())
    wanted = mass * weights.sum()
    assert weights[best].sum() >= wanted * (1 - 1e-9)
    assert weights[best].sum() - weights[best].min() <= wanted * (1 + 1e-9)
    assert weights[best].min() >= np.delete(weights, best).max(initial=0.0)


def test_top_p_by_hand():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    assert kept(sampling.top_p(0.45)(logits.copy(), [])) == {0}
    assert kept(sampling.top_p(0.55)(logits.copy(), [])) == {0, 1}
    assert kept(sampling.top_p(0.94)(logits.copy(), [])) == {0, 1, 2}
    assert kept(sampling.top_p(0.96)(logits.copy(), [])) == {0, 1, 2, 3}


def test_top_p_over_a_flat_vocabulary_widens_its_search():
    assert len(kept(sampling.top_p(0.5)(np.zeros(100_000, dtype=np.float32), []))) == 50_000


def test_min_p_by_hand():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    assert kept(sampling.min_p(0.5)(logits.copy(), [])) == {0, 1}
    assert kept(sampling.min_p(0.2)(logits.copy(), [])) == {0, 1, 2}
    assert kept(sampling.min_p(1.0)(logits.copy(), [])) == {0}


def test_suppressed_ids_are_never_chosen():
    choose = TokenSampler(GenerationConfig(), 4, [], suppressed=(1, 2))
    assert choose(np.array([1.0, 9.0, 8.0, 2.0], dtype=np.float32)) == 3


def test_the_engines_logits_are_left_alone():
    logits = np.array([1.0, 9.0], dtype=np.float32)
    TokenSampler(GenerationConfig(repetition_penalty=3.0, temperature=1.0, top_k=1), 2, [1], suppressed=(0,))(
        logits
    )
    assert logits.tolist() == [1.0, 9.0]


def test_greedy_takes_the_lowest_of_equals():
    assert sampling.greedy(np.array([0.0, 5.0, 5.0], dtype=np.float32)) == 1


def test_a_seed_repeats_and_another_differs():
    logits = np.zeros(1000, dtype=np.float32)

    def draw(seed):
        choose = TokenSampler(GenerationConfig(temperature=1.0, seed=seed), 1000, [])
        return [choose(logits) for _ in range(20)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_sampling_follows_the_probabilities():
    logits = np.log(
        np.array([0.6, 0.3, 0.1, 0.0], dtype=np.float32),
        where=[True] * 3 + [False],
        out=np.full(4, -INF, np.float32),
    )
    sample = sampling.categorical(0)
    counts = np.bincount([sample(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.6, 0.3, 0.1, 0.0], atol=0.015)
    assert counts[3] == 0


def test_processors_apply_in_their_order():
    config = GenerationConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.05, repetition_penalty=1.1)
    assert len(sampling.make_logits_processors(config, 10, (1,))) == 6
    assert len(sampling.make_logits_processors(GenerationConfig(), 10)) == 0
    assert len(sampling.make_logits_processors(GenerationConfig(top_k=5), 10)) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_are_told(temperature):
    choose = TokenSampler(GenerationConfig(temperature=temperature), 4, [])
    with pytest.raises(BundleError, match="no numbers"):
        choose(np.array([0.0, np.nan, 1.0, 2.0], np.float32))
