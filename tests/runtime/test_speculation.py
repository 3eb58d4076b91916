"""Answers with speculation are those without, whatever was drafted and wherever they end."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tiny_reference
from conversing import engine_of
from tiny_bundle import Tiny, write_bundle

from phirt import GenerationConfig
from phirt.bundle.files import load_manifest
from phirt.errors import ConfigError
from phirt.generate.engine import Engine
from phirt.generate.sampling import TokenSampler
from phirt.generate.sequence import Adapter, MediaSpan, Prompt
from phirt.generate.speculation import LONGEST_RUN, RUN_SIZES, DraftPolicy, RunCosts, Speculation, usual_cost
from phirt.runtime.device import Device
from phirt.runtime.session import Session, SessionConfig

CONFIGS = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "sampled": {"temperature": 0.7, "seed": 5},
    "top-k": {"temperature": 1.2, "top_k": 5, "seed": 6},
    "top-p": {"temperature": 1.5, "top_p": 0.6, "seed": 7},
    "everything": {
        "temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1, "seed": 8,
    },
}  # fmt: skip


def as_long_as_possible(self, match_length, longest):
    """In place of `DraftPolicy.run_size`."""
    return max(size for size in RUN_SIZES if size <= max(1, longest))


@pytest.fixture
def eager(monkeypatch):
    """Drafts are as long as possible, whatever they cost."""
    monkeypatch.setattr(DraftPolicy, "run_size", as_long_as_possible)


class Knowing(Speculation):
    """Drafts what a plain run has chosen, with some ids replaced."""

    def __init__(self, answer, wrong: float = 0.2, seed: int = 0):
        super().__init__(DraftPolicy(usual_cost), ())
        self.answer, self.wrong = list(answer), wrong
        self.rng = np.random.default_rng(seed)
        self.taken = 0

    def take(self, token):
        self.taken += 1
        return super().take(token)

    def draft(self, room):
        count = min(room, int(self.rng.integers(0, LONGEST_RUN)))
        ids = self.answer[self.taken : self.taken + count]
        self._run = [int(self.rng.integers(12, 512)) if self.rng.random() < self.wrong else i for i in ids]
        self.drafted += len(self._run)
        return self._run


def prompts(count: int, length: int = 30) -> list[Prompt]:
    """Some ids again and again, on each route; with media on two of three."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        few = rng.choice(np.arange(12, 512), 8, replace=False)
        ids = rng.choice(few, length)
        route = ("none", "vision", "speech")[seed % 3]
        spans = ()
        if route != "none":
            rows = rng.standard_normal((5, 32)).astype(np.float32)
            ids[10:15] = 1 if route == "vision" else 2
            spans = (MediaSpan(10, rows, f"media {seed}"),)
        made.append(Prompt(ids, spans, Adapter(route)))
    return made


def run(engine, prompt, settings, speculation=None, **options):
    """(ids, why the answer ended, what is cached then)."""
    choose = TokenSampler(GenerationConfig(**settings), 512, prompt.ids.tolist(), (1, 2))
    steps = engine.generate(
        prompt, choose, speculation=speculation, **{"max_new_tokens": 40, "eos": (), **options}
    )
    produced = []
    while True:
        try:
            produced.append(next(steps))
        except StopIteration as end:
            return produced, end.value, engine.cached.ids.tolist()


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_answers_are_the_same_whatever_is_drafted(new_engine, eager, settings):
    accepted = drafted = 0
    for prompt in prompts(12):
        plain = run(new_engine(), prompt, settings)
        engine, known = new_engine(), Knowing(plain[0])
        assert run(engine, prompt, settings, engine.speculation(())) == plain
        assert run(new_engine(), prompt, settings, known) == plain
        accepted += known.accepted
        drafted += known.drafted
    assert 0.2 * drafted < accepted < 0.9 * drafted


def test_the_numpy_decoder_agrees(new_engine, bundle):
    numbers = {"none": 0, "vision": 1, "speech": 2}
    for prompt in prompts(3):
        features = prompt.spans[0].features if prompt.spans else None
        expected = tiny_reference.greedy(bundle, prompt.ids, 32, features, numbers[prompt.adapter.name])
        known = Knowing(expected)
        assert run(new_engine(), prompt, {}, known, max_new_tokens=32)[0] == expected
        assert known.accepted > 5


def test_a_loop_is_drafted_and_spares_runs(new_engine):
    """Once an answer loops, the lookup drafts it; every run and every accepted id gives one id."""
    sizes = []

    class Noting(RunCosts):
        def record(self, positions, seconds):
            sizes.append(positions)

    prompt = prompts(1)[0]
    engine = new_engine(run_costs=Noting(iter(range(1000)).__next__))
    speculation = engine.speculation(())
    loop = iter([20, 21, 22, 23] * 25)
    steps = engine.generate(
        prompt, lambda logits: next(loop), max_new_tokens=100, eos=(), speculation=speculation
    )
    assert list(steps) == [20, 21, 22, 23] * 25
    assert len(sizes) < 30
    assert speculation.drafted == sum(sizes) - len(sizes)
    assert speculation.accepted == 99 - len(sizes)


@pytest.mark.parametrize("wanted", range(1, 20))
def test_the_wanted_length_may_be_reached_in_a_draft(new_engine, wanted):
    prompt = prompts(1)[0]
    plain = run(new_engine(), prompt, {}, max_new_tokens=wanted)
    known = Knowing(run(new_engine(), prompt, {})[0], wrong=0)
    engine = new_engine()
    assert run(engine, prompt, {}, known, max_new_tokens=wanted) == plain
    assert engine.length == len(prompt.ids) + wanted - 1


@pytest.mark.parametrize("at", range(1, 20, 3))
def test_the_end_token_may_come_in_a_draft(new_engine, at):
    prompt = prompts(2)[1]
    settings = {"temperature": 1.5, "seed": 11}
    whole = run(new_engine(), prompt, settings)[0]
    plain = run(new_engine(), prompt, settings, eos=(whole[at],))
    assert plain[1] == "stop"
    assert run(new_engine(), prompt, settings, Knowing(whole, wrong=0), eos=(whole[at],)) == plain


@pytest.mark.parametrize("length", [1000, 1008, 1009, 1015, 1023])
def test_drafts_end_at_the_context(new_engine, length):
    prompt = prompts(1, length)[0]
    plain = run(new_engine(), prompt, {})
    assert plain[1] == "context"
    known = Knowing(plain[0] + [50] * 40, wrong=0)
    assert run(new_engine(), prompt, {}, known) == plain


@pytest.mark.parametrize("length", [236, 250, 255, 256])
def test_drafts_do_not_make_the_cache_grow(new_engine, length):
    prompt = prompts(1, length)[0]
    plain = run(new_engine(), prompt, {})
    engine = new_engine()
    choose = TokenSampler(GenerationConfig(), 512, prompt.ids.tolist(), (1, 2))
    steps = engine.generate(prompt, choose, max_new_tokens=40, eos=(), speculation=Knowing(plain[0], wrong=0))
    for count, token in enumerate(steps):
        assert token == plain[0][count]
        assert engine.cache.capacity == (256 if engine.length <= 256 else 512)
    assert engine.cached.ids.tolist() == plain[2]


@pytest.mark.parametrize("way", ["close", "cancel"])
@pytest.mark.parametrize("read", [1, 2, 5, 9, 16])
def test_an_answer_that_is_left_early_caches_what_was_read(new_engine, way, read):
    """As without speculation: all ids that were read but the last, and the media as they were."""
    prompt = prompts(2)[1]
    whole = run(new_engine(), prompt, {})[0]
    cancel, engine = threading.Event(), new_engine()
    choose = TokenSampler(GenerationConfig(), 512, prompt.ids.tolist(), (1, 2))
    steps = engine.generate(
        prompt, choose, max_new_tokens=40, eos=(), cancel=cancel, speculation=Knowing(whole, wrong=0)
    )
    produced = [next(steps) for _ in range(read)]
    if way == "close":
        steps.close()
    else:
        cancel.set()
        assert list(steps) == []
    known = engine.cached
    assert known.ids.tolist() == [*prompt.ids, *produced[:-1]]
    assert [span.key for span in known.spans] == ["media 1"]
    following = Prompt(np.array([*prompt.ids, *produced, 77, 78]), prompt.spans, prompt.adapter)
    assert engine.reusable(following) == len(prompt.ids) + read - 1
    np.testing.assert_allclose(
        engine.prefill_prompt(following), new_engine().prefill_prompt(following), atol=1e-5
    )


class TestLongRegime:
    """A draft never crosses into the other rotary regime, and drafting goes on behind the border."""

    TINY = Tiny(context=256, original_context=48, long=4.0)

    @pytest.mark.parametrize("length", [20, 33, 40, 46, 47, 48, 49])
    def test_answers_across_the_border(self, tmp_path, length):
        folder = write_bundle(tmp_path, self.TINY)
        manifest = load_manifest(folder)
        session = Session(manifest, "decoder", SessionConfig(Device.cpu(1)))
        prompt = prompts(1, length)[0]
        expected = tiny_reference.greedy(folder, prompt.ids, 40, tiny=self.TINY)
        plain = run(Engine(session, manifest), prompt, {})
        assert plain[0] == expected
        for seed in range(4):
            known = Knowing(expected, wrong=0.1, seed=seed)
            assert run(Engine(session, manifest), prompt, {}, known) == plain
            assert known.accepted > 10


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.3, "top_k": 2, "seed": 3}, {"repetition_penalty": 1.2}]
)
def test_conversations_with_media_are_the_same(model, photo, clip, eager, settings):
    """Two turns, the second about an earlier picture and recording."""
    results = []
    for speculation in (True, False):
        config = GenerationConfig(max_new_tokens=48, speculation=speculation, **settings)
        model.generator.pool.clear()
        chat = model.chat()
        turns = [chat.send("the fox, the fox, the fox", images=[photo], audio=[clip], config=config).result]
        turns.append(chat.send("the fox again", config=config).result)
        results.append(turns)
    with_, without = results
    assert [(r.token_ids, r.text, r.finish_reason) for r in with_] == [
        (r.token_ids, r.text, r.finish_reason) for r in without
    ]
    assert [r.usage.cached_tokens for r in with_] == [r.usage.cached_tokens for r in without]
    assert all(r.usage.drafted_tokens == r.usage.accepted_tokens == 0 for r in without)
    assert sum(r.usage.drafted_tokens for r in with_) > 0
    assert all(r.usage.drafted_tokens >= r.usage.accepted_tokens for r in with_)


def test_a_stop_string_may_come_in_a_draft(model, eager, monkeypatch):
    """The answer's text, its ids and what is cached are those of an answer without drafts."""
    spoken = model.generator.tokenizer.encode_content(
        "one two three four, one two three four, one two STOP three four"
    )
    ends = []
    for speculation in (True, False):
        answer = iter(spoken)
        monkeypatch.setattr(TokenSampler, "__call__", lambda self, logits, answer=answer: next(answer))
        chat = model.chat()
        config = GenerationConfig(stop=("three four, one two S",), speculation=speculation)
        result = chat.send("one two STOP three", config=config).result
        ends.append(
            (result.text, result.token_ids, result.finish_reason, engine_of(chat).cached.ids.tolist())
        )
        assert (result.usage.accepted_tokens > 0) is speculation
    assert ends[0] == ends[1]
    assert ends[0][::2] == ("one two three four, one two ", "stop")


def test_what_speculation_did_is_counted(model, monkeypatch):
    """A loop of four ids: the counts of the result are the runs' own, and ids from one run share its time."""
    chat, sizes, now = model.chat(), [], [0.0]
    plain_run = Engine._run_tokens

    def counted(self, ids):
        sizes.append(len(ids))
        now[0] += 1.0
        plain_run(self, ids)

    monkeypatch.setattr(Engine, "_run_tokens", counted)
    loop = iter([20, 21, 22, 23] * 10)
    monkeypatch.setattr(TokenSampler, "__call__", lambda self, logits: next(loop))
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    result = chat.send("go on", config=GenerationConfig(max_new_tokens=40)).result
    assert result.token_ids == (20, 21, 22, 23) * 10
    assert result.usage.drafted_tokens == sum(sizes) - len(sizes) > 0
    assert result.usage.accepted_tokens == 39 - len(sizes)
    assert result.timings.decode == len(sizes) < 39
    assert result.tokens_per_second == pytest.approx(39 / len(sizes))


def test_the_switch_is_a_bool():
    with pytest.raises(ConfigError, match="speculation is 1, accepted: True or False"):
        GenerationConfig(speculation=1)


def test_seeded_answers_are_run_alike_whatever_the_clock_says(model, monkeypatch):
    """With a seed the sizes of runs, which decide how sums are rounded, follow from the answer alone."""
    config = GenerationConfig(max_new_tokens=60, temperature=0.3, top_k=2, seed=5)
    run_tokens, seen = Engine._run_tokens, []
    for slower in (1.0, 1e6):
        sizes, now = [], [0.0]

        def timed(self, ids, sizes=sizes, now=now, slower=slower):
            self._costs.clock = lambda: now[0]
            sizes.append(len(ids))
            run_tokens(self, ids)
            now[0] += 1.0
            self._costs.record(len(ids), 1.0 if len(ids) == 1 else slower)

        monkeypatch.setattr(Engine, "_run_tokens", timed)
        model.generator.pool.clear()
        result = model.chat().send("the fox, the fox, the fox", config=config).result
        seen.append((result.token_ids, result.usage, sizes))
    assert seen[0] == seen[1]
    assert max(seen[0][2]) > 1
