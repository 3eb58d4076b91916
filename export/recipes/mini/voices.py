"""Speech that is made here: sentences spoken by espeak-ng and flite in many voices.

Knows both programs where they are installed. Knows nothing of frames, tokens or models.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from phirt_train.data.archives import read_records

_FLITE_VOICES = ("awb", "kal16", "rms", "slt")
_ESPEAK_VOICES = ("en-us", "en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbcwmd")
_VARIANTS = (
    "", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5", "+Alex",
    "+Alicia", "+Andrea", "+Andy", "+Annie", "+Antonio", "+Auntie", "+Belinda", "+Denis", "+Gene", "+Jacky",
    "+John", "+Lee", "+Linda", "+Mario", "+Max", "+Michael", "+Mike", "+Steph", "+anika", "+klatt2",
    "+klatt4", "+norbert", "+shelby", "+victor",
)  # fmt: skip
_FLITE_SHARE = 0.5
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def is_installed() -> bool:
    """Whether both programs are there."""
    return shutil.which("espeak-ng") is not None and shutil.which("flite") is not None


def spoken(texts: Sequence[str], seed: int) -> Iterator[tuple[str, bytes]]:
    """Each text with its speech as a FLAC file, in random voices, speeds and pitches."""
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            rng = np.random.default_rng((seed, number))
            speak = _flite if rng.random() < _FLITE_SHARE else _espeak
            wav = Path(folder) / "spoken.wav"
            subprocess.run(speak(text, wav, rng), check=True, capture_output=True)
            yield text, _flac(wav)


Command = tuple[str, ...]


def _flite(text: str, wav: Path, rng: np.random.Generator) -> Command:
    voice = _FLITE_VOICES[rng.integers(len(_FLITE_VOICES))]
    stretch, pitch = f"{rng.uniform(0.8, 1.25):.2f}", f"{rng.uniform(75, 230):.0f}"
    settings = ("--setf", f"duration_stretch={stretch}", "--setf", f"int_f0_target_mean={pitch}")
    return ("flite", "-voice", voice, *settings, "-t", text, "-o", str(wav))


def _espeak(text: str, wav: Path, rng: np.random.Generator) -> Command:
    voice = _ESPEAK_VOICES[rng.integers(len(_ESPEAK_VOICES))] + _VARIANTS[rng.integers(len(_VARIANTS))]
    speed, pitch = str(rng.integers(120, 190)), str(rng.integers(15, 85))
    return ("espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", str(wav), "--", text)


def _flac(wav: Path) -> bytes:
    samples, rate = soundfile.read(wav, dtype="float32")
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def plain_words(text: str) -> str:
    """Lower case, ASCII letters, apostrophes and single spaces."""
    kept = "".join(c if c.isalpha() or c == "'" else " " for c in text.lower() if c.isascii())
    return " ".join(kept.split())


def sentences(data: Path, count: int, seed: int) -> list[str]:
    """Sentences of 3 to 16 words from the training stories, requests and encyclopedia pages."""
    found: list[str] = []
    for record in read_records(data / "text/stories.train.jsonl.xz"):
        for page in record["pages"]:
            found += _cut(page)
    for record in read_records(data / "text/snips.train.jsonl.xz"):
        found.append(record["text"])
    for number, record in enumerate(read_records(data / "text/wikipedia.train.jsonl.xz")):
        if number % 4 == 0:
            found += _cut(record["text"])[:3]
    for record in read_records(data / "text/trivia.train.jsonl.xz"):
        found.append(record["question"])
    allowed = (text for text in found if text.isascii() and not any(c.isdigit() for c in text))
    plain = sorted({plain_words(text) for text in allowed})
    plain = [text for text in plain if 3 <= len(text.split()) <= 16]
    rng = np.random.default_rng(seed)
    return [plain[i] for i in rng.permutation(len(plain))[:count]]


def _cut(text: str) -> list[str]:
    return [part for part in text.replace("?", ".").replace("!", ".").split(".") if part.strip()]
