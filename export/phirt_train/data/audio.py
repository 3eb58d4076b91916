"""Recordings for training as log-mel frames: decoded by the runtime's own processor, changed at random and
padded to batches.

Knows files, frames and augmentation. Knows nothing of records, tokens or models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from phirt.bundle.manifest import Limits
from phirt.encoders.phi4mm_audio import AudioConstants, mel_filters, process_audio
from phirt_train.data.augmentation import AudioAugmentation

Frames = NDArray[np.float16]
_CACHE_BYTES = 1 << 30  # two hours of recordings are 115 MB of frames
_FRAMES_A_SECOND = 100
_NYQUIST_BIN = 128  # of 257: what an 8 kHz recording cannot hold lies from here on


class FrameReader:
    """Log-mel frames of files, float16 [frames, mels]; what was read last is kept, up to a gigabyte."""

    def __init__(self, constants: AudioConstants, limits: Limits) -> None:
        self._constants, self._limits = constants, limits
        self._kept: OrderedDict[Path, Frames] = OrderedDict()
        self._bytes = 0

    def read(self, path: Path) -> Frames:
        """The frames of a file. Raises MediaError for what is no recording."""
        if path in self._kept:
            self._kept.move_to_end(path)
            return self._kept[path]
        frames = process_audio(path, self._constants, self._limits)[0].astype(np.float16)
        self._kept[path] = frames
        self._bytes += frames.nbytes
        while self._bytes > _CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return frames

    def count_frames(self, path: Path) -> int:
        """About how many frames a file has: by its header where that says so, else by decoding it."""
        try:
            seconds = soundfile.info(str(path)).duration
        except (soundfile.SoundFileError, RuntimeError, TypeError):  # a format that libsndfile does not know
            return len(self.read(path))
        # A header of unknown length says so by a number past all limits.
        is_known = seconds <= self._limits.audio_seconds
        return int(seconds * _FRAMES_A_SECOND) if is_known else len(self.read(path))


def augment_batch(
    clips: Sequence[Frames], change: AudioAugmentation, rng: np.random.Generator, fill: Tensor
) -> tuple[Tensor, Tensor]:
    """A padded batch of recordings, changed at random.

    Returns:
        float32 [B, T, mels], `fill` [mels] after each recording's end, and their frames, int64 [B]. Filled
        with the tower's mean frame, which normalises to zero as a convolution's own padding, a recording in a
        batch comes closest to the same one alone.
    """
    if change.edge_frames:
        clips = [_moved_edges(clip, change.edge_frames, rng) for clip in clips]
    n, longest = len(clips), max(len(clip) for clip in clips)
    x = torch.zeros(n, longest, clips[0].shape[1])
    for row, clip in zip(x, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip.astype(np.float32))
    lengths = torch.tensor([len(clip) for clip in clips])
    if change.speed or change.vocal_tract:
        speed = torch.from_numpy(np.exp(rng.uniform(-change.speed, change.speed, n))).float()
        stretch = torch.from_numpy(np.exp(rng.uniform(-change.vocal_tract, change.vocal_tract, n))).float()
        x, lengths = _resampled(x, lengths, speed, stretch)
    if change.gain:
        x = (x + torch.from_numpy(rng.normal(0, change.gain, (n, 1, 1))).float()).clamp(min=0)
    if change.noise:
        x = _with_noise(x, change.noise, rng)
    if change.narrowband:
        narrow = torch.from_numpy(rng.random(n) < change.narrowband)
        x[narrow, :, _first_wide_filter(x.shape[2]) :] = 0
    for _ in range(change.spec_augment):
        x = _masked(x, lengths, rng)
    inside = torch.arange(x.shape[1]) < lengths[:, None]
    return torch.where(inside[:, :, None], x, fill), lengths


def _with_noise(x: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Stationary noise of a random level over some of the recordings."""
    n = len(x)
    level = torch.from_numpy(rng.uniform(1, 6, (n, 1, 1)) * (rng.random((n, 1, 1)) < probability)).float()
    hiss = torch.from_numpy(rng.gumbel(0, 0.5, tuple(x.shape))).float() + level
    return torch.where(level > 0, torch.logaddexp(x, hiss.clamp(min=0)), x)


def _first_wide_filter(num_mels: int) -> int:
    """The first mel filter that an 8 kHz recording leaves empty."""
    heard = np.flatnonzero(mel_filters(num_mels)[:_NYQUIST_BIN].any(axis=0))
    return int(heard[-1]) + 1


def _masked(x: Tensor, lengths: Tensor, rng: np.random.Generator) -> Tensor:
    """One time mask of up to a tenth of each recording, and one frequency mask of up to 12 mel bins."""
    n, time, bins = x.shape
    begin = torch.from_numpy(rng.random(n)).float() * lengths
    width = torch.from_numpy(rng.random(n)).float() * (0.1 * lengths).clamp(max=20)
    frame = torch.arange(time)
    low = torch.from_numpy(rng.integers(0, max(1, bins - 6), n))
    high = low + torch.from_numpy(rng.integers(0, 13, n))
    mel = torch.arange(bins)
    in_time = (frame >= begin[:, None]) & (frame < (begin + width)[:, None])
    in_frequency = (mel >= low[:, None]) & (mel < high[:, None])
    return x.masked_fill(in_time[:, :, None] | in_frequency[:, None, :], 0.0)


def _moved_edges(clip: Frames, most: int, rng: np.random.Generator) -> Frames:
    """A recording that begins and ends up to `most` frames earlier or later; at most a quarter of it is cut,
    and the silence that is added has the level of its quietest frame.
    """
    begin, end = rng.integers(-most, most + 1, 2)
    cut = len(clip) // 8
    kept = clip[min(max(begin, 0), cut) : len(clip) - min(max(end, 0), cut)]
    quiet = clip[clip.sum(axis=1, dtype=np.float32).argmin()][None]
    return np.concatenate((quiet.repeat(max(-begin, 0), 0), kept, quiet.repeat(max(-end, 0), 0)))


def _resampled(x: Tensor, lengths: Tensor, speed: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
    """Time divided by `speed` and the mel axis by `stretch`, bilinear."""
    _, length, bins = x.shape
    lengths = (lengths / speed).floor().long().clamp(min=1)
    out_length = int(lengths.max())
    t = (torch.arange(out_length) + 0.5)[None, :] * speed[:, None] * (2 / length) - 1
    f = (torch.arange(bins) + 0.5)[None, :] * stretch[:, None] * (2 / bins) - 1
    grid = torch.stack(torch.broadcast_tensors(f[:, None, :], t[:, :, None]), dim=-1)
    return F.grid_sample(x[:, None], grid, padding_mode="border", align_corners=False)[:, 0], lengths
