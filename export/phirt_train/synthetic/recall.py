"""Long documents with facts hidden in them, and questions that only those facts answer.

Knows sentences and lengths. Knows nothing of models; how long a text is, a function says. What is hidden here
is worded otherwise than what `phirt eval --needles` hides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from phirt_train.data.records import Conversation, Document, TrainingMessage

_PLACES = (
    "the mill", "the harbour", "the lighthouse", "the old library", "the station", "the bakery",
    "the orchard",    "the town hall", "the school", "the bridge house", "the sawmill", "the observatory",
)  # fmt: skip
_OWNERS = (
    "Ada", "Bruno", "Cleo", "Dario", "Edda", "Flora", "Gino", "Hedda", "Ivo", "Jette", "Karl", "Lotte",
)  # fmt: skip
_FORMS = (
    ("The key of {place} hangs on hook {number}.", "On which hook does the key of {place} hang?", "{number}"),
    ("{owner} keeps {number} bees behind {place}.", "How many bees does {owner} keep?", "{number}"),
    ("The person who looks after {place} is {owner}.", "Who looks after {place}?", "{owner}"),
    ("The parcel for {place} has the label {number}.", "Which label has the parcel for {place}?", "{number}"),
)  # fmt: skip
_MOST_FACTS = 4


def recall_conversations(
    sentences: Sequence[str], count: int, least: int, measure: Callable[[str], int], seed: int
) -> Iterator[Conversation]:
    """So many documents of at least `least` by `measure`, each with a question about one of its facts."""
    for text, question, answer in _documents(sentences, count, least, measure, seed):
        prompt = f"{text}\n\n{question}"
        yield Conversation((TrainingMessage("user", prompt), TrainingMessage("assistant", answer)))


def recall_documents(
    sentences: Sequence[str], count: int, least: int, measure: Callable[[str], int], seed: int
) -> Iterator[Document]:
    """The same as texts that are learnt whole: the question and its answer end them."""
    for text, question, answer in _documents(sentences, count, least, measure, seed):
        yield Document(f"{text}\n\nQuestion: {question}\nAnswer: {answer}")


def _documents(
    sentences: Sequence[str], count: int, least: int, measure: Callable[[str], int], seed: int
) -> Iterator[tuple[str, str, str]]:
    assert sentences and least > 0
    lengths = [max(1, measure(sentence)) for sentence in sentences]
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        facts = _facts(rng)
        filling = _filling(sentences, lengths, least, rng)
        while measure(" ".join(filling)) < least:  # parts may be longer than the whole that they make
            filling += _filling(sentences, lengths, max(1, least // 10), rng)
        for fact, _, _ in facts:
            filling.insert(int(rng.integers(len(filling) + 1)), fact)
        _, question, answer = facts[rng.integers(len(facts))]
        yield " ".join(filling), question, answer


def _filling(
    sentences: Sequence[str], lengths: Sequence[int], least: int, rng: np.random.Generator
) -> list[str]:
    """Sentences in random order, all of them before any comes again."""
    chosen: list[str] = []
    reached = 0
    while reached < least:
        for index in rng.permutation(len(sentences)):
            chosen.append(sentences[index])
            reached += lengths[index]
            if reached >= least:
                break
    return chosen


def _facts(rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """A few facts about different places and owners, each with its question and answer."""
    count = int(rng.integers(1, _MOST_FACTS + 1))
    places, owners = rng.permutation(len(_PLACES))[:count], rng.permutation(len(_OWNERS))[:count]
    found = []
    for place, owner in zip(places, owners, strict=True):
        words = {
            "place": _PLACES[place],
            "owner": _OWNERS[owner],
            "number": int(rng.integers(100, 100_000)),
        }
        fact, question, answer = (part.format(**words) for part in _FORMS[rng.integers(len(_FORMS))])
        found.append((fact, question, answer))
    return found
