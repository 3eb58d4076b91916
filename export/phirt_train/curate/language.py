"""Which language a text is in, by its script and its commonest words.

Words of grammar make up a third to a half of running text in every language, and each has its own; so lists
of two dozen of them tell the languages below apart within a few sentences. No model and no download. Short
texts, lists and code come out as unknown, which is an answer. Knows text. Knows nothing of what is to be
kept.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Mapping

UNKNOWN = "unknown"
_LOOKED_AT = 2000  # characters: more would not change the answer
_LEAST_SHARE = 0.10  # of all words that must be such words
_LEAST_WORDS = 5
_WORD = re.compile(r"[^\W\d_]+")

# Words of grammar, the commonest first; those that several languages share count for each.
COMMON_WORDS: Mapping[str, str] = {
    "en": "the of and to a in is that it was for on are as with his they at be this from have or by not but",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se sont avec il",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más pero sus le",
    "it": "di e il la che in a per un del è una i con non si le da dei come al della sono anche più ha",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao",
    "nl": "de van een het en in is dat op te zijn met voor niet die aan er om ook als bij maar dan was",
    "sv": "och i att det som en på är av för med till den har de inte om ett men var jag sig från vi så kan",
    "da": "og i at det er en til på som med de for den af ikke der har et han var men om sig fra blev kan",
    "pl": "i w na z do się nie to że jest o jak po co tak za od ale jego przez przy są dla był oraz także",
    "cs": "a se v na je že s z do o i to jako za by k pro ale po jsou ve od byl které jeho jen",
    "tr": "ve bir bu da de için ile olarak çok en daha olan gibi kadar ne o ise ya sonra ki olduğu her var",
    "id": "yang dan di dengan untuk pada dari ini dalam tidak itu adalah ke akan oleh juga atau karena",
    "sw": "ya na wa kwa ni katika la za cha kama hii ili yake kuwa pia au hiyo watu mtu moja sana lakini",
    "ru": "и в не на что с по как это он к из у за от так но а для же был все она его или мы",
    "uk": "і в не на що з до як це та у за від але а для був він її або ми при також року він є",
}  # fmt: skip
# Scripts that one language, or one family, writes with.
_SCRIPTS: tuple[tuple[str, str], ...] = (
    ("ja", "\u3040-\u30ff"), ("ko", "\uac00-\ud7af"), ("zh", "\u4e00-\u9fff"), ("ar", "\u0600-\u06ff"),
    ("he", "\u0590-\u05ff"), ("el", "\u0370-\u03ff"), ("hi", "\u0900-\u097f"), ("th", "\u0e00-\u0e7f"),
)  # fmt: skip
_SCRIPT_SHARE = (
    0.3  # of letters; Japanese mixes its own with Chinese ones, so it is asked for first, and less
)
_KANA_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Guess:
    """A language's code and, from 0 to 1, the share of the text that speaks for it."""

    language: str
    share: float


def guess_language(text: str) -> Guess:
    """The likeliest language, or UNKNOWN."""
    beginning = text[:_LOOKED_AT]
    letters = sum(map(str.isalpha, beginning))
    if not letters:
        return Guess(UNKNOWN, 0.0)
    for language, pattern in _script_patterns().items():
        share = len(pattern.findall(beginning)) / letters
        if share >= (_KANA_SHARE if language == "ja" else _SCRIPT_SHARE):
            return Guess(language, min(1.0, share))
    counts = Counter(_WORD.findall(beginning.lower()))
    total = counts.total()
    if total < _LEAST_WORDS:
        return Guess(UNKNOWN, 0.0)
    shares = {
        language: sum(counts[word] for word in common) / total for language, common in _common_words().items()
    }
    best = max(shares, key=shares.__getitem__)
    return Guess(best, shares[best]) if shares[best] >= _LEAST_SHARE else Guess(UNKNOWN, shares[best])


def common_words(language: str) -> frozenset[str]:
    """The words of grammar of a language; none for a language that is not known."""
    return _common_words().get(language, frozenset())


def known_languages() -> tuple[str, ...]:
    """Codes that a guess can have."""
    return (*COMMON_WORDS, *(language for language, _ in _SCRIPTS))


@functools.cache
def _common_words() -> dict[str, frozenset[str]]:
    return {language: frozenset(found.split()) for language, found in COMMON_WORDS.items()}


@functools.cache
def _script_patterns() -> dict[str, re.Pattern[str]]:
    return {language: re.compile(f"[{characters}]") for language, characters in _SCRIPTS}
