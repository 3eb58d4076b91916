"""Conversations across the original context: what is answered equals a run that began on that side.

The numbers of a decoder in one rotary regime are compared with a numpy model in `test_engine`; here whole
conversations cross the border, and answers are compared id by id with fresh engines over the same tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
from conversing import engine_of
from tiny_bundle import Tiny, write_bundle

import phirt
from phirt.bundle.files import load_manifest
from phirt.errors import RequestCancelledError
from phirt.generate.engine import Engine
from phirt.generate.sampling import GenerationConfig, TokenSampler
from phirt.generate.sequence import Prompt
from phirt.runtime.device import Device
from phirt.runtime.session import Session, SessionConfig

ORIGINAL = 200  # two chunks of a prefill are run again at the border


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> phirt.Model:
    tiny = Tiny(context=512, original_context=ORIGINAL, long=32.0)
    return phirt.load(write_bundle(tmp_path_factory.mktemp("long"), tiny), threads=1)


def answer(model: phirt.Model, prompt: Prompt, count: int) -> list[int]:
    """What a fresh engine adds to the prompt, greedily."""
    choose = TokenSampler(GenerationConfig(), 512, prompt.ids.tolist(), (1, 2))
    return list(
        model.generator.new_engine().generate(
            prompt, choose, max_new_tokens=count, eos=model.manifest.tokens.eos
        )
    )


def after(prompt: Prompt, ids: list[int]) -> Prompt:
    return Prompt(np.array([*prompt.ids, *ids]), prompt.spans, prompt.adapter)


def text_for(model: phirt.Model, total: int, images=(), seed: int = 0) -> str:
    """A first message whose prompt has exactly `total` tokens: characters that are never merged here."""
    count = total - model.count_tokens("", images=images).total
    text = "".join(np.random.default_rng(seed).choice(list("0123456789#$%&*+=@"), count))
    assert model.count_tokens(text, images=images).total == total
    return text


def prompt_of(chat: phirt.Chat, messages=None) -> Prompt:
    messages = chat.messages[:1] if messages is None else messages
    return chat.generator.encode_prompt(messages, chat.system, chat.tools)


def crossing_answer(chat, text: str, images=()) -> tuple[phirt.Result, list[phirt.Progress]]:
    seen: list[phirt.Progress] = []
    config = GenerationConfig(max_new_tokens=24)
    reply = chat.send(text, images=images, config=config, on_progress=seen.append)
    return reply.result, seen


@pytest.mark.parametrize("start", [ORIGINAL - 12, ORIGINAL - 1, ORIGINAL])
@pytest.mark.parametrize("with_image", [False, True])
def test_an_answer_across_the_border_equals_fresh_runs_on_both_sides(model, photo, start, with_image):
    images = (photo,) if with_image else ()
    chat = model.chat()
    result, _ = crossing_answer(chat, text_for(model, start, images), images)
    ids = list(result.token_ids)
    assert len(ids) == 24
    assert engine_of(chat).long_regime
    prompt = prompt_of(chat)
    assert len(prompt.ids) == start
    assert len(prompt.spans) == len(images)
    short = ORIGINAL - start + 1  # ids that are chosen while the total is within the original context
    assert answer(model, prompt, short) == ids[:short]
    for kept in (short, short + 1, 20):  # a fresh run that begins long, over the same tokens
        assert answer(model, after(prompt, ids[:kept]), 24 - kept) == ids[kept:]


def test_short_factors_would_have_answered_otherwise(model, tmp_path):
    """The border matters to this model: without it the answers go on differently."""
    other = phirt.load(write_bundle(tmp_path, Tiny(context=512, original_context=512)), threads=1)
    for seed in (0, 4, 5, 9):  # texts that the model answers with something else than one id over and over
        text = text_for(model, ORIGINAL - 4, seed=seed)
        crossed, _ = crossing_answer(model.chat(), text)
        straight, _ = crossing_answer(other.chat(), text)
        assert crossed.token_ids[:5] == straight.token_ids[:5]
        assert crossed.token_ids != straight.token_ids


def test_progress_tells_what_is_run_again_and_why(model):
    chat = model.chat()
    _, seen = crossing_answer(chat, text_for(model, ORIGINAL - 4))
    first = [step for step in seen if step.reason == "prompt"]
    again = [step for step in seen if step.reason == "long_context"]
    assert seen == first + again
    assert [(step.done, step.total) for step in first] == [(0, 196), (128, 196), (196, 196)]
    assert [(step.done, step.total) for step in again] == [(0, 201), (128, 201), (201, 201)]
    seen.clear()
    reply = chat.send("on", config=GenerationConfig(max_new_tokens=2), on_progress=seen.append)
    new = reply.result.usage.prompt_tokens - reply.result.usage.cached_tokens
    assert {(step.reason, step.total) for step in seen} == {("prompt", new)}
    chat.rewind(2)
    seen.clear()
    chat.send("short", config=GenerationConfig(max_new_tokens=2), on_progress=seen.append).text()
    assert {step.reason for step in seen} == {"short_context"}


def test_a_question_that_crosses_is_read_under_the_long_factors_from_its_first_chunk(model):
    chat = model.chat()
    chat.send("short", config=GenerationConfig(max_new_tokens=4)).text()
    assert not engine_of(chat).long_regime
    result, seen = crossing_answer(chat, text_for(model, ORIGINAL + 60))
    assert seen[0].reason == "long_context"
    assert result.usage.cached_tokens == 0
    assert answer(model, prompt_of(chat, chat.messages[:3]), 24) == list(result.token_ids)


def test_rewinding_below_the_border_answers_like_a_new_conversation(model, photo):
    chat = model.chat()
    chat.send("what is this?", images=[photo], config=GenerationConfig(max_new_tokens=6)).text()
    crossing_answer(chat, text_for(model, ORIGINAL + 30))
    assert engine_of(chat).long_regime
    chat.rewind()
    result = chat.send("and now?", config=GenerationConfig(max_new_tokens=12)).result
    assert not engine_of(chat).long_regime
    assert answer(model, prompt_of(chat, chat.messages[:3]), 12) == list(result.token_ids)


@pytest.mark.parametrize("way", ["fork", "save and load"])
@pytest.mark.parametrize("before", [True, False])
def test_forks_and_saved_conversations_cross_as_the_original_does(model, photo, tmp_path, way, before):
    chat = model.chat()
    chat.send("what is this?", images=[photo], config=GenerationConfig(max_new_tokens=6)).text()
    if not before:
        crossing_answer(chat, text_for(model, ORIGINAL + 5))
    if way == "fork":
        other = chat.fork()
    else:
        chat.save(tmp_path / "talk")
        other = model.load_chat(tmp_path / "talk")
    if way == "save and load":
        assert engine_of(other).long_regime is (not before)
    text = text_for(model, ORIGINAL - 30)
    result, _ = crossing_answer(other, text)
    expected, _ = crossing_answer(chat, text)
    assert engine_of(other).long_regime
    assert result.token_ids == expected.token_ids
    counted = ["prompt_tokens", "new_tokens"]  # not what was drafted: that follows the clock
    if way == "save and load":  # a fork leaves its parent what it has computed
        counted.append("cached_tokens")
    assert [getattr(result.usage, n) for n in counted] == [getattr(expected.usage, n) for n in counted]
    assert answer(model, prompt_of(other, other.messages[:-1]), 24) == list(result.token_ids)
    other.rewind(1 if before else 2)
    again = other.send("y", config=GenerationConfig(max_new_tokens=8)).result
    assert not engine_of(other).long_regime
    assert answer(model, prompt_of(other, other.messages[:-1]), 8) == list(again.token_ids)


def test_cancelling_while_it_is_run_again_leaves_a_conversation_that_goes_on(model):
    chat = model.chat()
    config = GenerationConfig(max_new_tokens=24)

    def stop_in_the_middle(step: phirt.Progress) -> None:
        if step.reason == "long_context" and step.done:
            reply.cancel()

    reply = chat.send(text_for(model, ORIGINAL - 4), config=config, on_progress=stop_in_the_middle)
    result = reply.result
    assert (result.finish_reason, len(result.token_ids)) == ("cancelled", 5)
    assert 0 < engine_of(chat).length < ORIGINAL
    following = chat.send("go on", config=config).result
    assert answer(model, prompt_of(chat, chat.messages[:3]), 24) == list(following.token_ids)


def test_the_published_border_of_4096(tmp_path):
    tiny = Tiny(layers=1, heads=2, kv_heads=1, context=8192, original_context=4096, long=32.0)
    manifest = load_manifest(write_bundle(tmp_path, tiny, vision=False, speech=False))
    session = Session(manifest, "decoder", SessionConfig(Device.cpu(1)))
    ids = np.random.default_rng(0).integers(12, 512, 4090)

    def run(prompt: Prompt, count: int) -> list[int]:
        choose = TokenSampler(GenerationConfig(), 512, prompt.ids.tolist(), (1, 2))
        engine = Engine(session, manifest)
        return list(engine.generate(prompt, choose, max_new_tokens=count, eos=()))

    produced = run(Prompt(ids), 20)
    assert len(produced) == 20
    # The id after 4096 positions is the last one that the short factors choose.
    assert run(Prompt(np.array([*ids, *produced[:6]])), 1) == produced[6:7]
    for kept in (7, 12):
        assert run(Prompt(np.array([*ids, *produced[:kept]])), 20 - kept) == produced[kept:]


def test_an_error_of_the_listener_leaves_the_engine_usable(model):
    def fail(step: phirt.Progress) -> None:
        if step.done:
            raise RequestCancelledError("stop")

    ids = np.random.default_rng(1).integers(12, 512, 150)
    engine = model.generator.new_engine()
    with pytest.raises(RequestCancelledError):
        engine.prefill_prompt(Prompt(ids), on_progress=fail)
    assert engine.reusable(Prompt(ids)) == 128
    np.testing.assert_array_equal(
        engine.prefill_prompt(Prompt(ids)), model.generator.new_engine().prefill_prompt(Prompt(ids))
    )
