"""Draws answers to many questions, several to each, and goes on where an earlier run was stopped.

A question's seeds come from the run's seed and its own content, so they do not depend on other questions or
on their order.

Knows questions, a sampler and a store. Knows nothing of how an answer comes about or is judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from phirt_train.rollouts.questions import Question
from phirt_train.rollouts.sampler import Request, Sample, Sampler
from phirt_train.rollouts.store import SampleStore

SAMPLES_NAME = "samples.jsonl"
OnProgress = Callable[[int, int], None]


def seeds_of(question: Question, count: int, seed: int) -> list[int]:
    """A seed for each answer to a question."""
    digests = (hashlib.sha256(f"{seed}/{question.id}/{index}".encode()).digest() for index in range(count))
    return [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]


def draw(
    questions: Sequence[Question],
    sampler: Sampler,
    folder: Path,
    count: int,
    seed: int = 0,
    *,
    media: Path = Path(),
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> list[list[Sample]]:
    """`count` answers to each question. Those that `folder` holds are not drawn again.

    Args:
        media: the folder that names of pictures and recordings start from.
        workers: how many questions are worked on at once; answers do not depend on it.
        on_progress: called with the questions that are done and their number.

    Raises:
        ConfigError: the folder holds answers of another run; a request cannot be asked.
    """
    run: dict[str, object] = {"samples": count, "seed": seed, "sampler": sampler.identity}
    with SampleStore(folder / SAMPLES_NAME, run) as store:
        missing = [question for question in questions if question.id not in store]
        done = len(questions) - len(missing)

        def sample(question: Question) -> list[Sample]:
            request = Request(question.asked, question.tools, media)
            return sampler.sample(request, seeds_of(question, count, seed))

        if on_progress is not None:
            on_progress(done, len(questions))
        for question, samples in _in_order(missing, sample, workers):
            store.add(question.id, samples)
            done += 1
            if on_progress is not None:
                on_progress(done, len(questions))
        return [store[question.id] for question in questions]


def _in_order(
    questions: Sequence[Question], sample: Callable[[Question], list[Sample]], workers: int
) -> Iterator[tuple[Question, list[Sample]]]:
    """Each question with its answers. Only as many are begun as are worked on, so that a stop comes soon."""
    if workers == 1:
        for question in questions:
            yield question, sample(question)
        return
    with ThreadPoolExecutor(workers) as pool:
        begun: list[tuple[Question, Future[list[Sample]]]] = []
        for question in questions:
            begun.append((question, pool.submit(sample, question)))
            if len(begun) == workers:
                first, future = begun.pop(0)
                yield first, future.result()
        for first, future in begun:
            yield first, future.result()
