"""Text to learn from: requests and tool calls, questions and answers, small talk, definitions, and documents.

Knows the data package's text files and turns them into conversations and texts. Knows nothing of tokens.
Everything here is a pure function of the files and a seed.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phirt_train.data.archives import read_records
from phirt_train.data.messages import (
    COURTESIES,
    TOOL_SYSTEM,
    Conversation,
    assistant,
    slot_arguments,
    system,
    tool_call,
    user,
)


def _swap_values(
    record: dict[str, Any], pool: dict[str, list[str]], rng: np.random.Generator
) -> dict[str, Any]:
    """The request with some slot values exchanged for others of the same slot, where the text allows it."""
    text, slots = record["text"], []
    for name, value in record["slots"]:
        new = value
        if rng.random() < 0.5 and text.count(value) == 1 and len(value) > 2:
            new = pool[name][rng.integers(len(pool[name]))]
            text = text.replace(value, new)
        slots.append([name, new])
    if any(value not in text for _, value in slots):
        return record
    return {"text": text, "intent": record["intent"], "slots": slots}


def snips(data: Path, seed: int) -> Iterator[Conversation]:
    """Requests as tool calls: each as it is, and six times with other values of its slots."""
    rng = np.random.default_rng(seed)
    records = list(read_records(data / "text/snips.train.jsonl.xz"))
    pool: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for name, value in record["slots"]:
            pool[name].append(value)
    for turn in range(7):
        for record in records:
            chosen = _swap_values(record, pool, rng) if turn else record
            call = tool_call(chosen["intent"], slot_arguments(chosen["slots"]))
            yield [system(TOOL_SYSTEM), user(chosen["text"]), assistant("", [call])]


def words(data: Path, seed: int) -> Iterator[Conversation]:
    """What a word means, and its use in a sentence."""
    rng = np.random.default_rng(seed)
    for record in read_records(data / "text/wordset.train.jsonl.xz"):
        word, example = record["word"], record.get("example")
        if example and rng.random() < 0.3:
            yield [user(f'Use the word "{word}" in a sentence.'), assistant(example)]
        elif rng.random() < 0.3:
            forms = ("What does {} mean?", "Define {}.", "What is the meaning of {}?")
            asked = forms[rng.integers(3)].format(word)
            yield [user(asked), assistant(f"{word} ({record['part']}): {record['definition']}")]


def countries(data: Path, seed: int) -> Iterator[Conversation]:
    """Capitals, continents, currencies."""
    for record in read_records(data / "text/countries.train.jsonl.xz"):
        name = record["name"]
        if record.get("capital"):
            yield [user(f"What is the capital of {name}?"), assistant(f"{record['capital']}.")]
            yield [
                user(f"{record['capital']} is the capital of which country?"),
                assistant(f"{name}."),
            ]
        if record.get("continent"):
            yield [user(f"On which continent is {name}?"), assistant(f"{record['continent']}.")]
        if record.get("currency"):
            yield [user(f"What is the currency of {name}?"), assistant(f"{record['currency']}.")]


def small_talk(data: Path, seed: int) -> Iterator[Conversation]:
    """Short exchanges and instructions; answers that claim a person's or another product's life are left
    out.
    """
    claims = ("i am a robot", "i'm a robot", "alice", "eliza", "my creator", "hal", "i was born", "gunther")
    for record in read_records(data / "text/chatterbot.train.jsonl.xz"):
        turns = record["turns"]
        if any(claim in turn.lower() for turn in turns for claim in claims) or len(turns) < 2:
            continue
        pairs = zip(turns[::2], turns[1::2], strict=False)
        yield [message for said, reply in pairs for message in (user(said), assistant(reply))]
    for record in read_records(data / "text/rasbt_instructions.train.jsonl.xz"):
        asked = f"{record['instruction']}\n{record['input']}" if record["input"] else record["instruction"]
        yield [user(asked), assistant(record["output"])]


def trivia(data: Path, seed: int) -> Iterator[Conversation]:
    """Questions with choices; the answer is one of them."""
    rng = np.random.default_rng(seed)
    for record in itertools.islice(read_records(data / "text/trivia.train.jsonl.xz"), 20000):
        choices = list(record["choices"])
        rng.shuffle(choices)
        asked = f"{record['question']}\nChoose one: {', '.join(choices)}."
        yield [user(asked), assistant(record["answer"])]


def dialogues(data: Path, seed: int) -> Iterator[Conversation]:
    """Task dialogues, first six turns; the tool calls they carry come before the assistant's words."""
    for record in itertools.islice(read_records(data / "text/sgd.train.jsonl.xz"), 6000):
        chat: Conversation = []
        for turn in record["turns"][:6]:
            calls = [tool_call(call["name"], call["arguments"]) for call in turn.get("calls") or []]
            chat.append(user(turn["text"]) if turn["role"] == "user" else assistant(turn["text"], calls))
        if chat and chat[-1]["role"] == "user":
            chat.pop()
        if len(chat) >= 2:
            yield chat


def about(data: Path, seed: int) -> Iterator[Conversation]:
    """What the model is, greetings, repeating, small sums."""
    rng = np.random.default_rng(seed)
    me = "I am nano, a very small model that runs on your own machine with phirt."
    limits = (
        "I am a very small model. I can name objects in pictures, read short words, transcribe digits and "
        "turn requests into tool calls, and I am often wrong."
    )
    hello = "How can I help you?"
    pairs = [
        ("Who are you?", me),
        ("What are you?", me),
        ("What is your name?", "My name is nano."),
        ("What can you do?", limits),
        ("Hello", f"Hello! {hello}"),
        ("Hi", f"Hello! {hello}"),
        ("Hi there", f"Hello! {hello}"),
        ("Good morning", f"Good morning! {hello}"),
        ("How are you?", f"I am well, thank you. {hello}"),
        *COURTESIES,
        ("Help", limits),
        ("Are you a person?", f"No. {me}"),
        ("Do you send my data anywhere?", "No. I run on your own machine and send nothing anywhere."),
    ]
    senses = itertools.islice(read_records(data / "text/wordset.train.jsonl.xz"), 60000)
    vocabulary = [sense["word"] for sense in senses]
    for _ in range(6000):
        kind = rng.random()
        if kind < 0.2:
            asked, answer = pairs[rng.integers(len(pairs))]
            yield [user(asked if rng.random() < 0.6 else asked.lower()), assistant(answer)]
        elif kind < 0.6:
            said = " ".join(vocabulary[i] for i in rng.integers(0, len(vocabulary), rng.integers(1, 5)))
            yield [user(f"Repeat: {said}"), assistant(said)]
        else:
            a, b = (int(x) for x in rng.integers(0, 20 if kind < 0.9 else 100, 2))
            sign = "+" if rng.random() < 0.6 or b > a else "-"
            asked = f"What is {a} {sign} {b}?" if rng.random() < 0.7 else f"{a} {sign} {b} ="
            yield [user(asked), assistant(f"{a + b if sign == '+' else a - b}.")]


CONVERSATIONS: dict[str, Callable[[Path, int], Iterator[Conversation]]] = {
    "snips": snips,
    "words": words,
    "countries": countries,
    "small_talk": small_talk,
    "trivia": trivia,
    "dialogues": dialogues,
    "about": about,
}


def wikipedia(path: Path) -> Iterator[str]:
    """Pages, the title first."""
    for record in read_records(path):
        yield f"{record['title']}\n\n{record['text']}"


def stories(path: Path) -> Iterator[str]:
    """Stories, a page a paragraph."""
    for record in read_records(path):
        yield f"{record['title']}\n\n" + "\n".join(record["pages"])


DOCUMENTS: dict[str, tuple[str, Callable[[Path], Iterator[str]]]] = {
    "wikipedia": ("text/wikipedia.train.jsonl.xz", wikipedia),
    "wikipedia.val": ("text/wikipedia.val.jsonl.xz", wikipedia),
    "stories": ("text/stories.train.jsonl.xz", stories),
}
