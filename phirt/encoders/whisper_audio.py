"""Recordings as Whisper hears them: windows of 30 seconds, each a log-mel spectrogram of its own.

Knows numpy and the kind's constants. Knows nothing of files or sessions. The formulas are those of OpenAI's
`whisper/audio.py` and transformers' `WhisperFeatureExtractor`, with the mel scale of Slaney's Auditory
Toolbox.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Annotated, Literal

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
from phirt.encoders.recording import open_recording
from phirt.fields import Fields, Range, read_dataclass
from phirt.prompt.messages import Features, Inputs

_RATE, _FFT, _HOP = 16000, 400, 160
_WINDOW = 30 * _RATE
_FRAMES = _WINDOW // _HOP
_FLOOR = 1e-10


@dataclasses.dataclass(frozen=True)
class WhisperConstants:
    """Each window has `num_mels` x 3000 values; `frames_per_token` of its frames, 10 ms each, make one token.

    The last window is padded with silence. `padding` says whether the tokens of that are kept, as Whisper's
    own decoder expects them, or dropped, or never computed (`none`: the graph takes as many frames as a
    recording has tokens for).
    """

    num_mels: Annotated[int, Range(1, 512)]
    frames_per_token: Annotated[int, Range(1, _FRAMES)]
    padding: Literal["kept", "dropped", "none"] = "kept"

    @property
    def tokens_per_window(self) -> int:
        """Rows of features of 30 seconds."""
        return math.ceil(_FRAMES / self.frames_per_token)


class Encoder:
    """A graph that takes `input_features`, float32 [1, num_mels, 3000], or fewer frames where nothing is
    padded, and gives `audio_features`, one row a token; it is run once for every window.
    """

    def __init__(self, constants: Fields, graph: GraphSpec, hidden_size: int) -> None:
        self.constants = read_dataclass(WhisperConstants, constants)
        is_padded = self.constants.padding != "none"
        window = ("float32", (1, self.constants.num_mels, _FRAMES if is_padded else None))
        tokens = self.constants.tokens_per_window if is_padded else None
        output = ("audio_features", (tokens, hidden_size))
        require_tensors(graph, constants.where, {"input_features": window}, output)
        self._has_choice = any(tensor.name == "projector" for tensor in graph.inputs)
        self.inputs: InputSpecs = {
            "input_features": ("float32", (None, self.constants.num_mels, _FRAMES)),
            "num_tokens": ("int64", (1,)),
        }

    def prepare(self, source: AudioSource, limits: Limits, detail: ImageDetail) -> Prepared:
        """Decodes the recording."""
        recording = open_recording(source, limits, (_RATE,))
        samples, count = recording.samples, self._tokens(len(recording.samples))

        def make_inputs() -> Inputs:
            windows = [
                log_mel(samples[start : start + _WINDOW], self.constants.num_mels)
                for start in range(0, len(samples), _WINDOW)
            ]
            return {"input_features": np.stack(windows), "num_tokens": np.array([count], np.int64)}

        return Prepared(recording.key, count, make_inputs)

    def count(self, inputs: Inputs) -> int:
        """The rows of all windows, or as many of them as are no padding."""
        count, windows = int(inputs["num_tokens"][0]), len(inputs["input_features"])
        most = windows * self.constants.tokens_per_window
        least = most if self.constants.padding == "kept" else most - self.constants.tokens_per_window + 1
        if not windows or not least <= count <= most:
            raise ValueError(f"{windows} windows do not make {count} tokens")
        return count

    def run(self, graph: GraphRunner, inputs: Inputs, projector: int) -> Features:
        """float32 [tokens, hidden_size]; one window after the other, so that memory stays that of one."""
        choice = projector if self._has_choice else None
        windows, count = list(inputs["input_features"]), self.count(inputs)
        if self.constants.padding == "none":
            left = count - (len(windows) - 1) * self.constants.tokens_per_window
            windows[-1] = windows[-1][:, : left * self.constants.frames_per_token]
        rows = [first_output(graph, {"input_features": window[None]}, choice) for window in windows]
        return np.ascontiguousarray(np.concatenate(rows)[:count])

    def _tokens(self, num_samples: int) -> int:
        whole, rest = divmod(num_samples, _WINDOW)
        tokens = whole * self.constants.tokens_per_window
        if rest and self.constants.padding == "kept":
            tokens += self.constants.tokens_per_window
        elif rest:  # padding that is not computed makes no tokens either
            tokens += math.ceil(math.ceil(rest / _HOP) / self.constants.frames_per_token)
        return tokens


def log_mel(samples: Samples, num_mels: int, num_frames: int = _FRAMES) -> npt.NDArray[np.float32]:
    """float32 [num_mels, num_frames] of at most 30 seconds at 16 kHz, mono; silence fills the rest of the
    window. The first frames of a window are the same however many are asked for, where the recording ends
    before them.

    Frames of 25 ms every 10 ms around their middle, the ends mirrored; the last, which begins the next
    window, is left out. What is 80 dB below the loudest is raised to that.
    """
    padded = np.zeros(_WINDOW + _FFT, dtype=np.float64)
    middle = padded[_FFT // 2 : -_FFT // 2]
    middle[: len(samples)] = samples
    padded[: _FFT // 2] = middle[_FFT // 2 : 0 : -1]
    padded[-_FFT // 2 :] = middle[-2 : -_FFT // 2 - 2 : -1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[: num_frames * _HOP : _HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    levels = np.log10(np.maximum(power @ mel_filters(num_mels), _FLOOR)).T
    levels = np.maximum(levels, levels.max() - 8.0)
    return np.ascontiguousarray((levels + 4.0) / 4.0, dtype=np.float32)


@lru_cache(maxsize=4)
def mel_filters(num_mels: int) -> npt.NDArray[np.float64]:
    """float64 [201, num_mels]: triangles between neighbours on Slaney's scale up to 8000 Hz, of area 1."""
    edges = _frequency_of(np.linspace(0.0, _mel_of(_RATE / 2), num_mels + 2))
    bins = np.linspace(0.0, _RATE / 2, _FFT // 2 + 1)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    area = (edges[2:] - edges[:-2]) / 2.0
    weights: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) / area
    weights.flags.writeable = False  # cached and shared
    return weights


# Slaney's scale: linear up to 1000 Hz, which is 15 mel, then logarithmic, 27 mel for a factor of 6.4.
def _mel_of(frequency: float) -> float:
    if frequency < 1000.0:
        return frequency * 3.0 / 200.0
    return 15.0 + 27.0 * math.log(frequency / 1000.0) / math.log(6.4)


def _frequency_of(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp((mels - 15.0) * math.log(6.4) / 27.0))
