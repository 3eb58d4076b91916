"""Several questions at once in an event loop, on one model; the slowest is cancelled after a while.

python apps/examples/ask_async.py "Say hello." "What is the capital of France?"
"""

import asyncio
import sys

import phirt


async def ask(model: phirt.Model, question: str) -> None:
    """Collects one answer, as it comes, and prints it; cancelling the task stops the model within a step."""
    pieces = []
    try:
        async for piece in model.chat().asend(question, max_new_tokens=200):
            pieces.append(piece)
    finally:
        print(f"{question} -> {''.join(pieces)!r}")


async def main(questions: list[str]) -> None:
    """Asks all questions at once and waits ten seconds at most."""
    with phirt.load() as model:
        tasks = [asyncio.create_task(ask(model, question)) for question in questions]
        _, late = await asyncio.wait(tasks, timeout=10)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
