"""Many threads, chats and tasks on one model, cancelled and dropped at any moment: what breaks, what leaks.

    python tests/benchmarks/stress.py [BUNDLE]        nano without one

Three things: chats in threads, which are read, cancelled, left half-read or dropped, and of which every whole
answer must be what the model says alone; replies cancelled at random moments by another thread; asyncio tasks
cancelled at random moments. Documented errors are counted, any other is a failure. Memory is read after three
rounds to warm up and after one more, without what is kept for conversations to go on with. Exit status 1
where anything failed or is left, or where memory has grown by more than 2 %. Two minutes on two cores.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

import phirt
from phirt.runtime.system import trim_heap

NANO = Path(__file__).resolve().parents[1] / "bundles/nano"
PICTURE = Path(__file__).resolve().parents[2] / "apps/examples/shapes.png"
QUESTIONS = [
    "Hello", "Book a table for four in Rome.", "What is the weather in Paris tomorrow?", "Play some jazz.",
    "Tell me about the sea.", "Add this song to my playlist.", "How are you?", "Thanks",
]  # fmt: skip
TOKENS = 16
THREADS, CHATS, CANCELS, TASKS = 8, 50, 1000, 200
WARM_UP, GROWTH = 3, 0.02


class Tally:
    """What happened, counted by any thread."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self.failures: list[str] = []

    def count(self, what: str) -> None:
        """Notes something that may happen."""
        with self._lock:
            self._counts[what] += 1

    def fail(self, what: str) -> None:
        """Notes something that must not."""
        with self._lock:
            self.failures.append(what)

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(self._counts.items()))


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Runs it in so many threads at once and waits for all."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def chats_in_threads(model: phirt.Model, alone: dict[str, str], tally: Tally) -> None:
    """Chats of their own and one that all threads share."""
    common = model.chat()

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(CHATS):
            chat = model.chat()
            question = rng.choice(QUESTIONS)
            images = [PICTURE] if rng.random() < 0.1 else []
            try:
                reply = chat.send(question, images=images, max_new_tokens=TOKENS)
                fate = rng.choice(["read", "read", "cancelled", "half-read", "dropped", "busy"])
                if fate == "read" and reply.text() != alone[question] and not images:
                    tally.fail(f"{question!r} was answered {reply.text()!r}, alone {alone[question]!r}")
                elif fate != "dropped":
                    next(reply, None)
                if fate == "cancelled":
                    reply.cancel()
                if fate == "half-read":
                    del reply
                if fate == "busy":
                    common.send(question, max_new_tokens=4, wait=rng.random() < 0.5).text()
                    common.reset()
                else:
                    chat.send(rng.choice(QUESTIONS), max_new_tokens=4).text()
                tally.count(fate)
            except phirt.ChatBusyError:
                tally.count("refused as busy")
            except BaseException as error:
                tally.fail(f"{type(error).__name__}: {error}")

    in_threads(THREADS, work)


def cancels(model: phirt.Model, tally: Tally) -> None:
    """Replies that another thread cancels, from before their first piece to after their last."""

    def work(number: int) -> None:
        rng = random.Random(1000 + number)
        for _ in range(CANCELS // 4):
            chat = model.chat()
            try:
                reply = chat.send(rng.choice(QUESTIONS), max_new_tokens=TOKENS)
                timer = threading.Timer(rng.uniform(0, 0.08), reply.cancel)
                timer.start()
                reason = reply.result.finish_reason
                timer.join()
                tally.count(f"ended by {reason}")
                if [message.role for message in chat.messages] != ["user", "assistant"]:
                    tally.fail(f"after {reason} the chat has {chat.messages}")
            except BaseException as error:
                tally.fail(f"{type(error).__name__}: {error}")

    in_threads(4, work)


def tasks(model: phirt.Model, tally: Tally) -> None:
    """Tasks that are cancelled while they read media, prefill or decode."""

    async def answer(number: int) -> None:
        rng = random.Random(2000 + number)
        images = [PICTURE] if rng.random() < 0.2 else []
        async for _ in model.chat().asend(rng.choice(QUESTIONS), images=images, max_new_tokens=TOKENS):
            pass

    async def main() -> None:
        rng = random.Random(3)
        running = [asyncio.create_task(answer(number)) for number in range(TASKS)]
        for task in running:
            await asyncio.sleep(rng.uniform(0, 0.02))
            task.cancel()
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if outcome is None or isinstance(outcome, asyncio.CancelledError):
                tally.count("task ended" if outcome is None else "task cancelled")
            else:
                tally.fail(f"{type(outcome).__name__}: {outcome}")

    asyncio.run(main())


def resident(model: phirt.Model) -> int:
    """Bytes of this process in memory, garbage collected. Caches of keys and values are bounded, and how many
    are kept differs from round to round by a tenth of the whole, so they are dropped first.
    """
    gc.collect()
    model.generator.pool.clear()
    trim_heap()
    return int(psutil.Process().memory_info().rss)


def main(bundle: str | Path) -> int:
    """Runs everything; the exit status."""
    model = phirt.load(bundle, threads=2)
    alone = {question: model.chat().send(question, max_new_tokens=TOKENS).text() for question in QUESTIONS}
    parts: dict[str, Callable[[Tally], None]] = {
        f"{THREADS} threads, {CHATS} chats each": lambda tally: chats_in_threads(model, alone, tally),
        f"{CANCELS} cancels": lambda tally: cancels(model, tally),
        f"{TASKS} tasks": lambda tally: tasks(model, tally),
    }
    for _ in range(WARM_UP):
        for run in parts.values():
            run(Tally())
    before, threads, failures = resident(model), threading.active_count(), 0
    for name, run in parts.items():
        tally, begin = Tally(), time.monotonic()
        run(tally)
        print(f"{name}: {tally}; {time.monotonic() - begin:.0f} s; {len(tally.failures)} failures")
        for failure in tally.failures[:5]:
            print(f"  {failure}")
        failures += len(tally.failures)
    after = resident(model)
    growth, busy = after / before - 1, model.generator.pool.num_busy
    left = threading.active_count() - threads
    print(
        f"memory {before / 1e6:.1f} to {after / 1e6:.1f} MB ({growth:+.1%}); {busy} engines in use, {left} "
        "threads left"
    )
    return 1 if failures or growth > GROWTH or busy or left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else NANO))
