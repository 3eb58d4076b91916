"""Recordings for training as log-mel frames: computed once, warped and masked per batch with torch.

Knows the data package's speech folders, espeak-ng where it is installed, and the cache folder. Knows nothing
of prompts, tokens or models. Frames come from the runtime's own processor, so training and inference hear the
same.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from phirt.bundle.manifest import Limits
from phirt.encoders.phi4mm_audio import AudioConstants, process_audio
from phirt_train.context import TrainingContext
from phirt_train.data.records import read_media, read_records
from phirt_train.options import Warp

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT_SPEAKER = "fsdd5"  # in no training stage: what a digit score on a new speaker is measured with
NEW_SPEAKER = "new speaker"
VOICES = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# Ways of speaking that espeak-ng brings; a release that lacks one speaks in the plain voice.
VARIANTS = (
    "", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+m8", "+f1", "+f2", "+f3", "+f4", "+f5",
    "+Alex", "+Alicia", "+Andrea", "+Andy", "+Annie", "+Antonio", "+Auntie", "+Belinda", "+Benjamin",
    "+Boris", "+Caleb", "+David", "+Denis", "+Diogo", "+Ed", "+Edward", "+Gene", "+Henrique", "+Hugo",
    "+Jacky", "+John", "+Lee", "+Linda", "+Marcelo", "+Marco", "+Mario", "+Max", "+Michael", "+Michel",
    "+Mike", "+Pablo", "+Paul", "+Pedro", "+Rob", "+Robert", "+Steph", "+Zac", "+anika", "+grandma",
    "+grandpa", "+klatt", "+klatt2", "+klatt3", "+klatt4", "+norbert", "+sandro", "+shelby", "+travis",
    "+victor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Clips:
    """Recordings of one source.

    Attributes:
        frames: float16 [total, 80], the log-mel frames of all clips, one after another.
        starts: int64 [n + 1].
        records: one per clip: `text`, or `intent` and `slots`, and `speaker`.
    """

    frames: NDArray[np.float16]
    starts: NDArray[np.int64]
    records: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each clip."""
        return np.diff(self.starts)

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Indices of `count` clips drawn at random, shortest first."""
        pool = rng.integers(0, len(self), count)
        return pool[np.argsort(self.lengths[pool], kind="stable")]

    def select(self, keep: NDArray[np.bool_]) -> Clips:
        """The clips where `keep` [n] is true."""
        picks = np.flatnonzero(keep)
        pieces = [self.frames[self.starts[i] : self.starts[i + 1]] for i in picks]
        starts = np.concatenate(([0], np.cumsum(self.lengths[picks])))
        return Clips(np.concatenate(pieces), starts, tuple(self.records[i] for i in picks))


SPEC = AudioConstants(sample_rate=16000, num_mels=80, subsampling=8, window_tokens=500)
LIMITS = Limits(image_pixels=1, audio_seconds=60.0, media_bytes=1 << 26)


def _recordings(folder: Path, source: str, split: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    yield from read_media(folder / "speech", f"{source}.{split}")


def speak(text: str, voice: str, words_a_minute: int, pitch: int) -> bytes:
    """Speech of `text` made by espeak-ng, as a WAV file."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(words_a_minute), "-p", str(pitch), "--", text]
    done = subprocess.run(command, check=True, capture_output=True)
    # espeak-ng streams a WAV whose header declares no true length; the samples follow its 44 bytes.
    samples = np.frombuffer(done.stdout[44:], "<i2")
    wav = io.BytesIO()
    soundfile.write(wav, samples, int.from_bytes(done.stdout[24:28], "little"), "PCM_16", format="WAV")
    return wav.getvalue()


def _spoken(texts: Sequence[str], seed: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    rng = np.random.default_rng(seed)
    plans = [
        (text, VOICES[rng.integers(len(VOICES))] + VARIANTS[rng.integers(len(VARIANTS))],
         int(rng.integers(120, 190)), int(rng.integers(15, 85)))
        for text in texts
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        for (text, voice, _, _), wav in zip(plans, pool.map(lambda plan: speak(*plan), plans), strict=True):
            yield {"text": text, "speaker": voice}, wav


def plain_words(text: str) -> str:
    """Lower case, letters and apostrophes and single spaces: the form transcripts are learnt and scored
    in.
    """
    kept = "".join(c if c.isalpha() or c == "'" else " " for c in text.lower() if c.isascii())
    return " ".join(kept.split())


def _sentences(data: Path, count: int, seed: int) -> list[str]:
    """Short sentences from the training stories and requests."""
    found = []
    for record in read_records(data / "text/stories.train.jsonl.xz"):
        for page in record["pages"]:
            found += [part for part in page.replace("?", ".").replace("!", ".").split(".") if part]
    for record in read_records(data / "text/snips.train.jsonl.xz"):
        if record["text"].isascii():
            found.append(record["text"])
    sentences = sorted({plain_words(text) for text in found if not any(c.isdigit() for c in text)})
    sentences = [s for s in sentences if 2 <= len(s.split()) <= 10]
    rng = np.random.default_rng(seed)
    return [sentences[i] for i in rng.permutation(len(sentences))[:count]]


QUESTIONS = (
    "What is this?", "What is in the picture?", "What piece of clothing is this?", "Which product is this?",
    "What shape is this?", "How many shapes are there?", "What does it say?",
)  # fmt: skip


def _spoken_texts(name: str, options: Mapping[str, int], data: Path, seed: int) -> list[str]:
    if name == "spoken_digits":
        return [DIGITS[i % 10] for i in range(options[name])]
    if name == "spoken_questions":
        return [QUESTIONS[i % len(QUESTIONS)] for i in range(options[name])]
    return _sentences(data, options[name], seed)


def load_clips(name: str, split: str, context: TrainingContext, synthetic: Mapping[str, int]) -> Clips | None:
    """The clips of a source, from the cache when they are there.

    Args:
        name: a folder name of the data package, or a key of `synthetic`.
        split: "train" (without the speaker who is left out), "val", or NEW_SPEAKER (that speaker's clips
            alone).
        context: places and seed.
        synthetic: how many clips each synthesised source ("spoken_digits", "spoken_questions",
            "spoken_sentences") holds.

    Returns:
        The clips, or None for a synthesised source where espeak-ng is not installed.
    """
    context.cache.mkdir(parents=True, exist_ok=True)
    stored = "train" if split == NEW_SPEAKER else split
    made = f"-{synthetic[name]}" if name in synthetic else ""
    path = context.cache / f"{name}{made}.{stored}.mel.npz"
    if not path.is_file():
        if name in synthetic and shutil.which("espeak-ng") is None:
            return None
        found = (
            _spoken(_spoken_texts(name, synthetic, context.data, context.seed), context.seed)
            if name in synthetic
            else _recordings(context.data, name, stored)
        )
        records, frames = [], []
        for record, recording in found:
            mel, _ = process_audio(recording, SPEC, LIMITS)
            frames.append(mel.astype(np.float16))
            records.append(record)
        staging = path.with_suffix(".partial.npz")
        starts = np.concatenate(([0], np.cumsum([len(mel) for mel in frames])))
        np.savez(staging, frames=np.concatenate(frames), starts=starts, records=np.array(json.dumps(records)))
        staging.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        clips = Clips(arrays["frames"], arrays["starts"], tuple(json.loads(str(arrays["records"]))))
    left_out = np.array([record.get("speaker") == HELD_OUT_SPEAKER for record in clips.records])
    if split == NEW_SPEAKER:
        return clips.select(left_out)
    return clips.select(~left_out) if left_out.any() else clips


NO_SPEAKER = "its clips cannot be made, because espeak-ng is not installed; install it or name recordings"
STILL = Warp()
FOUR_KHZ_BIN = 62  # first of the 80 mel filters that an 8 kHz recording leaves empty


def warp_batch(
    clips: Sequence[NDArray[np.float16]], warp: Warp, rng: np.random.Generator, fill: Tensor
) -> tuple[Tensor, Tensor]:
    """A padded batch of clips, changed at random.

    Returns:
        float32 [B, T, 80], `fill` [80] after each clip's end, and the clips' frames, int64 [B]. Filled with
        the tower's mean frame, which normalises to zero as a convolution's own padding, a clip in a batch
        comes closest to the same clip alone.
    """
    if warp.edges:
        clips = [_edges(clip, warp.edges, rng) for clip in clips]
    n, longest = len(clips), max(len(clip) for clip in clips)
    x = torch.zeros(n, longest, clips[0].shape[1])
    for row, clip in zip(x, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip.astype(np.float32))
    frames = torch.tensor([len(clip) for clip in clips])
    if warp.speed or warp.mel:
        speed = torch.from_numpy(np.exp(rng.uniform(-warp.speed, warp.speed, n))).float()
        stretch = torch.from_numpy(np.exp(rng.uniform(-warp.mel, warp.mel, n))).float()
        x, frames = _resample(x, frames, speed, stretch)
    if warp.gain:
        x = (x + torch.from_numpy(rng.normal(0, warp.gain, (n, 1, 1))).float()).clamp(min=0)
    if warp.noise:
        level = torch.from_numpy(rng.uniform(1, 6, (n, 1, 1)) * (rng.random((n, 1, 1)) < warp.noise)).float()
        hiss = torch.from_numpy(rng.gumbel(0, 0.5, tuple(x.shape))).float() + level
        x = torch.where(level > 0, torch.logaddexp(x, hiss.clamp(min=0)), x)
    if warp.narrow:
        narrow = torch.from_numpy(rng.random(n) < warp.narrow)
        x[narrow, :, FOUR_KHZ_BIN:] = 0
    line = torch.arange(x.shape[1])
    for _ in range(warp.masks):
        begin = torch.from_numpy(rng.random(n)).float() * frames
        width = torch.from_numpy(rng.random(n)).float() * (0.1 * frames).clamp(max=20)
        x[(line >= begin[:, None]) & (line < (begin + width)[:, None])] = 0
        low = torch.from_numpy(rng.integers(0, 74, n))
        high = low + torch.from_numpy(rng.integers(0, 13, n))
        bins = torch.arange(x.shape[2])
        x = x.masked_fill(((bins >= low[:, None]) & (bins < high[:, None]))[:, None, :], 0.0)
    return torch.where((line < frames[:, None])[:, :, None], x, fill), frames


def _edges(clip: NDArray[np.float16], most: int, rng: np.random.Generator) -> NDArray[np.float16]:
    """A clip that begins and ends up to `most` frames earlier or later; at most a quarter of it is cut, and
    the silence that is added has the level of its quietest frame.
    """
    begin, end = rng.integers(-most, most + 1, 2)
    cut = len(clip) // 8
    kept = clip[min(max(begin, 0), cut) : len(clip) - min(max(end, 0), cut)]
    quiet = clip[clip.sum(axis=1, dtype=np.float32).argmin()][None]
    return np.concatenate((quiet.repeat(max(-begin, 0), 0), kept, quiet.repeat(max(-end, 0), 0)))


def _resample(x: Tensor, frames: Tensor, speed: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
    """Time divided by `speed` and the mel axis by `stretch`, bilinear."""
    _, length, bins = x.shape
    frames = (frames / speed).floor().long().clamp(min=1)
    out_length = int(frames.max())
    t = (torch.arange(out_length) + 0.5)[None, :] * speed[:, None] * (2 / length) - 1
    f = (torch.arange(bins) + 0.5)[None, :] * stretch[:, None] * (2 / bins) - 1
    grid = torch.stack(torch.broadcast_tensors(f[:, None, :], t[:, :, None]), dim=-1)
    return F.grid_sample(x[:, None], grid, padding_mode="border", align_corners=False)[:, 0], frames
