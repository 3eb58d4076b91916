"""Speech that is made here: digits, questions and short sentences, spoken by espeak-ng in many voices.

Knows espeak-ng where it is installed. Knows nothing of frames, tokens or models.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from phirt_train.data.archives import read_records

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = (
    "What is this?", "What is in the picture?", "What piece of clothing is this?", "Which product is this?",
    "What shape is this?", "How many shapes are there?", "What does it say?",
)  # fmt: skip
VOICES = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# Ways of speaking that espeak-ng brings; a release that lacks one speaks in the plain voice.
VARIANTS = (
    "", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+m8", "+f1", "+f2", "+f3", "+f4", "+f5",
    "+Alex", "+Alicia", "+Andrea", "+Andy", "+Annie", "+Antonio", "+Auntie", "+Belinda", "+Benjamin",
    "+Boris", "+Caleb", "+David", "+Denis", "+Diogo", "+Ed", "+Edward", "+Gene", "+Henrique", "+Hugo",
    "+Jacky", "+John", "+Lee", "+Linda", "+Marcelo", "+Marco", "+Mario", "+Max", "+Michael", "+Michel",
    "+Mike", "+Pablo", "+Paul", "+Pedro", "+Rob", "+Robert", "+Steph", "+Zac", "+anika", "+grandma",
    "+grandpa", "+klatt", "+klatt2", "+klatt3", "+klatt4", "+norbert", "+sandro", "+shelby", "+travis",
    "+victor",
)  # fmt: skip


def is_installed() -> bool:
    """Whether there is an espeak-ng."""
    return shutil.which("espeak-ng") is not None


def speak(text: str, voice: str, words_a_minute: int, pitch: int) -> bytes:
    """Speech of `text` made by espeak-ng, as a WAV file."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(words_a_minute), "-p", str(pitch), "--", text]
    done = subprocess.run(command, check=True, capture_output=True)
    # espeak-ng streams a WAV whose header declares no true length; the samples follow its 44 bytes.
    samples = np.frombuffer(done.stdout[44:], "<i2")
    wav = io.BytesIO()
    soundfile.write(wav, samples, int.from_bytes(done.stdout[24:28], "little"), "PCM_16", format="WAV")
    return wav.getvalue()


def spoken(texts: Sequence[str], seed: int, voices: Sequence[str] = VOICES) -> Iterator[tuple[str, bytes]]:
    """Each text with its speech, in random voices of these, speeds and pitches."""
    rng = np.random.default_rng(seed)
    plans = [
        (text, voices[int(rng.integers(len(voices)))] + VARIANTS[rng.integers(len(VARIANTS))],
         int(rng.integers(120, 190)), int(rng.integers(15, 85)))
        for text in texts
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        yield from zip(texts, pool.map(lambda plan: speak(*plan), plans), strict=True)


def plain_words(text: str) -> str:
    """Lower case, ASCII letters and apostrophes and single spaces."""
    kept = "".join(c if c.isalpha() or c == "'" else " " for c in text.lower() if c.isascii())
    return " ".join(kept.split())


def sentences(data: Path, count: int, seed: int) -> list[str]:
    """Short sentences from the training stories and requests."""
    found = []
    for record in read_records(data / "text/stories.train.jsonl.xz"):
        for page in record["pages"]:
            found += [part for part in page.replace("?", ".").replace("!", ".").split(".") if part]
    for record in read_records(data / "text/snips.train.jsonl.xz"):
        if record["text"].isascii():
            found.append(record["text"])
    plain = sorted({plain_words(text) for text in found if not any(c.isdigit() for c in text)})
    plain = [text for text in plain if 2 <= len(text.split()) <= 10]
    rng = np.random.default_rng(seed)
    return [plain[i] for i in rng.permutation(len(plain))[:count]]
