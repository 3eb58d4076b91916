"""Which records are held out: one of twenty of each kind, by a hash of what is asked.

What is asked decides, so that all records with one prompt, whatever its capitals, lie on one side, and what
comes before or after a record does not matter. Knows prompts and kinds. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from phirt_train.data.archives import read_records
from phirt_train.data.messages import Conversation

T = TypeVar("T")
_PART = 20  # of so many prompts one is held out


def part(records: Iterable[tuple[str, T]], prompt: Callable[[T], str]) -> tuple[list[T], list[T]]:
    """The records to learn from and those held out, of records with their kinds: of each kind with two
    different prompts or more at least one. Where there is no such kind all are in both.
    """
    known = [(kind, prompt(record).casefold(), record) for kind, record in records]
    chosen: set[str] = set()
    for kind in {kind for kind, _, _ in known}:
        asked = sorted({text for own, text, _ in known if own == kind}, key=_hash)
        if len(asked) > 1:
            chosen.update(asked[: max(1, len(asked) // _PART)])
    if not chosen:
        both = [record for _, _, record in known]
        return both, list(both)
    return (
        [record for _, text, record in known if text not in chosen],
        [record for _, text, record in known if text in chosen],
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def asked(chat: Conversation) -> str:
    """What a conversation asks for: all that is not an answer."""
    return "\n".join(str(turn["content"]) for turn in chat if turn["role"] != "assistant")


def is_held_out(text: str) -> bool:
    """Whether a text of an endless kind is one to measure with: one of twenty is."""
    return int.from_bytes(_hash(text.casefold())[:8], "big") % _PART == 0


def alternate(*sources: Iterable[T]) -> Iterator[tuple[str, T]]:
    """One of each in turn, until all have ended, with the source's number as its kind."""
    for several in itertools.zip_longest(*sources):
        yield from ((str(number), one) for number, one in enumerate(several) if one is not None)


def worked_problems(text: Path, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """GSM8K's training problems (arXiv 2110.14168) with their working, of the folder of texts; every
    twentieth is held out, from whatever they are made into.
    """
    path = text / "gsm8k.train.jsonl.xz"
    for index, record in enumerate(read_records(path) if path.is_file() else ()):
        if (index % _PART == _PART - 1) == held_out:
            yield record
