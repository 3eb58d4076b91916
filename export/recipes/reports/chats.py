"""Conversations for supervised fine-tuning, one file a domain, and pairs of answers for preferences.

chats/math.jsonl, reasoning.jsonl, conversation.jsonl, identity.jsonl, safety.jsonl, languages.jsonl
chats/DOMAIN.val.jsonl            the same domains, held out by what is asked
preferences/chat.jsonl, chat.val.jsonl

Code, summaries and instructions are `posttraining`'s, word problems `reasoning`'s. Knows the data package's
text. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from phirt.fields import Range
from phirt_train.data import records
from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation, assistant, user, write_lines
from phirt_train.data.writing import plain_record
from phirt_train.preparation import PreparationTask
from phirt_train.synthetic.identity import Identity, identity_rows
from phirt_train.synthetic.safety import safety_rows

from ..nano.text import countries, small_talk, trivia
from .held_out import alternate, asked, part, worked_problems

_Count = Annotated[int, Range(1, 1_000_000)]
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
        task.note("writing chats/math")
        for suffix, held_out in (("", False), (".val", True)):
            fitting = (chat for chat in problems(text, held_out=held_out) if self._fits(chat))
            write_lines(
                task.output / f"chats/math{suffix}.jsonl", _lines(itertools.islice(fitting, self.each))
            )
        domains: dict[str, Callable[[], Iterator[tuple[str, Conversation]]]] = {
            "reasoning": lambda: alternate(syllogisms(self.each, seed), trivia(task.data, seed)),
            "conversation": lambda: alternate(small_talk(task.data, seed), countries(task.data, seed)),
            "identity": lambda: alternate(identity(self.model, self.each, seed)),
            "safety": lambda: alternate(safety(self.each, seed)),
            "languages": lambda: alternate(translations(text)),
        }
        for name, make in domains.items():
            task.note(f"writing chats/{name}")
            short = ((kind, chat) for kind, chat in make() if self._fits(chat))
            learnt, held = part(itertools.islice(short, self.each), asked)
            write_lines(task.output / f"chats/{name}.jsonl", _lines(learnt))
            write_lines(task.output / f"chats/{name}.val.jsonl", _lines(held))
        self._write_preferences(task)

    def _fits(self, chat: Conversation) -> bool:
        return sum(len(message["content"]) for message in chat) <= self.characters

    def _write_preferences(self, task: PreparationTask) -> None:
        text = task.data / "text"
        both = alternate(_instructed(text), _talked(text))
        short = ((kind, pair) for kind, pair in both if self._fits(pair["prompt"]))
        learnt, held = part(itertools.islice(short, self.each), lambda pair: asked(pair["prompt"]))
        write_lines(task.output / "preferences/chat.jsonl", learnt)
        write_lines(task.output / "preferences/chat.val.jsonl", held)


def _lines(chats: Iterable[Conversation]) -> Iterator[dict[str, Any]]:
    return ({"messages": chat} for chat in chats)


def problems(text: Path, *, held_out: bool) -> Iterator[Conversation]:
    """Word problems with worked answers."""
    for record in worked_problems(text, held_out=held_out):
        yield [user(record["question"]), assistant(record["answer"])]


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
    me = Identity(
        name=model,
        is_what="I am a small language model, a program that writes text.",
        made_by="I was trained with phirt, by whoever runs me.",
        runs_where="I run on your own machine and send nothing anywhere.",
        limits="I can answer short questions, do sums and chat. I am often wrong.",
    )
    return (_messages(one) for one in identity_rows(me, count, seed))


def safety(count: int, seed: int) -> Iterator[Conversation]:
    """What should be refused, refused; what only looks so, answered."""
    return (_messages(one) for one in safety_rows(count, seed))


def _messages(one: records.Conversation) -> Conversation:
    messages: Conversation = plain_record(one)["messages"]
    return messages


def translations(text: Path) -> Iterator[Conversation]:
    """Sentences of stories from English to French and back."""
    path = text / "stories_en_fr.train.jsonl.xz"
    for record in read_records(path) if path.is_file() else ():
        for page in record["pages"]:
            yield [user(f"Translate into French: {page['en']}"), assistant(page["fr"])]
            yield [user(f"Translate into English: {page['fr']}"), assistant(page["en"])]


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
