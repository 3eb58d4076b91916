"""The engine against a numpy forward pass without a cache, and against itself in other cuts."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tiny_reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import Tiny, write_bundle

from phirt.bundle.files import load_manifest
from phirt.errors import ContextError, RequestCancelledError
from phirt.generate.engine import Engine
from phirt.generate.sampling import GenerationConfig, TokenSampler
from phirt.generate.sequence import Adapter, MediaSpan, Prompt, common_prefix
from phirt.runtime.device import Device
from phirt.runtime.session import Session, SessionConfig

CLOSE = {"atol": 2e-4, "rtol": 1e-4}


def text_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(12, 512, count)


def media_prompt(seed: int = 0, route: str = "vision", key: str = "a", rows: int = 7) -> Prompt:
    """Five ids, `rows` image placeholders, four ids."""
    features = np.random.default_rng(seed + 99).standard_normal((rows, 32)).astype(np.float32)
    ids = np.concatenate([text_ids(5, seed), np.full(rows, 1), text_ids(4, seed + 1)])
    return Prompt(ids, (MediaSpan(5, features, key),), Adapter(route))


def greedy_choice(prompt: Prompt) -> TokenSampler:
    return TokenSampler(GenerationConfig(), 512, prompt.ids.tolist(), (1, 2))


def test_prefill_equals_the_numpy_decoder(new_engine, bundle):
    ids = text_ids(40)
    np.testing.assert_allclose(new_engine().prefill(ids), tiny_reference.forward(bundle, ids)[-1], **CLOSE)


@pytest.mark.parametrize(("route", "number"), [("none", 0), ("vision", 1), ("speech", 2)])
def test_every_decode_step_equals_the_numpy_decoder_on_every_route(new_engine, bundle, route, number):
    prompt = media_prompt(route=route)
    engine = new_engine(prefill_chunk=6)
    produced = list(engine.generate(prompt, greedy_choice(prompt), max_new_tokens=32, eos=()))
    assert produced == tiny_reference.greedy(bundle, prompt.ids, 32, prompt.spans[0].features, number)


def test_routes_differ_at_every_decode_step(new_engine):
    ids = text_ids(20)
    engines = {route: new_engine() for route in ("none", "vision", "speech")}
    logits = {route: engine.prefill(ids, adapter=Adapter(route)).copy() for route, engine in engines.items()}
    for token in text_ids(16, seed=3):
        for one, other in (("none", "vision"), ("none", "speech"), ("vision", "speech")):
            assert np.abs(logits[one] - logits[other]).max() > 1e-2
        logits = {route: engine.decode_step(int(token)).copy() for route, engine in engines.items()}


@given(total=st.integers(1, 90), chunk=st.integers(1, 40))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunked_prefill_equals_one_prefill(new_engine, total, chunk):
    ids = text_ids(total, seed=total)
    whole = new_engine(prefill_chunk=1000).prefill(ids)
    np.testing.assert_allclose(new_engine(prefill_chunk=chunk).prefill(ids), whole, atol=1e-5)


@given(rows=st.integers(1, 30), chunk=st.integers(1, 12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_media_rows_land_on_their_placeholders_wherever_chunks_end(new_engine, rows, chunk):
    prompt = media_prompt(seed=rows, rows=rows)
    whole = new_engine(prefill_chunk=1000).prefill_prompt(prompt)
    np.testing.assert_allclose(new_engine(prefill_chunk=chunk).prefill_prompt(prompt), whole, atol=1e-5)


def test_the_cache_grows_while_decoding_without_changing_anything(new_engine):
    ids = text_ids(600)
    grown = new_engine()
    logits = grown.prefill(ids[:250])
    assert grown.cache.capacity == 256
    for token in ids[250:]:
        logits = grown.decode_step(int(token))
    assert grown.cache.capacity == 1024
    np.testing.assert_allclose(logits, new_engine().prefill(ids), atol=1e-4)


def test_low_level_prefill_appends_and_places_media(new_engine):
    prompt = media_prompt()
    engine = new_engine()
    engine.prefill(prompt.ids[:3], adapter=Adapter("vision"))
    engine.prefill(prompt.ids[3:8], prompt.spans[0].features[:3], adapter=Adapter("vision"))
    logits = engine.prefill(prompt.ids[8:], prompt.spans[0].features[3:], adapter=Adapter("vision"))
    np.testing.assert_allclose(logits, new_engine().prefill_prompt(prompt), atol=1e-5)


def test_a_route_change_runs_everything_again(new_engine):
    ids = text_ids(30)
    engine = new_engine()
    engine.prefill(ids[:20], adapter=Adapter("none"))
    logits = engine.prefill(ids[20:], adapter=Adapter("speech"))
    assert engine.adapter == Adapter("speech")
    np.testing.assert_allclose(logits, new_engine().prefill(ids, adapter=Adapter("speech")), atol=1e-5)


@given(
    old=st.lists(st.integers(12, 14), max_size=12), new=st.lists(st.integers(12, 14), min_size=1, max_size=12)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_reused_prefix_gives_what_a_fresh_run_gives(new_engine, old, new):
    engine = new_engine()
    if old:
        engine.prefill(old)
    prompt = Prompt(np.array(new))
    shared = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
    )
    assert engine.reusable(prompt) == min(shared, len(new) - 1)
    logits = engine.prefill_prompt(prompt).copy()
    assert engine.cached.ids.tolist() == new
    np.testing.assert_allclose(logits, new_engine().prefill(new), atol=1e-5)


def test_reuse_stops_at_a_picture_that_differs(new_engine):
    engine = new_engine()
    engine.prefill_prompt(media_prompt(key="a"))
    assert engine.reusable(media_prompt(key="a")) == 15
    assert engine.reusable(media_prompt(key="b")) == 5
    other = media_prompt(key="b")
    changed = Prompt(other.ids, (MediaSpan(5, other.spans[0].features * 2, "b"),), Adapter("vision"))
    np.testing.assert_allclose(
        engine.prefill_prompt(changed), new_engine().prefill_prompt(changed), atol=1e-5
    )


def test_only_new_positions_are_run(new_engine, monkeypatch):
    engine = new_engine(prefill_chunk=4)
    ids = text_ids(40)
    engine.prefill(ids)
    runs = []
    monkeypatch.setattr(Engine, "_run_chunk", lambda self, part, rows: runs.append(len(part)))
    engine.prefill_prompt(Prompt(np.concatenate([ids, text_ids(6, 5)])))
    assert runs == [4, 2]


@given(total=st.integers(2, 90), chunk=st.integers(1, 40), data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scored_positions_have_the_logits_of_decode_steps(new_engine, total, chunk, data):
    first = data.draw(st.integers(0, total - 1))
    ids = text_ids(total, seed=total)
    engine, stepping = new_engine(prefill_chunk=chunk), new_engine()
    if data.draw(st.booleans()):  # something is cached: the same text to a point, then another one
        engine.prefill(np.concatenate([ids[: total // 2], text_ids(9, 7)]))
    expected = [stepping.prefill(ids[: first + 1]).copy()]
    expected += [stepping.decode_step(int(token)).copy() for token in ids[first + 1 :]]
    scored = [logits.copy() for logits in engine.score_prompt(Prompt(ids), first)]
    np.testing.assert_allclose(scored, expected, atol=2e-5)
    assert engine.length == total and engine.aligned_length <= engine.length


def test_scoring_takes_media_and_adapters_and_what_is_cached_is_not_run(new_engine, bundle, monkeypatch):
    prompt = media_prompt()
    engine = new_engine(prefill_chunk=6)
    expected = tiny_reference.forward(bundle, prompt.ids, prompt.spans[0].features, 1)
    scored = [logits.copy() for logits in engine.score_prompt(prompt, 3)]
    np.testing.assert_allclose(scored, expected[3:], **CLOSE)
    run, sizes = Engine._run_chunk, []
    monkeypatch.setattr(
        Engine, "_run_chunk", lambda self, ids, *rest: (sizes.append(len(ids)), run(self, ids, *rest))[1]
    )
    again = [logits.copy() for logits in engine.score_prompt(prompt, len(prompt.ids) - 2)]
    np.testing.assert_allclose(again, expected[-2:], **CLOSE)
    assert sizes == [2]


def test_a_text_longer_than_the_context_is_not_scored(new_engine, bundle):
    context = load_manifest(bundle).geometry.context
    with pytest.raises(ContextError, match=f"context has {context}"):
        next(new_engine().score_prompt(Prompt(text_ids(context + 1)), 0))


def test_common_prefix_by_hand():
    a = MediaSpan(2, np.zeros((3, 4), np.float32), "a")
    b = MediaSpan(2, np.zeros((3, 4), np.float32), "b")
    ids = np.array([9, 9, 1, 1, 1, 8, 7])
    assert common_prefix(Prompt(ids, (a,)), Prompt(ids, (a,))) == 7
    assert common_prefix(Prompt(ids, (a,)), Prompt(ids, (b,))) == 2
    assert common_prefix(Prompt(ids[:4], (a,)), Prompt(ids, (a,))) == 4
    assert common_prefix(Prompt(ids[:0]), Prompt(ids, (a,))) == 0
    assert common_prefix(Prompt(ids, (a,)), Prompt(np.array([9, 9, 1, 1, 1, 8, 6]), (a,))) == 6


def test_truncate_and_fork_are_independent(new_engine):
    ids = text_ids(50)
    engine = new_engine()
    engine.prefill(ids)
    fork = engine.fork()
    fork.truncate(20)
    fork.prefill(text_ids(5, 7))
    np.testing.assert_allclose(engine.decode_step(33), new_engine().prefill([*ids, 33]), atol=1e-5)
    np.testing.assert_allclose(
        fork.decode_step(33), new_engine().prefill([*ids[:20], *text_ids(5, 7), 33]), atol=1e-5
    )


def test_reset_forgets_and_gives_memory_back(new_engine):
    engine = new_engine()
    engine.prefill(text_ids(700))
    grown = engine.cache.nbytes
    engine.reset()
    assert (engine.length, engine.cache.capacity) == (0, 256)
    assert engine.cache.nbytes * 4 == grown
    np.testing.assert_allclose(engine.prefill(text_ids(9)), new_engine().prefill(text_ids(9)), atol=1e-6)


def test_restored_arrays_continue_the_run(new_engine):
    prompt = media_prompt()
    engine = new_engine()
    engine.prefill_prompt(prompt)
    arrays = {name: array.copy() for name, array in engine.cache.export()}
    assert arrays["1.value"].shape == (1, 2, 16, 16)
    other = new_engine()
    other.restore(engine.cached, arrays, long_regime=engine.long_regime)
    np.testing.assert_array_equal(other.decode_step(50), engine.decode_step(50))


def test_too_long_a_prompt_is_refused_and_changes_nothing(new_engine):
    engine = new_engine()
    engine.prefill(text_ids(5))
    with pytest.raises(ContextError, match="1025 positions are needed, the model's context has 1024"):
        engine.prefill_prompt(Prompt(text_ids(1025)))
    assert engine.cached.ids.tolist() == text_ids(5).tolist()


def collect(steps) -> tuple[list[int], str]:
    produced = []
    while True:
        try:
            produced.append(next(steps))
        except StopIteration as end:
            return produced, end.value


def test_generation_ends_at_the_context(new_engine):
    prompt = Prompt(text_ids(1020))
    produced, reason = collect(
        new_engine().generate(prompt, greedy_choice(prompt), max_new_tokens=50, eos=())
    )
    assert (len(produced), reason) == (5, "context")


def test_generation_ends_at_eos_which_is_not_yielded(new_engine):
    prompt = Prompt(text_ids(10))
    produced, _ = collect(new_engine().generate(prompt, greedy_choice(prompt), max_new_tokens=8, eos=()))
    end = produced[5]
    first = produced.index(end)
    stopped, reason = collect(
        new_engine().generate(prompt, greedy_choice(prompt), max_new_tokens=8, eos=(end,))
    )
    assert (stopped, reason) == (produced[:first], "stop")


def test_generation_ends_at_the_wanted_length_without_running_the_last_id(new_engine):
    prompt = Prompt(text_ids(10))
    engine = new_engine()
    produced, reason = collect(engine.generate(prompt, greedy_choice(prompt), max_new_tokens=8, eos=()))
    assert (len(produced), reason, engine.length) == (8, "length", 17)


def test_cancelling_stops_within_one_step(new_engine):
    prompt = Prompt(text_ids(10))
    cancel = threading.Event()
    engine = new_engine()
    steps = engine.generate(prompt, greedy_choice(prompt), max_new_tokens=100, eos=(), cancel=cancel)
    produced = [next(steps) for _ in range(3)]
    cancel.set()
    rest, reason = collect(steps)
    assert (len(produced), rest, reason) == (3, [], "cancelled")
    assert engine.length == 10 + 2


def test_cancelling_stops_a_prefill_between_chunks_and_leaves_it_usable(new_engine, monkeypatch):
    cancel = threading.Event()
    engine = new_engine(prefill_chunk=8)
    run = Engine._run_chunk

    def run_then_cancel(self, ids, rows):
        run(self, ids, rows)
        if self.length == 24:
            cancel.set()

    monkeypatch.setattr(Engine, "_run_chunk", run_then_cancel)
    ids = text_ids(100)
    with pytest.raises(RequestCancelledError):
        engine.prefill_prompt(Prompt(ids), cancel)
    assert engine.length == 24
    monkeypatch.setattr(Engine, "_run_chunk", run)
    assert engine.reusable(Prompt(ids)) == 24
    np.testing.assert_allclose(engine.prefill_prompt(Prompt(ids)), new_engine().prefill(ids), atol=1e-5)


class TestLongRegime:
    """Beyond `original_context` other rotary factors hold for all positions, so cached keys are run again."""

    TINY = Tiny(context=256, original_context=48, long=4.0)

    @pytest.fixture
    def folder(self, tmp_path):
        return write_bundle(tmp_path, self.TINY)

    @pytest.fixture
    def engines(self, folder):
        manifest = load_manifest(folder)
        session = Session(manifest, "decoder", SessionConfig(Device.cpu(1)))
        return lambda **options: Engine(session, manifest, **options)

    def expected(self, folder, ids):
        return tiny_reference.forward(folder, ids, tiny=self.TINY)[-1]

    def test_the_regimes_differ(self, folder):
        ids = text_ids(60)
        short = tiny_reference.forward(folder, ids, tiny=Tiny(context=256, original_context=256, long=4.0))[
            -1
        ]
        assert np.abs(short - self.expected(folder, ids)).max() > 1e-2

    @pytest.mark.parametrize("total", [47, 48, 49, 60, 130])
    @pytest.mark.parametrize("chunk", [7, 16, 500])
    def test_chunked_prefill_on_both_sides(self, engines, folder, total, chunk):
        ids = text_ids(total)
        np.testing.assert_allclose(
            engines(prefill_chunk=chunk).prefill(ids), self.expected(folder, ids), **CLOSE
        )

    def test_decoding_across_the_border(self, engines, folder):
        prompt = Prompt(text_ids(40))
        produced = list(
            engines(prefill_chunk=16).generate(prompt, greedy_choice(prompt), max_new_tokens=20, eos=())
        )
        assert produced == tiny_reference.greedy(folder, prompt.ids, 20, tiny=self.TINY)

    def test_going_back_below_the_border(self, engines, folder):
        engine = engines(prefill_chunk=16)
        ids = text_ids(60)
        engine.prefill(ids)
        assert engine.long_regime
        assert engine.reusable(Prompt(ids[:30])) == 0
        np.testing.assert_allclose(
            engine.prefill_prompt(Prompt(ids[:30])), self.expected(folder, ids[:30]), **CLOSE
        )
        engine.prefill_prompt(Prompt(ids))
        engine.truncate(20)
        np.testing.assert_allclose(engine.decode_step(77), self.expected(folder, [*ids[:20], 77]), **CLOSE)

    def test_media_are_run_again_with_their_features(self, engines, folder):
        prompt = media_prompt(rows=30)
        engine = engines(prefill_chunk=9)
        engine.prefill_prompt(prompt)
        for token in (20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30):
            logits = engine.decode_step(token)
        ids = [*prompt.ids, *range(20, 31)]
        assert len(ids) == 50
        expected = tiny_reference.forward(folder, ids, prompt.spans[0].features, 1, self.TINY)[-1]
        np.testing.assert_allclose(logits, expected, **CLOSE)


def test_a_prefill_after_a_cut_inside_a_picture_runs_the_ids_it_is_given(new_engine):
    """The rest of the picture's rows has no placeholders any more."""
    prompt, engine, more = media_prompt(), new_engine(), text_ids(3, seed=7)
    engine.prefill_prompt(prompt)
    engine.truncate(8)  # after three of seven rows
    after = engine.prefill(more, adapter=Adapter("vision")).copy()
    whole = new_engine().prefill(
        np.concatenate([prompt.ids[:8], more]), prompt.spans[0].features[:3], Adapter("vision")
    )
    np.testing.assert_allclose(after, whole, **CLOSE)
