"""The calibration text that ships with the package: it can be read, varied, and of a size that is settled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import phirt_export
from phirt_export.calibration import read_samples

FOLDER = Path(phirt_export.__file__).parent / "calibration" / "text"
FILES = ("code.jsonl", "languages.jsonl", "prose.jsonl", "turns.jsonl")

# Written without spaces, or with particles at the ends of words: their frequent ones are looked for anywhere.
WITHIN_WORDS = ("Chinese", "Japanese", "Korean", "Thai")
# One passage each, in this order, known by words that are frequent in the language.
LANGUAGES = (
    ("Arabic", "إن في"),
    ("Chinese", "的 了"),
    ("Czech", "si na je"),
    ("Danish", "af og det"),
    ("Dutch", "een van de"),
    ("Finnish", "ja kun"),
    ("French", "le la des"),
    ("German", "und der nicht"),
    ("Greek", "και το"),
    ("Hebrew", "לא אבל"),
    ("Hindi", "है के"),
    ("Hungarian", "és az"),
    ("Indonesian", "yang dan"),
    ("Italian", "che il della"),
    ("Japanese", "の は"),
    ("Korean", "다 는"),
    ("Norwegian", "og på er"),
    ("Persian", "را که"),
    ("Polish", "się nie na"),
    ("Portuguese", "que com os"),
    ("Romanian", "și nu"),
    ("Russian", "и что"),
    ("Spanish", "que para la"),
    ("Swahili", "na kwa"),
    ("Swedish", "och att som"),
    ("Thai", "ที่ ไม่"),
    ("Turkish", "ama da"),
    ("Ukrainian", "і що"),
    ("Urdu", "ہے اور"),
    ("Vietnamese", "không của"),
)


def lines(name: str) -> list[str]:
    return (FOLDER / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_a_sample(name):
    samples = read_samples([FOLDER / name])
    assert len(samples) == len(lines(name)) > 0
    is_turns = name == "turns.jsonl"
    for sample in samples:
        assert not sample.images and not sample.audio
        assert bool(sample.text) != is_turns and bool(sample.prompt and sample.answer) == is_turns


def test_the_folder_holds_samples_alone():
    """It is read as a whole, so a page about it would be calibrated with."""
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(FILES)
    assert len(read_samples([FOLDER])) == sum(len(lines(name)) for name in FILES)


def test_the_size_is_between_90_and_200_kb():
    assert 90_000 < sum((FOLDER / name).stat().st_size for name in FILES) < 200_000


def test_no_sample_comes_twice():
    """Nor does any run of eight words, but in code, where one language has few ways to say a thing."""
    every = [line for name in FILES for line in lines(name)]
    assert len(set(every)) == len(every)
    first: dict[tuple[str, ...], int] = {}
    for number, sample in enumerate(s for name in FILES[1:] for s in read_samples([FOLDER / name])):
        words = re.findall(r"\w+", (sample.text or sample.answer).lower())
        for run in zip(*(words[i:] for i in range(8)), strict=False):
            assert first.setdefault(run, number) == number, " ".join(run)


def test_thirty_languages():
    """The words of each language are all found in its own passage, and in no other."""
    passages = [sample.text for sample in read_samples([FOLDER / "languages.jsonl"])]
    assert len(passages) == len(LANGUAGES) == 30
    words = [set(re.findall(r"[\w\u0900-\u097f]+", passage.lower())) for passage in passages]
    for number, (language, frequent) in enumerate(LANGUAGES):
        places = passages if language in WITHIN_WORDS else words
        found = [i for i, place in enumerate(places) if all(word in place for word in frequent.split())]
        assert found == [number], language


def test_answers_write_no_control_tokens():
    """Those would be read as the model's own."""
    assert not any("<|" in line for name in FILES for line in lines(name))
