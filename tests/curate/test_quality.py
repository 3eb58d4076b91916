"""Rules and languages: each rule drops what it is for and keeps plain prose."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from phirt.errors import ConfigError
from phirt_train.curate.language import UNKNOWN, guess_language
from phirt_train.curate.measures import MEASURES, Text
from phirt_train.curate.quality import PROSE, Bounds, QualityConfig, judge, rules_of

GOOD = (
    "The heart of a bird is larger, for its size, than that of a mammal, and it beats faster. Warm blood "
    "must reach the muscles of the wings without delay, and so the walls of the chambers are thick.\n"
    "In small birds the heart makes up more than two parts in a hundred of the weight of the body. A bird "
    "that rests slows it down, and one that has been frightened may need minutes to calm itself again.\n"
    "How the rate is governed has been studied with radio senders since the nineteen sixties."
)
SAMPLES = {
    "en": "The cat sat on the mat and it was not at all sure what to do with this.",
    "de": "Der Hund ist nicht in dem Haus, und die Katze sitzt auf der Bank mit einem Vogel.",
    "fr": "Le chat est dans la maison et il ne veut pas sortir avec les enfants du village.",
    "es": "El perro no está en la casa y los niños se van con una pelota por el parque.",
    "it": "Il gatto non è nella casa e la bambina va con il cane per una strada del paese.",
    "pt": "O gato não está em casa e os meninos vão com uma bola para o parque do bairro.",
    "nl": "De hond is niet in het huis en de kat zit op een bank met een vogel van hout.",
    "sv": "Hunden är inte i huset och katten sitter på en bänk med en fågel som är av trä.",
    "pl": "Pies nie jest w domu, a kot siedzi na ławce i patrzy się na ptaki, które są z drewna.",
    "ru": "Собака не в доме, и кошка сидит на скамейке, но она не видит птицу из дерева.",
    "ja": "犬は家にいません。猫はベンチに座っています。",
    "zh": "狗不在家里，猫坐在长椅上看着一只木头做的鸟。",
    "ko": "개는 집에 없고 고양이는 벤치에 앉아 있습니다.",
    "ar": "الكلب ليس في البيت والقطة تجلس على المقعد مع طائر",
    "el": "Ο σκύλος δεν είναι στο σπίτι και η γάτα κάθεται",
}


@pytest.mark.parametrize("language", SAMPLES)
def test_languages(language: str) -> None:
    assert guess_language(SAMPLES[language]).language == language


@pytest.mark.parametrize("text", ["", "12 34", "x = f(y)", "Kabul Paris Rome", "qwf zxc arst oien hjkl vbnm"])
def test_no_language(text: str) -> None:
    assert guess_language(text).language == UNKNOWN


def test_plain_prose_stays() -> None:
    assert judge(GOOD, PROSE, ("en",)) is None


@pytest.mark.parametrize(
    ("measure", "text"),
    [
        ("words", "The end of it is near and that is all."),
        ("mean_word_length", "a b c d of it to is " * 20),
        ("longest_word", GOOD + " " + "x" * 1001),
        ("hashes_per_word", GOOD.replace(" of ", " # # # # # # # of ")),
        ("ellipses_per_word", GOOD.replace(" of ", " ... ... ... of ")),
        ("words_with_letters", GOOD + " 1234 5678 90.3" * 30),
        ("common_words", " ".join(f"nucleotide{n} sequence{n}." for n in range(40))),
        ("lines_with_bullets", "\n".join(f"- the {n} of this is not a point." for n in "abcdefghijk")),
        ("lines_with_ellipsis", "\n".join(f"The {n} of this is what we find in..." for n in "abcdefghijk")),
        ("lines_with_end", GOOD.replace(".", "").replace(" of ", "\nof ")),
        ("short_lines", "\n".join(f"And so it is {n}." for n in range(20))),
        ("braces_per_word", GOOD + " { a } { b } { c }"),
        ("placeholders_per_line", GOOD + "\nAll rights reserved. Privacy policy and the terms of use."),
        ("repeated_lines", "\n".join([*GOOD.splitlines(), *["This line is here again and again."] * 3])),
        ("top_2_gram", GOOD + " " + "very good. " * 60),
        ("repeated_5_grams", GOOD + " " + GOOD.replace("\n", " ")),
        (
            "sentences_of_a_day",
            "The Tigers beat the Hawks 21-14 on Sunday in front of a full house. Miller scored two goals in "
            "the first half of the game, and it was over before the break. The Rovers lost to the Town 2-0 "
            "at home. Smith finished with 31 points and 12 rebounds for his side, who now lead the table of "
            "the north. The coach was pleased with what he had seen, and said so to the press after it.",
        ),
    ],
)
def test_each_rule_drops_what_it_is_for(measure: str, text: str) -> None:
    rules = [rule for rule in PROSE if rule.measure == measure]
    assert all(rule.holds(MEASURES[measure](Text(GOOD, "en"))) for rule in rules)
    reason = judge(text, rules, ())
    assert reason is not None and reason.startswith(f"{measure}: ")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The Nasdaq index closed 2.3 % lower at 4,511.", 1.0),
        ("The winning numbers were 4, 8, 15 and 16.", 1.0),
        ("Sunny with highs near 30 on Sunday.", 1.0),
        ("The war ended in 1945 when the last army had laid down its arms.", 0.0),
        ("Rome defeated Carthage, and 700 years later fell itself.", 0.0),
        ("He was born on a Sunday. He lived to be 90.", 0.0),
        ("A ratio of 3:1 is common. It was so in each of the trials.", 0.0),
    ],
)
def test_what_is_trivia_of_a_day(text: str, share: float) -> None:
    assert MEASURES["sentences_of_a_day"](Text(text, "en")) == share


def test_other_languages_go() -> None:
    assert judge(SAMPLES["fr"] * 10, (), ("en",)) == "language: fr"
    assert judge(SAMPLES["fr"] * 10, (), ("en", "fr")) is None


def test_a_file_moves_a_rule_and_leaves_one_out() -> None:
    changed = rules_of(
        QualityConfig(rules="any", change={"words": Bounds(low=2), "longest_word": Bounds(off=True)})
    )
    assert (changed[0].measure, changed[0].low) == ("words", 2)
    assert "longest_word" not in [rule.measure for rule in changed]


@pytest.mark.parametrize(
    "values", [{"languages": ("xx",)}, {"rules": "nice"}, {"change": {"beauty": Bounds()}}]
)
def test_unknown_names(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"is no .* that is known, accepted: "):
        QualityConfig(**values)  # type: ignore[arg-type]


def test_an_encyclopedia_stays(shared_data: Path) -> None:
    with lzma.open(shared_data / "text" / "wikipedia.val.jsonl.xz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:100]
    assert sum(judge(text, PROSE, ("en",)) is None for text in texts) >= 97
