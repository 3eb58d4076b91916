"""Textbook-like pages: words with their meanings and exercises, countries of a region, lists with what they
are, worked sums.

Knows the data package's records. Knows nothing of models; what is made is for a review to keep or drop.
Everything is a function of records and a seed.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from phirt_train.data.records import Document
from phirt_train.synthetic.word_problems import LEVELS, Numbers, word_problems

Record = Mapping[str, Any]
_WORDS_A_PAGE, _COUNTRIES_A_PAGE, _ENTRIES_SHOWN = 6, 8, 12
_PROBLEMS_TRIED = 12  # for a page's three


def word_pages(senses: Sequence[Record], count: int, seed: int) -> Iterator[Document]:
    """Pages about words of one kind that stand near each other in the dictionary, with an exercise."""
    rng = np.random.default_rng(seed)
    with_example = [sense for sense in senses if sense.get("example")]
    by_part: dict[str, list[Record]] = defaultdict(list)
    for sense in with_example:
        by_part[sense["part"]].append(sense)
    parts = sorted(part for part, of in by_part.items() if len(of) >= _WORDS_A_PAGE)
    shares = np.array([len(by_part[part]) for part in parts], float)
    for _ in range(count if parts else 0):
        of = by_part[parts[int(rng.choice(len(parts), p=shares / shares.sum()))]]
        start = int(rng.integers(len(of) - _WORDS_A_PAGE + 1))
        yield Document(_word_page(of[start : start + _WORDS_A_PAGE], rng))


def _word_page(senses: Sequence[Record], rng: np.random.Generator) -> str:
    chosen = list({sense["word"]: sense for sense in senses}.values())
    part = chosen[0]["part"]
    lines = [f"# The {part}s from {chosen[0]['word']} to {chosen[-1]['word']}", ""]
    for sense in chosen:
        lines.append(f"**{sense['word']}**: {sense['definition']}. For example: {sense['example']}.")
    asked = [chosen[i] for i in rng.permutation(len(chosen))[:3]]
    lines += ["", "## Exercise", "", f"Which {part} is meant?", ""]
    lines += [f"{number}. {sense['definition']}." for number, sense in enumerate(asked, 1)]
    answers = ", ".join(f"{number}. {sense['word']}" for number, sense in enumerate(asked, 1))
    return "\n".join([*lines, "", f"Answers: {answers}."])


def country_pages(countries: Iterable[Record], seed: int) -> Iterator[Document]:
    """Pages about countries of one region, a few on each, with questions and answers."""
    rng = np.random.default_rng(seed)
    by_region: dict[str, list[Record]] = defaultdict(list)
    for country in countries:
        if country.get("region") and country.get("capital") and country.get("currency"):
            by_region[country["region"]].append(country)
    for region in sorted(by_region):
        mixed = [by_region[region][i] for i in rng.permutation(len(by_region[region]))]
        for start in range(0, len(mixed), _COUNTRIES_A_PAGE):
            yield Document(_country_page(region, mixed[start : start + _COUNTRIES_A_PAGE], rng))


def _country_page(region: str, countries: Sequence[Record], rng: np.random.Generator) -> str:
    lines = [f"# Countries and territories of {region}", ""]
    for country in countries:
        lines.append(
            f"The capital of {country['name']} is {country['capital']}. People there pay with the "
            f"{country['currency']}."
        )
    lines += ["", "## Questions", ""]
    for index in rng.permutation(len(countries))[:2]:
        country = countries[index]
        lines.append(f"Question: Of which of these is {country['capital']} the capital?")
        lines.append(f"Answer: It is the capital of {country['name']}.")
    return "\n".join(lines)


def list_pages(lists: Iterable[Record], seed: int) -> Iterator[Document]:
    """A page for each list of names that says what it is."""
    rng = np.random.default_rng(seed)
    for record in lists:
        content = record["content"]
        if not isinstance(content, dict) or not isinstance(content.get("description"), str):
            continue
        for key, entries in content.items():
            if isinstance(entries, list) and len(entries) >= 5 and all(isinstance(e, str) for e in entries):
                yield Document(_list_page(content["description"], key, entries, rng))


def _list_page(description: str, key: str, entries: Sequence[str], rng: np.random.Generator) -> str:
    subject, known = key.replace("_", " "), description.strip().rstrip(".")
    chosen = [entries[i] for i in sorted(rng.permutation(len(entries))[:_ENTRIES_SHOWN])]
    one, *rest = chosen
    return (
        f"# {subject.capitalize()}\n\n{known}. There are {len(entries)} {subject} in the list that this page "
        f"is made from; {len(chosen)} of them are {', '.join(rest)} and {one}.\n\n"
        f"Question: Is {chosen[-1]} one of the {subject}?\nAnswer: Yes, {chosen[-1]} is one of them."
    )


def sum_pages(
    count: int,
    seed: int,
    taken: frozenset[Numbers] = frozenset(),
    is_measured: Callable[[str], bool] = lambda question: False,
) -> Iterator[Document]:
    """So many pages with worked word problems of one level each; measured questions are left out, and all
    with numbers of such.
    """
    for index, level in enumerate(LEVELS):
        pages = len(range(index, count, len(LEVELS)))
        made = word_problems(_PROBLEMS_TRIED * pages, seed, level, taken)
        problems = (one for one in made if not is_measured(str(one.question)))
        for triple in itertools.islice(zip(problems, problems, problems, strict=False), pages):
            worked = [f"Problem: {one.question}\nWorking: {one.answer}" for one in triple]
            heading = f"# Word problems with {level.replace(',', ', numbers')}"
            yield Document(f"{heading}\n\n" + "\n\n".join(worked) + "\n\nCheck each sum by yourself.")
