"""Images, recordings and adapters for transformers' Phi-4-multimodal, and for a bundle's encoders."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_models import session
from three_ways import Media, ThreeWays

from phirt_export.reference.vision import position_buckets

GRID = 32
# Ids of a prompt's text around its media.
BEFORE, AFTER = [355, 12, 40], [7, 99, 310, 356, 354]


def fused(base, adapter):
    """A copy of transformers' model with base + 2 · B·A, the published scale."""
    model = copy.deepcopy(base)
    state = load_file(adapter / "adapter_model.safetensors")
    for name, a in state.items():
        if name.endswith("lora_A.weight"):
            b = state[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            with torch.no_grad():
                model.get_parameter(target).add_(2.0 * b.float() @ a.float())
    return model


class Image:
    """Random crops of an image of h x w crops, of which the last patch rows or columns may be padding."""

    def __init__(self, h: int, w: int, bottom: int = 0, right: int = 0, seed: int = 0) -> None:
        valid = np.ones((h * GRID, w * GRID), bool)
        valid[h * GRID - bottom :] = False
        valid[:, w * GRID - right :] = False
        crops = valid.reshape(h, GRID, w, GRID).transpose(0, 2, 1, 3).reshape(h * w, GRID, GRID)
        self.grid = (h, w)
        self.mask = torch.from_numpy(np.concatenate([np.ones((1, GRID, GRID), bool), crops]))
        self.features = (int(valid[::2, 0].sum()), int(valid[0, ::2].sum()))
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.rand((1 + h * w, 3, 448, 448), generator=generator) * 2 - 1

    def media(self, ways: ThreeWays) -> Media:
        """Feature rows of the reference and of the bundle's encoder."""
        feeds = {
            "pixel_values": self.pixels.numpy(),
            "patch_mask": self.mask.flatten(1).numpy(),
            "position_ids": position_buckets(self.mask, GRID).flatten(1).numpy().astype(np.int64),
            "crop_grid": np.array(self.grid, np.int64),
            "feature_grid": np.array(self.features, np.int64),
        }
        (rows,) = session(ways.bundle / "vision.onnx").run(None, feeds)
        with torch.no_grad():
            expected = ways.reference.image_embed(self.pixels, self.mask, self.grid, self.features).numpy()
        u, v = self.features
        assert rows.shape[0] == u * v + u + 1 + 256 + 16
        return Media(ways.reference.config.tokens.image, expected, rows)


def published_images(*images: Image) -> dict[str, torch.Tensor]:
    """Inputs of transformers: images padded to equally many crops by zeros under masks of ones."""
    most = max(len(image.pixels) for image in images)
    missing = [most - len(image.pixels) for image in images]
    return {
        "image_pixel_values": torch.stack(
            [F.pad(image.pixels, (0, 0) * 3 + (0, n)) for image, n in zip(images, missing, strict=True)]
        ),
        "image_attention_mask": torch.stack(
            [
                F.pad(image.mask, (0, 0) * 2 + (0, n), value=True)
                for image, n in zip(images, missing, strict=True)
            ]
        ),
        "image_sizes": torch.tensor([[448 * side for side in image.grid] for image in images]),
    }


class Clip:
    """Random log-mel frames of one recording."""

    def __init__(self, frames: int) -> None:
        self.frames = torch.randn((1, frames, 80), generator=torch.Generator().manual_seed(frames)) * 2
        self.tokens = -(-frames // 8)

    def media(self, ways: ThreeWays, projector: str) -> Media:
        """Feature rows of the reference and of the bundle's encoder."""
        feeds = {
            "audio_embeds": self.frames.numpy(),
            "projector": np.array([projector == "vision"], np.int64),
        }
        (rows,) = session(ways.bundle / "speech.onnx").run(None, feeds)
        with torch.no_grad():
            expected = ways.reference.audio_embed(self.frames, projector)[0].numpy()
        assert rows.shape[0] == self.tokens
        return Media(ways.reference.config.tokens.audio, expected, rows)

    def published(self) -> dict[str, torch.Tensor]:
        """Inputs of transformers: one clip, unpadded, without a mask."""
        return {"audio_input_features": self.frames, "audio_embed_sizes": torch.tensor([self.tokens])}
