"""Summaries: an encyclopaedia's article and the lead that sums it up, a story and its outline.

Knows articles and stories. Knows nothing of models. What is summed up does not contain its summary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from phirt_quant.sentences import first_sentences, split_sentences, whole_paragraphs
from phirt_train.data.records import Conversation, TrainingMessage

_ASKED = ("Summarise the text.", "Sum this up in a few sentences.", "What is the text about, in short?")
_LEAST_RATIO = 3  # a text is so many times as long as its summary


def article_summaries(
    pages: Iterable[Mapping[str, Any]], seed: int, sentences: int = 2, most_characters: int = 3000
) -> Iterator[Conversation]:
    """Of each article the paragraphs after its lead, and the first sentences of the lead as their summary."""
    rng = np.random.default_rng(seed)
    for page in pages:
        lead, *body = [part for part in page["text"].split("\n\n") if part.strip()]
        summary = first_sentences(lead, sentences)
        text = whole_paragraphs(body, most_characters)
        if len(text) >= _LEAST_RATIO * len(summary) and summary not in text:
            yield _asked(f"{page['title']}\n\n{text}", summary, rng)


def story_summaries(
    stories: Iterable[Mapping[str, Any]], seed: int, most_characters: int = 3000
) -> Iterator[Conversation]:
    """Of each story its pages, and its title with how it begins and ends."""
    rng = np.random.default_rng(seed)
    for story in stories:
        text = whole_paragraphs(story["pages"], most_characters)
        outline = story_outline(story["title"], story["pages"])
        if len(text) >= _LEAST_RATIO * len(outline):
            yield _asked(text, outline, rng)


def story_outline(title: str, pages: Sequence[str]) -> str:
    """One line about a story: its title, its first sentence and its last one."""
    first = first_sentences(pages[0], 1)
    last = split_sentences(pages[-1].strip())[-1]
    return f"{title}: {first}" if first == last else f"{title}: {first} In the end: {last}"


def _asked(text: str, summary: str, rng: np.random.Generator) -> Conversation:
    prompt = f"{_ASKED[rng.integers(len(_ASKED))]}\n\n{text}"
    return Conversation((TrainingMessage("user", prompt), TrainingMessage("assistant", summary)))
