"""From a recording to the speech graph's input: resampling and log-mel frames.

Knows soxr and numpy. Knows nothing of files or sessions. Formulas are those of Phi-4-multimodal's feature
extractor.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import soxr

from phirt.bundle.manifest import AudioSpec, Limits
from phirt.encoders.audio_file import AudioSource, check_samples, decode
from phirt.encoders.source import content_key, read_source
from phirt.errors import MediaError
from phirt.runtime.native_calls import native_calls

Samples = npt.NDArray[np.float32]

_FFT_AT_16K = 512
_MEL_TOP = 7690.0  # Hz
_FRAMES_AT_ONCE = 512  # bounds the memory of half an hour's frames, and keeps them in the processor's cache
_LAST_BIN = 245  # the original leaves out bin 246, though its triangle would still touch it


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
        with native_calls:
            samples = soxr.resample(samples, rate, spec.sample_rate, quality="HQ")
        samples = np.asarray(samples, dtype=np.float32)
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
