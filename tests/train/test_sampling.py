"""Which items steps take: the shares that a recipe gives, every item once an epoch, and all of it a function
of seed and step.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt.fields import Fields, read_dataclass
from phirt_train.data.mixture import Shares, Source
from phirt_train.data.sampling import Draws, EpochOrder, Sampler, SimilarSampler


def _source(value: dict[str, Any]) -> Source:
    return read_dataclass(Source, Fields(value, "recipe", ConfigError, "correct it", closed=True))


@given(
    weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5),
    batch=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_every_step_is_filled_and_many_steps_have_the_shares(
    weights: list[float], batch: int, seed: int
) -> None:
    shares = Shares.of({str(n): weight for n, weight in enumerate(weights)})
    draws = Draws(shares, batch, 400, seed)
    counts = draws.counts(np.arange(400))
    assert (counts >= 0).all() and (counts.sum(axis=1) == batch).all()
    wanted = np.array(weights) / sum(weights)
    assert np.abs(counts - batch * wanted).max() < 1 + 1e-9
    assert np.abs(counts.sum(axis=0) - 400 * batch * wanted).max() < 8
    assert (draws.before(17) == counts[:17].sum(axis=0)).all()
    assert (draws.before(5) == counts[:5].sum(axis=0)).all()  # going back, as a stage that starts again


def test_a_share_that_grows_is_what_it_should_be_at_every_step() -> None:
    read = _source({"start": 0.1, "end": 0.4, "kind": "synthetic"})
    shares = Shares.of({"web": 0.9, "made": read, "late": ((0.0, 0.0), (0.5, 0.0), (1.0, 1.0))})
    assert shares.kinds == ("", "synthetic", "")
    at = shares.at(np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(at[0], [0.9, 0.1, 0.0])
    np.testing.assert_allclose(at[1], np.array([0.9, 0.25, 0.0]) / 1.15)
    np.testing.assert_allclose(at[2], np.array([0.9, 0.4, 1.0]) / 2.3)
    draws = Draws(shares, 50, 1000, 3)
    counts = draws.counts(np.arange(1000))
    for begin in range(0, 1000, 10):  # per 1 % of the steps
        exact = shares.at(np.arange(begin, begin + 10) / 1000).mean(axis=0)
        assert np.abs(counts[begin : begin + 10].mean(axis=0) / 50 - exact).max() < 0.006


def test_tasks_weigh_and_sources_share_within_them() -> None:
    sources = {"a": Source(1.0, kind="asr"), "b": Source(3.0, kind="asr"), "c": Source(0.001, kind="ast")}
    shares = Shares.of(sources, tasks={"asr": 28.0, "ast": 28.0})
    np.testing.assert_allclose(shares.at(np.zeros(1))[0], [0.125, 0.375, 0.5])
    with pytest.raises(ValueError, match="differ in ast, sqa; give every source a kind"):
        Shares.of(sources, tasks={"asr": 1.0, "sqa": 1.0})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "give either 'share', or both 'start' and 'end'"),
        ({"start": 0.1}, "give either 'share', or both 'start' and 'end'"),
        ({"share": 0.1, "start": 0.1, "end": 0.2}, "give either 'share', or both"),
        ({"share": [[0.5, 1], [0.2, 1]]}, "the positions of 'share' do not rise"),
        ({"share": [[1.5, 1]]}, r"'share'.*is 1\.5, expected a number from 0 to 1"),
        ({"share": -1}, "'share' is -1"),
        ({"share": 1, "min_tokens": 5, "max_tokens": 4}, "max_tokens is 4, below min_tokens"),
        ({"share": 1, "kinds": "web"}, "'kinds' is not known here"),
    ],
)
def test_a_wrong_source_is_one_line(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _source(value)


def test_a_stage_whose_sources_all_vanish_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no source has a weight at position 0\.5 of the stage"):
        Shares.of({"a": ((0.0, 1.0), (0.5, 0.0)), "b": ((0.0, 1.0), (0.4, 0.0))})


def test_every_epoch_has_every_item_once_and_its_own_order() -> None:
    order = EpochOrder(7, 1, "a")
    epochs = [[order[place] for place in range(begin, begin + 7)] for begin in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [EpochOrder(7, 1, "b")[place] for place in range(7)]


@pytest.mark.parametrize("alike", [False, True])
def test_no_item_comes_again_before_all_others(alike: bool) -> None:
    sizes = {"a": 24, "b": 8}
    shares = Shares.of({"a": 3.0, "b": 1.0})

    def sampler() -> Sampler:
        key = (lambda pick: (pick.item // 4,)) if alike else None
        return Sampler(sizes, shares, 4, 16, 5, key)

    one = sampler()
    steps = [list(one.picks(step)) for step in range(16)]
    assert all(len(step) == 4 for step in steps)
    counts = Counter(pick for step in steps[:8] for pick in step)
    assert set(counts.values()) == {1} and len(counts) == 32
    assert Counter(pick for step in steps for pick in step) == {pick: 2 for pick in counts}
    # Any process says the same of any step.
    assert all(list(sampler().picks(step)) == steps[step] for step in (11, 2, 15))
    if alike:
        assert any(len({pick.item // 4 for pick in step if pick.source == 0}) == 1 for step in steps)


@pytest.mark.parametrize("alike", [False, True])
def test_what_is_consumed_is_what_was_picked(alike: bool) -> None:
    shares = Shares.of({"a": Source(3.0, kind="web"), "b": Source(1.0, kind="code")})
    lengths = [np.arange(1, 8), np.array([100, 200])]
    sampler = Sampler({"a": 7, "b": 2}, shares, 4, 20, 5, (lambda pick: (pick.item,)) if alike else None)
    seen: list[Any] = []
    for step in range(20):
        consumed = Sampler(sampler.sizes, shares, 4, 20, 5, (lambda pick: (pick.item,)) if alike else None)
        found = consumed.consumed(step, lengths)
        for number, name in enumerate("ab"):
            own = [pick.item for pick in seen if pick.source == number]
            assert found[name].items == len(own) and found[name].kind == ("web", "code")[number]
            assert found[name].epochs == len(own) / len(lengths[number])
            if not alike:
                assert found[name].tokens == sum(int(lengths[number][item]) for item in own)
                assert found[name].unique_tokens == sum(int(lengths[number][item]) for item in set(own))
        seen += sampler.picks(step)


def test_recordings_of_a_step_are_of_one_source_and_alike_and_each_once_an_epoch() -> None:
    lengths = {"long": np.arange(100, 132), "short": np.arange(1, 9)}
    sampler = SimilarSampler(lengths, Shares.of({"long": 1.0, "short": 1.0}), 2, 64, 3, short=10)
    steps = [sampler.picks(step) for step in range(64)]
    assert {len(items) for source, items in steps if source == 0} == {2}
    assert {len(items) for source, items in steps if source == 1} == {8}
    long = [item for source, items in steps if source == 0 for item in items]
    assert sorted(long[:32]) == list(range(32))
    assert sampler.consumed(64)["short"].epochs == sum(source == 1 for source, _ in steps)
