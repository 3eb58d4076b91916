"""Draws a picture and speaks a clip, whose contents are known exactly.

    python apps/examples/make_examples.py

writes `shapes.png` (a red circle, a blue square and a green triangle) and `seven.flac` (the spoken word
"seven") beside this file. The word comes from espeak-ng; without it a small formant synthesiser here says it,
less well. Needs nothing beyond the runtime's own dependencies. The same input gives the same picture; the
clip depends on the version of espeak-ng.

`shoes.jpg` is no work of this script: it is a photo of A. Grigorev's small clothing dataset (CC0 1.0,
https://github.com/alexeygrigorev/clothing-dataset-small), of the split for validation, on which no recipe
here trains.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 16000
PAPER, RED, BLUE, GREEN = (250, 248, 240), (214, 48, 49), (41, 98, 205), (39, 145, 71)


def draw_shapes(size: int = 384) -> Image.Image:
    """Three shapes on paper, RGB, `size` pixels square; drawn four times larger, so that edges are smooth."""
    big = 4 * size
    picture = Image.new("RGB", (big, big), PAPER)
    pen = ImageDraw.Draw(picture)
    unit = big / 12
    pen.ellipse((1 * unit, 1 * unit, 5 * unit, 5 * unit), fill=RED)
    pen.rectangle((7 * unit, 1 * unit, 11 * unit, 5 * unit), fill=BLUE)
    pen.polygon([(6 * unit, 6.5 * unit), (9 * unit, 11 * unit), (3 * unit, 11 * unit)], fill=GREEN)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def speak(word: str) -> np.ndarray:
    """The word at 16 kHz, float32 in [-1, 1], with a little silence around it. Needs espeak-ng."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "word.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "140", "-w", str(wav), word], check=True)
        samples, rate = soundfile.read(wav, dtype="float32")
    return pad(soxr.resample(samples, rate, SAMPLE_RATE))


def synthesise_seven() -> np.ndarray:
    """The word from noise and three formants a sound: recognisable at best, for want of espeak-ng."""
    rng = np.random.default_rng(7)
    sounds = [
        hiss(rng, 0.16, 5500.0, 0.25),
        voice(0.16, (550.0, 1770.0, 2490.0), 0.6),
        hiss(rng, 0.05, 3500.0, 0.08) + voice(0.05, (250.0, 1200.0, 2200.0), 0.25),
        voice(0.10, (500.0, 1500.0, 2500.0), 0.45),
        voice(0.16, (280.0, 1700.0, 2600.0), 0.3),
    ]
    return pad(np.concatenate(sounds))


def voice(seconds: float, formants: tuple[float, float, float], level: float) -> np.ndarray:
    """A vowel: harmonics of 120 Hz, each as loud as the nearest formants (100 Hz wide) make it."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros_like(time)
    for number in range(1, 40):
        pitch = 120.0 * number
        gain = sum(1.0 / (1.0 + ((pitch - f) / 100.0) ** 2) / (1 + k) for k, f in enumerate(formants))
        wave += gain * np.sin(2 * np.pi * pitch * time)
    return level * wave / np.abs(wave).max() * np.hanning(len(time)) ** 0.3


def hiss(rng: np.random.Generator, seconds: float, centre: float, level: float) -> np.ndarray:
    """A consonant: noise in a band of 2 kHz around `centre`."""
    count = int(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    pitch = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    wave = np.fft.irfft(spectrum * (np.abs(pitch - centre) < 1000.0), count)
    return level * wave / np.abs(wave).max() * np.hanning(count) ** 0.3


def pad(samples: np.ndarray) -> np.ndarray:
    """A tenth of a second of silence on both sides, the loudest sample at 0.8."""
    quiet = np.zeros(SAMPLE_RATE // 10)
    return np.concatenate([quiet, 0.8 * samples / np.abs(samples).max(), quiet]).astype(np.float32)


def main() -> None:
    """Writes both files beside this one."""
    draw_shapes().save(HERE / "shapes.png", optimize=True)
    clip = speak("seven") if shutil.which("espeak-ng") else synthesise_seven()
    soundfile.write(HERE / "seven.flac", clip, SAMPLE_RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
