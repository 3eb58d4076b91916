"""Rows of the decoder's width for the pictures and recordings of conversations, with gradients.

Knows the towers of the reference model and how media are read. Knows nothing of text or of what is learnt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phirt.bundle.manifest import Modality
from phirt.encoders.phi4mm_image import ImageConstants, ImageInputs
from phirt_export.narrow import narrow
from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.data.audio import FrameReader, augment_batch
from phirt_train.data.augmentation import (
    UNCHANGED_AUDIO,
    UNCHANGED_IMAGE,
    AudioAugmentation,
    ImageAugmentation,
)
from phirt_train.data.images import count_image_tokens, read_image
from phirt_train.frozen_media import FrozenPhotos, FrozenSounds


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
        self._counted: dict[Path, int] = {}
        self._views = views
        self._photos = self._sounds = None
        if config.photo is not None:
            self._photos = FrozenPhotos(model.photo_embed, images, context.cache, context.limits)
        if config.whisper is not None:
            self._sounds = FrozenSounds(model.sound_embed, audio, context.cache, context.limits)

    def count(self, path: Path, modality: Modality) -> int:
        """About how many rows a file becomes, by its header."""
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

    def images(self, paths: Sequence[Path], rng: np.random.Generator, *, is_training: bool) -> list[Tensor]:
        """Features [rows, hidden] of each picture."""
        if not paths:
            return []
        if self._photos is not None:
            views = [self._view(path, rng, is_training) for path in paths]
            return self._photos.rows(list(zip(paths, views, strict=True)))
        assert self._constants is not None
        inputs = []
        for path in paths:
            change = UNCHANGED_IMAGE if self._is_kept(path, is_training) else self._image_change
            inputs.append(read_image(path, self._constants, self._context.limits, change, rng))
        return image_features(self._model, inputs, self._context.device)

    def _is_kept(self, path: Path, is_training: bool) -> bool:
        return not is_training or any(path.resolve().is_relative_to(f) for f in self._unchanged)

    def _view(self, path: Path, rng: np.random.Generator, is_training: bool) -> int:
        return 0 if self._is_kept(path, is_training) else int(rng.integers(self._views))

    def audio(
        self, paths: Sequence[Path], projector: str, rng: np.random.Generator, *, is_training: bool
    ) -> list[Tensor]:
        """Features [rows, hidden] of each recording through a projector."""
        if not paths:
            return []
        if self._sounds is not None:
            views = [self._view(path, rng, is_training) for path in paths]
            return self._sounds.rows(list(zip(paths, views, strict=True)))
        assert self._reader is not None
        embed, device = self._model.audio_embed, self._context.device
        mean_frame = embed.encoder.encoder_embedding.global_mean.cpu()
        change = self._audio_change if is_training else UNCHANGED_AUDIO
        frames, lengths = augment_batch([self._reader.read(path) for path in paths], change, rng, mean_frame)
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
