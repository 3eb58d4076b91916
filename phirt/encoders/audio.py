"""From a recording to the speech graph's input: decoding with limits, resampling, log-mel frames.

Knows soundfile, soxr and numpy. Knows nothing of sessions. Formulas are those of Phi-4-multimodal's feature
extractor.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from phirt.bundle.manifest import AudioSpec, Limits
from phirt.encoders.source import content_key, read_source
from phirt.errors import MediaError

AudioSource = str | Path | bytes
Samples = npt.NDArray[np.float32]

_MIN_RATE, _MAX_RATE = 8000, 384_000
_MAX_CHANNELS = 64
_BLOCK = 1 << 16
_SILENCE = 10 ** (-90 / 20)  # peak below -90 dBFS: less than one step of a 16-bit recording
_FFT_AT_16K = 512
_MEL_TOP = 7690.0  # Hz
_FRAMES_AT_ONCE = 512  # bounds the memory of half an hour's frames, and keeps them in the processor's cache
_LAST_BIN = 245  # the original leaves out bin 246, though its triangle would still touch it
_CONTAINERS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
_ACCEPTED = "WAV, FLAC, OGG or MP3"


def process_audio(
    source: AudioSource, spec: AudioSpec, limits: Limits
) -> tuple[npt.NDArray[np.float32], str]:
    """Decodes a recording. Returns its log-mel frames float32 [frames, num_mels] and a key that names the
    content.

    Raises MediaError for what cannot be read, is damaged, silent, too short or longer than the limit.
    """
    data, name = read_source(source, "audio", limits.media_bytes)
    samples, rate = decode(data, name, limits)
    check_samples(samples, name)
    if rate not in (8000, spec.sample_rate):
        samples = np.asarray(soxr.resample(samples, rate, spec.sample_rate, quality="HQ"), dtype=np.float32)
        rate = spec.sample_rate
    window = rate // 40
    if len(samples) < window:
        raise MediaError(
            f"{name} has {len(samples)} samples at {rate} Hz; at least {window} are needed (25 ms)"
        )
    return log_mel(samples, rate, spec.num_mels), content_key(b"audio", data)


def count_tokens(frames: int, spec: AudioSpec) -> int:
    """Placeholders for `frames` log-mel frames."""
    return -(-frames // spec.subsampling)


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


def log_mel(samples: Samples, rate: int, num_mels: int) -> npt.NDArray[np.float32]:
    """float32 [frames, num_mels] from mono samples at 16 or 8 kHz (spec section C).

    Frames of 25 ms every 10 ms, not centred, the tail dropped: (len - window) // hop + 1 of them.
    Pre-emphasis works within each frame. At 8 kHz the upper half of the spectrum is zero ("fillzero").
    """
    assert rate in (8000, 16000)
    window, hop = rate // 40, rate // 100
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    mel = np.empty((len(frames), num_mels), dtype=np.float32)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        part = slice(start, start + _FRAMES_AT_ONCE)
        mel[part] = _log_mel_of(frames[part].astype(np.float64), rate, num_mels)
    return mel


def _log_mel_of(frames: npt.NDArray[np.float64], rate: int, num_mels: int) -> npt.NDArray[np.float64]:
    """[frames, num_mels] from the samples of frames [frames, window]."""
    previous = np.roll(frames, 1, axis=1)
    previous[:, 0] = previous[:, 1]
    emphasised = (frames - 0.97 * previous) * 32768.0
    size = _FFT_AT_16K * rate // 16000
    spectrum = np.abs(np.fft.rfft(emphasised * np.hamming(frames.shape[1]), n=size, axis=1)) ** 2
    # At 8 kHz the bins from Nyquist up count as zero; the filters of bins that are not there weigh nothing.
    bins = min(spectrum.shape[1] - (rate == 8000), _LAST_BIN + 1)
    mel = spectrum[:, :bins] @ mel_filters(num_mels)[:bins]
    logarithms: npt.NDArray[np.float64] = np.log(np.maximum(mel, 1.0))
    return logarithms


@lru_cache(maxsize=4)
def mel_filters(num_mels: int) -> npt.NDArray[np.float64]:
    """float64 [257, num_mels]: triangles of height 1, linear in mel(f) = 1127 ln(1 + f/700), over 0 to 7690
    Hz.
    """

    frequencies = np.linspace(0.0, 8000.0, _FFT_AT_16K // 2 + 1)
    mels = 1127.0 * np.log1p(frequencies / 700.0)
    step = 1127.0 * math.log1p(_MEL_TOP / 700.0) / (num_mels + 1)
    centres = step * np.arange(1, num_mels + 1)
    weights = np.maximum(1.0 - np.abs(mels[:, None] - centres) / step, 0.0)
    weights[0] = 0.0
    weights[_LAST_BIN + 1 :] = 0.0
    weights.flags.writeable = False  # cached and shared
    return weights


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
