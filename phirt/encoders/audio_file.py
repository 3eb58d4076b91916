"""Recordings as people have them, decoded to mono samples with limits.

Knows containers, soundfile and numpy. Knows nothing of what an encoder makes of the samples.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from phirt.bundle.manifest import Limits
from phirt.errors import MediaError

AudioSource = str | Path | bytes
Samples = npt.NDArray[np.float32]

_MIN_RATE, _MAX_RATE = 8000, 384_000
_MAX_CHANNELS = 64
_BLOCK = 1 << 16
_SILENCE = 10 ** (-90 / 20)  # peak below -90 dBFS: less than one step of a 16-bit recording
_CONTAINERS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
_ACCEPTED = "WAV, FLAC, OGG or MP3"


def decode(data: bytes, name: str, limits: Limits) -> tuple[Samples, int]:
    """Mono samples float32 [n] (channels averaged) and their rate in Hz.

    Reads block by block, so that memory follows what is really there and not what a header claims.
    """
    _check_wav_header(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, declared = int(file.samplerate), int(file.frames)
            _check_container(file.format, name)
            exact = file.format != "MP3"  # an MP3's length is an estimate
            _check_format(rate, int(file.channels), name)
            longest = int(limits.audio_seconds * rate)
            blocks, count = [], 0
            while len(block := file.read(_BLOCK // int(file.channels) + 1, dtype="float32", always_2d=True)):
                blocks.append(block.mean(axis=1, dtype=np.float32))
                count += len(block)
                if count > longest:
                    raise MediaError(
                        f"{name} is longer than {limits.audio_seconds:g} seconds, the limit of this bundle; "
                        "cut it into parts"
                    )
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise MediaError(
            f"{name} is no recording that can be read ({error}); accepted: {_ACCEPTED}"
        ) from error
    if count == 0:
        raise MediaError(f"{name} holds no samples; give a complete recording")
    if exact and count < declared < 1 << 62:  # libsndfile reports 2^63 - 1 where the length is not known
        raise MediaError(f"{name} declares {declared} samples and holds {count}; it is damaged or incomplete")
    return np.concatenate(blocks), rate


def check_samples(samples: Samples, name: str) -> None:
    """Refuses what no model can hear: NaN, infinities, silence. Raises MediaError."""
    if not np.isfinite(samples).all():
        raise MediaError(
            f"{name} holds samples that are no numbers (NaN or infinite); record or convert it again"
        )
    if float(np.abs(samples).max()) < _SILENCE:
        raise MediaError(f"{name} is silent: no sample reaches -90 dBFS; check the recording")


def _check_container(found: str, name: str) -> None:
    """libsndfile reads more containers, but does not notice when a file of those is cut."""
    if found not in _CONTAINERS:
        raise MediaError(f"{name} is {found}, accepted: {_ACCEPTED}; convert it to one of them")


def _check_format(rate: int, channels: int, name: str) -> None:
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise MediaError(f"{name} has {rate} samples a second, accepted: {_MIN_RATE} to {_MAX_RATE}")
    if not 1 <= channels <= _MAX_CHANNELS:
        raise MediaError(f"{name} has {channels} channels, accepted: 1 to {_MAX_CHANNELS}")


def _check_wav_header(data: bytes, name: str) -> None:
    """Refuses a WAV whose data chunk claims more bytes than follow it: libsndfile would silently read what is
    left.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        present = len(data) - position - 8
        if data[position : position + 4] == b"data":
            if size > present:
                raise MediaError(
                    f"{name} declares {size} bytes of sound and holds {present}; it is damaged or "
                    "incomplete: save it again"
                )
            return
        position += 8 + size + size % 2
    raise MediaError(f"{name} has no sound data; it is damaged or incomplete: save it again")
