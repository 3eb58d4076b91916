"""Conversations for supervised fine-tuning, one file a domain, and pairs of answers for preferences.

chats/math.jsonl, code.jsonl, reasoning.jsonl, conversation.jsonl, identity.jsonl, languages.jsonl
chats/DOMAIN.val.jsonl            the same domains, held out by record
preferences/chat.jsonl, chat.val.jsonl
questions/problems.jsonl          word problems to draw answers to, with their answers

What is unsafe is the safety steps' matter (`phirt_train.rollouts`). Knows the data package's text. Knows
nothing of tokens.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from phirt.fields import Range
from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation, assistant, user, write_lines
from phirt_train.preparation import PreparationTask

from ..nano.text import countries, small_talk, trivia
from .code_text import library_modules

_Count = Annotated[int, Range(1, 1_000_000)]
_HELD_OUT = 20  # every twentieth conversation
_MAX_BODY = 600  # characters of a function that is completed
_NAMES = ("Ada", "Ben", "Chidi", "Dara", "Emil", "Farid", "Greta", "Hana", "Ivo", "June")
_KINDS = ("bird", "tree", "tool", "boat", "fruit", "river")
_TRAITS = ("old", "green", "heavy", "quiet", "bright", "small")


@dataclasses.dataclass(frozen=True)
class Chats:
    """How much is made.

    Attributes:
        each: most conversations of each domain.
        characters: most of a conversation; longer ones are left out.
        model: what the model calls itself.
    """

    each: _Count
    characters: _Count
    model: str

    def write(self, task: PreparationTask) -> None:
        """See `prepare.Group`."""
        text, seed = task.data / "text", task.seed
        domains: dict[str, Callable[[], Iterator[Conversation]]] = {
            "math": lambda: _alternate(sums(self.each, seed), problems(text)),
            "code": lambda: functions(library_modules()),
            "reasoning": lambda: _alternate(syllogisms(self.each, seed), trivia(task.data, seed)),
            "conversation": lambda: _alternate(small_talk(task.data, seed), countries(task.data, seed)),
            "identity": lambda: identity(self.model, self.each, seed),
            "languages": lambda: translations(text),
        }
        for name, make in domains.items():
            task.note(f"writing chats/{name}")
            fitting = (chat for chat in make() if _characters(chat) <= self.characters)
            lines = [{"messages": chat} for chat in itertools.islice(fitting, self.each)]
            _write_parted(task.output / f"chats/{name}", lines)
        self._write_preferences(task)
        path = text / "gsm8k.train.jsonl.xz"
        records = read_records(path) if path.is_file() else iter(())
        asked = ({"question": one["question"], "answer": one["answer"], "level": "gsm8k"} for one in records)
        write_lines(task.output / "questions/problems.jsonl", itertools.islice(asked, self.each))

    def _write_preferences(self, task: PreparationTask) -> None:
        every = preferences(task.data / "text")
        short = (one for one in every if _characters(one["prompt"]) <= self.characters)
        _write_parted(task.output / "preferences/chat", list(itertools.islice(short, self.each)))


def _write_parted(place: Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes PLACE.jsonl and PLACE.val.jsonl, every twentieth record (of fewer the last one) held out; a
    single one is in both.
    """
    every = min(_HELD_OUT, len(records))
    for suffix, held_out in (("", False), (".val", True)):
        chosen = (
            one for index, one in enumerate(records) if every < 2 or (index % every == every - 1) == held_out
        )
        write_lines(place.with_name(f"{place.name}{suffix}.jsonl"), chosen)


def _characters(chat: Conversation) -> int:
    return sum(len(message["content"]) for message in chat)


def _alternate(*sources: Iterable[Conversation]) -> Iterator[Conversation]:
    """One of each in turn, until all have ended."""
    nothing: Conversation = []
    for several in itertools.zip_longest(*sources, fillvalue=nothing):
        yield from (one for one in several if one)


def sums(count: int, seed: int) -> Iterator[Conversation]:
    """Sums of two and of three numbers, the way to the result written out."""
    rng = np.random.default_rng((seed, 81))
    for _ in range(count):
        a, b, c = (int(x) for x in rng.integers(1, 50, 3))
        if rng.random() < 0.5:
            yield [user(f"What is {a} + {b}?"), assistant(f"{a} + {b} = {a + b}\n#### {a + b}")]
        else:
            way = f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}\n#### {a + b + c}"
            yield [user(f"What is {a} + {b} + {c}?"), assistant(way)]


def problems(text: Path) -> Iterator[Conversation]:
    """Word problems with worked answers."""
    path = text / "gsm8k.train.jsonl.xz"
    for record in read_records(path) if path.is_file() else ():
        yield [user(record["question"]), assistant(record["answer"])]


def functions(modules: Iterable[Path]) -> Iterator[Conversation]:
    """Functions of the standard library: their body from their head, and what they do from their name."""
    for path in modules:
        source = path.read_text(encoding="utf-8", errors="replace")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef) or not (said := ast.get_docstring(node)):
                continue
            size = sum(map(len, lines[node.lineno - 1 : node.end_lineno]))
            if size > _MAX_BODY or len(node.body) < 2:
                continue
            head = f"def {node.name}({ast.unparse(node.args)}):"
            first = said.splitlines()[0]
            body = "\n".join(ast.unparse(one) for one in node.body[1:])
            yield [user(f"Complete this function. {first}\n{head}"), assistant(f"{head}\n{_indented(body)}")]
            yield [user(f"What does {node.name} in {path.stem} do?"), assistant(first)]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def syllogisms(count: int, seed: int) -> Iterator[Conversation]:
    """Two premises and a question, answered with the reason."""
    rng = np.random.default_rng((seed, 82))
    for _ in range(count):
        kind, other = (_KINDS[i] for i in rng.choice(len(_KINDS), 2, replace=False))
        trait = _TRAITS[int(rng.integers(len(_TRAITS)))]
        owner = _NAMES[int(rng.integers(len(_NAMES)))]
        follows = rng.random() < 0.5
        has = kind if follows else other
        asked = f"Every {kind} here is {trait}. {owner} has a {has} from here. Must it be {trait}?"
        reason = (
            f"Yes. It is a {kind}, and every {kind} is {trait}."
            if follows
            else f"No. It is a {has}, and nothing is said of those."
        )
        yield [user(asked), assistant(reason)]


def identity(model: str, count: int, seed: int) -> Iterator[Conversation]:
    """What the model is, asked in many ways."""
    rng = np.random.default_rng((seed, 83))
    me = f"I am {model}, a small language model that runs on your own machine with phirt."
    pairs = [
        ("Who are you?", me),
        ("What are you?", me),
        ("What is your name?", f"My name is {model}."),
        ("Are you a person?", f"No. {me}"),
        ("Who made you?", "I was trained with phirt, by whoever runs me."),
        ("Do you send my data anywhere?", "No. I run on your own machine and send nothing anywhere."),
        ("What can you do?", "I can answer short questions, do sums and chat. I am often wrong."),
        ("Do you have feelings?", "No. I am a program that writes text."),
    ]
    openings = ("", "Hello! ", "Please tell me: ", "One more thing. ", "I wonder. ")
    for _ in range(count):
        asked, answer = pairs[int(rng.integers(len(pairs)))]
        opening = openings[int(rng.integers(len(openings)))]
        said = f"{opening}{asked}"
        yield [user(said.lower() if rng.random() < 0.3 else said), assistant(answer)]


def translations(text: Path) -> Iterator[Conversation]:
    """Sentences of stories from English to French and back."""
    path = text / "stories_en_fr.train.jsonl.xz"
    for record in read_records(path) if path.is_file() else ():
        for page in record["pages"]:
            yield [user(f"Translate into French: {page['en']}"), assistant(page["fr"])]
            yield [user(f"Translate into English: {page['fr']}"), assistant(page["en"])]


def preferences(text: Path) -> Iterator[dict[str, Any]]:
    """Pairs of answers in conversations, by turns from either source while both last."""
    both = itertools.zip_longest(_instructed(text), _talked(text))
    return (pair for several in both for pair in several if pair is not None)


def _instructed(text: Path) -> Iterator[dict[str, Any]]:
    path = text / "rasbt_preferences.train.jsonl.xz"
    for record in read_records(path) if path.is_file() else ():
        asked = f"{record['instruction']}\n{record['input']}" if record["input"] else record["instruction"]
        if record["chosen"] != record["rejected"]:
            yield {"prompt": [user(asked)], "chosen": record["chosen"], "rejected": record["rejected"]}


def _talked(text: Path) -> Iterator[dict[str, Any]]:
    path = text / "hh_harmless.train.jsonl.xz"
    for record in read_records(path) if path.is_file() else ():
        turns = [{"role": turn["role"], "content": turn["text"]} for turn in record["prompt"]]
        if turns and turns[-1]["role"] == "user" and record["chosen"] != record["rejected"]:
            yield {"prompt": turns, "chosen": record["chosen"], "rejected": record["rejected"]}
