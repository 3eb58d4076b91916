"""Recordings as Phi-4-multimodal hears them: log-mel frames with pre-emphasis, one token for every 80 ms.

Knows numpy and the kind's constants. Knows nothing of files or sessions. Formulas are those of the
model's published feature extractor (`processing_phi4mm.py` beside its weights) and of transformers'
`Phi4MultimodalFeatureExtractor`.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Annotated

import numpy as np
import numpy.typing as npt

from phirt.bundle.manifest import GraphSpec, Limits
from phirt.encoders.audio_file import AudioSource, Samples
from phirt.encoders.encoder import (
    GraphRunner,
    ImageDetail,
    InputSpecs,
    Prepared,
    first_output,
    require_tensors,
)
from phirt.encoders.recording import Recording, open_recording
from phirt.errors import MediaError
from phirt.fields import Fields, Range, read_dataclass
from phirt.prompt.messages import Features, Inputs

_RATES = (16000, 8000)  # 8 kHz has a formula of its own
_FFT_AT_16K = 512
_MEL_TOP = 7690.0  # Hz
_FRAMES_AT_ONCE = 512  # bounds the memory of half an hour's frames, and keeps them in the processor's cache
_LAST_BIN = 245  # the original leaves out bin 246, though its triangle would still touch it


@dataclasses.dataclass(frozen=True)
class AudioConstants:
    """`sample_rate` in Hz, to which the log-mel formula is tied; `subsampling` frames of 10 ms make a token.

    `window_tokens` is how many tokens attend to each other inside of the graph.
    """

    sample_rate: Annotated[int, Range(16000, 16000)]
    num_mels: Annotated[int, Range(1, 512)]
    subsampling: Annotated[int, Range(1, 64)]
    window_tokens: Annotated[int, Range(1, 1 << 16)]


class Encoder:
    """A graph that takes `audio_embeds`, float32 [1, frames, num_mels], and gives `audio_features`."""

    def __init__(self, constants: Fields, graph: GraphSpec, hidden_size: int) -> None:
        self.constants = read_dataclass(AudioConstants, constants)
        self._has_choice = any(tensor.name == "projector" for tensor in graph.inputs)
        self.inputs: InputSpecs = {"audio_embeds": ("float32", (1, None, self.constants.num_mels))}
        require_tensors(graph, constants.where, self.inputs, ("audio_features", (None, hidden_size)))

    def prepare(self, source: AudioSource, limits: Limits, detail: ImageDetail) -> Prepared:
        """Decodes the recording."""
        return prepare_audio(source, self.constants, limits)

    def count(self, inputs: Inputs) -> int:
        """The rows that the graph makes of one recording's frames."""
        return count_tokens(inputs["audio_embeds"].shape[1], self.constants)

    def run(self, graph: GraphRunner, inputs: Inputs, projector: int) -> Features:
        """float32 [tokens, hidden_size]."""
        return first_output(graph, inputs, projector if self._has_choice else None)


def prepare_audio(source: AudioSource, constants: AudioConstants, limits: Limits) -> Prepared:
    """A recording, decoded. Raises MediaError for what cannot be read, is damaged, silent, too short or
    longer than the limit.
    """
    recording = open_recording(source, limits, _RATES)
    window = recording.rate // 40
    if len(recording.samples) < window:
        raise MediaError(
            f"{recording.name} has {len(recording.samples)} samples at {recording.rate} Hz; at least "
            f"{window} are needed (25 ms)"
        )
    return Prepared(
        recording.key,
        count_tokens(count_frames(recording), constants),
        lambda: {"audio_embeds": log_mel(recording.samples, recording.rate, constants.num_mels)[None]},
    )


def process_audio(
    source: AudioSource, constants: AudioConstants, limits: Limits
) -> tuple[npt.NDArray[np.float32], str]:
    """Log-mel frames float32 [frames, num_mels] of a recording, and a key that names its content. Raises as
    `prepare_audio`.
    """
    prepared = prepare_audio(source, constants, limits)
    return prepared.make_inputs()["audio_embeds"][0], prepared.key


def count_frames(recording: Recording) -> int:
    """Frames of 25 ms every 10 ms that fit into the recording."""
    return (len(recording.samples) - recording.rate // 40) // (recording.rate // 100) + 1


def count_tokens(frames: int, spec: AudioConstants) -> int:
    """Placeholders for `frames` log-mel frames."""
    return -(-frames // spec.subsampling)


def log_mel(samples: Samples, rate: int, num_mels: int) -> npt.NDArray[np.float32]:
    """float32 [frames, num_mels] from mono samples at 16 or 8 kHz.

    Frames of 25 ms every 10 ms, not centred, the tail dropped: (len - window) // hop + 1 of them.
    Pre-emphasis works within each frame. At 8 kHz the upper half of the spectrum is zero ("fillzero").
    """
    assert rate in _RATES
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
