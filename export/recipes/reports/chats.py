"""Conversations for supervised fine-tuning, one file a domain, and pairs of answers for preferences.

chats/math.jsonl, reasoning.jsonl, conversation.jsonl, identity.jsonl, safety.jsonl, languages.jsonl
chats/DOMAIN.val.jsonl            the same domains, held out by record
preferences/chat.jsonl, chat.val.jsonl

Code, summaries and instructions are `posttraining`'s, word problems `reasoning`'s. Knows the data package's
text. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
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

_Count = Annotated[int, Range(1, 1_000_000)]
_HELD_OUT = 20  # every twentieth conversation
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
            "math": lambda: problems(text),
            "reasoning": lambda: _alternate(syllogisms(self.each, seed), trivia(task.data, seed)),
            "conversation": lambda: _alternate(small_talk(task.data, seed), countries(task.data, seed)),
            "identity": lambda: identity(self.model, self.each, seed),
            "safety": lambda: safety(self.each, seed),
            "languages": lambda: translations(text),
        }
        for name, make in domains.items():
            task.note(f"writing chats/{name}")
            fitting = (chat for chat in make() if _characters(chat) <= self.characters)
            lines = [{"messages": chat} for chat in itertools.islice(fitting, self.each)]
            _write_parted(task.output / f"chats/{name}", lines)
        self._write_preferences(task)

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


def problems(text: Path) -> Iterator[Conversation]:
    """Word problems with worked answers."""
    path = text / "gsm8k.train.jsonl.xz"
    for record in read_records(path) if path.is_file() else ():
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
