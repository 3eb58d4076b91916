"""Rules that drop a document: bounds of what `measures` measures, each with the reason that a report gives.

Bounds are those of Gopher (J. Rae et al. 2021, table A1) and FineWeb (G. Penedo et al. 2024, section 3.6)
where they name one; a recipe's file may move them or leave a rule out. Knows bounds and reasons. Knows
nothing of files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from phirt.errors import ConfigError
from phirt.fields import Length, Range
from phirt_train.curate.language import UNKNOWN, guess_language, known_languages
from phirt_train.curate.measures import MEASURES, Text

_NO_BOUND = 1e18


@dataclasses.dataclass(frozen=True)
class Rule:
    """A text is kept while low <= measure <= high."""

    measure: str
    reason: str
    low: float = -_NO_BOUND
    high: float = _NO_BOUND

    def holds(self, value: float) -> bool:
        """Whether the value is acceptable."""
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a recipe's file says of a rule: other bounds, or that it does not apply."""

    low: Annotated[float, Range(-_NO_BOUND, _NO_BOUND)] = -_NO_BOUND
    high: Annotated[float, Range(-_NO_BOUND, _NO_BOUND)] = _NO_BOUND
    off: bool = False

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}, which no value fulfils")


# In the order in which they are asked: what is cheap to measure first.
PROSE: tuple[Rule, ...] = (
    Rule("words", "too short or too long", 50, 100_000),
    Rule("mean_word_length", "words of unusual length", 3, 10),
    Rule("longest_word", "a word of more than 1000 letters", high=1000),
    Rule("hashes_per_word", "mostly symbols", high=0.1),
    Rule("ellipses_per_word", "mostly ellipses", high=0.1),
    Rule("words_with_letters", "few words with letters", low=0.8),
    Rule("common_words", "hardly a word of grammar", low=2),
    Rule("lines_with_bullets", "a list", high=0.9),
    Rule("lines_with_ellipsis", "lines that are cut off", high=0.3),
    Rule("lines_with_end", "lines that are no sentences", low=0.12),
    Rule("short_lines", "short lines, as of a menu", high=0.67),
    Rule("braces_per_word", "program code", high=0.02),
    Rule("placeholders_per_line", "a page's furniture", high=0.2),
    Rule("repeated_lines", "lines that repeat", high=0.3),
    Rule("repeated_line_characters", "lines that repeat", high=0.1),
    Rule("repeated_paragraphs", "paragraphs that repeat", high=0.3),
    Rule("top_2_gram", "two words that repeat", high=0.2),
    Rule("top_3_gram", "three words that repeat", high=0.18),
    Rule("top_4_gram", "four words that repeat", high=0.16),
    Rule("repeated_5_grams", "runs of words that repeat", high=0.15),
    Rule("repeated_10_grams", "runs of words that repeat", high=0.10),
    Rule("sentences_of_a_day", "trivia of one day, such as a game's result", high=0.25),
)
# Questions, dialogues, code: a text is what it is, and only what is no text at all goes.
ANY: tuple[Rule, ...] = (
    Rule("words", "too short or too long", 3, 100_000),
    Rule("longest_word", "a word of more than 1000 letters", high=1000),
    Rule("repeated_lines", "lines that repeat", high=0.5),
)
RULE_SETS: Mapping[str, tuple[Rule, ...]] = {"prose": PROSE, "any": ANY, "none": ()}


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Which texts of a source are kept.

    Attributes:
        languages: accepted ones; empty for any, the unknown too.
        rules: a set of rules by name.
        change: other bounds by measure.
    """

    languages: Annotated[tuple[str, ...], Length(0, 64)] = ()
    rules: str = "prose"
    change: Mapping[str, Bounds] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _accepted("language", self.languages, (*known_languages(), UNKNOWN))
        _accepted("set of rules", [self.rules], RULE_SETS)
        _accepted("measure", self.change, MEASURES)


def rules_of(config: QualityConfig) -> tuple[Rule, ...]:
    """The rules as the file has changed them; a measure that the set lacks becomes a rule of its own."""
    given = {rule.measure: rule for rule in RULE_SETS[config.rules]}
    for measure, bounds in config.change.items():
        if bounds.off:
            given.pop(measure, None)
            continue
        reason = given[measure].reason if measure in given else f"{measure} out of bounds"
        given[measure] = Rule(measure, reason, bounds.low, bounds.high)
    return tuple(given.values())


def judge(text: str, rules: Sequence[Rule], languages: Sequence[str]) -> str | None:
    """Why the text is to be dropped; None where it is kept."""
    language = guess_language(text).language
    if languages and language not in languages:
        return f"language: {language}"
    measured = Text(text, language)
    for rule in rules:
        value = MEASURES[rule.measure](measured)
        if not rule.holds(value):
            return f"{rule.measure}: {rule.reason}"
    return None


def _accepted(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    accepted = list(known)
    for one in given:
        if one not in accepted:
            raise ConfigError(f"{one!r} is no {kind} that is known, accepted: {', '.join(accepted)}")
