"""Pictures and recordings for golden conversations, drawn and played here, so that a package needs none of
anybody's.

Knows arrays, and the two plainest file formats that there are: PPM and WAV. Each is made by whole formulas of
float64, so that it is the same wherever a package is made.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.int16]

RATE = 16000
_HEIGHT, _WIDTH = 180, 240


def ppm(pixels: Pixels) -> bytes:
    """A picture as a file."""
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def wav(samples: Samples) -> bytes:
    """A recording as a file."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return stream.getvalue()


def shapes() -> Pixels:
    """uint8 [180, 240, 3]: a red disc, a green square and a blue triangle on a sky that gets lighter."""
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    picture = np.empty((_HEIGHT, _WIDTH, 3), np.uint8)
    picture[...] = (200 + 40 * y // _HEIGHT)[..., None]
    picture[..., 2] = 235
    picture[(x - 60) ** 2 + (y - 60) ** 2 < 38**2] = (210, 40, 40)
    picture[(abs(x - 175) < 34) & (abs(y - 62) < 34)] = (40, 160, 70)
    picture[(y > 105) & (y < 165) & (abs(x - 120) < (y - 105) // 2 + 4)] = (40, 70, 200)
    return picture


def landscape() -> Pixels:
    """uint8 [180, 240, 3]: hills under a sun, with the noise of a camera."""
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    picture = np.empty((_HEIGHT, _WIDTH, 3), np.uint8)
    picture[..., 0], picture[..., 1], picture[..., 2] = 90 + y // 2, 150 + y // 3, 235 - y // 9
    picture[(x - 180) ** 2 + (y - 40) ** 2 < 20**2] = (250, 230, 120)
    for level, length, colour in (
        (95, 37, (110, 140, 90)),
        (120, 23, (70, 120, 60)),
        (150, 51, (50, 90, 40)),
    ):
        picture[y > level + 14 * np.sin(x / length)] = colour
    grain = (x * 7919 + y * 104729 + x * y * 31) % 17 - 8
    picture[...] = np.clip(picture.astype(np.int64) + grain[..., None], 0, 255)
    return picture


def stripes() -> Pixels:
    """uint8 [180, 240, 3]: black and white, tall where the others are wide."""
    y, x = np.mgrid[:_WIDTH, :_HEIGHT]
    picture = np.empty((_WIDTH, _HEIGHT, 3), np.uint8)
    picture[...] = ((x + y) // 20 % 2 * 255)[..., None]
    return picture


def voice() -> Samples:
    """int16 [24000], 16 kHz: three vowels, which is to say a buzz through moving resonances."""
    time = np.arange(RATE * 3 // 2) / RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 1.3 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    first = np.interp(time, [0, 0.5, 1.0, 1.5], [300, 700, 400, 350])
    second = np.interp(time, [0, 0.5, 1.0, 1.5], [2200, 1200, 900, 2000])
    sound = np.zeros_like(time)
    for number in range(1, 40):
        frequency = number * pitch
        weight = 1 / (1 + ((frequency - first) / 90) ** 2) + 0.5 / (1 + ((frequency - second) / 130) ** 2)
        sound += weight * np.sin(number * phase) * (frequency < RATE / 2)
    sound *= np.clip(np.minimum(time, time[-1] - time) * 12, 0, 1) * (
        0.6 + 0.4 * np.cos(2 * np.pi * 2 * time)
    )
    return _loud(sound)


def melody() -> Samples:
    """int16 [20800], 16 kHz: four notes, each dying away."""
    time = np.arange(RATE * 13 // 10) / RATE
    note = np.minimum((time / 0.33).astype(np.int64), 3)
    pitch = np.array([392.0, 440.0, 349.2, 261.6])[note]
    sound = np.sin(2 * np.pi * pitch * time) + 0.3 * np.sin(4 * np.pi * pitch * time)
    return _loud(sound * np.exp(-6 * (time - 0.33 * note)))


PICTURES: Mapping[str, Callable[[], Pixels]] = {
    "golden-shapes.ppm": shapes,
    "golden-landscape.ppm": landscape,
    "golden-stripes.ppm": stripes,
}
RECORDINGS: Mapping[str, Callable[[], Samples]] = {"golden-voice.wav": voice, "golden-melody.wav": melody}


def _loud(sound: npt.NDArray[np.float64]) -> Samples:
    samples: Samples = np.round(sound / np.abs(sound).max() * 12000).astype(np.int16)
    return samples
