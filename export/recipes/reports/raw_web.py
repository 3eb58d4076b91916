"""What a crawl of the web holds beside prose, made up: menus, keyword lists, broken text, results of one day,
pages that have been seen before, pages in another language.

The data package has clean prose only, so what a filter must find is made here, and every page says what it is
(`origin`), which nothing that filters may look at. Knows kinds of pages. A page is a function of a generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phirt_train.data.archives import read_records

PROSE = "prose"
_MENU = (
    "Home", "About us", "Contact", "Log in", "Register", "Sitemap", "Privacy policy", "Terms of use", "Help",
    "Downloads", "Careers", "Newsletter", "Search", "Cookie policy", "Next page", "Share this", "Print",
)  # fmt: skip
_TEAMS = ("Rovers", "United", "Rangers", "Wanderers", "Lions", "Hawks", "City", "Albion", "Bears", "Comets")
_SKIES = ("sunny", "cloudy", "wet", "windy", "dry")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _menu(page: str, rng: np.random.Generator) -> str:
    lines = [_pick(rng, _MENU) for _ in range(int(rng.integers(20, 60)))]
    return "\n".join(lines) + "\nAll rights reserved."


def _keywords(page: str, rng: np.random.Generator) -> str:
    words = page.split()[:200]
    return ", ".join(_pick(rng, words).strip(".,;") for _ in range(120))


def _shuffled(page: str, rng: np.random.Generator) -> str:
    words = page.split()
    rng.shuffle(words)
    return " ".join(words)


def _stuck(page: str, rng: np.random.Generator) -> str:
    sentence = page.split("\n")[-1].split(". ")[0]
    return f"{sentence}.\n" * int(rng.integers(8, 20))


def _of_a_day(page: str, rng: np.random.Generator) -> str:
    """A game's result and the weather: true once, of use to nobody (the Phi-3 report's example)."""
    lines = []
    for _ in range(int(rng.integers(6, 12))):
        first, second = (_TEAMS[i] for i in rng.choice(len(_TEAMS), 2, replace=False))
        lines.append(
            f"On {_pick(rng, _DAYS)} the {first} beat the {second} {rng.integers(2, 6)}-{rng.integers(0, 2)} "
            f"in front of {rng.integers(300, 9000)} people, and it was {_pick(rng, _SKIES)} until the end."
        )
    return "\n".join(lines)


def _again(page: str, rng: np.random.Generator) -> str:
    return page


def _nearly_again(page: str, rng: np.random.Generator) -> str:
    words = page.split(" ")
    for place in rng.integers(0, len(words), max(1, len(words) // 100)):
        words[int(place)] = "however"
    return " ".join(words)


_FORMS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "menu": _menu,
    "keywords": _keywords,
    "shuffled": _shuffled,
    "stuck": _stuck,
    "of one day": _of_a_day,
    "again": _again,
    "nearly again": _nearly_again,
}


def raw_pages(
    prose: Sequence[str], foreign: Sequence[str], junk: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Pages of prose in their order, with pages of other kinds between them, as many as `junk` for each page
    of prose. Those that repeat repeat an earlier page.
    """
    rng = np.random.default_rng((seed, 71))
    kinds = [*_FORMS, *(["foreign"] if foreign else [])]
    number, owed = 0, 0.0
    for index, page in enumerate(prose):
        yield {"id": f"web-{number}", "text": page, "origin": PROSE}
        number, owed = number + 1, owed + junk
        while owed >= 1:
            kind = _pick(rng, kinds)
            earlier = prose[int(rng.integers(index + 1))]
            text = _pick(rng, foreign) if kind == "foreign" else _FORMS[kind](earlier, rng)
            yield {"id": f"web-{number}", "text": text, "origin": kind}
            number, owed = number + 1, owed - 1


def french_stories(path: Path) -> list[str]:
    """Stories in French, a page a paragraph."""
    return ["\n".join(page["fr"] for page in record["pages"]) for record in read_records(path)]
