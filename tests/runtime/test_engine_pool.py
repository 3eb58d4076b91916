"""Engines shared by conversations: what is reused, what is copied, what goes; nothing is mixed up."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phirt
from phirt.errors import ClosedError, ConfigError
from phirt.generate.engine_pool import NOBODY, CacheLimits, CacheOwner, EnginePool
from phirt.generate.sequence import Adapter, MediaSpan, Prompt

CHUNK = 8


class Conversation:
    """Something that can be forgotten."""

    def __init__(self, lineage: object | None = None, *, isolated: bool = False) -> None:
        self.owner = CacheOwner(weakref.ref(self), lineage or object(), isolated)


@pytest.fixture
def pool_of(new_engine):
    def make(**limits) -> EnginePool:
        return EnginePool(lambda: new_engine(prefill_chunk=CHUNK), CacheLimits(**limits))

    return make


@pytest.fixture
def pool(pool_of):
    return pool_of()


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(12, 512, count)


def prompt(*parts: np.ndarray, route: str = "none") -> Prompt:
    return Prompt(np.concatenate(parts), (), Adapter(route))


def run(pool: EnginePool, wanted: Prompt, owner: CacheOwner = NOBODY) -> int:
    """How many positions were there already."""
    with pool.engine_for(wanted, owner) as engine:
        cached = engine.reusable(wanted)
        engine.prefill_prompt(wanted)
        return cached


def test_a_conversation_goes_on_where_it_was(pool):
    talk = Conversation()
    assert run(pool, prompt(ids(20)), talk.owner) == 0
    assert run(pool, prompt(ids(20), ids(9, 1)), talk.owner) == 20
    assert len(pool.engines()) == 1


def test_strangers_share_whole_chunks_of_a_common_beginning(pool):
    one, other = Conversation(), Conversation()
    run(pool, prompt(ids(20), ids(9, 1)), one.owner)
    assert run(pool, prompt(ids(20), ids(9, 2)), other.owner) == 16
    assert run(pool, prompt(ids(20), ids(9, 1), ids(3, 3)), one.owner) == 29, (
        "the copy left the first as it was"
    )
    assert len(pool.engines()) == 2


def test_what_strangers_share_is_equal_to_the_last_bit(pool, new_engine):
    """A cache that decoding or other chunks have filled is not; int8 arithmetic makes steps of last bits."""
    one, other = Conversation(), Conversation()
    with pool.engine_for(prompt(ids(21)), one.owner) as engine:
        engine.prefill_prompt(prompt(ids(21)))
        for token in ids(20, 1):
            engine.decode_step(int(token))
    whole = prompt(ids(21), ids(20, 1), ids(10, 2))
    assert run(pool, prompt(ids(21), ids(20, 1), ids(10, 3)), one.owner) == 41
    with pool.engine_for(whole, other.owner) as engine:
        assert engine.reusable(whole) == 16
        logits = engine.prefill_prompt(whole).copy()
    np.testing.assert_array_equal(logits, new_engine(prefill_chunk=CHUNK).prefill_prompt(whole))


def test_forks_share_everything(pool):
    talk = Conversation()
    fork = Conversation(talk.owner.lineage)
    run(pool, prompt(ids(21)), talk.owner)
    assert run(pool, prompt(ids(21), ids(2, 1)), fork.owner) == 21
    assert run(pool, prompt(ids(21), ids(2, 2)), talk.owner) == 21


def test_a_conversation_overwrites_its_own_tail_and_nobody_elses(pool):
    talk, other = Conversation(), Conversation()
    run(pool, prompt(ids(16), ids(30, 1)), talk.owner)
    run(pool, prompt(ids(16), ids(30, 2)), talk.owner)
    assert len(pool.engines()) == 1
    run(pool, prompt(ids(16), ids(30, 3)), other.owner)
    assert len(pool.engines()) == 2


def test_what_a_forgotten_conversation_left_is_taken_and_not_copied(pool):
    talk, other = Conversation(), Conversation()
    run(pool, prompt(ids(16), ids(30, 1)), talk.owner)
    del talk
    gc.collect()
    assert run(pool, prompt(ids(16), ids(30, 2)), other.owner) == 16
    assert len(pool.engines()) == 1


def test_requests_of_nobody_reuse_each_other(pool):
    """A server that is sent the whole history each time."""
    assert run(pool, prompt(ids(40))) == 0
    assert run(pool, prompt(ids(40), ids(20, 1))) == 40
    assert run(pool, prompt(ids(40), ids(20, 1), ids(20, 2))) == 56
    assert len(pool.engines()) == 1


@pytest.mark.parametrize("difference", ["adapter", "media", "isolated"])
def test_other_adapters_media_and_isolated_conversations_share_nothing(pool, difference):
    rows = np.random.default_rng(0).standard_normal((10, 32)).astype(np.float32)
    inside = np.concatenate([np.full(10, 1), ids(20)])
    one, other = Conversation(), Conversation(isolated=difference == "isolated")
    run(pool, Prompt(inside, (MediaSpan(0, rows, "a"),), Adapter("vision")), one.owner)
    route = "speech" if difference == "adapter" else "vision"
    span = MediaSpan(0, rows, "b" if difference == "media" else "a")
    assert run(pool, Prompt(inside, (span,), Adapter(route)), other.owner) == 0
    assert (
        run(pool, Prompt(inside, (MediaSpan(0, rows, "a"),), Adapter("vision")), Conversation().owner) == 24
    )


def test_an_engine_in_use_is_nobody_elses(pool):
    wanted = prompt(ids(40))
    run(pool, wanted)
    with pool.engine_for(wanted) as first, pool.engine_for(wanted) as second:
        assert first is not second
        assert (first.reusable(wanted), second.reusable(wanted)) == (32, 0)
        assert pool.num_busy == 2
    assert pool.num_busy == 0


def test_the_least_recently_used_goes_and_orphans_before_all(pool_of):
    pool = pool_of(max_engines=3)
    talks = [Conversation() for _ in range(3)]
    for seed, talk in enumerate(talks):
        run(pool, prompt(ids(20, seed)), talk.owner)
    run(pool, prompt(ids(20, 0)), talks[0].owner)
    new = Conversation()
    run(pool, prompt(ids(20, 9)), new.owner)
    assert [len(pool.engines(talk.owner)) for talk in [*talks, new]] == [1, 0, 1, 1]
    del talks[0], talk
    gc.collect()
    newest = Conversation()
    run(pool, prompt(ids(20, 10)), newest.owner)
    assert [len(pool.engines(talk.owner)) for talk in [talks[1], new, newest]] == [1, 1, 1]


def test_bytes_are_bounded_and_the_last_one_stays(pool_of, new_engine):
    empty = new_engine().cache.nbytes
    pool = pool_of(max_bytes=3 * empty)
    talks = [Conversation() for _ in range(5)]
    for seed, talk in enumerate(talks):
        run(pool, prompt(ids(20, seed)), talk.owner)
        assert pool.nbytes <= 3 * empty
    long = Conversation()
    run(pool, prompt(ids(900)), long.owner)
    assert pool.engines() == pool.engines(long.owner)
    assert run(pool, prompt(ids(900), ids(4, 1)), long.owner) == 900
    run(pool, prompt(ids(20, 1)), talks[1].owner)
    assert pool.engines() == pool.engines(talks[1].owner)


def test_one_engine_serves_all_if_it_must(pool_of):
    pool = pool_of(max_engines=1)
    talks = [Conversation(), Conversation()]
    for turn in range(4):
        run(pool, prompt(ids(30), ids(4, turn)), talks[turn % 2].owner)
        assert len(pool.engines()) == 1


def test_forget_and_clear(pool):
    talks = [Conversation(), Conversation()]
    for seed, talk in enumerate(talks):
        run(pool, prompt(ids(20, seed)), talk.owner)
    pool.forget(talks[0].owner)
    assert (pool.engines(talks[0].owner), len(pool.engines(talks[1].owner))) == ((), 1)
    pool.clear()
    assert pool.engines() == ()


def test_a_closed_pool(pool):
    run(pool, prompt(ids(20)))
    with pool.engine_for(prompt(ids(20, 1))) as engine:
        pool.close()
        pool.close()
        engine.prefill_prompt(prompt(ids(20, 1)))  # what is in use goes when it is given back
    assert (pool.engines(), pool.nbytes, pool.is_closed) == ((), 0, True)
    for act in (pool.require_open, pool.new_engine, lambda: run(pool, prompt(ids(3)))):
        with pytest.raises(ClosedError, match="this model was closed; load it again"):
            act()


def test_an_engine_comes_back_while_the_lock_is_held(pool):
    """As when the garbage collector ends a stream in the midst of a pool's own work."""
    block = pool.engine_for(prompt(ids(20)))
    block.__enter__()
    with pool._lock:
        block.__exit__(None, None, None)
    assert (pool.num_busy, len(pool.engines())) == (0, 1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(1, 30), st.booleans()), max_size=12)
)
def test_whatever_was_asked_before_answers_are_the_same(pool_of, new_engine, requests):
    """Conversations with common beginnings, in any order; some are dropped on the way."""
    pool = pool_of(max_engines=3)
    talks = [Conversation() for _ in range(4)]
    for number, shared, own, dropped in requests:
        wanted = prompt(ids(70)[:shared], ids(own, number))
        with pool.engine_for(wanted, talks[number].owner) as engine:
            logits = engine.prefill_prompt(wanted).copy()
        np.testing.assert_allclose(logits, new_engine(prefill_chunk=CHUNK).prefill_prompt(wanted), atol=1e-5)
        if dropped:
            talks[number] = Conversation()
        assert len(pool.engines()) <= 3


def test_many_threads(pool_of, new_engine):
    pool = pool_of(max_engines=3)
    prompts = [prompt(ids(24), ids(10, seed)) for seed in range(6)]
    expected = [new_engine(prefill_chunk=CHUNK).prefill_prompt(wanted).copy() for wanted in prompts]
    failures = []

    def work(seed: int) -> None:
        talk = Conversation()
        for turn in range(20):
            wanted = (seed + turn) % 6
            with pool.engine_for(prompts[wanted], talk.owner) as engine:
                if not np.allclose(engine.prefill_prompt(prompts[wanted]), expected[wanted], atol=1e-5):
                    failures.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (pool.num_busy, len(pool.engines()) <= 3) == (0, True)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_engines": 0}, "max_engines is 0, accepted: a whole number of at least 1"),
        ({"max_engines": True}, "max_engines is True"),
        ({"max_bytes": -1}, "max_bytes is -1"),
        ({"max_bytes": 1.5}, "max_bytes is 1.5"),
    ],
)
def test_senseless_limits_are_refused(limits, expected):
    with pytest.raises(ConfigError, match=expected):
        CacheLimits(**limits)


def test_limits_reach_the_pool(bundle):
    with pytest.raises(ConfigError, match=r"cache_limits is a int, accepted: a phirt\.CacheLimits"):
        phirt.load(bundle, cache_limits=4)
    model = phirt.load(bundle, threads=1, cache_limits=CacheLimits(max_engines=2))
    chats = [model.chat() for _ in range(4)]
    for chat in chats:
        chat.send("hi", max_new_tokens=2).text()
    assert len(model.generator.pool.engines()) == 2
    assert chats[0].send("and", max_new_tokens=2).result.usage.cached_tokens == 0
