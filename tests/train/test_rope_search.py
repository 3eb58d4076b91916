"""The search for rotary factors: on a fitness with a known optimum, and on a tiny model that was trained at a
short length.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from phirt.errors import ConfigError
from phirt_export.reference import DecoderConfig, Model, ModelConfig, RopeConfig, TokenConfig
from phirt_export.reference.decoder import rope_tables
from phirt_export.reference.model import initialize
from phirt_train.rope_fitness import (
    Passage,
    long_passages,
    passage_fitness,
    perplexity,
    unscaled_first,
)
from phirt_train.rope_search import (
    SearchSettings,
    rescaled_factors,
    search_long_factors,
    search_short_factors,
    yarn_rope,
)

ONES = (1.0,) * 8
ROPE = RopeConfig(10_000.0, 16, 32, 32, ONES, ONES)
SMALL = SearchSettings(population=6, rounds=2, seed=0)
VOCAB = 24


def far_from(wanted):
    """A fitness with its optimum at known factors."""

    def fitness(rope: RopeConfig, first_unscaled: int) -> float:
        return sum((a - b) ** 2 for a, b in zip(rope.long_factor, wanted, strict=True)) + first_unscaled

    return fitness


def test_yarns_factors_by_hand():
    # Pair i turns 32 · 10000^(-i/8) / 2π times over 32 positions: 5.09, 1.61, 0.51, ... The ramp begins at
    # pair 0 (no pair turns 32 times) and ends at 2, the first whole pair below one turn.
    factors = yarn_rope(ROPE, 128).long_factor
    assert factors == pytest.approx([1, 1 / (0.5 + 0.5 / 4), 4, 4, 4, 4, 4, 4])
    assert yarn_rope(ROPE, 128).magnitude is None and yarn_rope(ROPE, 128).context == 128


def test_the_search_comes_near_a_known_optimum():
    wanted = (1.0, 1.0, 1.2, 1.7, 2.2, 3.0, 3.1, 4.0)
    found = search_long_factors(
        ROPE, 128, far_from(wanted), SearchSettings(seed=1), first_unscaled=(0, 1, 2, 4)
    )
    assert found.first_fitness == pytest.approx(far_from(wanted)(yarn_rope(ROPE, 128), 0), abs=0.05)
    assert found.fitness < 0.02 * found.first_fitness and found.first_unscaled == 0
    assert list(found.history) == sorted(found.history, reverse=True) and len(found.history) == 41
    assert found.rope.short_factor == ONES and found.rope.original_context == 32


def test_individuals_stay_on_the_grid_and_never_fall():
    seen = []

    def fitness(rope: RopeConfig, first_unscaled: int) -> float:
        seen.append((rope.long_factor, first_unscaled))
        return float(len(seen))

    settings = SearchSettings(population=16, rounds=12, probability=0.9, seed=5)
    search_long_factors(ROPE, 80, fitness, settings, first_unscaled=(0, 3))
    assert len(seen) > 60 and {plain for _, plain in seen} == {0, 3}
    for factors, _ in seen:
        assert list(factors) == sorted(factors) and factors[0] >= 1.0 and factors[-1] <= 1 + 2.5
        assert all(round(100 * factor) / 100 == factor for factor in factors)
    assert max(factors[-1] for factors, _ in seen) > 2.5  # up to 1 + s, not s


def test_what_it_looks_at_is_what_the_paper_does():
    assert SearchSettings().evaluations == 64 + 40 * 32
    steps = []
    search_long_factors(ROPE, 128, far_from(ONES), SMALL, report=lambda p: steps.append((p.step, p.steps)))
    assert steps == [(n, 12) for n in range(1, 13)]


def test_a_search_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    fitness, asked, budget = far_from((1.0, 1.5, 2, 2, 2, 3, 3, 4)), [], [3]

    def stops(rope: RopeConfig, first_unscaled: int) -> float:
        if len(asked) == budget[0]:
            raise KeyboardInterrupt
        asked.append(rope.long_factor)
        return fitness(rope, first_unscaled)

    path, whole = tmp_path / "search.jsonl", search_long_factors(ROPE, 128, fitness, SMALL)
    for budget[0] in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            search_long_factors(ROPE, 128, stops, SMALL, path=path)
        path.write_bytes(path.read_bytes()[:-5])  # the last line was cut off
    budget[0] = -1
    assert search_long_factors(ROPE, 128, stops, SMALL, path=path) == whole
    assert len(asked) == len(set(asked)) + 2  # those of the two lost lines again
    with pytest.raises(ConfigError, match="figures of another run"):
        search_long_factors(ROPE, 256, fitness, SMALL, path=path)


def test_the_short_factors_are_searched_from_what_they_are():
    rope = dataclasses.replace(yarn_rope(ROPE, 128), short_factor=ONES)
    wanted = (1.0,) * 6 + (1.5, 2.0)

    def fitness(candidate: RopeConfig, _: int) -> float:
        assert candidate.long_factor == rope.long_factor
        return sum((a - b) ** 2 for a, b in zip(candidate.short_factor, wanted, strict=True))

    found = search_short_factors(rope, fitness, SearchSettings(population=16, rounds=10))
    assert found.first_fitness == pytest.approx(1.25) and found.fitness < 0.3


def test_factors_of_another_extension():
    assert rescaled_factors((1.0, 2.5, 4.0), 4, 8) == pytest.approx((1.0, 4.5, 8.0))
    with pytest.raises(ConfigError, match="accepted: more than 1"):
        rescaled_factors((1.0,), 1, 8)


@pytest.mark.parametrize(
    ("context", "more", "said"),
    [
        (32, {}, "32 positions are no extension of the 32"),
        (128, {"first": [2.0, 1.0] + [3.0] * 6}, "fall from one pair to the next"),
        (128, {"first_unscaled": (-1,)}, "accepted: numbers of positions"),
        (128, {"settings": SearchSettings(population=2)}, "population"),
    ],
)
def test_a_search_that_cannot_be_is_refused(context, more, said):
    with pytest.raises(ConfigError, match=said):
        search_long_factors(ROPE, context, far_from(ONES), **more)


def test_a_fitness_that_is_never_a_number_is_named():
    with pytest.raises(ConfigError, match="no individual has a fitness"):
        search_long_factors(ROPE, 128, lambda *_: math.nan, SMALL)


def make_model() -> Model:
    decoder = DecoderConfig(2, 32, 2, 2, 16, 64, VOCAB, 1e-5, ROPE)
    model = Model(ModelConfig(decoder, TokenConfig(0, 0, (0,), None, None), None, None, {}))
    initialize(model, 0)
    return model


def copying(generator: torch.Generator, rows: int, length: int) -> torch.Tensor:
    """Rows that repeat what stood 12 places before: only where places are told apart can one be foreseen."""
    seed = torch.randint(1, VOCAB, (rows, 12), generator=generator)
    return seed.repeat(1, -(-length // 12))[:, :length]


@pytest.fixture(scope="module")
def trained() -> Model:
    """Two layers that have learnt to copy at 32 positions (about a second)."""
    model, generator = make_model(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(300):
        rows = copying(generator, 16, 33)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    rows = copying(torch.Generator().manual_seed(1), 6, 128)
    return [Passage(tuple(row), first=13) for row in rows.tolist()]


def test_the_search_beats_yarn_on_a_trained_model(trained, passages):
    fitness = passage_fitness(trained, passages)
    at_home = perplexity(trained, [Passage(p.token_ids[:32], 13) for p in passages])
    found = search_long_factors(ROPE, 128, fitness, SMALL)
    print(f"at 32: {at_home:.3f}; at 128: YaRN {found.first_fitness:.3f}, found {found.fitness:.3f}")
    assert at_home < 2.0
    assert found.fitness < 0.8 * found.first_fitness
    assert fitness(found.rope, 0) == found.fitness


def test_perplexity_is_that_of_the_models_own_logits(passages):
    model = make_model()
    passage = Passage(passages[0].token_ids[:40], first=30)
    ids = torch.tensor([passage.token_ids])
    with torch.no_grad():
        own = model(ids[:, :-1])[0, 29:].double().log_softmax(-1)
    expected = math.exp(-own[range(10), ids[0, 30:]].mean())
    assert perplexity(model, [passage]) == pytest.approx(expected, rel=1e-5)
    assert model.training and "rotary" not in vars(model.model)


def test_another_rope_is_the_model_built_with_it(passages):
    rope = dataclasses.replace(ROPE, context=128, long_factor=(1.0, 1.5, 2, 2, 3, 3, 4, 4))
    model = make_model()
    config = dataclasses.replace(model.config.decoder, rope=rope)
    rebuilt = Model(dataclasses.replace(model.config, decoder=config))
    rebuilt.load_state_dict(model.state_dict())
    assert perplexity(model, passages, rope) == pytest.approx(perplexity(rebuilt, passages), rel=1e-6)


def test_first_positions_may_stay_plain():
    rope = yarn_rope(ROPE, 128)
    cos, sin = unscaled_first(rope, 128, 7)
    magnitude = math.sqrt(1 + math.log(4) / math.log(32))
    angles = torch.arange(128).double()[:, None] * 10_000.0 ** (-torch.arange(8).double() / 8)
    assert torch.allclose(cos[:7], (angles[:7].cos() * magnitude).float(), atol=1e-6)
    assert torch.allclose(sin[:7], (angles[:7].sin() * magnitude).float(), atol=1e-6)
    assert torch.equal(cos[7:], rope_tables(rope, 128)[0][7:])
    assert not torch.allclose(sin[6], rope_tables(rope, 128)[1][6], atol=1e-3)


def test_documents_that_are_too_short_are_named():
    documents = [list(range(n)) for n in (5, 9, 10, 30)]
    found = long_passages(documents, 9, count=3)
    assert [p.token_ids for p in found] == [tuple(range(9))] * 3
    with pytest.raises(ConfigError, match="3 documents of 10 tokens are needed, 2 of 4 are so long"):
        long_passages(documents, 10, count=3)
    with pytest.raises(ConfigError, match="predicted from 4 on"):
        Passage((1, 2, 3, 4), 4)
