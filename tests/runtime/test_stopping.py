"""How answers end: stop strings, a full context, cancelling, Ctrl-C, the next question; and their speed."""

from __future__ import annotations

import threading
import time

import pytest
from conversing import SHORT, scripted

import phirt
from phirt import GenerationConfig
from phirt.errors import ChatBusyError, ContextError
from phirt.generate.engine import Engine


def test_stop_strings_end_the_answer_and_its_turn(model, monkeypatch):
    ids = model.generator.tokenizer.encode_content("one two STOP three")
    monkeypatch.setattr(Engine, "generate", lambda self, *args, **kwargs: scripted(ids, "length"))
    chat = model.chat()
    reply = chat.send("count", config=GenerationConfig(stop=(" STOP",)))
    assert reply.text() == "one two"
    assert reply.result.finish_reason == "stop"
    assert (chat.messages[-1].content, chat.messages[-1].token_ids) == ("one two", None)


def test_text_held_back_for_a_stop_string_comes_at_the_end(model, monkeypatch):
    ids = model.generator.tokenizer.encode_content("one ST")
    monkeypatch.setattr(Engine, "generate", lambda self, *args, **kwargs: scripted(ids, "stop"))
    reply = model.chat().send("count", config=GenerationConfig(stop=("STOP",)))
    assert "".join(reply) == "one ST"


def test_a_full_context_ends_the_answer(model):
    chat = model.chat()
    used = model.count_tokens("x").total
    text = "x" * (1020 - used + 1)
    count = model.count_tokens(text).total
    result = chat.send(text).result
    assert (result.finish_reason, result.usage.new_tokens) == ("context", 1024 - count + 1)
    with pytest.raises(ContextError):
        chat.send("more")


def test_cancelling_from_another_thread_stops_within_one_step(chat, monkeypatch):
    run = Engine._run_tokens
    steps = []

    def slow(self, ids):
        steps.append(ids)
        time.sleep(0.02)
        run(self, ids)

    monkeypatch.setattr(Engine, "_run_tokens", slow)
    reply = chat.send("talk", config=GenerationConfig(max_new_tokens=400))
    timer = threading.Timer(0.1, lambda: (steps.append("cancel"), reply.cancel()))
    timer.start()
    text = reply.text()
    timer.join()
    assert reply.result.finish_reason == "cancelled"
    assert len(steps) - steps.index("cancel") <= 2
    assert (chat.messages[-1].role, chat.messages[-1].content) == ("assistant", text)
    assert chat.send("go on", config=SHORT).result.finish_reason == "length"


def test_cancelling_before_the_first_piece(chat):
    reply = chat.send("talk")
    reply.cancel()
    assert (reply.text(), reply.result.finish_reason, reply.result.token_ids) == ("", "cancelled", ())
    assert [m.role for m in chat.messages] == ["user", "assistant"]


def test_an_interrupt_keeps_the_partial_answer(chat, monkeypatch):
    run = Engine._run_tokens

    def interrupted(self, ids):
        if self.length > 12:
            raise KeyboardInterrupt
        run(self, ids)

    monkeypatch.setattr(Engine, "_run_tokens", interrupted)
    reply = chat.send("talk", config=GenerationConfig(max_new_tokens=400))
    with pytest.raises(KeyboardInterrupt):
        list(reply)
    assert reply.result.finish_reason == "cancelled"
    assert chat.messages[-1].token_ids == reply.result.token_ids
    assert len(reply.result.token_ids) > 0


def test_a_half_read_answer_is_never_cut_by_the_next_question(chat):
    reply = chat.send("talk", config=GenerationConfig(max_new_tokens=40))
    first = next(reply)
    with pytest.raises(
        ChatBusyError, match=r"in the middle of an answer; read it to its end, cancel it, pass"
    ):
        chat.send("next", config=SHORT)
    assert [m.role for m in chat.messages] == ["user"]
    text = first + "".join(reply)
    assert (reply.result.finish_reason, reply.result.text) == ("length", text)
    chat.send("next", config=SHORT).text()
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 2


def test_an_unread_answer_is_run_by_the_next_question(chat):
    reply = chat.send("talk", config=SHORT)
    chat.send("next", config=SHORT).text()
    assert reply.result.finish_reason == "length"
    assert len(chat.messages[1].token_ids) == 8


def test_the_speed_counts_no_step_that_gave_no_token(model, monkeypatch):
    """Three tokens, 1 s each, and 1 s to find the end: two decode steps in 2 s."""
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    result = model.chat().send("hello", max_new_tokens=3).result
    assert len(result.token_ids) == 3
    assert result.timings == phirt.Timings(media=1, prefill=1, first_token=2, decode=2, total=5)
    assert result.tokens_per_second == 1.0
