"""Pictures and recordings as the frozen part of a tower hears and sees them, each computed once and kept.

Knows files, views and the towers of photos and of Whisper. Knows nothing of text or of what is learnt. A view
is a file changed at random: the first is the file itself, the others are functions of its name and their
number, so that they can be kept.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from phirt.bundle.manifest import Limits
from phirt.encoders.fixed_image import process
from phirt.encoders.image_file import decode_picture, open_image
from phirt.encoders.recording import open_recording
from phirt.encoders.whisper_audio import log_mel
from phirt_export.encoders import photo_constants
from phirt_export.precision import autocast, product_type
from phirt_export.reference.efficientnet import PhotoEmbed
from phirt_export.reference.whisper import MEL_FRAMES, SoundEmbed
from phirt_train.data.augmentation import AudioAugmentation, ImageAugmentation
from phirt_train.data.images import augment_image
from phirt_train.data.waveforms import augment_samples
from phirt_train.feature_store import Features, FeatureStore

RATE, HOP = 16000, 160
_WINDOW = 30 * RATE
_PICTURES_AT_ONCE = 8
Note = Callable[[int], None]
View = tuple[Path, int]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def inside(lengths: Tensor, batch: Tensor) -> Tensor:
    """bool [B, rows]: True before each recording's end."""
    return torch.arange(batch.shape[1], device=batch.device) < lengths.to(batch.device)[:, None]


def _random(path: Path, view: int) -> np.random.Generator:
    return np.random.default_rng((zlib.crc32("/".join(path.parts[-2:]).encode()), view))


def _name(path: Path, view: int, change: object) -> str:
    """A view's name: the file's folder, name, size and time, and the change that all views after the first
    have.
    """
    facts = path.stat()
    made = f"{'/'.join(path.parts[-2:])}:{facts.st_size}:{facts.st_mtime_ns}"
    return made if view == 0 else f"{made}#{view}:{change!r}"


def store_of(cache: Path, module: nn.Module) -> FeatureStore:
    """The store of what a frozen module with these weights makes."""
    digest = hashlib.sha256(f"{module} in {product_type(_device(module))}".encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    # One process writes a store: those that train together have one each.
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return FeatureStore(cache / (f"frozen-{digest.hexdigest()[:16]}" + (f"-{rank}" if rank else "")))


class FrozenPhotos:
    """What the trunk of a photo tower sees: float16 [windows + 1, channels] of a view of a file. A file
    `.npy` is taken as such an array itself.
    """

    def __init__(self, embed: PhotoEmbed, change: ImageAugmentation, cache: Path, limits: Limits) -> None:
        self._embed, self._change, self._limits = embed, change, limits
        self._constants = photo_constants(embed.config)
        self._store = store_of(cache, embed.trunk)
        self._read: dict[Path, Features] = {}

    def read(self, path: Path, view: int) -> Features:
        """Of one view."""
        if path.suffix == ".npy":
            if path not in self._read:
                self._read[path] = np.load(path, mmap_mode="r", allow_pickle=False)
            return np.asarray(self._read[path])
        name = _name(path, view, self._change)
        if name not in self._store:
            self.prepare([(path, view)])
        return self._store.read(name)

    def check(self, path: Path, view: int) -> None:
        """Raises MediaError where a view is not kept and cannot be made."""
        if path.suffix != ".npy" and _name(path, view, self._change) not in self._store:
            self._pixels(path, view)

    @property
    def num_tokens(self) -> int:
        """Rows of every picture."""
        return self._embed.config.num_tokens

    def batch(self, wanted: Sequence[View]) -> Tensor:
        """Views, float32 [B, windows + 1, channels], on the device of the tower."""
        self.prepare(wanted)
        seen = torch.from_numpy(np.stack([self.read(path, view) for path, view in wanted]))
        return seen.to(_device(self._embed)).float()

    def rows(self, wanted: Sequence[View]) -> list[Tensor]:
        """Rows [tokens, hidden] of each view, with the projector's gradients."""
        return list(self._embed.project(self.batch(wanted)))

    def prepare(self, wanted: Sequence[View], note: Note = lambda _: None) -> None:
        """Compute the views that are not kept yet."""
        missing = [
            (path, view)
            for path, view in wanted
            if path.suffix != ".npy" and _name(path, view, self._change) not in self._store
        ]
        for begin in range(0, len(missing), _PICTURES_AT_ONCE):
            note(len(missing) - begin)
            some = missing[begin : begin + _PICTURES_AT_ONCE]
            pixels = torch.from_numpy(np.stack([self._pixels(path, view) for path, view in some]))
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            device = _device(self._embed)
            with torch.no_grad(), autocast(device):
                seen = self._embed.look(pixels.to(device)).half().cpu().numpy()
            for (path, view), array in zip(some, seen, strict=True):
                name = _name(path, view, self._change)
                if name not in self._store:  # a file may be named twice
                    self._store.write(name, array)

    def _pixels(self, path: Path, view: int) -> NDArray[np.float32]:
        opened, _, name = open_image(path, self._limits)
        picture = decode_picture(opened, name)
        if view:
            picture = augment_image(picture, self._change, _random(path, view))
        return process(picture, self._constants)


class FrozenSounds:
    """What the encoder of a Whisper tower hears: float16 [rows, stacked · width] of a view of a file."""

    def __init__(self, embed: SoundEmbed, change: AudioAugmentation, cache: Path, limits: Limits) -> None:
        self._embed, self._change, self._limits = embed, change, limits
        self._row = embed.config.stacked * MEL_FRAMES  # mel frames
        self._store = store_of(cache, embed.encoder)

    def read(self, path: Path, view: int) -> Features:
        """Of one view."""
        name = _name(path, view, self._change)
        if name not in self._store:
            self.prepare([(path, view)])
        return self._store.read(name)

    def check(self, path: Path, view: int) -> None:
        """Raises MediaError where a view is not kept and cannot be made."""
        if _name(path, view, self._change) not in self._store:
            open_recording(path, self._limits, (RATE,))

    def count(self, path: Path) -> int:
        """About how many rows a file makes, by its header."""
        frames = math.ceil(float(soundfile.info(str(path)).duration) * RATE / HOP)
        return math.ceil(frames / self._row)

    def batch(self, wanted: Sequence[View]) -> tuple[Tensor, Tensor]:
        """Views, float32 [B, rows, width], zeros behind the shorter ones, and the rows of each, int64 [B]."""
        parts = [torch.from_numpy(self.read(path, view).copy()).float() for path, view in wanted]
        lengths = torch.tensor([len(part) for part in parts])
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return padded.to(_device(self._embed)), lengths

    def rows(self, wanted: Sequence[View]) -> list[Tensor]:
        """Rows [rows, hidden] of each view, with the projector's gradients."""
        stacked, lengths = self.batch(wanted)
        rows = self._embed.project(stacked, inside(lengths, stacked))
        return [row[:count] for row, count in zip(rows, lengths.tolist(), strict=True)]

    def prepare(self, wanted: Sequence[View], note: Note = lambda _: None) -> None:
        """Compute the views that are not kept yet."""
        for number, (path, view) in enumerate(wanted):
            name = _name(path, view, self._change)
            if name not in self._store:
                note(len(wanted) - number)
                self._store.write(name, self._heard(path, view))

    def _heard(self, path: Path, view: int) -> Features:
        samples = open_recording(path, self._limits, (RATE,)).samples
        if view:
            samples = augment_samples(samples, self._change, _random(path, view))
        parts = []
        for begin in range(0, len(samples), _WINDOW):
            piece = samples[begin : begin + _WINDOW]
            frames = math.ceil(math.ceil(len(piece) / HOP) / self._row) * self._row
            mels = log_mel(piece, self._embed.config.num_mels, frames)
            device = _device(self._embed)
            with torch.no_grad(), autocast(device):
                heard = self._embed.hear(torch.from_numpy(mels[None]).to(device))
            parts.append(heard[0].half().cpu().numpy())
        return np.concatenate(parts)
