"""asyncio: pieces as they come, cancelling within a step, no thread and no engine left behind."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from conversing import SHORT

from phirt import GenerationConfig, Message
from phirt.errors import ChatBusyError, ConfigError, MediaError
from phirt.generate.engine import Engine

LONG = GenerationConfig(max_new_tokens=400)


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_an_answer_streams(model, chat):
    expected = model.chat().send("What is this?", config=SHORT).result

    async def main():
        reply = chat.asend("What is this?", config=SHORT)
        pieces = [piece async for piece in reply]
        return pieces, await reply.result(), await reply.text()

    pieces, result, text = asyncio.run(main())
    assert ("".join(pieces), result.token_ids, text) == (expected.text, expected.token_ids, expected.text)
    assert [message.role for message in chat.messages] == ["user", "assistant"]


def test_the_generator_streams_too(model):
    async def main():
        stream = model.generator.astream([Message("user", "hello")], max_new_tokens=4)
        return "".join([piece async for piece in stream]), await stream.result()

    text, result = asyncio.run(main())
    assert (text, result.usage.new_tokens) == (result.text, 4)


def test_other_tasks_go_on_meanwhile(chat):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        reply = chat.asend("talk", config=SHORT)
        count = len([piece async for piece in reply])
        ticking.cancel()
        return ticks, count

    ticks, count = asyncio.run(main())
    assert ticks > count > 0


def test_cancelling_the_task_stops_the_answer_within_a_step(chat, monkeypatch):
    run, steps = Engine._run_tokens, []

    def slow(self, ids):
        steps.append("step")
        time.sleep(0.01)
        run(self, ids)

    monkeypatch.setattr(Engine, "_run_tokens", slow)

    async def main():
        read = asyncio.Event()

        async def answer():
            async for _ in chat.asend("talk", config=LONG):
                read.set()

        task = asyncio.create_task(answer())
        await read.wait()
        await asyncio.sleep(0.05)
        steps.append("cancel")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(steps) - steps.index("cancel") <= 2
    assert [message.role for message in chat.messages] == ["user", "assistant"]  # what came so far stays
    assert chat.generator.pool.num_busy == 0
    assert chat.send("go on", config=SHORT).result.usage.new_tokens == 8


def test_cancelling_while_media_are_read_leaves_the_chat_as_it_was(chat, photo, monkeypatch):
    """Four pictures; the first one is being read when the task is cancelled, the others are not begun."""
    begun, go_on = threading.Event(), threading.Event()
    encoder = type(chat.generator.encoder)
    prepare, prepared = encoder.prepare, []

    def slow(self, modality, source, *rest):
        prepared.append(source)
        begun.set()
        assert go_on.wait(30)
        return prepare(self, modality, source, *rest)

    monkeypatch.setattr(encoder, "prepare", slow)

    async def main():
        async def answer():
            async for _ in chat.asend("see", images=[photo] * 4, config=SHORT):
                pass

        task = asyncio.create_task(answer())
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(main())
    assert (len(prepared), chat.messages, chat.generator.pool.num_busy) == (1, (), 0)


def test_cancelling_stops_a_prefill_between_chunks(chat, monkeypatch):
    run, chunks = Engine._run_chunk, []
    begun, go_on = threading.Event(), threading.Event()

    def slow(self, ids, rows):
        chunks.append(len(ids))
        begun.set()
        assert go_on.wait(30)
        run(self, ids, rows)

    monkeypatch.setattr(Engine, "_run_chunk", slow)

    async def main():
        async def answer():
            async for _ in chat.asend("x" * 600, config=SHORT):
                pass

        task = asyncio.create_task(answer())
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(main())
    assert chunks == [128]
    assert (chat.messages[-1].role, chat.messages[-1].content) == ("assistant", "")


def test_leaving_the_loop_early(chat):
    async def main():
        reply = chat.asend("talk", config=LONG)
        async for _ in reply:
            break
        with pytest.raises(ChatBusyError):
            await chat.asend("next", config=SHORT).text()
        await reply.aclose()
        return await reply.result(), await chat.asend("next", config=SHORT).result()

    first, second = asyncio.run(main())
    assert (first.finish_reason, second.usage.new_tokens) == ("cancelled", 8)


def test_a_reply_dropped_by_its_task_does_not_block_the_chat(chat):
    async def main():
        async for _ in chat.asend("talk", config=LONG):
            break
        return await chat.asend("next", config=SHORT).result()

    assert asyncio.run(main()).usage.new_tokens == 8


def test_two_tasks_on_one_chat(chat):
    """One is refused, or waits if it asks to."""

    async def main():
        first = chat.asend("one", config=LONG)
        await anext(first)
        with pytest.raises(ChatBusyError):
            await chat.asend("two", config=SHORT).text()
        return await asyncio.gather(first.result(), chat.asend("three", wait=True, config=SHORT).result())

    first, third = asyncio.run(main())
    assert (first.finish_reason, third.usage.new_tokens) == ("length", 8)
    assert [message.content for message in chat.messages[::2]] == ["one", "three"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_new_tokens": 0}, ConfigError),
        ({"images": ["missing.png"]}, MediaError),
        ({"wavelength": 3}, ConfigError),
    ],
)
def test_errors_come_with_the_first_piece(chat, arguments, error):
    async def main():
        async for _ in chat.asend("x", **arguments):
            pass

    with pytest.raises(error):
        asyncio.run(main())
    assert chat.messages == ()


def test_a_reply_that_nobody_iterates_does_nothing(chat):
    chat.asend("talk")
    assert chat.messages == ()


def test_many_tasks_cancelled_at_any_moment(model):
    async def main():
        chats = [model.chat() for _ in range(40)]

        async def answer(number: int) -> None:
            async for _ in chats[number].asend(f"question {number}", config=LONG):
                pass

        tasks = [asyncio.create_task(answer(number)) for number in range(40)]
        for number, task in enumerate(tasks):
            await asyncio.sleep(0.002 * (number % 3))
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        return chats, {type(outcome) for outcome in outcomes}

    chats, kinds = asyncio.run(main())
    assert kinds <= {asyncio.CancelledError, type(None)}
    assert model.generator.pool.num_busy == 0
    for chat in chats[::8]:
        assert chat.send("still there?", config=SHORT).result.usage.new_tokens == 8
