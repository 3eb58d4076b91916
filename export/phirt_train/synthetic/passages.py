"""Questions that a passage answers, made from its own sentences: what something is, a year or a name that is
left out, whether a statement stands there; and questions that it does not answer.

Among the passages that are given there may be one of another page, as a search finds it. Knows pages of prose
and sentences. Knows nothing of models. Everything is a function of pages and a seed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from phirt_quant.sentences import split_sentences, whole_paragraphs
from phirt_train.data.messages import NOT_SAID
from phirt_train.data.records import Conversation, TrainingMessage

_WHAT = re.compile(
    r"([A-Z][^.,;:()]{2,50}?)(?: \([^)]*\))? (is|was|are|were) ((?:an?|the|one of) .{8,160})\."
)
_YEAR = re.compile(r"\b(?:1[0-9]|20)[0-9]{2}\b")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)+")
_WORDS = (5, 40)  # of a sentence that is asked about, at least and at most
_OTHER_SHARE = 0.5  # of rows with a passage of another page beside the one that answers


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question, its answer, and the form that it has."""

    question: str
    answer: str
    form: str


def questions(title: str, text: str, years: Sequence[str], rng: np.random.Generator) -> list[Asked]:
    """A question of each form that a passage allows.

    Args:
        title: of its page.
        years: such as other texts have, for statements that are wrong.
    """
    said = [" ".join(one.split()) for part in text.split("\n\n") for one in split_sentences(part)]
    said = [one for one in said if _WORDS[0] <= len(one.split()) <= _WORDS[1]]
    found = []
    if said and (what := _definition(title, said[0])) is not None:
        found.append(what)
    for form, pattern in (("year", _YEAR), ("name", _NAME)):
        fitting = [one for one in said if len(pattern.findall(one)) == 1]
        if fitting:
            chosen = fitting[int(rng.integers(len(fitting)))]
            gap = pattern.sub("____", chosen)
            wanted = pattern.findall(chosen)[0]
            found.append(Asked(f'Which {form} is missing? "{gap}"', f"{wanted}.", form))
    dated = [one for one in said if len(_YEAR.findall(one)) == 1]
    if dated:
        chosen = dated[int(rng.integers(len(dated)))]
        (year,) = _YEAR.findall(chosen)
        wrong = [one for one in years if one != year and one not in text]
        if rng.random() < 0.5 or not wrong:
            found.append(Asked(f'Does the text say this? "{chosen}"', "Yes.", "statement"))
        else:
            changed = chosen.replace(year, wrong[int(rng.integers(len(wrong)))])
            found.append(Asked(f'Does the text say this? "{changed}"', f"No. It was {year}.", "statement"))
    return found


def _definition(title: str, sentence: str) -> Asked | None:
    """What the first sentence says that the page's subject is, where it says so."""
    match = _WHAT.fullmatch(sentence)
    if match is None or not {*match[1].lower().split()} & {*title.lower().split()}:
        return None
    subject, verb, what = match.groups()
    return Asked(f"What {verb} {subject}?", f"{what[0].upper()}{what[1:]}.", "what")


def passage_rows(
    pages: Iterable[Mapping[str, Any]], seed: int, most_characters: int = 1000
) -> Iterator[tuple[str, Conversation]]:
    """Questions about the first paragraphs of pages, each with its passage, and sometimes one of the page
    before; of each page also what only the page before answers. With each row its form.
    """
    rng = np.random.default_rng(seed)
    before, left, years = "", "", ["1912"]
    for page in pages:
        half = whole_paragraphs(page["text"].split("\n\n"), most_characters // 2).strip()
        if not half:
            continue
        asked = questions(page["title"], half, years, rng)
        for one in asked:
            others = [before] if before and rng.random() < _OTHER_SHARE else []
            yield one.form, _row([half, *others], one.question, one.answer, rng)
        if left and left not in half:
            yield "not said", _row([half], f"What is {left}?", NOT_SAID, rng)
        left = next((one.question[8:-1] for one in asked if one.question.startswith("What is ")), "")
        before, years = half, [*years, *_YEAR.findall(half)][-50:]


def _row(passages: Sequence[str], question: str, answer: str, rng: np.random.Generator) -> Conversation:
    mixed = [passages[index] for index in rng.permutation(len(passages))]
    text = "\n\n".join([*mixed, question])
    return Conversation((TrainingMessage("user", text), TrainingMessage("assistant", answer)))
