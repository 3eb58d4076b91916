"""What a comparison runs on: a user's own text, or, when nothing is given, sentences, rendered pictures and
synthesised clips.

These are made here, the same every time. They tell how two models differ, not how good either is.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from phirt.errors import ConfigError

SENTENCES = (
    "The ferry leaves the harbour at seven, turns north behind the lighthouse, and reaches the island before "
    "noon if the wind is fair. In winter it sails only twice a week, and the shop keeps more flour in store.",
    "A sorting network compares pairs of values in a fixed order, whatever the values are. That makes it "
    "easy to build in hardware, where every comparison of one layer happens at the same time.",
    "Der Bäcker an der Ecke öffnet um sechs Uhr. Wer früh kommt, bekommt das Brot noch warm, und wer spät "
    "kommt, nimmt, was übrig ist.",
    "El río crece en primavera, cuando la nieve de las montañas se derrite, y baja otra vez en agosto.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)\n",
)
IMAGE_PROMPT = "Describe the picture."
BOTH_PROMPT = "What do you see, and what do you hear?"
_RATE = 16_000


def read_text(path: Path, limit: int) -> str:
    """A text file of at most `limit` bytes.

    Raises:
        ConfigError: it is unreadable, larger, or no UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise ConfigError(f"{path} is larger than {limit} bytes; give a part of it")
        return raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error


def pictures() -> tuple[Image.Image, ...]:
    """A landscape of shapes, a tall page of lines with a table, and a small square of noise."""
    return _shapes(480, 320), _page(300, 420), _noise(96)


def clips() -> tuple[bytes, ...]:
    """WAV files: a rising tone, a voice-like series of harmonics in syllables, and noise in bursts."""
    seconds = np.arange(2 * _RATE) / _RATE
    sweep = np.sin(2 * np.pi * (200 * seconds + 450 * seconds**2))
    syllables = np.clip(np.sin(2 * np.pi * 3 * seconds), 0, 1)
    pitch = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 1.5 * seconds)) / _RATE
    voice = syllables * sum(np.sin(k * pitch) / k for k in range(1, 12))
    bursts = np.random.default_rng(0).standard_normal(len(seconds)) * (np.sin(2 * np.pi * 5 * seconds) > 0)
    return tuple(_wav(samples) for samples in (sweep, voice, bursts))


def _shapes(width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), (142, 190, 230))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, height * 2 // 3, width, height), fill=(86, 140, 70))
    draw.ellipse((width * 3 // 4, 30, width * 3 // 4 + 60, 90), fill=(250, 220, 90))
    draw.rectangle((100, 140, 220, 240), fill=(170, 60, 50), outline=(60, 20, 20), width=3)
    draw.polygon([(90, 140), (160, 80), (230, 140)], fill=(90, 60, 50))
    return picture


def _page(width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), (252, 250, 245))
    draw = ImageDraw.Draw(picture)
    draw.text((30, 20), "INVOICE 2041", fill=(20, 20, 20))
    for row in range(12):
        top = 56 + 26 * row
        item = f"item {row + 1}   {3 * row + 2} x {1.25 * (row + 1):.2f}"
        draw.text((30, top + 4), item, fill=(40, 40, 60))
        draw.line((25, top, width - 25, top), fill=(190, 190, 190))
    return picture


def _noise(side: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def _wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    scaled = (0.5 * samples / np.abs(samples).max()).astype(np.float32)
    soundfile.write(buffer, scaled, _RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
