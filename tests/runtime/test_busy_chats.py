"""One chat and several threads: nothing is cut, lost or mixed up, and what cannot be is said (case 13)."""

from __future__ import annotations

import gc
import threading

import pytest
from conversing import SHORT

import phirt
from phirt import GenerationConfig
from phirt.errors import BundleError, ChatBusyError, RequestCancelledError
from phirt.generate.engine import Engine

LONG = GenerationConfig(max_new_tokens=40)
ROLES = ["user", "assistant"]


def in_threads(count: int, work) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def roles(chat) -> list[str]:
    return [message.role for message in chat.messages]


def test_a_second_question_does_not_cut_the_first_answer(chat):
    expected = chat.generator.stream([phirt.Message("user", "talk")], config=LONG).text()
    reply = chat.send("talk", config=LONG)
    read = next(reply)
    outcomes = []

    def ask(number: int) -> None:
        try:
            outcomes.append(chat.send(f"question {number}", config=SHORT))
        except ChatBusyError as error:
            outcomes.append(str(error))

    in_threads(3, ask)
    assert len(outcomes) == 3
    assert all(
        "read it to its end, cancel it, pass wait=True, or use a chat for each" in str(o) for o in outcomes
    )
    assert read + "".join(reply) == expected == reply.result.text
    assert roles(chat) == ROLES


def test_waiting_runs_the_first_answer_to_its_end_and_loses_no_piece(chat):
    expected = chat.generator.stream([phirt.Message("user", "talk")], config=LONG).text()
    reply = chat.send("talk", config=LONG)
    read = next(reply)
    answered = []
    in_threads(1, lambda _: answered.append(chat.send("next", wait=True, config=SHORT).result))
    assert reply.done
    assert read + "".join(reply) == expected
    assert (reply.result.finish_reason, answered[0].usage.new_tokens) == ("length", 8)
    assert roles(chat) == ROLES * 2


def test_waiting_in_the_thread_that_reads(chat):
    reply = chat.send("talk", config=LONG)
    pieces = [next(reply)]
    chat.send("next", wait=True, config=SHORT).text()
    assert "".join([*pieces, *reply]) == reply.result.text
    assert roles(chat) == ROLES * 2


@pytest.mark.parametrize("wait", [False, True])
def test_many_threads_on_one_chat(chat, wait):
    """Each gets its whole answer or the one error; the history has every answer behind its question."""
    results, refused = {}, []

    def ask(number: int) -> None:
        try:
            results[f"question {number}"] = chat.send(f"question {number}", config=SHORT, wait=wait).result
        except ChatBusyError:
            refused.append(number)

    in_threads(8, ask)
    assert len(results) + len(refused) == 8
    assert results and not (wait and refused)
    assert roles(chat) == ROLES * len(results)
    for question, answer in zip(chat.messages[::2], chat.messages[1::2], strict=True):
        assert answer.content == results[question.content].text
        assert results[question.content].usage.new_tokens == 8


def test_two_threads_read_one_reply(chat):
    reply = chat.send("talk", config=LONG)
    pieces = []
    in_threads(2, lambda _: pieces.extend(reply))
    assert sorted(pieces) == sorted(reply._generation.pieces)
    assert sum(map(len, pieces)) == len(reply.result.text)


def test_results_in_many_threads_are_one(chat):
    reply = chat.send("talk", config=LONG)
    results = []
    in_threads(4, lambda _: results.append(reply.result))
    assert len({id(result) for result in results}) == 1


def test_a_thread_that_is_reading_media_is_not_disturbed(chat, photo, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    prepare = type(chat.generator).prepare_media

    def slow(self, *arguments):
        begun.set()
        assert go_on.wait(30)
        return prepare(self, *arguments)

    monkeypatch.setattr(type(chat.generator), "prepare_media", slow)
    first = threading.Thread(target=lambda: chat.send("see", images=[photo], config=SHORT).text())
    first.start()
    assert begun.wait(30)
    with pytest.raises(ChatBusyError, match="another thread is sending to this chat"):
        chat.send("next")
    with pytest.raises(ChatBusyError):
        chat.fork()
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(RequestCancelledError):
        chat.send("next", wait=True, cancel=cancel)
    go_on.set()
    first.join(30)
    assert roles(chat) == ROLES


def test_a_reply_that_was_dropped_half_read_counts_as_cancelled(chat):
    reply = chat.send("talk", config=GenerationConfig(max_new_tokens=400))
    first = next(reply)
    del reply
    gc.collect()
    chat.send("next", config=SHORT).text()
    assert roles(chat) == ROLES * 2
    assert chat.messages[1].content.startswith(first)
    assert len(chat.messages[1].token_ids) < 20


def test_a_reply_that_was_dropped_unread_is_run(chat):
    chat.send("talk", config=SHORT)
    chat.send("next", config=SHORT).text()
    assert (roles(chat), len(chat.messages[1].token_ids)) == (ROLES * 2, 8)


def test_a_chat_that_is_dropped_gives_its_engine_back(model):
    reply = model.chat().send("talk", config=LONG)
    next(reply)
    assert model.generator.pool.num_busy == 1
    del reply
    assert model.generator.pool.num_busy == 0  # no cycle that only the garbage collector would find


def test_a_cancelled_reply_is_ended_by_the_next_question(chat):
    reply = chat.send("talk", config=GenerationConfig(max_new_tokens=400))
    next(reply)
    reply.cancel()
    chat.send("next", config=SHORT).text()
    assert (reply.result.finish_reason, roles(chat)) == ("cancelled", ROLES * 2)


@pytest.mark.parametrize("act", ["reset", "rewind"])
def test_taking_back_ends_an_open_answer(chat, act):
    reply = chat.send("talk", config=GenerationConfig(max_new_tokens=400))
    next(reply)
    getattr(chat, act)()
    assert (reply.result.finish_reason, chat.messages) == ("cancelled", ())


def test_an_answer_cannot_wait_for_itself(chat):
    """A listener, a processor or a sampler that sends to its own chat, or reads its own reply."""
    errors = []

    def talk_back(logits, ids):
        for act in (
            lambda: chat.send("again", wait=True),
            lambda: list(reply),
            lambda: reply.result,
            chat.fork,
        ):
            with pytest.raises(ChatBusyError) as refused:
                act()
            errors.append(refused.value)
        return logits

    reply = chat.send("talk", config=SHORT, logits_processors=[talk_back])
    assert reply.result.usage.new_tokens == 8
    assert len(errors) == 32


def test_a_failure_of_an_answer_that_nobody_reads_is_kept_for_its_reader(chat, monkeypatch, caplog):
    def fail(*_):
        raise BundleError("broken")

    reply = chat.send("talk", config=SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_run_chunk", fail)
        following = chat.send("next", config=SHORT)
    assert "an answer failed while nobody was reading it: broken" in caplog.text
    assert following.result.usage.new_tokens == 8
    for _ in range(2):
        with pytest.raises(BundleError, match="broken"):
            next(reply)
    assert [message.content for message in chat.messages[:1]] == ["next"]


def test_waiting_can_be_cancelled_and_leaves_the_first_answer_alone(chat):
    cancel, steps = threading.Event(), []

    def count(logits, ids):
        steps.append(len(ids))
        if len(steps) == 10:
            cancel.set()
        return logits

    reply = chat.send("talk", config=LONG, logits_processors=[count])
    next(reply)
    with pytest.raises(RequestCancelledError):
        chat.send("next", wait=True, cancel=cancel)
    assert not reply.done
    assert (reply.result.usage.new_tokens, roles(chat)) == (40, ROLES)


def test_chats_in_threads_answer_as_they_do_alone(model):
    questions = [f"tell me of {number}" for number in range(6)]
    alone = {}
    for question in questions:
        model.generator.pool.clear()
        chat = model.chat()
        alone[question] = [chat.send(question, config=SHORT).result.token_ids for _ in range(2)]
    found = []

    def work(number: int) -> None:
        for _ in range(5):
            for question in questions:
                chat = model.chat()
                answers = [chat.send(question, config=SHORT).result.token_ids for _ in range(2)]
                found.append(answers == alone[question])

    in_threads(4, work)
    assert found == [True] * 120
    assert model.generator.pool.num_busy == 0
