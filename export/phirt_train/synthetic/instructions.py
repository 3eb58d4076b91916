"""Instructions whose fulfilment a program can check, with answers that fulfil them: meanings of words under
constraints, in the manner of IFEval (arXiv 2311.07911).

Knows the word list's records and constraints. Knows nothing of models. Everything is a function of records
and a seed; what does not fulfil its own constraints is not yielded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from phirt_train.data.records import Conversation, TrainingMessage
from phirt_train.rollouts.constraints import (
    Avoids,
    BulletCount,
    Constraint,
    Contains,
    EndsWith,
    Json,
    LowerCase,
    NoCommas,
    Quoted,
    SentenceCount,
    StartsWith,
    UpperCase,
    WordCount,
    read_constraints,
    write_constraint,
)
from phirt_train.rollouts.questions import Question

Senses = Sequence[Mapping[str, Any]]
_Made = tuple[str, str, tuple[Constraint, ...]]  # what is asked, an answer, what it must fulfil
_BEGINNINGS = ("In short,", "Put simply,", "It means:", "Briefly:")
_ENDS = ("That is all.", "I hope that helps.", "Ask me for more.")


def instructions(senses: Senses, count: int, seed: int) -> Iterator[Question]:
    """So many questions about words that have a definition, each with a right answer."""
    rng = np.random.default_rng(seed)
    makers = list(_MAKERS)
    left = count
    while left:
        asked, answer, constraints = makers[rng.integers(len(makers))](senses, rng)
        if not all(constraint.holds(answer) for constraint in constraints):
            continue
        wanted = " ".join(constraint.sentence() for constraint in constraints)
        records = tuple(write_constraint(constraint) for constraint in constraints)
        level = "one constraint" if len(constraints) == 1 else "two constraints"
        yield Question(f"{asked} {wanted}", answer=answer, constraints=records, level=level)
        left -= 1


def as_conversation(question: Question) -> Conversation:
    """A question with its right answer, to learn."""
    assert question.answer is not None
    constraints = read_constraints(question.constraints)
    assert all(constraint.holds(question.answer) for constraint in constraints)
    return Conversation((*question.asked, TrainingMessage("assistant", question.answer)), question.tools)


def _sense(senses: Senses, rng: np.random.Generator) -> tuple[str, str, str]:
    """A word, its definition as a sentence, an example sentence (which may be empty)."""
    record = senses[int(rng.integers(len(senses)))]
    definition = " ".join(str(record["definition"]).split()).rstrip(".")
    example = " ".join(str(record.get("example") or "").split()).rstrip(".")
    return record["word"], _sentence(definition), _sentence(example) if example else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else "."


def _meaning(word: str) -> str:
    return f'What does "{word}" mean?'


def _short(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    count = len(definition.split())
    return _meaning(word), definition, (WordCount(at_most=count + int(rng.integers(4))),)


def _exact(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    count = len(definition.split())
    return _meaning(word), definition, (WordCount(count, count),)


def _begun(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    begin = _BEGINNINGS[rng.integers(len(_BEGINNINGS))]
    return _meaning(word), f"{begin} {definition[0].lower()}{definition[1:]}", (StartsWith(begin),)


def _ended(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    end = _ENDS[rng.integers(len(_ENDS))]
    return _meaning(word), f"{definition} {end}", (EndsWith(end), SentenceCount(2, 2))


def _capitals(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    return _meaning(word), definition.upper(), (UpperCase(),)


def _small_letters(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    return _meaning(word), definition.lower(), (LowerCase(), NoCommas())


def _used(senses: Senses, rng: np.random.Generator) -> _Made:
    word, _, example = _sense(senses, rng)
    return "Write one sentence.", example, (Contains(word), SentenceCount(1, 1))


def _avoided(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    return f'Explain the word "{word}".', definition, (Avoids(word),)


def _as_json(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    answer = json.dumps({"word": word, "meaning": definition}, ensure_ascii=False)
    return _meaning(word), answer, (Json(("word", "meaning")),)


def _in_quotes(senses: Senses, rng: np.random.Generator) -> _Made:
    word, definition, _ = _sense(senses, rng)
    return _meaning(word), f'"{definition}"', (Quoted(),)


def _listed(senses: Senses, rng: np.random.Generator) -> _Made:
    chosen = [_sense(senses, rng) for _ in range(int(rng.integers(2, 5)))]
    words = ", ".join(f'"{word}"' for word, _, _ in chosen)
    answer = "\n".join(f"- {word}: {definition}" for word, definition, _ in chosen)
    return f"What do these words mean: {words}?", answer, (BulletCount(len(chosen), len(chosen)),)


_MAKERS: tuple[Callable[[Senses, np.random.Generator], _Made], ...] = (
    _short, _exact, _begun, _ended, _capitals, _small_letters, _used, _avoided, _as_json, _in_quotes, _listed,
)  # fmt: skip
