"""What speculation changes: nothing in greedy answers, and the speed of decoding by task.

    python tests/benchmarks/speculation.py [--bundle BUNDLE] [--data ../shared/data] [--pairs 5]

First the same prompts are answered with speculation and without: text from held-out pages, the drawing and
the clip in `apps/examples/`. Where ids differ, the line says by how little the two best logits differed. Then
decoding is timed in alternating pairs. In the forced rows the answer is given (the logits are computed and
scored all the same, then the given id is taken), so that they show the speed of a model that does the task
rightly, whatever the bundle can do: "quote" repeats a part of the prompt, "rewrite" all of it with about one
word in fifteen replaced, "free text" goes on with the page. "sampled" is what the bundle itself says at
temperature 1. Ratios above 1 mean that speculation is faster: median, least and greatest of the pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import phirt
from phirt.generate.engine import Engine
from phirt.generate.sampling import TokenSampler
from phirt.generate.sequence import Prompt
from phirt.transcription import TRANSCRIBE_PROMPT

ROOT = Path(__file__).resolve().parents[2]
NEW_TOKENS = 64
PAGE_CHARACTERS = 1200
FORCED_TOKENS = 256
TASKS_PER_KIND = 6
QUESTIONS = (
    "Repeat this text word for word: {page}",
    "Correct the mistakes in this text: {page}",
    "What is this text about? {page}",
    "{page}",
)
ABOUT_PICTURES = ("How many shapes are there?", "What is this?", "Describe the picture. {start}")
ABOUT_CLIPS = ("What is said?", TRANSCRIBE_PROMPT, "Which number is it? {start}")


@dataclasses.dataclass(frozen=True)
class Question:
    """One request of a user."""

    text: str
    images: tuple[Path, ...] = ()
    audio: tuple[Path, ...] = ()


def pages(data: Path, count: int) -> list[str]:
    """The beginnings of held-out pages."""
    with lzma.open(data / "text/wikipedia.val.jsonl.xz", "rt", encoding="utf-8") as lines:
        texts = (json.loads(line)["text"] for line in lines)
        long = (text[:PAGE_CHARACTERS] for text in texts if len(text) >= PAGE_CHARACTERS)
        return [text for _, text in zip(range(count), long, strict=False)]


def questions(model: phirt.Model, texts: Sequence[str], count: int) -> Iterator[Question]:
    """Eight of ten about text, one about the photo, one about the clip, where the bundle takes them."""
    for number in range(count):
        page = texts[number % len(texts)]
        start, length = page[:60], (200, 500, 900)[number % 3]
        if number % 10 == 8 and "image" in model.manifest.modalities:
            asked = ABOUT_PICTURES[number // 10 % len(ABOUT_PICTURES)]
            yield Question(asked.format(start=start), images=(ROOT / "apps/examples/shapes.png",))
        elif number % 10 == 9 and "audio" in model.manifest.modalities:
            asked = ABOUT_CLIPS[number // 10 % len(ABOUT_CLIPS)]
            yield Question(asked.format(start=start), audio=(ROOT / "apps/examples/seven.flac",))
        else:
            asked = QUESTIONS[number % len(QUESTIONS)]
            yield Question(asked.format(page=page[number % 7 * 20 :][:length]))


def answer(model: phirt.Model, question: Question, speculation: bool) -> phirt.Result:
    """A greedy answer in a conversation of its own."""
    config = phirt.GenerationConfig(max_new_tokens=NEW_TOKENS, speculation=speculation)
    chat = model.chat()
    return chat.send(question.text, images=question.images, audio=question.audio, config=config).result


def margin(model: phirt.Model, question: Question, ids: Sequence[int]) -> float:
    """By how much the best logit is greater than the second after `ids`."""
    messages = (
        phirt.Message("user", question.text, model.generator.prepare_media(question.images, question.audio)),
    )
    prompt = model.generator.encode_prompt(messages, None, None)
    logits = model.generator.new_engine().prefill_prompt(
        Prompt(np.concatenate([prompt.ids, np.array(ids, dtype=np.int64)]), prompt.spans, prompt.adapter)
    )
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def compare_answers(model: phirt.Model, asked: Sequence[Question]) -> dict[str, Any]:
    """Answers both ways, one question after the other."""
    totals = dict.fromkeys(("prompts", "same", "new_tokens", "drafted_tokens", "accepted_tokens"), 0)
    differing = []
    for number, question in enumerate(asked):
        order = (True, False) if number % 2 else (False, True)
        results = {speculation: answer(model, question, speculation) for speculation in order}
        with_, without = results[True], results[False]
        totals["prompts"] += 1
        totals["same"] += with_.token_ids == without.token_ids
        for name in ("new_tokens", "drafted_tokens", "accepted_tokens"):
            totals[name] += getattr(with_.usage, name)
        if with_.token_ids != without.token_ids:
            pairs = zip(with_.token_ids, without.token_ids, strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), len(with_.token_ids))
            gap = margin(model, question, without.token_ids[:place])
            differing.append({"prompt": number, "at": place, "margin": gap})
    return {**totals, "differing": differing}


class Forced(TokenSampler):
    """Chooses greedily, then takes the given id all the same."""

    def __init__(self, vocab_size: int, prompt: Prompt, ids: Sequence[int]) -> None:
        super().__init__(phirt.GenerationConfig(), vocab_size, prompt.ids.tolist())
        self._given = iter(ids)

    def __call__(self, logits: Any) -> int:
        super().__call__(logits)
        return next(self._given)


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompt with the answer that it gets; None leaves the answer to the model."""

    prompt: Prompt
    ids: tuple[int, ...] | None


def tasks(model: phirt.Model, texts: Sequence[str]) -> dict[str, list[Task]]:
    """The rows of the table: prompts with given answers, and without."""
    encode = model.generator.tokenizer.encode_content

    def task(question: str, given: str | None) -> Task:
        prompt = model.generator.encode_prompt((phirt.Message("user", question),), None, None)
        return Task(prompt, None if given is None else tuple(encode(given)[:FORCED_TOKENS]))

    rng, vocabulary = random.Random(0), [word for page in texts for word in page.split()]

    def rewritten(page: str) -> str:
        return " ".join(rng.choice(vocabulary) if rng.random() < 1 / 15 else w for w in page.split(" "))

    some = texts[:TASKS_PER_KIND]
    return {
        "quote": [task(f"Repeat the middle: {page}", page[200:1000]) for page in some],
        "rewrite": [task(f"Correct this: {page}", rewritten(page)) for page in some],
        "free text": [task(f"Go on: {page[:300]}", page[300:]) for page in some],
        "sampled": [task(f"Tell me about this: {page[:300]}", None) for page in some],
    }


def seconds_of_decoding(model: phirt.Model, engine: Engine, task: Task, speculation: bool) -> float:
    """What the ids after the first take, each."""
    vocab, length = model.manifest.geometry.vocab_size, FORCED_TOKENS
    if task.ids is None:
        config = phirt.GenerationConfig(temperature=1.0, seed=1)
        choose = TokenSampler(config, vocab, task.prompt.ids.tolist())
    else:
        choose, length = Forced(vocab, task.prompt, task.ids), len(task.ids)
    steps = engine.generate(
        task.prompt,
        choose,
        max_new_tokens=length,
        eos=(),
        speculation=engine.speculation(()) if speculation else None,
    )
    next(steps)
    begin = time.perf_counter()
    count = sum(1 for _ in steps)
    return (time.perf_counter() - begin) / count


def speeds(model: phirt.Model, texts: Sequence[str], pairs: int) -> dict[str, dict[str, float]]:
    """By kind of task: tokens a second without, and the ratios of alternating pairs."""
    rows = {}
    for kind, batch in tasks(model, texts).items():
        ratios, plain = [], []
        for number in range(pairs):
            spent = {True: 0.0, False: 0.0}
            for place, item in enumerate(batch):
                first = bool((number + place) % 2)
                for speculation in (first, not first):
                    # A new engine has measured nothing yet, as in a conversation that begins.
                    engine = model.generator.new_engine()
                    spent[speculation] += seconds_of_decoding(model, engine, item, speculation)
            ratios.append(spent[False] / spent[True])
            plain.append(len(batch) / spent[False])
        rows[kind] = {
            "plain_tokens_per_second": statistics.median(plain),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "greatest": max(ratios),
        }
    return rows


def main() -> None:
    """Print both tables, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "tests/bundles/nano")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = phirt.load(options.bundle, threads=options.threads)
    texts = pages(options.data, 60)
    same = compare_answers(model, list(questions(model, texts, options.prompts)))
    rows = speeds(model, texts, options.pairs)
    if options.json:
        print(json.dumps({"answers": same, "speed": rows}, indent=1))
        return
    print(
        f"{same['same']} of {same['prompts']} greedy answers are the same; {same['new_tokens']} tokens, "
        f"{same['drafted_tokens']} drafted, {same['accepted_tokens']} accepted"
    )
    for other in same["differing"]:
        print(f"prompt {other['prompt']} differs at {other['at']}: best logits {other['margin']:.2g} apart")
    print("\n| task | plain tokens/s | ratio | least | greatest |\n|---|---|---|---|---|")
    for kind, row in rows.items():
        print(
            f"| {kind} | {row['plain_tokens_per_second']:.1f} | {row['ratio']:.2f} | {row['least']:.2f} "
            f"| {row['greatest']:.2f} |"
        )


if __name__ == "__main__":
    main()
