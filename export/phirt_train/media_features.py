"""Rows of the decoder's width for the pictures and recordings of conversations, with gradients.

Knows the towers of the reference model and how media are read. Knows nothing of text or of what is learnt.
Reading and changing media is work of the CPU, apart from encoding them: it can be done ahead of a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from phirt.bundle.manifest import Modality
from phirt.encoders.phi4mm_image import ImageConstants, ImageInputs
from phirt_export.narrow import narrow
from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.data.audio import FrameReader, Frames, augment_batch
from phirt_train.data.augmentation import (
    UNCHANGED_AUDIO,
    UNCHANGED_IMAGE,
    AudioAugmentation,
    ImageAugmentation,
)
from phirt_train.data.images import count_image_tokens, read_image
from phirt_train.frozen_media import FrozenPhotos, FrozenSounds, View

Opened = ImageInputs | Frames | View


class MediaInputs(NamedTuple):
    """Media as towers take them: the modality of each in order, and those of each kind together.

    `frames` are [B, T, mels] with the frames of each recording [B], None without any; photos and sounds are
    views of files whose encoder stays frozen.
    """

    modalities: tuple[Modality, ...]
    pictures: Sequence[ImageInputs] = ()
    frames: tuple[Tensor, Tensor] | None = None
    photos: Sequence[View] = ()
    sounds: Sequence[View] = ()


class MediaFeatures:
    """Reads media, changes them at random and encodes them.

    Args:
        max_crops: most crops of a picture beside its global view; None for as many as the model takes.
        images, audio: the random changes.
        unchanged: folders whose pictures are not changed.
        views: of towers whose encoder stays frozen, how many changed views of each file are kept, the file
            itself among them.
    """

    def __init__(
        self,
        model: Model,
        context: TrainingContext,
        max_crops: int | None = None,
        images: ImageAugmentation = UNCHANGED_IMAGE,
        audio: AudioAugmentation = UNCHANGED_AUDIO,
        unchanged: Sequence[str] = (),
        views: int = 1,
    ) -> None:
        self._model, self._context = model, context
        self._image_change, self._audio_change = images, audio
        self._unchanged = [context.path(folder).resolve() for folder in unchanged]
        config = model.config
        self._constants = None if config.vision is None else narrow(ImageConstants, config.vision)
        if self._constants is not None and max_crops is not None:
            crops = min(max_crops, self._constants.max_crops)
            self._constants = dataclasses.replace(self._constants, max_crops=crops)
        self._reader = None if config.audio is None else FrameReader(config.audio, context.limits)
        self._mean_frame = None
        if config.audio is not None:  # fetched here: who makes batches has no device
            self._mean_frame = model.audio_embed.encoder.encoder_embedding.global_mean.cpu()
        self._counted: dict[Path, int] = {}
        self._views = views
        self._photos = self._sounds = None
        if config.photo is not None:
            self._photos = FrozenPhotos(model.photo_embed, images, context.cache, context.limits)
        if config.whisper is not None:
            self._sounds = FrozenSounds(model.sound_embed, audio, context.cache, context.limits)

    def count(self, path: Path, modality: Modality) -> int:
        """About how many rows a file becomes, by its header. Raises MediaError for what is none."""
        if path not in self._counted:
            self._counted[path] = self._count(path, modality)
        return self._counted[path]

    def _count(self, path: Path, modality: Modality) -> int:
        if modality == "image" and self._photos is not None:
            return self._photos.num_tokens
        if modality == "audio" and self._sounds is not None:
            return self._sounds.count(path)
        if modality == "image":
            assert self._constants is not None
            return count_image_tokens(path, self._constants, self._context.limits)
        assert self._reader is not None
        return -(-self._reader.count_frames(path) // self._model.audio_embed.config.subsampling)

    def open(self, path: Path, modality: Modality, rng: np.random.Generator, *, is_training: bool) -> Opened:
        """One file as a tower takes it; recordings are changed later, together. Raises MediaError for what is
        no picture or recording.
        """
        frozen = self._photos if modality == "image" else self._sounds
        if frozen is not None:
            view = path, 0 if self._is_kept(path, is_training) else int(rng.integers(self._views))
            frozen.check(*view)
            return view
        if modality == "audio":
            assert self._reader is not None
            return self._reader.read(path)
        assert self._constants is not None
        change = UNCHANGED_IMAGE if self._is_kept(path, is_training) else self._image_change
        return read_image(path, self._constants, self._context.limits, change, rng)

    def _is_kept(self, path: Path, is_training: bool) -> bool:
        return not is_training or any(path.resolve().is_relative_to(f) for f in self._unchanged)

    def batch(
        self, opened: Sequence[tuple[Modality, Opened]], rng: np.random.Generator, *, is_training: bool
    ) -> MediaInputs:
        """Opened files as one batch; recordings that are learnt from are changed at random."""
        clips = [one for _, one in opened if isinstance(one, np.ndarray)]
        frames = None
        if clips:
            assert self._mean_frame is not None
            change = self._audio_change if is_training else UNCHANGED_AUDIO
            frames = augment_batch(clips, change, rng, self._mean_frame)
        return MediaInputs(
            tuple(modality for modality, _ in opened),
            [one for _, one in opened if isinstance(one, ImageInputs)],
            frames,
            [one for modality, one in opened if isinstance(one, tuple) and modality == "image"],
            [one for modality, one in opened if isinstance(one, tuple) and modality == "audio"],
        )

    def encode(self, inputs: MediaInputs, projector: str) -> list[Tensor]:
        """Features [rows, hidden] of each of the media, in order; recordings go through a projector."""
        images: list[Tensor] = []
        audio: list[Tensor] = []
        if inputs.photos:
            assert self._photos is not None
            images = self._photos.rows(inputs.photos)
        if inputs.pictures:
            images = image_features(self._model, inputs.pictures, self._context.device)
        if inputs.sounds:
            assert self._sounds is not None
            audio = self._sounds.rows(inputs.sounds)
        if inputs.frames is not None:
            audio = self._heard(*inputs.frames, projector)
        rows = {"image": iter(images), "audio": iter(audio)}
        return [next(rows[modality]) for modality in inputs.modalities]

    def _heard(self, frames: Tensor, lengths: Tensor, projector: str) -> list[Tensor]:
        embed, device = self._model.audio_embed, self._context.device
        rows = embed(frames.to(device), projector, lengths.to(device))
        tokens = -(-lengths // embed.config.subsampling)
        return [row[:count] for row, count in zip(rows, tokens.tolist(), strict=True)]


def image_features(model: Model, inputs: Sequence[ImageInputs], device: torch.device) -> list[Tensor]:
    """Features [rows, hidden] of each picture, as the exported graph gives them."""
    embed = model.image_embed
    # Of a picture with one crop the global view is that crop, pixel by pixel: it is embedded once.
    views = [one.pixel_values[: 1 if len(one.pixel_values) == 2 else None] for one in inputs]
    firsts = np.cumsum([0, *(len(view) for view in views)])
    places = np.concatenate(
        [np.minimum(np.arange(len(one.pixel_values)), len(view) - 1) + first
         for one, view, first in zip(inputs, views, firsts[:-1], strict=True)]
    )  # fmt: skip
    pixels = torch.from_numpy(np.concatenate(views)).contiguous(memory_format=torch.channels_last)
    side = embed.config.grid
    masks = torch.from_numpy(np.concatenate([one.patch_mask for one in inputs])).view(-1, side, side)
    patches = embed.img_processor.embeddings(pixels.to(device))
    pooled = embed.img_processor.encode(patches[torch.from_numpy(places).to(device)], masks.to(device))
    rows, begin = [], 0
    for one in inputs:
        (h, w), (u, v) = one.crop_grid.tolist(), one.feature_grid.tolist()
        rows.append(embed.assemble(pooled[begin : begin + 1 + h * w], (h, w), (u, v)))
        begin += 1 + h * w
    joined: Tensor = embed.img_projection(torch.cat(rows))
    return list(joined.split([len(part) for part in rows]))
