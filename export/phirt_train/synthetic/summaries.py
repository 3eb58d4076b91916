"""Summaries: an encyclopaedia's article and the lead that sums it up, a story and its outline.

Knows articles and stories. Knows nothing of models. What is summed up does not contain its summary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from phirt_train.data.records import Conversation, TrainingMessage

_ASKED = ("Summarise the text.", "Sum this up in a few sentences.", "What is the text about, in short?")
# No sentence ends behind an initial or one of these titles.
_SENTENCE = re.compile(
    r"(?<=[a-z0-9)\]\"'][.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)\s+(?=[A-Z\"'])"
)
_LEAST_RATIO = 3  # a text is so many times as long as its summary


def article_summaries(
    pages: Iterable[Mapping[str, Any]], seed: int, sentences: int = 2, most_characters: int = 3000
) -> Iterator[Conversation]:
    """Of each article the paragraphs after its lead, and the first sentences of the lead as their summary."""
    rng = np.random.default_rng(seed)
    for page in pages:
        lead, *body = [part for part in page["text"].split("\n\n") if part.strip()]
        summary = first_sentences(lead, sentences)
        text = _whole_paragraphs(body, most_characters)
        if len(text) >= _LEAST_RATIO * len(summary) and summary not in text:
            yield _asked(f"{page['title']}\n\n{text}", summary, rng)


def story_summaries(
    stories: Iterable[Mapping[str, Any]], seed: int, most_characters: int = 3000
) -> Iterator[Conversation]:
    """Of each story its pages, and its title with how it begins and ends."""
    rng = np.random.default_rng(seed)
    for story in stories:
        text = _whole_paragraphs(story["pages"], most_characters)
        outline = story_outline(story["title"], story["pages"])
        if len(text) >= _LEAST_RATIO * len(outline):
            yield _asked(text, outline, rng)


def story_outline(title: str, pages: Sequence[str]) -> str:
    """One line about a story: its title, its first sentence and its last one."""
    first = first_sentences(pages[0], 1)
    last = _SENTENCE.split(pages[-1].strip())[-1]
    return f"{title}: {first}" if first == last else f"{title}: {first} In the end: {last}"


def first_sentences(text: str, count: int) -> str:
    """So many sentences from the beginning of a text."""
    return " ".join(_SENTENCE.split(" ".join(text.split()))[:count])


def _whole_paragraphs(paragraphs: Sequence[str], most: int) -> str:
    kept: list[str] = []
    for paragraph in paragraphs:
        if sum(map(len, kept)) + len(paragraph) > most:
            break
        kept.append(paragraph)
    return "\n\n".join(kept)


def _asked(text: str, summary: str, rng: np.random.Generator) -> Conversation:
    prompt = f"{_ASKED[rng.integers(len(_ASKED))]}\n\n{text}"
    return Conversation((TrainingMessage("user", prompt), TrainingMessage("assistant", summary)))
