"""What can be measured of a text, each a number by name: the rules of `quality` say which numbers are
acceptable.

Definitions follow Gopher (J. Rae et al. 2021, table A1), C4 (C. Raffel et al. 2020, section 2.2) and FineWeb
(G. Penedo et al. 2024, section 3.6). Knows text. Knows no bounds.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from phirt_train.curate.language import common_words

_BULLETS = ("-", "*", "•", "·", "‣", "◦", "–")
_SENTENCE_ENDS = (".", "!", "?", '"', "'", "”", "’", ")", "…", "。", "！", "？")
_SENTENCE_GAP = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
_PLACEHOLDER = re.compile(
    r"lorem ipsum|javascript (?:is|must be) (?:disabled|enabled)|enable javascript|"
    r"cookie policy|terms of use|privacy policy|all rights reserved",
    re.IGNORECASE,
)
_SHORT_LINE = 30

_SCORE = r"\b\d{1,3}\s?[-–:]\s?\d{1,3}\b"
_DAY = r"(?:on \w{3,6}day|yesterday|today|tonight|last night|this (?:morning|evening|week))"
_WON = r"\b(?:beat|beats|defeated|edged|thrashed|routed|lost to|win over|victory over|drew with|fell to)\b"
_SCORED = r"\b(?:scored|kicked|threw for|netted|finished with)\b"
_COUNTED = r"\b(?:goals?|points|runs?|touchdowns?|yards|rebounds|home runs?)\b"
_STOCKS = r"\b(?:index|shares|stocks?|dow|nasdaq|ftse|dax)\b"
_MOVED = r"\b(?:closed|fell|rose|gained|dropped|ended)\b"
_SKY = r"\b(?:sunny|cloudy|showers|highs? (?:of|near)|lows? (?:of|near))\b"
# What held on one day: who beat whom, what shares cost at closing time, which numbers were drawn, what the
# sky was.
_OF_A_DAY = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_WON}.{{0,80}}{_SCORE}",
        rf"{_SCORE}.{{0,60}}\b(?:win|victory|defeat|loss|draw|lead)\b",
        rf"{_SCORED}.{{0,40}}\b(?:\d+|one|two|three|four)\b.{{0,30}}{_COUNTED}",
        rf"{_STOCKS}.{{0,60}}{_MOVED}.{{0,40}}\d",
        r"\b(?:winning (?:lottery )?numbers|jackpot)\b.{0,60}\d",
        rf"{_SKY}.{{0,60}}\b{_DAY}\b",
        rf"\b{_DAY}\b.{{0,60}}{_SKY}",
    )
)

Measure = Callable[["Text"], float]


class Text:
    """A text with what several measures need, made when it is first asked for."""

    def __init__(self, text: str, language: str) -> None:
        self.text = text
        self.language = language

    @functools.cached_property
    def words(self) -> list[str]:
        """What blanks part."""
        return self.text.split()

    @functools.cached_property
    def lines(self) -> list[str]:
        """Lines that are not empty."""
        return [line.strip() for line in self.text.splitlines() if line.strip()]

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        """What empty lines part."""
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]


def _share(count: float, total: float) -> float:
    return count / total if total else 0.0


def _line_share(of: Text, holds: Callable[[str], bool]) -> float:
    return _share(sum(map(holds, of.lines)), len(of.lines))


def _repeated_share(parts: Sequence[str]) -> float:
    return _share(len(parts) - len(set(parts)), len(parts))


def _repeated_characters(parts: Sequence[str]) -> float:
    seen: set[str] = set()
    repeated = 0
    for part in parts:
        repeated += len(part) if part in seen else 0
        seen.add(part)
    return _share(repeated, sum(map(len, parts)))


def _top_gram(of: Text, length: int) -> float:
    """The share of the text's characters that the commonest run of `length` words makes up; 0 where none
    recurs.
    """
    grams = Counter(zip(*(of.words[at:] for at in range(length)), strict=False))
    if not grams:
        return 0.0
    gram, count = max(grams.items(), key=lambda one: (one[1] * sum(map(len, one[0])), one[0]))
    return _share(count * sum(map(len, gram)), sum(map(len, of.words))) if count > 1 else 0.0


def _repeated_grams(of: Text, length: int) -> float:
    """The share of characters that stand in a run of `length` words that has occurred before."""
    seen: set[tuple[str, ...]] = set()
    repeated = [False] * len(of.words)
    for at, gram in enumerate(zip(*(of.words[offset:] for offset in range(length)), strict=False)):
        if gram in seen:
            repeated[at : at + length] = [True] * length
        seen.add(gram)
    characters = sum(len(word) for word, again in zip(of.words, repeated, strict=True) if again)
    return _share(characters, sum(map(len, of.words)))


def _of_a_day(of: Text) -> float:
    """The share of sentences that tell what held on one day alone."""
    sentences = [part for part in _SENTENCE_GAP.split(of.text) if len(part.split()) > 2]
    return _share(sum(any(p.search(one) for p in _OF_A_DAY) for one in sentences), len(sentences))


def _common(of: Text) -> float:
    known = common_words(of.language)
    return float(len(known.intersection(word.strip(".,;:!?\"'()").lower() for word in of.words)))


MEASURES: Mapping[str, Measure] = {
    "words": lambda of: float(len(of.words)),
    "mean_word_length": lambda of: _share(sum(map(len, of.words)), len(of.words)),
    "longest_word": lambda of: float(max(map(len, of.words), default=0)),
    "hashes_per_word": lambda of: _share(of.text.count("#"), len(of.words)),
    "ellipses_per_word": lambda of: _share(of.text.count("...") + of.text.count("…"), len(of.words)),
    "lines_with_bullets": lambda of: _line_share(of, lambda line: line.startswith(_BULLETS)),
    "lines_with_ellipsis": lambda of: _line_share(of, lambda line: line.endswith(("...", "…"))),
    "lines_with_end": lambda of: _line_share(of, lambda line: line.endswith(_SENTENCE_ENDS)),
    "short_lines": lambda of: _line_share(of, lambda line: len(line) <= _SHORT_LINE),
    "words_with_letters": lambda of: _share(sum(any(map(str.isalpha, w)) for w in of.words), len(of.words)),
    "common_words": _common,
    "braces_per_word": lambda of: _share(of.text.count("{") + of.text.count("}"), len(of.words)),
    "placeholders_per_line": lambda of: _share(len(_PLACEHOLDER.findall(of.text)), len(of.lines)),
    "repeated_lines": lambda of: _repeated_share(of.lines),
    "repeated_line_characters": lambda of: _repeated_characters(of.lines),
    "repeated_paragraphs": lambda of: _repeated_share(of.paragraphs),
    "top_2_gram": lambda of: _top_gram(of, 2),
    "top_3_gram": lambda of: _top_gram(of, 3),
    "top_4_gram": lambda of: _top_gram(of, 4),
    "repeated_5_grams": lambda of: _repeated_grams(of, 5),
    "repeated_10_grams": lambda of: _repeated_grams(of, 10),
    "sentences_of_a_day": _of_a_day,
}
